"""Tables and figures of docs/experiments/small-world.md, from the stored results alone."""

import re
from pathlib import Path

import numpy as np
from scipy.stats import t as student

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "small-world.md"
WORLDS, ALONE = ("mosaic", "wallpaper", "drawn"), "global loss alone"
WHY = ("true", "other pictures", "grey pictures", "ground blanked", "regions blanked", "words permuted", "no attention",
       "no patch positions", "no word positions", "ground alone", "regions alone")
USUALLY = {("mlp_ratio", 2), ("vision_depth", 2)}
SEGMENTED = ("miou", "miou_caption")                      # read through one head, the others through another
SHOWN = {"miou": "mIoU", "pointing": "pointing", "mass": "mass", "iou": "IoU", "choice": "choice", "i2t_r1": "R@1 i2t",
         "t2i_r1": "R@1 t2i", "grounding_gap": "gap"}


def values(records: list[dict], group: str, row: str, measure: str, split: str = "test") -> dict[int, float]:
    """seed -> the measure, under the head that validation scenes chose for it."""
    found = [r for r in records if (r["group"], r["row"], r["split"]) == (group, row, split) and measure in r["numbers"]]
    head = head_of(records, group, row, measure)
    return {r["seed"]: r["numbers"][measure] for r in found if r["head"] == head}


def head_of(records, group, row, measure):
    """g_v or h_v: which is better on validation scenes; g_v where there is one path."""
    score: dict[str, list[float]] = {}
    for r in records:
        if (r["group"], r["row"], r["split"]) == (group, row, "validation"):
            score.setdefault(r["head"], []).append(r["numbers"].get("miou" if measure in SEGMENTED else "pointing", 0.0))
    heads = {r["head"] for r in records if (r["group"], r["row"]) == (group, row)}
    return max(score, key=lambda h: np.mean(score[h]), default="g_v") if len(heads) > 1 else "g_v"


def interval(x) -> tuple[float, float]:
    """Mean and half the width of the 95 % t-interval."""
    x = np.asarray(list(x), float)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))


def ignited(records, group, row) -> str:
    """How many seeds have choice at least half way from chance to 1."""
    choice, chance = values(records, group, row, "choice"), values(records, group, row, "choice_chance")
    return f"{sum(choice[s] >= (1 + chance[s]) / 2 for s in choice)}/{len(choice)}"


def number(x: float) -> str:
    if 0 < abs(x) < 1e-3:
        return f"{x:.0e}".replace("e-0", "e-")
    return f"{x:.2f}" if abs(x) >= 1 else f"{x:.3f}".replace("0.", ".", 1)


def cell(x) -> str:
    x = list(x)
    if not x:
        return ""
    mean, half = interval(x)
    return number(mean) + ("" if np.isnan(half) else f" ± {number(half)}")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured(records, group, row, measures=tuple(SHOWN)) -> list[str]:
    return [cell(values(records, group, row, m).values()) for m in measures]


def heads(records, group, row) -> str:
    both = [head_of(records, group, row, m) for m in ("miou", "pointing")]
    return both[0] if both[0] == both[1] else f"{both[0]}; words {both[1]}"


def main_table(records) -> str:
    found = {r["row"] for r in records if r["group"] == "main"}
    rows = []
    for world in WORLDS:
        for loss in ("SPARC", ALONE, "no threshold", "threshold on weights", "softmax"):
            if f"{world}/{loss}" in found:
                row = "main", f"{world}/{loss}"
                rows.append([world, loss, *measured(records, *row), ignited(records, *row)])
        chance = [cell(list(values(records, "main", f"{world}/SPARC", f"{m}_chance").values())[:1]) for m in SHOWN]
        rows.append([world, "chance", *chance[:-1], "0", ""])
    return table(["world", "loss", *SHOWN.values(), "ignited"], rows)


