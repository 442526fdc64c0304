"""What a diagnosis holds, and how it is said."""

import re
from dataclasses import dataclass, field

from parity.checker.diagnosis.clauses import alone_gives, say
from parity.checker.diagnosis.deviations import DEVIATIONS, RARE, Found, words
from parity.checker.diagnosis.sizes import Limit
from parity.checker.diagnosis.switches import EPSILONS
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
    clauses       what was found -> its words, as far as fresh batches show it (clauses.say); nothing else is printed of it
    sentences     how many sentences were "said", said "weaker", "withheld"
    stage_seen    whether what was measured at the stage was measured again
    stage_open    other stages that it may be, by what was measured
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
    clauses: dict[Found, str] = field(default_factory=dict)
    sentences: dict[str, int] = field(default_factory=dict)
    stage_seen: bool = True
    stage_open: tuple[str, ...] = ()
    dropped: bool = False                                 # something was found that fresh batches did not show again


NAMES = {"eq6": "eq. 6", "listing1": "Listing 1", "eq1": "eq. 1"}
TIES = ", but for similarities that are exactly sigma"
LEAVES = {"v": "patches", "t": "tokens", "theta": "theta", "v_bar": "the image", "t_bar": "the text"}


def sentence(d: Diagnosis, name: str, part, patches: int = 196, one_of_two: bool = False) -> str:
    """What a colleague would say: each sentence as the door lets it out (clauses).      one_of_two: a global loss is there too
    """
    what = "Your global loss" if name == "global" else "Your fine-grained loss" if one_of_two else "Your loss"
    one = any(x.key == "B" and x.holds == 1 for x in d.limits)
    held_by = tuple(x for x in d.conditions if not (one and x == "B = 1"))  # said of the size already
    sizes = [x.condition for x in d.limits]
    named = [x for x in d.deviations if x in d.clauses and (x.id != "reduction.token" or d.base != "listing1")]
    of_gradient = [d.clauses[x] for x in named if x.id.startswith("gradient.") and not part.explained]
    rare = {d.clauses[x]: bool(set(DEVIATIONS[x.id].hidden_by) & set(RARE)) for x in named}
    clauses = sorted((d.clauses[x] for x in named if d.clauses[x] not in of_gradient), key=lambda text: rare[text])
    graded = bool(part.read(PROBES["padded"]).grads)
    facts = {
        "part": part, "base": "listing1" if d.base == "listing1" else "eq6", "tol": d.rounding, "what": what,
        "equation": NAMES[d.base], "compared": compared(part) if graded else "in value", "ties": TIES * bool(d.edges),
        "what_inside": what[:1].lower() + what[1:], "clauses": _join(clauses) if clauses else "",
        "conditions": _join(list(held_by)) if held_by else "", "sizes": _join(sizes) if sizes else "",
    }

    def out(kind, **more):
        return say(part.read, kind, **(facts | more))

    if d.verdict in ("eq6", "listing1"):
        text = out("equals" if d.verdict == "eq6" else "equals listing1")
    elif sizes and d.verdict == "conditional" and not clauses:
        text = out("inside")
    elif part.explained and clauses:
        sharp = all(x.ends_there for x in d.limits)       # else no sizes say where it ends
        text = out("partly" if d.dropped else ("inside except" if sharp else "smaller except") if sizes else "except")
    elif clauses:
        text = out("value except")
    elif d.verdict == "unexplained" and name == "global" and part.read.which == "total" and (
            neither := out("neither", alone=alone_gives(part.read))):
        text = neither
    elif part.one_token:
        text = out("nothing known")
    else:
        text = out("gradient" if d.stage == "gradient" else "differs")
    more = [f"Beside that, {_join(of_gradient)}."] if of_gradient else []
    held = held_by if all(x.ends_there for x in d.limits) else ()  # else it ends where no size says
    if held and not (sizes and not clauses):
        more.append(out("where", conditions=", ".join(held), held=held))
    if not graded:
        more.append(out("no gradients"))
    if d.equals:
        others = ", or as if ".join(_join([words(x, patches) for x in e]) for e in d.equals[:3])
        more.append(out("untold", others=others, sets=d.equals[:3]))
    cancels = [d.clauses[x] for x in d.harmless if x in d.clauses and x.id not in EPSILONS.values()]
    small = [d.clauses[x] for x in d.harmless if x in d.clauses and x.id in EPSILONS.values()]
    if cancels:
        more.append(f"Without effect: {_join(cancels)}.")
    if small:
        more.append(f"Too small to count: {_join(small)}.")
    return " ".join(filter(None, [text, *more, d.note]))


def compared(part) -> str:
    """Which gradients were compared beside the value."""
    given = part.read(PROBES["padded"]).grads
    wanted = ("v_bar", "t_bar", "theta") if part.name == "global" and "v_bar" in given else ("v", "t", "theta")
    there = [LEAVES[leaf] for leaf in wanted if leaf in given]
    lost = len(there) < len(wanted) - ("theta" not in given and part.fixed_temperature)
    names = " and ".join([", ".join(there[:-1]), there[-1]]) if len(there) > 1 else "".join(there)
    return f"value and gradient for {names}" if lost and there else "value and gradients"


def together(clauses: list[str]) -> list[str]:
    """Clauses on several inputs' gradients that say the same, as one."""
    one = re.compile(r"the gradient for (\w+) is (.+ times what it should be)")
    inputs: dict[str, list[str]] = {}
    for text in clauses:
        if found := one.fullmatch(text):
            inputs.setdefault(found[2], []).append(found[1])
    made: list[str] = []
    for text in clauses:
        found = one.fullmatch(text)
        if found is None or len(names := inputs[found[2]]) == 1:
            made.append(text)
        elif names[0] == found[1]:
            listed = f"{', '.join(names[:-1])} and {names[-1]}"
            made.append(f"the gradients for {listed} are {found[2].replace('it should', 'they should')}")
    return made


def _join(clauses):
    clauses = together(clauses)
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
