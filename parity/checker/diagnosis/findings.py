"""What a diagnosis holds, and how it is said."""

from dataclasses import dataclass, field

from parity.checker.diagnosis.deviations import Found, words
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

    deviations    what was found, in the order of the stages; harmless: what differs without any effect
    equals        other sets of deviations that no probe tells apart from these
    evidence      the probe that shows it best, or None
    off           for each probe, how far loss and gradient are from the paper
    effects       what each deviation does by itself
    reproduced_to largest relative error of the explanation over all probes, held-out ones included; None: unexplained
    note          sentences: what was found, what could not be told apart, what was not compared
    losses        "fine", "global" -> diagnosis of each alone; lambdas: of a weighted total
    calls         how often the black box was asked
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


def sentence(d: Diagnosis, name: str, part, patches: int = 196) -> str:
    """What a colleague would say."""
    what, equation = ("Your global loss", "eq. 1") if name == "global" else ("Your loss", "eq. 6")
    clauses = [words(x, patches) for x in d.deviations if x.id != "reduction.token" or d.verdict != "listing1"]
    text = ""
    if d.verdict == "eq6":
        text = f"{what} equals {equation}, value and gradients."
    elif d.verdict == "listing1":
        text = f"{what} equals Listing 1, value and gradients: the mean runs over all real tokens of the batch."
    elif part.explained and clauses:
        text = f"{what} equals {equation}, except that {_join(clauses)}."
    elif clauses:
        text = f"{what} is like {equation}, except that {_join(clauses)}; that does not explain all of it."
    elif d.stage == "gradient":
        text = f"{what} differs from {equation} in its gradient, and nothing known explains that."
    else:
        text = f"{what} differs from {equation}, and no known deviation explains it."
    if d.conditions:
        text += f" It equals {equation} where this holds: {', '.join(d.conditions)}."
    if not any(part.read(p).grads for p in (PROBES["padded"],)):
        text += " It gives no gradient, so values alone were compared."
    if d.equals:
        others = " or ".join(" and ".join(str(x) for x in e) for e in d.equals[:3])
        text += f" No probe tells this from {others}."
    if d.harmless:
        text += f" Without effect: {_join([words(x, patches) for x in d.harmless])}."
    return " ".join(filter(None, [text, d.note]))


def _join(clauses):
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
