"""Final numbers of several runs: one table and a few sentences, the same for the terminal and the report.

The sentences are computed: who is ahead on what, what is within the spread over seeds, what is no better than chance.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparc_ref.show.plots import is_number

MISSING = "not measured"


@dataclass(frozen=True)
class Number:
    """One row of the table: a key of Run.final, what it says, and how to print it.

    kind: "share" (a fraction of 1, printed in %), "nats", "seconds" or "count". better: "higher", "lower" or None.
    chance: a number, or None for the value under key + "_chance" in final. headline: named in the sentences.
    """

    key: str
    label: str
    group: str
    kind: str = "share"
    better: str | None = "higher"
    chance: float | None = None
    headline: bool = False


NUMBERS = (
    Number("t2i_r1", "caption finds its picture, first (R@1)", "Retrieval", headline=True),
    Number("t2i_r5", "… among the first 5 (R@5)", "Retrieval"),
    Number("t2i_r10", "… among the first 10 (R@10)", "Retrieval"),
    Number("i2t_r1", "picture finds a caption of its own, first (R@1)", "Retrieval", headline=True),
    Number("i2t_r5", "… among the first 5 (R@5)", "Retrieval"),
    Number("i2t_r10", "… among the first 10 (R@10)", "Retrieval"),
    Number("pointing", "pointing: a name's top patch is on its object", "Localisation", headline=True),
    Number("mass", "share of a name's weight on its object", "Localisation", headline=True),
    Number("iou", "region of a name against its object (IoU)", "Localisation", headline=True),
    Number("choice", "a name picks its object among the objects there", "Localisation", headline=True),
    Number("miou", "mean IoU, bare class names", "Segmentation", headline=True),
    Number("miou_foreground", "… on object pixels only", "Segmentation"),
    Number("miou_caption", "mean IoU, names as in captions", "Segmentation"),
    Number("miou_caption_foreground", "… on object pixels only", "Segmentation"),
    Number("grounding_gap", "grounding gap: loss with shuffled minus true pictures", "Grounding", "nats", chance=0.0,
           headline=True),
    Number("fine_loss", "fine-grained loss, true pictures", "Grounding", "nats", "lower"),
    Number("seconds", "training time", "Cost", "seconds", None),
)
OTHERS = (  # what measure.evaluate says besides: not in the report, in the list that `evaluate` prints; _lift is value / chance
    Number("images", "pictures measured", "Size", "count", None),
    Number("captions", "their captions", "Size", "count", None),
    Number("objects", "visible objects that a caption names", "Localisation", "count", None),
    Number("best", "the most that pointing and mass can be: patches are coarser than objects", "Localisation", "share", None),
    Number("native_t2i_r1", "caption finds its picture under the objective's own score", "Retrieval"),
    Number("native_t2i_r5", "… among the first 5", "Retrieval"),
    Number("native_t2i_r10", "… among the first 10", "Retrieval"),
    Number("native_i2t_r1", "picture finds its caption under the objective's own score", "Retrieval"),
    Number("native_i2t_r5", "… among the first 5", "Retrieval"),
    Number("native_i2t_r10", "… among the first 10", "Retrieval"),
    Number("fine_loss_shuffled", "fine-grained loss, shuffled pictures", "Grounding", "nats", None),
    Number("grounding_gap_sd", "standard deviation of the gap over shuffles", "Grounding", "nats", None),
)
LITTLE = 0.01                                             # nats of grounding gap: 1 % in the probability of the right word


@dataclass(frozen=True, eq=False)
class Run:
    """One model: its name and, all optional, its configuration, metrics over training, final numbers, their spread over
    seeds {key: (mean, standard deviation, number of seeds)}, explained examples, and where its files are."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    final: Mapping[str, Any] = field(default_factory=dict)
    spread: Mapping[str, tuple[float, float, int]] = field(default_factory=dict)
    examples: Sequence[Any] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DemoReport:
    """All that the report shows; scenes is how many examples get heat maps (the masks show up to six), shown why each."""

    title: str
    runs: Sequence[Run]
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    evaluated_on: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    reproduce: Sequence[str] = ()
    notes: Sequence[str] = ()
    numbers: Sequence[Number] = NUMBERS
    scenes: int = 2
    shown: Sequence[str] = ()
    origin: str = ""                                      # of the spread: what was run, when, with which version


