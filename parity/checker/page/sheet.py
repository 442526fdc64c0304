"""What a check found, as an object, as JSON (parity/checker/check.schema.json), as one line, and as a page for the terminal."""

import io
import json
import math
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity.checker.calling.caller import Convention
from parity.checker.calling.packing import visible
from parity.checker.diagnosis.behaviour import Behaviour
from parity.checker.diagnosis.deviations import DEVIATIONS, Found
from parity.checker.diagnosis.diagnose import Diagnosis
from parity.checker.diagnosis.findings import NAMES
from parity.checker.diagnosis.sizes import Limit, ranges
from parity.checker.page.text import counted
from parity.checker.probes import HELD_OUT, PROBES

WORDS = {
    "eq6": "equals {base}", "listing1": "equals Listing 1", "conditional": "equals {base} only under conditions",
    "explained": "differs, explained", "unexplained": "differs, unexplained", "cannot_run": "cannot run",
}
COLOURS = {"eq6": "green", "listing1": "green", "conditional": "yellow", "explained": "red", "unexplained": "red",
           "cannot_run": "magenta"}


@dataclass(frozen=True)
class Report:
    """verdict: see diagnose.VERDICTS.  error: for cannot_run, type, message, lines of their code and the call.

    stages: theirs beside ours on one probe, as check.schema.json has them.  runs_in: "process" | "fork" | "here" | "folder".
    network: whether its code could reach others.
    """

    target: str
    diagnosis: Diagnosis
    convention: Convention | None = None
    behaviour: Behaviour = field(default_factory=Behaviour)
    stages: tuple[dict, ...] = ()
    error: dict | None = None
    seconds: float = 0.0
    calls: int = 0
    runs_in: str = "process"
    network: bool = False
    device: str = "cpu"
    accept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        return self.diagnosis.verdict

    @property
    def deviations(self) -> tuple[str, ...]:
        """Ids of what was found, harmless things left out."""
        return tuple(f.id for f in self.diagnosis.deviations)

    @property
    def harmless(self) -> tuple[str, ...]:
        return tuple(f.id for f in self.diagnosis.harmless)

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.diagnosis.conditions

    @property
    def said_conditions(self) -> list[str]:
        """The conditions, but for B = 1 where a limit says the same."""
        one = any(x.key == "B" and x.holds == 1 for x in self.diagnosis.limits)
        return [x for x in self.conditions if not (one and x == "B = 1")]

    @property
    def exit_code(self) -> int:
        """0 equals eq. 6 (or what --accept names), 1 differs or only under conditions, 3 cannot run."""
        if self.verdict == "cannot_run":
            return 3
        return 0 if self.verdict == "eq6" or self.verdict in self.accept else 1

    @property
    def summary(self) -> str:
        """One line, badge-sized."""
        text = f"SPARC: {WORDS[self.verdict].format(base=self.base)}"
        if self.verdict == "conditional":
            return f"{text}: {', '.join(self.said_conditions)}"
        found = [str(f) for f in self.diagnosis.deviations]
        if self.verdict in ("explained", "unexplained") and found:
            text += f": {', '.join(found[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        elif self.verdict == "unexplained" and self.diagnosis.stage:
            text += f", first at {' or '.join((self.diagnosis.stage, *self.diagnosis.stage_open))}"
        elif self.error:
            text += f": {self.error['type']}"
        return text

    @property
    def sentences(self) -> dict[str, int]:
        """How many sentences were said, said weaker, withheld, of diagnosis and behaviour."""
        parts = [self.diagnosis.sentences, self.behaviour.sentences]
        return {kind: sum(p.get(kind, 0) for p in parts) for kind in ("said", "weaker", "withheld")}

    @property
    def base(self) -> str:
        if set(self.diagnosis.losses) == {"global"}:
            return "eq. 1"
        if set(self.diagnosis.losses) == {"fine", "global"} and self.diagnosis.base == "eq6":
            return "eqs. 1 and 6"
        return NAMES[self.diagnosis.base]

    @property
    def headline(self) -> str:
        if self.error:
            kind, words, call = self.error["type"], first_line(self.error["message"]), self.error["call"] or "the call"
            if kind in ("crash", "exit", "time", "memory", "budget", "NotFound"):
                return words if kind == "NotFound" else f"{call}: {words}"
            return f"{call} raised {kind}: {words}"
        return self.diagnosis.note

    def to_dict(self) -> dict[str, Any]:
        """As check.schema.json says; plain numbers, strings, lists and dicts."""
        d, c = self.diagnosis, self.convention
        effects = {e.id: e for e in d.effects}
        said = d.clauses
        return {
            "format": "sparc-check", "version": 1, "target": self.target, "verdict": self.verdict, "summary": self.summary,
            "headline": self.headline, "exit_code": self.exit_code, "conditions": list(d.conditions),
            "convention": None if c is None else {
                "call": str(c), "written": c.written, "framework": c.framework, "dtype": c.dtype, "device": self.device,
                "items": [vars(item).copy() for item in c.items],
            },
            "deviations": [deviation(f, said[f], effects.get(f.id)) for f in d.deviations if f in said],
            "harmless": [deviation(f, said[f]) for f in d.harmless if f in said],
            "equals": [[str(f) for f in some] for some in d.equals],
            "behaviour": [
                {
                    "id": x.found.id, "value": value(x.found.value), "what": x.found.way, "title": DEVIATIONS[x.found.id].title,
                    "words": x.evidence, "evidence": x.evidence, "fix": DEVIATIONS[x.found.id].fix,
                    "training": DEVIATIONS[x.found.id].training, "explained_by": list(x.explained_by),
                }
                for x in self.behaviour.findings
            ],
            "notes": [*self.notes, *self.behaviour.notes], "stage": d.stage, "evidence": d.evidence, "base": self.base,
            "rounding": dict(zip(("loss", "gradient"), d.rounding)),
            "limits": [limit(x) for x in d.limits], "edges": [deviation(f, said[f]) for f in d.edges if f in said],
            "off": [
                {"probe": o.probe, "shows": shows(o.probe, self.base), "loss": finite(o.loss), "gradient": finite(o.gradient)}
                for o in d.off
            ],
            "tried": {key: as_numbers(x) for key, x in d.tried.items()},
            "reproduced_to": finite(d.reproduced_to), "losses": {name: x.verdict for name, x in d.losses.items()},
            "lambdas": {name: float(x) for name, x in d.lambdas.items()}, "stages": list(self.stages),
            "half": {k: finite(x) for k, x in (self.behaviour.half or {}).items()}, "memory": self.behaviour.memory,
            "floors": [{"what": x.what, "below": x.below, "off": finite(x.off), "words": x.words}
                       for x in self.behaviour.floors],
            "sentences": self.sentences, "stage_seen": d.stage_seen, "stage_open": list(d.stage_open),
            "error": self.error, "seconds": round(self.seconds, 3), "calls": self.calls, "runs_in": self.runs_in,
            "versions": self.versions,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def write_html(self, path: Path | str) -> Path:
        """One self-contained page with a figure of each stage, theirs beside ours."""
        from parity.checker.page.page import write_page

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(self.to_dict(), path)
        return path

    def _repr_html_(self) -> str:
        """The page, in a frame of its own: as the last line of a notebook's cell."""
        import html

        from parity.checker.page.page import page

        return (f'<iframe sandbox srcdoc="{html.escape(page(self.to_dict()), quote=True)}" title="{html.escape(self.summary)}" '
                'style="width: 100%; height: 40em; border: 0"></iframe>')

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        show(self, Console(file=text, width=112, no_color=True, highlight=False))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip()


def deviation(found: Found, clause: str, effect=None) -> dict[str, Any]:
    entry = DEVIATIONS[found.id]
    return {
        "id": found.id, "value": value(found.value), "way": found.way, "stage": entry.stage, "title": entry.title,
        "words": clause, "equation": entry.equation, "fix": entry.fix, "training": entry.training,
        "hidden_by": list(entry.hidden_by),
        "effect": None if effect is None
        else {"probe": effect.probe, "loss": finite(effect.loss), "gradient": finite(effect.gradient)},
    }


def limit(x: Limit) -> dict[str, Any]:
    return {
        "what": x.key, "holds": float(x.holds), "fails": float(x.fails), "worst": float(x.worst), "loss": finite(x.loss),
        "gradient": finite(x.gradient), "sharp": x.sharp, "stage": x.stage, "condition": x.condition, "words": x.words,
    }


def as_numbers(values) -> list:
    return [float(f"{x:.6g}") if isinstance(x, int | float) else x for x in values]


def shows(name: str, base: str) -> str:
    """What a batch is for; of the global loss alone, what it is."""
    probe = PROBES.get(name) or HELD_OUT.get(name)
    words = probe.shows if probe else ""
    return words.partition(":")[0] if base == "eq. 1" else words


def value(x):
    return float(x) if isinstance(x, int | float | np.floating) and not isinstance(x, bool) else x


def finite(x) -> float | None:
    return float(x) if x is not None and math.isfinite(x) else None


def first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def show(report: Report, console) -> None:
    """The page for the terminal."""
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    def line(text="", indent=2, style=None):
        console.print(Padding(escape(visible(text)), (0, 0, 0, indent)), style=style)

    def code(text, indent):
        for row in text.splitlines():
            console.print(" " * indent + escape(visible(row)), style="cyan", soft_wrap=True)

    console.print()
    line(WORDS[report.verdict].format(base=report.base).upper()
         + (f": {', '.join(report.said_conditions)}" if report.conditions else ""),
         style=f"bold {COLOURS[report.verdict]}")
    line(report.headline)
    if report.error and report.error["lines"]:
        console.print()
        for text in report.error["lines"]:
            line(text, 4, "yellow")
    if report.convention is not None:
        console.print()
        line("How it is called, and how sure that is", style="bold")
        line(f"{report.convention}", 4)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        for item in report.convention.items:
            table.add_row(*(escape(visible(x)) for x in (item.what, item.value, item.sure, item.why)))
        console.print(Padding(table, (0, 0, 0, 4)))
    d = report.diagnosis
    effects = {e.id: e for e in d.effects}
    if d.deviations and report.verdict != "eq6":
        console.print()
        line("What differs" if report.verdict != "listing1" else "The reading of the paper", style="bold")
        for i, found in enumerate([x for x in d.deviations if x in d.clauses], 1):
            show_deviation(line, code, i, found, d.clauses[found], effects.get(found.id), report.verdict)
            for x in report.behaviour.findings:
                if next((c for c in x.explained_by if c in report.deviations), None) == found.id:
                    line(f"From it follows: {x.evidence}.", 7)
    if d.harmless:
        console.print()
        line("Without effect", style="bold")
        for found in d.harmless:
            line(f"{found.id}: {d.clauses[found]}", 4)
    if d.edges:
        console.print()
        line("Only where numbers are exactly equal", style="bold")
        for found in d.edges:
            line(f"{found.id}: {d.clauses[found]}", 4)
        line("--edges strict counts it as a difference", 4)
    own = [x for x in report.behaviour.findings if not x.explained_by]
    follows = [x for x in report.behaviour.findings if x.explained_by and not set(x.explained_by) & set(report.deviations)]
    if own:
        console.print()
        line("What ordinary values do not show", style="bold")
        for x in own:
            line(f"{x.found.id}: {x.evidence}", 4)
            code(DEVIATIONS[x.found.id].fix, 8)
    if follows:
        console.print()
        line("What follows from it", style="bold")
    for x in follows:
        line(f"{x.evidence} ({', '.join(x.explained_by)})", 4)
    slack, grad_slack = (max(1e-7, x) for x in d.rounding)
    wrong = [o for o in d.off if not (o.loss <= slack and (o.gradient or 0) <= grad_slack)]
    if wrong and report.verdict != "listing1":
        console.print()
        line(f"How far from {report.base}", style="bold")
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
        for name in ("batch", "loss", "gradient", ""):
            table.add_column(name, justify="left" if name in ("batch", "") else "right")
        best = sorted(wrong, key=lambda o: o.probe != d.evidence)[:6]
        for o in best:
            table.add_row(o.probe, percent(o.loss), percent(o.gradient), escape(shows(o.probe, report.base)))
        console.print(Padding(table, (0, 0, 0, 4)))
        rest = len(d.off) - len(wrong)
        line(f"equal on {rest} of {len(d.off)} batches", 4)
    if notes := [*report.notes, *report.behaviour.notes]:
        console.print()
        line("Also", style="bold")
        for text in notes:
            line(text, 4)
    console.print()
    reached = f", reproduced to {d.reproduced_to:.0e}" if d.reproduced_to is not None else ""
    where = {"process": "a process of its own", "fork": "a fork of this process", "here": "this process, without limits",
             "folder": "another program"}[report.runs_in]
    where += ", the network open to it" if report.network and report.runs_in in ("process", "fork") else ""
    if d.tried:
        line(f"tried: {ranges(d.tried)}", style="dim")
    line(f"{report.calls} call{'s' * (report.calls != 1)} in {where}, {report.seconds:.1f} s{reached}", style="dim")
    if any(report.sentences.values()):
        line(counted(report.sentences), style="dim")


def show_deviation(line, code, number, found, text, effect, verdict):
    entry = DEVIATIONS[found.id]
    line(f"{number}. {found}   {entry.equation}", 4, "bold")
    line(f"{text[:1].upper()}{text[1:]}.", 7)
    if effect is not None and verdict != "listing1":
        line(f"{moves(effect)} (batch {effect.probe}).", 7)
    line(f"In training (expected, not measured here): {entry.training}", 7)
    code(entry.fix, 10)


def moves(effect) -> str:
    """What it does by itself, in words."""
    if not math.isfinite(effect.loss):
        return "Alone it makes the loss infinite or NaN"
    if not math.isfinite(effect.gradient):
        return f"Alone it moves the loss by {percent(effect.loss)} and makes the gradient infinite or NaN"
    return f"Alone it moves the loss by {percent(effect.loss)}, the gradient by {percent(effect.gradient)}"


def percent(x: float | None) -> str:
    if x is None:
        return "-"
    if not math.isfinite(x):
        return "not finite"
    if x >= 10:
        return f"{float(f'{x:.2g}'):.0f} times" if x < 1e6 else f"{x:.2g} times"
    return f"{100 * x:.3g} %" if x >= 1e-5 else f"{x:.0e}" if x else "0"


def versions() -> dict[str, str]:
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in ("sparc_ref", "torch", "jax", "numpy", "tensorflow"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