def paired_table(records) -> str:
    """SPARC against the global loss alone, seed by seed."""
    rows = []
    for world in WORLDS:
        for measure in ("miou", "pointing", "mass", "iou", "choice", "i2t_r1", "t2i_r1"):
            a, b = (values(records, "main", f"{world}/{loss}", measure) for loss in ("SPARC", ALONE))
            seeds = sorted(a.keys() & b.keys())
            if not seeds:
                continue
            (mean, half), (x, dx), (y, dy) = interval(a[s] - b[s] for s in seeds), interval(a.values()), interval(b.values())
            apart = "yes" if abs(x - y) > dx + dy else "no"
            rows.append([world, SHOWN[measure], f"{x / y:.2f}", f"{mean:+.3f} ± {half:.3f}",
                         f"{sum(a[s] > b[s] for s in seeds)}/{len(seeds)}", apart])
    return table(["world", "measure", "ratio of means", "difference, paired", "seeds ahead", "intervals apart"], rows)


LISTS = {  # table: (its first column, rows: (label, group, row without its loss, the loss where there is one row only))
    "coverage": ("named share", [("1", "coverage", "1"), (".6", "coverage", "0.6"), (".3", "main", "mosaic"),
                                 (".15", "coverage", "0.15")]),
    "start": ("world, attention starts at", [(f"{world}, {start}", group, world) for world in WORLDS
                                             for start, group in (("zero", "main"), ("the usual", "start"))]),
    "words": ("words for a region", [
        ("one", "main", "mosaic"), ("two", "words", "two"), ("two, merged in L_f", "words", "two, merged"),
        ("one; lambda_f 1", "words", "one, lambda_f 1"), ("two; lambda_f 1", "words", "two, lambda_f 1")]),
    "text": ("text tower", [("depth 0, no positions", "main", "mosaic")] + [
        (f"depth {depth}, {'positions' if p == 'learned' else 'no positions'}", "text", f"depth {depth}, positions {p}")
        for depth, p in ((0, "learned"), (1, "none"), (2, "none"), (2, "learned"))]),
    "h_v": ("h_v", [("none", "main", "mosaic"), ("dense_gelu", "h_v", "dense_gelu"),
                    ("dense_gelu, lambda_f 1", "words", "one, h_v, lambda_f 1"),
                    ("all of the library's defaults", "h_v", "all defaults"),
                    ("all defaults, no word positions", "h_v", "all defaults, no word positions"),
                    ("all defaults, coverage 1", "h_v", "all defaults, named whole"),
                    ("all defaults, no word positions, coverage 1", "h_v", "all defaults, named whole, no word positions")]),
    "negatives": ("", [
        ("recipe", "main", "mosaic", "SPARC"), ("recipe", "negatives", "recipe", "other pictures"),
        ("mosaic, usual start", "start", "mosaic", "SPARC"),
        ("mosaic, usual start", "negatives", "mosaic, usual start", "other pictures"),
        ("wallpaper, usual start", "start", "wallpaper", "SPARC"),
        ("wallpaper, usual start", "negatives", "wallpaper, usual start", "other pictures"),
        ("text depth 2, positions", "text", "depth 2, positions learned", "SPARC"),
        ("text depth 2, positions", "negatives", "text depth 2, positions", "other pictures"),
        ("all defaults, coverage 1", "h_v", "all defaults, named whole", "SPARC"),
        ("all defaults, coverage 1", "negatives", "all defaults, named whole", "other pictures")]),
}


def listed(records, first: str, entries, measures=tuple(SHOWN)) -> str:
    """Rows of several groups side by side, over the same three seeds."""
    few = [r for r in records if r["group"] in ("search", "blind") or r["seed"] in (0, 1, 2) or r["seed"] >= 100]
    rows = []
    for label, group, row, *only in entries:
        for loss in only or ("SPARC", ALONE):
            if values(few, group, f"{row}/{loss}", "pointing"):
                rows.append([label, loss, heads(few, group, f"{row}/{loss}"), *measured(few, group, f"{row}/{loss}", measures),
                             ignited(few, group, f"{row}/{loss}")])
    return table([first, "loss", "head", *(SHOWN.get(m, "mIoU, words") for m in measures), "ignited"], rows)