def table(report: DemoReport) -> list[tuple[Number, list[float | None], float | None]]:
    """The rows that any run has: (number, one value or None per run, chance or None)."""
    rows = []
    for number in report.numbers:
        values = [run.final.get(number.key) for run in report.runs]
        values = [float(x) if x is not None and is_number(x) else None for x in values]
        if any(x is not None for x in values):
            rows.append((number, values, chance(report, number)))
    return rows


def chance(report, number):
    if number.chance is not None:
        return number.chance
    known = [run.final.get(f"{number.key}_chance") for run in report.runs]
    known = [float(x) for x in known if is_number(x)]
    return sum(known) / len(known) if known else None


def spread(run, number):
    """(mean, sd, n) over seeds, or None where it is not known or from one seed only."""
    known = run.spread.get(number.key)
    if known is None or len(known) != 3 or not all(map(is_number, known)) or known[2] < 2:
        return None
    return float(known[0]), float(known[1]), int(known[2])


def printed(number, x):
    """A value with its unit; "not measured" for None."""
    if x is None:
        return MISSING
    if number.kind == "share":
        return f"{100 * x:.1f} %"
    if number.kind == "seconds":
        return f"{x:.0f} s"
    return f"{x:.0f}" if number.kind == "count" else f"{x:.3f} {number.kind}"


def printed_spread(number, known):
    """mean ± standard deviation (number of seeds)"""
    mean, sd, n = known
    if number.kind == "share":
        return f"{100 * mean:.1f} ± {100 * sd:.1f} % ({n})"
    digits = 0 if number.kind in ("seconds", "count") else 3
    return f"{mean:.{digits}f} ± {sd:.{digits}f} ({n})"


def within(a, b, spread_a, spread_b):
    """Is a difference between two single runs within what seeds alone do: at most 2 standard deviations of a difference?"""
    return abs(a - b) <= 2 * (spread_a[1] ** 2 + spread_b[1] ** 2) ** 0.5


def leader(report, number, values):
    """(name of the best run, its value, the second value, verdict); verdict "clear", "within", "unknown" or "equal"."""
    sign = 1 if number.better == "higher" else -1
    order = sorted(range(len(values)), key=lambda i: -sign * values[i])
    first, second = order[0], order[1]
    a, b = values[first], values[second]
    spreads = spread(report.runs[first], number), spread(report.runs[second], number)
    if a == b:
        verdict = "equal"
    elif None in spreads:
        verdict = "unknown"
    else:
        verdict = "within" if within(a, b, *spreads) else "clear"
    return report.runs[first].name, a, b, verdict


def findings(report: DemoReport) -> list[str]:
    """Neutral sentences about the headline numbers: who is ahead, what is within the spread, what is no better than chance."""
    rows = [row for row in table(report) if row[0].headline and row[0].better]
    ahead: dict[str, list[str]] = {}
    close, equal, single = [], [], False
    for number, values, _ in rows:
        if len(values) < 2 or None in values:
            continue
        name, a, b, verdict = leader(report, number, values)
        text = f"{short(number)} ({printed(number, a)} against {printed(number, b)})"
        if verdict == "equal":
            equal.append(short(number))
        elif verdict == "within":
            close.append(f"{text[:-1]}, {name} ahead)")
        else:
            ahead.setdefault(name, []).append(text)
            single |= verdict == "unknown"
    out = [f"{name} is ahead on {listed(texts)}." for name, texts in ahead.items()]
    if close:
        out.append(f"Within the spread over seeds: {listed(close)}.")
    if equal:
        out.append(f"Equal: {listed(equal)}.")
    for i, run in enumerate(report.runs):
        low = [short(n) for n, values, base in rows if values[i] is not None and base is not None
               and at_chance(run, n, values[i], base)]
        if low:
            out.append(f"{run.name} is no better than chance on {listed(low)}.")
    if close or any(spread(r, n) for r in report.runs for n, _, _ in rows):
        out.append("A difference counts as within the spread when it is at most twice the standard deviation that seeds alone "
                   "give to a difference between two runs.")
    if single:
        out.append("Where no spread is given the numbers come from one run of each model, so a small difference may be luck.")
    return [text[0].upper() + text[1:] for text in out]


