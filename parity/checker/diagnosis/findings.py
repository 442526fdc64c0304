"""What a diagnosis holds, and how it is said."""

from dataclasses import dataclass, field

from parity.checker.diagnosis.clauses import say
from parity.checker.diagnosis.deviations import Found, words
from parity.checker.diagnosis.sizes import Limit
from parity.checker.probes import PROBES

VERDICTS = ("eq6", "listing1", "conditional", "explained", "unexplained", "cannot_run")


@dataclass(frozen=True)
class Off:
    """How far an answer is from the paper on one probe, relative.  gradient None: there is none to compare."""

    probe: str
    loss: float
    gradient: float | None


@dataclass(frozen=True)
class Effect:
    """What one deviation does on a probe: relative change of loss and gradient when it alone is put right."""

    id: str
    probe: str
    loss: float
    gradient: float


@dataclass(frozen=True)
class Diagnosis:
    """verdict: one of VERDICTS.  conditions: under which it equals eq. 6, or Listing 1.  stage: the first that goes wrong.

    base          the reading of the paper that it was measured against, "eq6" | "listing1" | "eq1"
    deviations    what was found, in the order of the stages; harmless: what differs without any effect
    equals        other sets of deviations that no probe tells apart from these
    evidence      the probe that shows it best, or None
    off           for each probe, how far loss and gradient are from the paper
    effects       what each deviation does by itself
    reproduced_to largest relative error of the explanation over all probes, held-out ones included; None: unexplained
    note          sentences: what was found, what could not be told apart, what was not compared
    losses        "fine", "global" -> diagnosis of each alone; lambdas: of a weighted total
    calls         how often the black box was asked
    rounding      what counts as rounding, of a loss and of a gradient
    limits        sizes beyond which the explanation does not hold; tried: what -> [least, largest] of the sizes asked, with
                  "dtypes" those it was asked in
    edges         what shows only where numbers are exactly equal, and never on data
    """

    verdict: str
    conditions: tuple[str, ...] = ()
    deviations: tuple[Found, ...] = ()
    harmless: tuple[Found, ...] = ()
    equals: tuple[tuple[Found, ...], ...] = ()
    stage: str | None = None
    evidence: str | None = None
    off: tuple[Off, ...] = ()
    effects: tuple[Effect, ...] = ()
    reproduced_to: float | None = None
    note: str = ""
    losses: dict[str, "Diagnosis"] = field(default_factory=dict)
    lambdas: dict[str, float] = field(default_factory=dict)
    calls: int = 0
    error: str | None = None
    base: str = "eq6"
    rounding: tuple[float, float] = (1e-9, 1e-7)
    limits: tuple[Limit, ...] = ()
    tried: dict[str, list] = field(default_factory=dict)
    edges: tuple[Found, ...] = ()


NAMES = {"eq6": "eq. 6", "listing1": "Listing 1", "eq1": "eq. 1"}
TIES = ", but for similarities that are exactly sigma"


def sentence(d: Diagnosis, name: str, part, patches: int = 196) -> str:
    """What a colleague would say."""
    what = "Your global loss" if name == "global" else "Your loss"
    equation = NAMES[d.base]
    sizes, ties = [x.condition for x in d.limits], TIES * bool(d.edges)
    clauses = [words(x, patches) for x in d.deviations if x.id != "reduction.token" or d.base != "listing1"]
    text = ""
    graded = bool(part.read(PROBES["padded"]).grads)
    compared = "value and gradients" if graded else "in value"
    if d.verdict == "eq6":
        text = f"{what} equals {equation}, {compared}{ties}."
    elif d.verdict == "listing1":
        text = f"{what} equals Listing 1, {compared}{ties}: the mean runs over all real tokens of the batch."
    elif sizes and d.verdict == "conditional" and not clauses:
        text = f"{what} equals {equation} in all that was tried with {_join(list(d.conditions))}, and not beyond."
    elif part.explained and clauses and sizes:
        text = f"With {_join(sizes)} {what[:1].lower() + what[1:]} equals {equation}, except that {_join(clauses)}."
    elif part.explained and clauses:
        text = f"{what} equals {equation}, except that {_join(clauses)}."
    elif clauses:
        text = f"{what} differs from {equation}: {_join(clauses)}; that does not explain all of it."
    elif part.one_token:
        text = "Nothing is known of its global loss: it was not told from the rest of the total."
    elif d.stage == "gradient":
        text = f"{what} differs from {equation} in its gradient, and nothing known explains that."
    else:
        text = f"{what} differs from {equation}, and no known deviation explains it."
    if d.conditions and not (sizes and not clauses):
        text += f" It equals {equation} where this holds: {', '.join(d.conditions)}."
    if not graded:
        text += " " + say(part.read, "no gradients")
    if d.equals:
        others = " or ".join(" and ".join(str(x) for x in e) for e in d.equals[:3])
        text += f" No batch tells this from {others}."
    if d.harmless:
        text += f" Without effect: {_join([words(x, patches) for x in d.harmless])}."
    return " ".join(filter(None, [text, d.note]))


def _join(clauses):
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
