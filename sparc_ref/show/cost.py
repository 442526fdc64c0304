"""The figure of the command `cost`, after the paper's Figure 4: FLOPs, memory and communication against the batch."""

from collections.abc import Mapping, Sequence

from sparc_ref.cost import Cost

LINES = (("#000000", "-", "o"), ("#c44e00", "--", "s"), ("#0072b2", "-.", "^"), ("#009e73", ":", "D"), ("#cc79a7", "-", "v"),
         ("#777777", "--", "*"), ("#e69f00", "-.", "P"), ("#56b4e9", ":", "X"), ("#7b3294", "-", "h"))
PANELS = (
    ("TFLOP a step and device", lambda c: c.flops / 1e12, 0),
    ("Memory of a device, GB", lambda c: c.memory / 1e9, 1),
    ("Received and sent for the loss, GB", lambda c: c.gathered / 1e9, None),
)


def figure(
    rows: Mapping[str, Sequence[Cost]], batches: Sequence[int], reported: Mapping[str, Mapping[int, tuple[float, float]]]
):
    """A matplotlib Figure.

    rows: label -> a Cost for each batch; reported: label -> batch -> (TFLOP, MB), drawn as hollow circles
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(12, 4.2), layout="constrained")
    axes = drawn.subplots(1, 3)
    for axis, (title, of, column) in zip(axes, PANELS):
        for i, (label, costs) in enumerate(rows.items()):
            colour, dash, marker = LINES[i % len(LINES)]
            axis.plot(batches, [of(c) for c in costs], color=colour, linestyle=dash, marker=marker, markersize=4, linewidth=1.5,
                      label=label)
            points = reported.get(label, {})
            if column is not None and points:
                unit = 1 if column == 0 else 1e-3
                axis.plot(list(points), [unit * p[column] for p in points.values()], linestyle="", marker="o", markersize=9,
                          markerfacecolor="none", markeredgecolor=colour)
        axis.set_xscale("log", base=2)
        if all(of(c) > 0 for costs in rows.values() for c in costs):
            axis.set_yscale("log")
        axis.set_xticks(list(batches), [str(b) for b in batches])
        axis.minorticks_off()
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("batch")
        axis.grid(True, linewidth=0.4, color="#cccccc")
    axes[0].legend(fontsize=9, frameon=False)
    if reported:
        axes[1].plot([], [], linestyle="", marker="o", markersize=9, markerfacecolor="none", markeredgecolor="#000000",
                     label="reported, Table 11")
        axes[1].legend(handles=axes[1].get_lines()[-1:], fontsize=9, frameon=False)
    return drawn