def explained(report: DemoReport) -> list[str]:
    """The lines under the table: what the columns mean and where the spread comes from, then the findings."""
    out, known = ["Chance: what a model scores that knows nothing."], f", {report.origin}" if report.origin else ""
    if any(spread(run, n) for run in report.runs for n, _, _ in table(report)):
        out.append(f"Mean ± sd (seeds): over runs that differ in the seed alone{known}.")
    return out + findings(report)


def at_chance(run, number, value, base):
    """Not better than chance by more than twice the spread: over seeds or, without that, of the measurement itself (_sd)."""
    known, own = spread(run, number), run.final.get(f"{number.key}_sd")
    margin = 2 * known[1] if known else 2 * float(own) if is_number(own) else 0.0
    return value <= base + margin if number.better == "higher" else value >= base - margin


def short(number):
    names = {"t2i_r1": "captions finding pictures", "i2t_r1": "pictures finding captions", "pointing": "pointing",
             "mass": "weight on the object", "iou": "the region's IoU", "choice": "picking the object", "miou": "segmentation",
             "grounding_gap": "the grounding gap"}
    return names.get(number.key, number.label)


def listed(texts):
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]


def what_was_run(report: DemoReport) -> str:
    """Two sentences, from the data."""
    names = listed([run.name for run in report.runs])
    steps = {max((r["step"] for r in run.metrics if is_number(r.get("step"))), default=0) for run in report.runs} - {0}
    length = f" for {listed([f'{s:g}' for s in sorted(steps)])} steps" if steps else ""
    on = f" on {report.trained_on['name']}" if report.trained_on.get("name") else ""
    seconds = [f"{run.final['seconds']:.0f} s" for run in report.runs if is_number(run.final.get("seconds"))]
    took = f", which took {listed(seconds)}" if len(seconds) == len(report.runs) else ""
    first = f"{names} {'was' if len(report.runs) == 1 else 'were'} trained{length}{on}{took}."
    images, captions = (next((run.final[k] for run in report.runs if is_number(run.final.get(k))), None)
                        for k in ("images", "captions"))
    sizes = f"{images:.0f} pictures and {captions:.0f} captions" if images and captions else "the evaluation set"
    of = f" of {report.evaluated_on['name']}" if report.evaluated_on.get("name") else ""
    return f"{first} The numbers were measured on {sizes}{of}."


