"""The table and the figure of docs/experiments/family.md, from the stored results alone."""

from pathlib import Path

import numpy as np
from small_world_page import cell, filled, interval, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "family.md"
WORLDS = {"scenes": "emoji scenes", "wallpaper": "wallpapers"}
LOSSES = {"SPARC": "SPARC", "no threshold": "  no threshold", "threshold on weights": "  threshold on weights",
          "softmax": "  softmax", "clip": "CLIP", "filip": "FILIP", "clip_filip": "CLIP+FILIP", "pacl": "PACL",
          "gloria": "GLoRIA", "mgca": "MGCA", "siglip": "SigLIP", "flair": "FLAIR"}
SHOWN = {"miou": "mIoU", "pointing": "pointing", "iou": "IoU", "choice": "choice", "i2t_r1": "R@1 i2t", "t2i_r1": "R@1 t2i",
         "native_i2t_r1": "own i2t", "native_t2i_r1": "own t2i"}


def recall(numbers: dict) -> float:
    """The mean of R@1 both ways, by the objective's own score where it has one."""
    return float(np.mean([numbers.get(f"native_{way}", numbers[way]) for way in ("i2t_r1", "t2i_r1")]))


def best(records: list[dict]) -> dict[tuple[str, str], str]:
    """(world, loss) -> the row whose learning rate has the highest pointing + R@1 on validation scenes, the mean over seeds.

    ValueError: a row without validation results, so that nothing is chosen among some of the rates.
    """
    score: dict[tuple[str, str], dict[str, list[float]]] = {}
    for r in records:
        world, loss, _ = r["row"].split("/")
        seen = score.setdefault((world, loss), {}).setdefault(r["row"], [])
        if r["split"] == "validation":
            seen.append(r["numbers"]["pointing"] + recall(r["numbers"]))
    if bare := [row for rows in score.values() for row, seen in rows.items() if not seen]:
        raise ValueError(f"expected validation seeds of every row (run family --seeds 100,101), none of {', '.join(bare)}")
    return {key: max(rows, key=lambda row: np.mean(rows[row])) for key, rows in score.items()}


def measured(records: list[dict], row: str, measure: str) -> list[float]:
    """The measure on test scenes, by seed."""
    return [r["numbers"][measure] for r in sorted(records, key=lambda r: r["seed"])
            if (r["row"], r["split"]) == (row, "test") and measure in r["numbers"]]


def main_table(records: list[dict]) -> str:
    rows, chosen = [], best(records)
    for world, shown in WORLDS.items():
        for loss, name in LOSSES.items():
            if row := chosen.get((world, loss)):
                cells = [cell(measured(records, row, m)) for m in SHOWN]
                rows.append([shown, name.replace("  ", "&nbsp; "), row.rpartition(" ")[2], *cells])
        first = next((row for (w, _), row in chosen.items() if w == world), "")
        chance = [cell(measured(records, first, f"{m.removeprefix('native_')}_chance")[:1]) for m in SHOWN]
        rows.append([shown, "chance", "", *chance])
    return table(["world", "loss", "lr", *SHOWN.values()], rows)


def seeds(records: list[dict]) -> str:
    """How many runs stand behind the table."""
    test = {r["seed"] for r in records if r["split"] == "test"}
    trained = len({(r["row"], r["seed"]) for r in records})
    return f"{len(test)} seeds a row; {trained} runs in all, of which those on validation scenes chose the learning rates."


def figure(records: list[dict], plt):
    """Where words point against what is retrieved: a cross for each loss, as wide and high as its interval."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    chosen = best(records)
    for ax, (world, title) in zip(axes, WORLDS.items()):
        for n, (loss, name) in enumerate(LOSSES.items()):
            if (row := chosen.get((world, loss))) is None or not measured(records, row, "pointing"):
                continue
            own = [recall(r["numbers"]) for r in records if (r["row"], r["split"]) == (row, "test")]
            (x, dx), (y, dy) = interval(own), interval(measured(records, row, "pointing"))
            ours = name.startswith("  ") or loss == "SPARC"
            ax.errorbar(x, y, np.nan_to_num(dy), np.nan_to_num(dx), fmt="o^svDP<>Xdp*"[n], ms=7, lw=1,
                        color="#0072b2" if ours else "#d55e00", mfc="white" if name.startswith("  ") else None,
                        label=name.replace("  ", "   "))
        ax.set(title=title, xlabel="R@1 among 400, by the loss's own score", ylabel="pointing" if ax is axes[0] else "",
               xlim=(0, 1), ylim=(0, 1))
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return fig


TABLES = {"family": main_table, "seeds": seeds}


def draw(records: list[dict], page: Path = PAGE) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    page.write_text(filled(page.read_text(), records, TABLES))
    with plt.rc_context({"svg.hashsalt": "family", "font.size": 10}):
        fig = figure(records, plt)
        fig.savefig(page.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})
        plt.close(fig)
    print(f"{page}: table and figure")