def why_table(records) -> str:
    """L_f (and pointing) under every intervention, mean over seeds."""
    parts: dict[str, list[dict]] = {}
    for r in records:
        if "why" in r and r["split"] == "test":
            parts.setdefault(r["row"], []).append(r["why"])
    rows = [[name, *(" / ".join(number(float(np.mean([w[name][m] for w in why]))) for m in ("fine_loss", "pointing")
                                if m in why[0].get(name, {})) for why in parts.values())] for name in WHY]
    return table(["L_f / pointing", *(f"{name} ({len(why)} seeds)" for name, why in parts.items())], rows)


def unseen_table(records) -> str:
    rows = [[name, *(cell(values(records, "words", name, m, split).values()) for split in ("test", "unseen")
                     for m in ("miou", "pointing", "choice"))]
            for name in sorted({r["row"] for r in records if r["split"] == "unseen"})]
    return table(["words", *(f"{m}, {split}" for split in ("test", "unseen") for m in ("mIoU", "pointing", "choice"))], rows)


def search_table(records) -> str:
    """What was tried on validation scenes, in the order in which it was."""
    rows = []
    for r in records:
        if r["group"] == "search":
            model, n = dict(r["model"]), r["numbers"]
            grid = f"{model.pop('image_size')} / {model.pop('patch_size')}"
            loss = r["loss"] or ("SPARC" if model["lambda_f"] else ALONE)
            options = " ".join(f"{k} {v}" for k, v in (model | r["train"]).items() if (k, v) not in USUALLY)
            rows.append([r["world"], grid, loss, options, str(r["seed"]), r["head"],
                         *(number(n[k]) for k in ("miou", "pointing", "choice", "i2t_r1", "t2i_r1", "grounding_gap"))])
    return table(["world", "pixels / patch", "loss", "options", "seed", "head", "mIoU", "pointing", "choice", "i2t", "t2i",
                  "gap"], rows)


def blind_table(records) -> str:
    rows = {r["patches"]: r for r in records if r["group"] == "blind"}
    found = sorted(rows)
    return table(["patches, the same in every picture", *map(str, found)],
                 [["before training", *(number(rows[p]["first"]) for p in found)],
                  ["after 300 updates", *(number(rows[p]["last"]) for p in found)]])


def time_figure(records, plt):
    """Pointing while training, every seed a line."""
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.1), sharey=True)
    for ax, world in zip(axes, WORLDS):
        for loss, colour, dash in (("SPARC", "#0b4f9e", "-"), (ALONE, "#d98200", (0, (3, 1.5)))):
            curves = [r["curve"] for r in records if r["group"] == "main" and r["row"] == f"{world}/{loss}" and "curve" in r
                      and r["seed"] < 100]
            for n, curve in enumerate(curves):
                ax.plot([c["step"] for c in curve], [c["pointing"] for c in curve], color=colour, linestyle=dash, linewidth=0.9,
                        label=loss if n == 0 else None)
        ax.set(title=world, xlabel="updates", ylim=(0, 1), xlim=(0, 300))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("pointing, validation scenes")
    axes[0].legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def coverage_figure(records, plt):
    """mIoU, pointing and IoU against the share of the picture that the caption names."""
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.1))
    seeds = values(records, "coverage", "1/SPARC", "miou")
    for ax, measure in zip(axes, ("miou", "pointing", "iou")):
        for loss, colour, dash, marker in (("SPARC", "#0b4f9e", "-", "o"), (ALONE, "#d98200", (0, (3, 1.5)), "s")):
            x, y = [], []
            for c, group, name in ((0.15, "coverage", "0.15/"), (0.3, "main", "mosaic/"), (0.6, "coverage", "0.6/"),
                                   (1, "coverage", "1/")):
                found = [v for s, v in values(records, group, name + loss, measure).items() if s in seeds]
                x += [c] * len(found)
                y += found
            ax.plot(x, y, marker, color=colour, markersize=4, alpha=0.8, fillstyle="full" if marker == "o" else "none")
            shares = sorted(set(x))
            ax.plot(shares, [np.mean([b for a, b in zip(x, y) if a == s]) for s in shares], color=colour, linestyle=dash,
                    label=loss)
        ax.set(xlabel="share of the picture that is named", title=SHOWN[measure], ylim=(0, 1), xlim=(0, 1.03))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="upper left", fontsize=9)
    return figure


