"""docs/objectives.md's picture of what is compared with what:  python docs/draw_objectives.py

Writes docs/images/compared.svg.  Two pairs of picture and caption: squares are patches, discs are words, the large ones stand
for the whole picture and the whole caption.  Black lines are compared to agree, light ones to differ.
"""

from pathlib import Path

OUT = Path(__file__).parent / "images" / "compared.svg"
PANELS = ("CLIP", "FILIP", "PACL", "GLoRIA", "MGCA", "SPARC")
SAID = {
    "CLIP": ("picture with caption,", "every pair of the batch"),
    "FILIP": ("each patch with its best word, each word", "with its best patch, every pair"),
    "PACL": ("caption with the patches it pools,", "every pair"),
    "GLoRIA": ("word with the patches it pools, every pair;", "and CLIP"),
    "MGCA": ("word with its patches, patch with its words,", "own pair; prototypes; and CLIP"),
    "SPARC": ("word with its group of patches against the", "other words, own pair; and CLIP"),
}
WIDTH, HEIGHT = 330, 250
X = {"picture": 62, "patch": 102, "word": 222, "caption": 264}


def places(panel_x, panel_y):
    """Where everything stands: (kind, pair, number) -> x, y."""
    at = {}
    for pair in (0, 1):
        top = panel_y + 52 + 86 * pair
        at |= {("patch", pair, k): (panel_x + X["patch"], top + 18 * k) for k in range(4)}
        at |= {("word", pair, k): (panel_x + X["word"], top + 9 + 18 * k) for k in range(3)}
        at |= {(kind, pair, 0): (panel_x + X[kind], top + 27) for kind in ("picture", "caption")}
    return at


def lines(name):
    """(from, to, whether they belong together)"""
    pairs = [(i, j) for i in (0, 1) for j in (0, 1)]
    whole = [(("picture", i, 0), ("caption", j, 0), i == j) for i, j in pairs]
    every = [(("patch", i, k), ("word", j, m), i == j) for i, j in pairs for k in range(4) for m in range(3)]
    own = [line for line in every if line[2]]
    pooled = [(("patch", i, k), ("caption", j, 0), i == j) for i, j in pairs for k in range(4)]
    return {"CLIP": whole, "FILIP": every, "PACL": pooled, "GLoRIA": every + whole, "MGCA": own + whole,
            "SPARC": [line for line in own if (line[0][2] + line[1][2]) % 2 == 0] + whole}[name]


def draw():
    """The picture as SVG text."""
    parts = []
    for n, name in enumerate(PANELS):
        x, y = WIDTH * (n % 3), HEIGHT * (n // 3)
        at = places(x, y)
        for a, b, together in sorted(lines(name), key=lambda line: line[2]):
            (x0, y0), (x1, y1) = at[a], at[b]
            kind = "own" if together else "other"
            bend = 52 if a[0] == "picture" else 0          # around the patches and words
            if bend:
                low = y0 + (bend if a[1] else -bend)
                parts.append(f'<path class="{kind}" d="M{x0} {y0} C{x0 + 60} {low} {x1 - 60} {low} {x1} {y1}"/>')
            else:
                parts.append(f'<path class="{kind}" d="M{x0} {y0} L{x1} {y1}"/>')
        for (what, _, _), (px, py) in at.items():
            size = {"patch": 5, "word": 5, "picture": 11, "caption": 11}[what]
            if what in ("patch", "picture"):
                parts.append(f'<rect class="v" x="{px - size}" y="{py - size}" width="{2 * size}" height="{2 * size}"/>')
            else:
                parts.append(f'<circle class="t" cx="{px}" cy="{py}" r="{size}"/>')
        parts.append(f'<text class="name" x="{x + 163}" y="{y + 18}">{name}</text>')
        parts += [f'<text x="{x + 163}" y="{y + 222 + 14 * k}">{words}</text>' for k, words in enumerate(SAID[name])]
    style = ("svg{background:#fff} text{font-family:Helvetica,Arial,sans-serif;font-size:12px;fill:#333;text-anchor:middle} "
             ".name{font-size:14px;font-weight:bold} path{fill:none} .own{stroke:#222;stroke-width:1.3} "
             ".other{stroke:#bbb;stroke-width:1} .v{fill:#dcebf7;stroke:#555} .t{fill:#f9dcb4;stroke:#555}")
    size = f'width="{3 * WIDTH}" height="{2 * HEIGHT}" viewBox="0 0 {3 * WIDTH} {2 * HEIGHT}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{style}</style>", *parts, "</svg>", ""])


if __name__ == "__main__":
    OUT.write_text(draw())
    print(OUT)
