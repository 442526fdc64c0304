"""ARCHITECTURE.md's picture of rooms and arrows, drawn from the imports that are there:  python docs/draw_rooms.py

Writes docs/images/rooms.svg, the same bytes for the same imports; a test draws it again and compares.
An arrow leads from a room to who uses it.  Arrows that follow from others are left out (transitive reduction).
"""

from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "images" / "rooms.svg"
SAID = {
    "sparc_ref.data": "images, captions, tokens", "sparc_ref.backend": "numpy or cupy",
    "sparc_ref.evaluate": "arrays to numbers",
    "sparc_ref.ops": "y, back = op(x)", "sparc_ref.optim": "AdamW, schedule", "sparc_ref.alignment": "eqs. 2-5",
    "sparc_ref.losses": "eqs. 1, 6", "sparc_ref.encoders": "both towers", "sparc_ref.model": "eq. 7, all gradients",
    "sparc_ref.objectives": "CLIP, FILIP, ...", "sparc_ref.cost": "FLOPs, memory",
    "sparc_ref.run": "trains and remembers", "sparc_ref.show": "figures, pages", "sparc_ref.commands": "sparc-ref",
    "parity.oracle": "torch autograd", "parity.oracle_objectives": "of the objectives",
    "parity.trainer": "the ladder loads it", "parity.vectors": "frozen outputs, budgets",
    "parity.ladder": "reference = trainer?", "parity.counted": "FLOPs of a real step", "parity.checker.probes": "the questions",
    "parity.checker.calling": "how is it called?",
    "parity.checker.diagnosis": "what does it compute?", "parity.checker.page": "what is said", "parity.checker": "the verdict",
    "parity.commands": "python -m parity",
}  # fmt: skip
HEADS = {"sparc_ref": "sparc_ref: the method, then what runs it",
         "parity": "parity: the proof; imports sparc_ref, never back"}
COLUMNS = {"data": 0, "encoders": 2, "evaluate": 2, "cost": 2, "objectives": 3, "optim": 4, "oracle": 0, "oracle_objectives": 0,
           "vectors": 0, "ladder": 0, "trainer": 1, "counted": 1}
SPINE = {"sparc_ref": 1, "parity": 2}                     # the column of all others
TOP = ("sparc_ref.data", "sparc_ref.backend", "parity.oracle", "parity.checker.probes")
WIDTH, HEIGHT, GAP, ROW = 146, 40, 24, 74


def arrows() -> set[tuple[str, str]]:
    """(used, user) for every pair of rooms between which an import stands."""
    graph = grimp.build_graph("sparc_ref", "parity", cache_dir=None, exclude_type_checking_imports=True)
    found = set()
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            user, used = room(module), room(other)
            if user and used and user != used:
                found.add((used, user))
    return found


def room(module: str) -> str | None:
    """The room that a module lives in; "sparc_ref" for what the package itself offers; None for __main__."""
    if module.endswith("__main__") or module == "parity":
        return None
    return max((r for r in (*SAID, "sparc_ref") if module == r or module.startswith(f"{r}.")), key=len, default=None)


def reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without the arrows that a longer way replaces."""
    after: dict[str, set[str]] = {}
    for a, b in edges:
        after.setdefault(a, set()).add(b)

    def reach(a, seen):
        for b in after.get(a, ()):
            if b not in seen:
                seen.add(b)
                reach(b, seen)
        return seen

    return {(a, b) for a, b in edges if not any(b in reach(c, set()) for c in after[a] - {b})}


def floors(edges: set[tuple[str, str]], rooms: list[str]) -> dict[str, int]:
    """How far down each room stands: just above its first user; what nobody here uses stands as deep as what it uses allows."""
    users = {r: [b for a, b in edges if a == r and b in rooms] for r in rooms}
    used = {r: [a for a, b in edges if b == r and a in rooms] for r in rooms}

    def depth(r):
        return 1 + max(map(depth, used[r]), default=-1)

    def floor(r):
        return min(map(floor, users[r])) - 1 if users[r] and r not in TOP else depth(r)

    return {r: floor(r) for r in rooms}


def draw() -> str:
    """The picture as SVG text."""
    edges = arrows()
    uses_reference = {b for a, b in edges if a.startswith("sparc_ref") and b.startswith("parity")}
    places: dict[str, tuple[float, float]] = {}
    left, bottom = 20.0, 0.0
    parts = []
    for package, words in HEADS.items():
        rooms = [r for r in SAID if r.startswith(f"{package}.")]
        floor = floors(edges, rooms)
        column = {r: COLUMNS.get(r.partition(".")[2], SPINE[package]) for r in rooms}
        span = (max(column.values()) + 1) * (WIDTH + GAP) - GAP
        parts.append(f'<text class="head" x="{left:g}" y="30">{words}</text>')
        places |= {r: (left + column[r] * (WIDTH + GAP), 52 + floor[r] * ROW) for r in rooms}
        bottom = max(bottom, 52 + max(floor.values()) * ROW + HEIGHT)
        left += span + 70
    inside = {(a, b) for a, b in edges if a in places and b in places and a.split(".")[0] == b.split(".")[0]}
    taken = {(x, y) for x, y in places.values()}
    for a, b in sorted(reduced(inside)):
        (x0, y0), (x1, y1) = places[a], places[b]
        between = [y0 + ROW * k for k in range(1, round((y1 - y0) / ROW))]
        straight = (ROW - HEIGHT) / 2
        middle = x0 + WIDTH / 2 if not any((x0, y) in taken for y in between) else x1 + WIDTH / 2  # the column to go down in
        x0, y0, x1, y1 = x0 + WIDTH / 2, y0 + HEIGHT, x1 + WIDTH / 2, y1 - 4
        top, low = y0 + 2 * straight, y1 - 2 * straight + 4
        way = f"M{x0:g} {y0:g} C{x0:g} {y0 + straight:g} {middle:g} {top - straight:g} {middle:g} {top:g} L{middle:g} {low:g} "
        way += f"C{middle:g} {low + straight:g} {x1:g} {y1 - straight:g} {x1:g} {y1:g}"
        if y1 - y0 < ROW:
            way = f"M{x0:g} {y0:g} C{x0:g} {y0 + straight:g} {x1:g} {y1 - straight:g} {x1:g} {y1:g}"
        parts.append(f'<path class="way" d="{way}"/>')
    for r, (x, y) in places.items():
        kind = "both" if r in uses_reference else r.split(".")[0]
        name = {"parity.checker": "checker: verdict"}.get(r, r.partition(".")[2].replace("checker.", "checker/"))
        parts.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>')
        parts.append(f'<text class="name" x="{x + WIDTH / 2:g}" y="{y + 17:g}">{name}</text>')
        parts.append(f'<text class="said" x="{x + WIDTH / 2:g}" y="{y + 32:g}">{SAID[r]}</text>')
    parts.append(f'<rect class="both" x="20" y="{bottom + 22:g}" width="16" height="12" rx="3"/>')
    parts.append(f'<text class="said" style="text-anchor:start" x="44" y="{bottom + 32:g}">'
                 "a room of parity that imports sparc_ref; "
                 "an arrow leads from a room to who uses it</text>")
    style = (
        "svg{background:#fff} text{font-family:Helvetica,Arial,sans-serif;fill:#222;text-anchor:middle} "
        ".head{font-size:15px;font-weight:bold;text-anchor:start} .name{font-size:13px;font-weight:bold} "
        ".said{font-size:11px;fill:#444} "
        "rect{stroke:#555} .sparc_ref{fill:#dcebf7} .parity{fill:#f3f0e4} .both{fill:#f9dcb4} "
        ".way{fill:none;stroke:#666;stroke-width:1.3;marker-end:url(#tip)}"
    )
    tip = ('<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
           '<path d="M0 0 8 4 0 8z" fill="#666"/></marker>')
    size = f'width="{left - 50:g}" height="{bottom + 46:g}" viewBox="0 0 {left - 50:g} {bottom + 46:g}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{style}</style>", tip, *parts, "</svg>", ""])


if __name__ == "__main__":
    OUT.write_text(draw())
    print(OUT)