def stops_figure(records, plt):
    """Pointing of every seed where one thing differs from the recipe."""
    shown = [("the recipe", "main", "mosaic"), ("two words for a region", "words", "two"),
             ("text tower of one block", "text", "depth 1, positions none"),
             ("text tower of two blocks", "text", "depth 2, positions none"), ("attention starts as usual", "start", "mosaic"),
             ("h_v", "h_v", "dense_gelu"), ("word positions", "text", "depth 0, positions learned"),
             ("word positions, two blocks", "text", "depth 2, positions learned"),
             ("all of the library's defaults", "h_v", "all defaults")]
    figure, ax = plt.subplots(figsize=(7.2, 3.6))
    for y, (_, group, row) in enumerate(shown):
        for loss, colour, marker, shift in (("SPARC", "#0b4f9e", "o", -0.12), (ALONE, "#d98200", "s", 0.12)):
            x = [v for s, v in values(records, group, f"{row}/{loss}", "pointing").items() if s < 3]
            ax.plot(x, [y + shift] * len(x), marker, color=colour, markersize=5, fillstyle="full" if marker == "o" else "none",
                    label=loss if y == 0 else None)
    chance = np.mean(list(values(records, "main", "mosaic/SPARC", "pointing_chance").values()))
    ax.axvline(chance, color="#777777", linewidth=1, linestyle=(0, (1, 2)))
    ax.text(chance + 0.008, -0.45, "chance", color="#555555", fontsize=9, va="center")
    ax.set(yticks=range(len(shown)), yticklabels=[label for label, _, _ in shown], xlim=(0, 1), xlabel="pointing",
           ylim=(len(shown) - 0.3, -0.6))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


BOTH_PROMPTS = ("miou", "miou_caption", "pointing", "iou", "choice", "i2t_r1", "t2i_r1", "grounding_gap")
TABLES = {"main": main_table, "paired": paired_table, "unseen": unseen_table, "why": why_table, "blind": blind_table,
          "search": search_table} | {
    name: lambda records, first=first, entries=entries, name=name: listed(
        records, first, entries, BOTH_PROMPTS if name in ("text", "h_v") else tuple(SHOWN))
    for name, (first, entries) in LISTS.items()}
FIGURES = {"stops": stops_figure, "time": time_figure, "coverage": coverage_figure}


def worlds_picture() -> np.ndarray:
    """Eight mosaics above eight drawn scenes, twice enlarged.      -> (H,W,3) uint8; emoji are others' and not shown"""
    from small_world import DRAWN, MOSAIC, source

    rows = []
    for world in (MOSAIC, DRAWN):
        shown = source(world, "train", 48)
        tiles = [np.pad(shown[i].image, ((2, 2), (2, 2), (0, 0)), constant_values=255) for i in range(8)]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows).repeat(2, axis=0).repeat(2, axis=1)


def filled(text: str, records: list[dict], tables: dict | None = None) -> str:
    """The page's text with every table between its marks, <!-- NAME --> and <!-- end -->, made anew."""
    for name, make in (tables or TABLES).items():
        text = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _, name=name, make=make:
                      f"<!-- {name} -->\n{make(records)}\n<!-- end -->", text, flags=re.S)
    return text


def draw(records: list[dict], page: Path = PAGE) -> None:
    """Every table of the page, and every figure beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    page.write_text(filled(page.read_text(), records))
    with plt.rc_context({"svg.hashsalt": "small world", "font.size": 10}):
        for name, make in FIGURES.items():
            figure = make(records, plt)
            figure.savefig(page.parent / f"small-world-{name}.svg", bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
    Image.fromarray(worlds_picture()).save(page.parent / "small-world-worlds.png", optimize=True)
    print(f"{page}: tables {', '.join(TABLES)}; figures {', '.join(FIGURES)}")
