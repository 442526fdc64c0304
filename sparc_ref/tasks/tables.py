"""Results laid out like the paper's tables 1-8, the paper's own numbers beside them; and everything else that was measured.

The paper trained on ALIGN, JFT, LTIP and VTP, which nobody else has: its rows are marked as not comparable. A result goes
into a column where task, data and protocol are the column's; what fits no column of the paper is in the tables after them.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from sparc_ref.show.report import STYLE, safe
from sparc_ref.show.results import visible
from sparc_ref.tasks.result import Result

Kept = Sequence[tuple[Result, Mapping[str, Any]]]         # results of one model, each with what it was measured with


@dataclass(frozen=True)
class Column:
    label: str
    task: str
    data: str                       # the name that a result's data has
    number: str                     # which of a result's numbers, a fraction
    protocol: Mapping[str, Any]     # what has to be in force

    def fits(self, result: Result) -> bool:
        return (result.task == self.task and result.name == self.data and self.number in result.numbers
                and all(result.protocol.get(name) == value for name, value in self.protocol.items()))


@dataclass(frozen=True)
class Table:
    number: str
    title: str
    unit: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, str, tuple[float, ...]], ...]  # a model of the paper, its size, a number for each column


@dataclass(frozen=True)
class Laid:
    """A table with rows: ours, then the paper's."""

    title: str
    columns: tuple[str, ...]
    ours: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]  # a model, its cells, what is small below each cell
    paper: tuple[tuple[str, tuple[str, ...]], ...] = ()


@cache
def paper_tables() -> tuple[Table, ...]:
    """The paper's tables, from paper.toml."""
    read = tomllib.loads(files("sparc_ref.tasks").joinpath("paper.toml").read_text("utf-8"))
    every = read["protocol"]                              # of a task's columns, whatever the table
    return tuple(Table(t["number"], t["title"], t["unit"],
                       tuple(Column(label, task, data, number, every.get(task, {}) | own)
                             for label, task, data, number, own in t["columns"]),
                       tuple((model, size, tuple(map(float, values))) for model, size, *values in t["rows"]))
                 for t in read["table"])


def lay_out(models: Mapping[str, Kept]) -> list[Laid]:
    """What was measured of each model, in the paper's tables as far as they have a column for it, then in a table a task."""
    tables, placed = [], set()
    for table in paper_tables():
        columns = [column for column in table.columns if any(column.fits(r) for kept in models.values() for r, _ in kept)]
        if not columns:
            continue
        at = [table.columns.index(column) for column in columns]
        ours = []
        for model, kept in models.items():
            found = [best([r for r, _ in kept if column.fits(r)]) for column in columns]
            placed |= {(id(r), column.number) for r, column in zip(found, columns) if r}
            if any(found):
                cells = tuple(printed(c.number, r.numbers[c.number]) if r else "–" for r, c in zip(found, columns))
                ours.append((model, cells, tuple(f"{r.examples:,} examples" if r else "" for r in found)))
        paper = tuple((f"{model}, {size}", tuple(f"{values[i]:.1f}" for i in at)) for model, size, values in table.rows)
        title = f"Table {table.number}: {table.title} ({table.unit})"
        tables.append(Laid(title, tuple(c.label for c in columns), tuple(ours), paper))
    return tables + others(models, placed)


def best(results: Sequence[Result]) -> Result | None:
    """Of several that fit a column, the one with most examples."""
    return max(results, key=lambda r: r.examples, default=None)


