"""From answers to an explanation: which set of deviations reproduces a black box, loss and gradients, to rounding.

diagnose(ask) asks probes (parity.probes) and searches the variants (parity.variants).  See the README of this folder.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from parity.deviations import Found
from parity.probes import PROBES, Answer, Probe

__all__ = ["PROBES", "Answer", "Diagnosis", "Effect", "Found", "Off", "Probe", "diagnose"]

VERDICTS = ("eq6", "listing1", "conditional", "explained", "unexplained", "cannot_run")


@dataclass(frozen=True)
class Off:
    """How far an answer is from the paper (or from the explanation) on one probe, relative; None: there is none to compare."""

    probe: str
    loss: float
    gradient: float | None


@dataclass(frozen=True)
class Effect:
    """What one deviation does on the probe "padded": relative change of loss and gradient when it alone is put right."""

    id: str
    loss: float
    gradient: float


@dataclass(frozen=True)
class Diagnosis:
    """verdict: one of VERDICTS.  conditions: under which it equals eq. 6 (or Listing 1).  stage: the first that goes wrong.

    evidence      the probe that shows it best, or None
    off           for each probe, how far loss and gradient are from the paper
    reproduced_to the largest relative error of the explanation over all probes, held-out ones included; None if unexplained
    note          sentences: what was found, what could not be told apart, what was not compared
    losses        "fine", "global" -> verdict of each alone; lambdas: of a weighted total
    calls         how often the black box was asked
    """

    verdict: str
    conditions: tuple[str, ...] = ()
    deviations: tuple[Found, ...] = ()
    harmless: tuple[Found, ...] = ()
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


def diagnose(ask: Callable[[Probe], Answer]) -> Diagnosis:
    """Say what a black box computes.      ask(Probe) -> Answer"""
    answer = ask(PROBES["padded"])
    if answer.error:
        return Diagnosis("cannot_run", error=answer.error, evidence="padded", calls=1)
    return Diagnosis("unexplained", calls=1, note="The search is not there yet.")