def results_table(report: DemoReport) -> str:
    """The table and the sentences under it, as plain text."""
    head, last = ["", *(run.name for run in report.runs), "chance"], None
    lines = [head]
    for number, values, base in table(report):
        if number.group != last:
            lines.append([number.group, *[""] * (len(head) - 1)])
            last = number.group
        cells = [printed(number, x) for x in values]
        known = [spread(run, number) for run in report.runs]
        lines.append([f"  {number.label}", *cells, "" if base is None else printed(number, base)])
        if any(known):
            lines.append(["      mean ± sd (seeds)", *("" if k is None else printed_spread(number, k) for k in known), ""])
    lines = [[visible(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    text.insert(1, "-" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join([*text, "", *map(visible, explained(report))])


def numbers_table(numbers: Mapping[str, float]) -> str:
    """Everything that measure.evaluate gave, a line each: its name in files, the value, chance, what it is."""
    known = (*OTHERS[:2], *NUMBERS, *OTHERS[2:])
    groups = list(dict.fromkeys(number.group for number in known))
    lines = [("", "value", "chance", "")]
    for number in sorted(known, key=lambda number: groups.index(number.group)):
        if number.key in numbers:
            base = number.chance if number.chance is not None else numbers.get(f"{number.key}_chance")
            lines.append((number.key, printed(number, numbers[number.key]), "" if base is None else printed(number, base),
                          number.label))
    a, b, c = (max(len(line[i]) for line in lines) for i in range(3))
    text = [f"  {key:{a}}  {value:>{b}}  {base:>{c}}  {label}".rstrip() for key, value, base, label in lines]
    return "\n".join([*text, "  chance: what a model scores that knows nothing"])


def grounding(numbers: Mapping[str, Any]) -> str:
    """What the grounding gap, and pointing where it was measured, say of the maps of a model; "" where there is no gap.

    numbers: of measure.evaluate or a row of metrics. The maps are called meaningless where the gap is not above 0 by more
    than twice its own standard deviation over shuffles, or below LITTLE.
    """
    known = {k: float(x) for k, x in numbers.items() if is_number(x)}
    if not {"grounding_gap", "fine_loss", "fine_loss_shuffled"} <= known.keys():
        return ""
    gap = known["grounding_gap"]
    text = (f"Grounding gap {gap:.3f} nats: the fine-grained loss is {known['fine_loss']:.3f} with the true pictures, "
            f"{known['fine_loss_shuffled']:.3f} with shuffled ones. ")
    if gap <= max(LITTLE, 2 * known.get("grounding_gap_sd", 0.0)):
        return text + ("A wrong picture does as well: this model does not match words to what is in the picture, and its maps "
                       "mean nothing.")
    if not {"pointing", "pointing_chance"} <= known.keys():
        return text + "Whether the maps show objects was not measured: that takes masks."
    pointing, chance, objects = known["pointing"], known["pointing_chance"], known.get("objects", 0.0)
    margin = 2 * (chance * (1 - chance) / objects) ** 0.5 if objects else 0.0
    text += f"A name's top patch is on its object for {100 * pointing:.1f} % of the names (chance {100 * chance:.1f} %)"
    return text + (": no better than chance, the maps do not show objects." if pointing <= chance + margin else ".")


def print_results(report: DemoReport, stream=None) -> None:
    """Print the same table: with rich where the stream is a terminal, as results_table's text elsewhere."""
    stream = stream or sys.stdout
    if not (hasattr(stream, "isatty") and stream.isatty()):
        print(results_table(report), file=stream)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out, last = Table(title=Text(visible(report.title))), None
    out.add_column("")
    for run in report.runs:
        out.add_column(Text(visible(run.name)), justify="right")
    out.add_column("chance", justify="right", style="dim")
    for number, values, base in table(report):
        if number.group != last:
            out.add_row(Text(number.group, style="bold"))
            last = number.group
        best = best_of(report, number, values)
        cells = []
        for i, (run, x) in enumerate(zip(report.runs, values)):
            known = spread(run, number)
            cells.append(Text(printed(number, x), style="bold" if i in best else "")
                         + Text("" if known is None else f"\n{printed_spread(number, known)}", style="dim"))
        out.add_row(Text(f"  {number.label}"), *cells, "" if base is None else printed(number, base))
    console = Console(file=stream)
    console.print(out)
    for sentence in explained(report):
        console.print(Text(visible(sentence)))


def best_of(report, number, values):
    """Indices of the runs to print bold: the best one, unless the difference is within the spread or nobody is compared."""
    if not number.better or len(values) < 2 or None in values:
        return set()
    _, a, _, verdict = leader(report, number, values)
    return {i for i, x in enumerate(values) if x == a} if verdict in ("clear", "unknown") else set()


def visible(text):
    """Text without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in str(text))