def others(models: Mapping[str, Kept], placed: set) -> list[Laid]:
    """Everything measured, a table for each data set, limit and protocol of a task, all its numbers; without what is placed
    whole. Two data sets of one name are told apart by their specs."""
    groups: dict[tuple[str, str, str, str, Any], dict[str, Result]] = {}
    for model, kept in models.items():
        for r, about in kept:
            if any((id(r), number) not in placed for number in r.numbers):
                how = ", ".join(f"{name}={value}" for name, value in r.protocol.items())
                groups.setdefault((r.task, r.name, how, r.data, about.get("limit")), {})[model] = r
    specs: dict[tuple[str, str, str], set[str]] = {}
    for task, name, how, data, _ in groups:
        specs.setdefault((task, name, how), set()).add(data)
    laid = []
    for (task, name, how, data, _), found in groups.items():
        numbers = tuple(dict.fromkeys(n for r in found.values() for n in r.numbers))
        rows = [(model, tuple(printed(n, r.numbers[n]) if n in r.numbers else "–" for n in numbers),
                 tuple(f"chance {printed(n, r.chance[n])}" if n in r.chance else "" for n in numbers))
                for model, r in found.items()]
        examples = " / ".join(dict.fromkeys(f"{r.examples:,}" for r in found.values()))
        which = f"{name} [{data}]" if len(specs[task, name, how]) > 1 else name
        laid.append(Laid(f"{task.capitalize()} on {which}, {examples} examples ({how}), times 100", numbers, tuple(rows)))
    return laid


def printed(number: str, x: float) -> str:
    """A fraction in percent; CIDEr is kept times 100 already."""
    return f"{x if number.endswith('cider') else 100 * x:.1f}"


def notes(models: Mapping[str, Kept]) -> list[str]:
    """What a reader of the tables has to know."""
    lines = []
    for model, kept in models.items():
        about = kept[0][1]
        trained = ", ".join(map(str, about.get("trained_on") or ())) or "data that the checkpoint does not name"
        lines.append(f"{model}: {about.get('checkpoint')}, trained on {trained}.")
    return [*lines, "The paper's models were trained on ALIGN, JFT, LTIP and VTP, none of them public, for 200,000 updates of "
            "16,384 pairs and more: its rows show where the method stands, and are not comparable with ours."]


def as_text(models: Mapping[str, Kept]) -> str:
    """The tables for a terminal."""
    out = []
    for laid in lay_out(models):
        lines = [["", *laid.columns]]
        for model, cells, small in laid.ours:
            lines += [[model, *cells], *[["", *small]] * any(small)]
        lines += [[f"paper: {model}", *cells] for model, cells in laid.paper]
        lines = [[visible(cell) for cell in line] for line in lines]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        out += ["", visible(laid.title)]
        out += ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join([*out[1:], "", *map(visible, notes(models))])


def as_page(models: Mapping[str, Kept]) -> str:
    """The tables as one HTML file that needs nothing else."""
    sections = []
    for laid in lay_out(models):
        head = "".join(f'<th scope="col">{safe(c)}</th>' for c in laid.columns)
        rows = []
        for model, cells, small in laid.ours:
            below = [f"<small>{safe(s)}</small>" if s else "" for s in small]
            rows.append(f"<tr class=ours><td>{safe(model)}</td>"
                        + "".join(f"<td>{safe(cell)}{s}</td>" for cell, s in zip(cells, below)) + "</tr>")
        if laid.paper:
            rows.append(f'<tr><th colspan="{len(laid.columns) + 1}" scope="rowgroup">The paper, trained on other data: '
                        "not comparable</th></tr>")
        rows += [f"<tr class=paper><td>{safe(model)}</td>" + "".join(f"<td>{safe(cell)}</td>" for cell in cells) + "</tr>"
                 for model, cells in laid.paper]
        table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        sections.append(f'<section><h2>{safe(laid.title)}</h2><div class="scroll">{table}</div></section>')
    title = "Results beside the paper's"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>{STYLE}
tr.ours td {{ font-weight: bold; }} tr.ours td small {{ font-weight: normal; }} tr.paper td {{ color: #555; }}
</style></head><body>
<h1>{title}</h1>
{"".join(f"<p>{safe(line)}</p>" for line in notes(models))}
{"".join(sections)}
</body></html>
"""
