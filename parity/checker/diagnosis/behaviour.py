"""What values on ordinary batches miss: leaks, NaN, lost gradients, order, splits, side effects, half precision, memory.

Each test is put to the implementation and to the explanation that `diagnose` found: what both show is not a finding of its own,
it follows from what was found already.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.checker.calling.caller import AUTOGRAD, Caller, arrays_of
from parity.checker.calling.worker import Stopped
from parity.checker.diagnosis import variants
from parity.checker.diagnosis.clauses import Door
from parity.checker.diagnosis.deviations import DEVIATIONS, Found
from parity.checker.diagnosis.diagnose import Diagnosis
from parity.checker.diagnosis.floors import Floor, floors
from parity.checker.diagnosis.memory import growth
from parity.checker.diagnosis.sizes import share
from parity.checker.probes import PROBES, Answer, Probe

TOLERANCE = {"float64": 1e-7, "float32": 2e-3}
AGAIN = {                                                 # the same kinds of batches once more: a finding has to show on both
    "padded": PROBES["padded_again"], "flat": PROBES["flat_equal_lengths"], "unpadded": PROBES["unpadded_again"],
    "zero_padding": PROBES["zero_unit"], "all_padding": PROBES["all_padding_unit"],
}


@dataclass(frozen=True)
class Finding:
    """found.way holds what the words of deviations call {what}; evidence: one sentence with the numbers.

    explained_by: deviations that show the same, so that it is no finding of its own; id may then be left out of a report.
    """

    found: Found
    evidence: str
    explained_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Behaviour:
    """findings; notes: sentences that are no faults; memory: measured growth, or None; half: relative error by dtype.

    floors: small numbers below which it is another loss, as notes have it
    sentences: how many were said, said weaker, withheld
    """

    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    memory: dict | None = None
    half: dict | None = None
    floors: tuple[Floor, ...] = ()
    sentences: dict[str, int] = field(default_factory=dict)


def behaviour(ask: Any, diagnosis: Diagnosis) -> Behaviour:
    """Run every test: about 40 calls of a Caller; of a folder of answers (exchange.Table) those that it can answer."""
    theirs, model, door = ask, explained(diagnosis), Door()
    findings = []
    known = {f.id for f in (*diagnosis.deviations, *diagnosis.harmless, *diagnosis.edges)}

    def out(found, evidence, test, causes_=()):
        """Through the door: test, run once more, finds the same."""
        def again():
            return any((f.id, f.value) == (found.id, found.value) for f, _ in test())

        if door.say("behaviour", None, evidence=evidence, again=again):
            findings.append(Finding(found, evidence, causes_))

    tests = (no_gradient, padding_leak, zero_padding, nan_gradient, all_padding, order, batch_split)
    drawn = ask.worker is not None and any(True for _ in repeats(ask))
    for test in [x for x in tests if not (drawn and x in (order, batch_split))]:  # random numbers have an order of their own
        for found, evidence in test(theirs):
            if found.id in known:
                continue
            same = any(f.id == found.id for f, _ in test(model)) if model else False
            on = PROBES if ask.worker is None else AGAIN  # a folder has no others
            out(found, evidence, functools.partial(test, theirs, on), causes(test, found.id, diagnosis) if same else ())
    if ask.worker is None:                                # a folder of answers cannot be called again
        return Behaviour(tuple(findings), sentences=door.counts)
    turned = any(f.found.id == "edge.order_dependent" for f in findings)
    for effect, other in ((repeats, ()), (mutates, ()), (padding_place, ("padded_again",)), (train_mode, ("unpadded_again",))):
        for found, evidence in effect(ask):
            if found.id not in known and not (turned and effect is padding_place):
                out(found, evidence, functools.partial(effect, ask, *other))
    half, half_findings, notes = low_precision(ask)
    for x in half_findings:
        out(x.found, x.evidence, lambda: [(x.found, "") for x in low_precision(ask, "padded_again")[1]])
    memory, memory_note = growth(ask, diagnosis)
    low: tuple[Floor, ...] = ()
    if model and (found_low := floors(theirs, model)):
        again = floors(theirs, model, again=True)
        low = tuple(x for x in found_low if door.say(
            "behaviour", None, evidence=x.words, again=lambda x=x: any(x.like(y) for y in again)))
    notes = [*notes, *(x.words for x in low), *memory_note, *refusals(ask)]
    return Behaviour(tuple(findings), tuple(notes), memory, half, low, door.counts)


def explained(diagnosis: Diagnosis) -> Callable[[Probe], Answer] | None:
    """The explanation as something to ask; None where there is none."""
    called = called_by(diagnosis)
    if called is None:
        return None

    def ask(probe):
        try:
            result = variants.compute(probe, called)
        except ValueError:
            return Answer(error="not computable")
        losses, grads = dict(result.losses), {name: dict(g) for name, g in result.grads.items()}
        if diagnosis.lambdas and {"fine", "global"} <= set(losses):
            weights = diagnosis.lambdas
            losses["total"] = sum(weights.get(name, 0.0) * losses[name] for name in ("fine", "global"))
            leaves = set(grads.get("fine", {})) | set(grads.get("global", {}))
            grads["total"] = {
                leaf: sum(weights.get(name, 0.0) * np.asarray(grads[name].get(leaf, 0.0)) for name in ("fine", "global"))
                for leaf in leaves
            }
        return Answer(losses, grads)

    return ask


def called_by(diagnosis: Diagnosis) -> list[Found] | None:
    """The deviations that a call with switches takes; None where nothing explains it."""
    found = [f for f in (*diagnosis.deviations, *diagnosis.harmless) if f.id in DEVIATIONS]
    if diagnosis.verdict in ("unexplained", "cannot_run"):
        return None
    if diagnosis.verdict == "listing1" and not any(f.id == "reduction.token" for f in found):
        found.append(Found("reduction.token"))
    return [f for f in found if not f.id.startswith(("edge.", "gradient."))]


def setting_of(diagnosis: Diagnosis) -> variants.Variant | None:
    """The explanation of the fine-grained loss as a setting of the switches."""
    called = called_by(diagnosis)
    try:
        return None if called is None else variants.variant_of(called)[0]
    except ValueError:
        return None


def causes(test, id_: str, diagnosis: Diagnosis) -> tuple[str, ...]:
    """Which deviations show the same by themselves; all of them where none does alone."""
    alone = [d.id for d in diagnosis.deviations
             if any(f.id == id_ for f, _ in test(explained(replace(diagnosis, deviations=(d,)))))]
    return tuple(alone or (d.id for d in diagnosis.deviations)) or ("reduction.token",)


Test = Iterator[tuple[Found, str]]


def no_gradient(ask, on=PROBES) -> Test:
    """A loss that depends on an input, and no gradient for it."""
    answer = ask(on["padded"])
    needs = {"fine": ("v", "t", "theta"), "global": ("v_bar", "t_bar", "theta"), "total": ("v", "t", "theta")}
    lost: dict[str, list[str]] = {}
    for loss in answer.losses:
        grads = answer.grads.get(loss)
        if grads is None:
            if isinstance(ask, Caller) and ask.convention.framework in AUTOGRAD:
                said = f"the {loss} loss is a plain number: no gradient flows back from it"
                yield Found("edge.no_gradient", "anything"), said
            continue
        for leaf in needs[loss]:
            if leaf in grads and not np.any(grads[leaf]) and not (leaf == "theta" and ignores_theta(ask, loss, on)):
                lost.setdefault(leaf, []).append(loss)
    for leaf, losses in lost.items():
        what = {"v": "the patches", "t": "the tokens", "theta": "the temperature", "v_bar": "the image",
                "t_bar": "the text"}[leaf]
        yield Found("edge.no_gradient", leaf), f"the gradient of the {' and '.join(losses)} loss for {what} is exactly zero"


def ignores_theta(ask, loss, on=PROBES) -> bool:
    probe = on["padded"]
    a, b = ask(probe), ask(replace(probe, theta=probe.theta + 0.5))
    return a.losses[loss] == b.losses.get(loss)


def padding_leak(ask, on=PROBES) -> Test:
    """Other directions at padding: a mere factor would cancel in every norm."""
    probe = on["padded"]
    other = np.random.default_rng(5).standard_normal(probe.t.shape)
    first, second = ask(probe), ask(replace(probe, t=np.where(probe.mask[..., None], probe.t, other)))
    for loss, value in first.losses.items():
        if second.error or not math.isfinite(value):
            continue
        tolerance = TOLERANCE[first.dtype]
        off = relative(second.losses.get(loss, math.nan), value)
        if off > tolerance:
            said = f"other embeddings at padding change the {loss} loss by {off:.2g} of it"
            yield Found("edge.padding_leak", None, f"{loss} loss"), said
            continue
        where = probe.mask[..., None]
        for leaf, g in first.grads.get(loss, {}).items():
            h = second.grads.get(loss, {}).get(leaf)
            if h is None or not np.isfinite(g).all():
                continue
            a, b = (np.where(where, x, 0) if leaf == "t" else x for x in (g, h))
            if (off := distance(b, a)) > 10 * tolerance:
                yield Found("edge.padding_leak", None, f"gradient for {leaf}"), (
                    f"other embeddings at padding change the gradient for {leaf} by {off:.2g} of its largest entry"
                )
                break


def zero_padding(ask, on=PROBES) -> Test:
    """What pad_sequence makes: padded embeddings of exactly zero."""
    answer = ask(on["zero_padding"])
    if (what := poisoned(answer)) and not poisoned(ask(on["padded"])):
        yield Found("edge.zero_padding", None, what), f"with zeros at padding the {what} is not finite"


def all_padding(ask, on=PROBES) -> Test:
    """One caption of the batch has no token."""
    answer = ask(on["all_padding"])
    if poisoned(ask(on["padded"])):
        return
    if answer.error:
        yield Found("edge.all_padding", None, "raises"), f"a caption of padding alone: {answer.error}"
    elif what := poisoned(answer):
        said = f"with one caption of padding alone the {what} is not finite"
        yield Found("edge.all_padding", None, f"makes the {what} NaN"), said


def nan_gradient(ask, on=PROBES) -> Test:
    """A finite loss whose gradient is not."""
    shown = {"padded": "an ordinary padded batch", "flat": "a token to which every patch is alike",
             "unpadded": "a batch without padding"}
    for name, words in shown.items():
        answer = ask(on[name])
        for loss, value in answer.losses.items():
            bad = [leaf for leaf, g in answer.grads.get(loss, {}).items() if not np.isfinite(g).all()]
            if math.isfinite(value) and bad:
                said = f"{words}: the {loss} loss is {value:.6g}, its gradient for {bad[0]} NaN"
                yield Found("edge.nan_gradient", None, words), said
                return


def order(ask, on=PROBES) -> Test:
    """Samples, patches and the real tokens of a caption in another order."""
    probe = on["padded"]
    rng = np.random.default_rng(3)
    batch = rng.permutation(len(probe.v))
    patches = rng.permutation(probe.v.shape[1])
    t = probe.t.copy()
    for row, n in zip(t, probe.mask.sum(1)):
        row[:n] = row[:n][::-1].copy()
    changed = {
        "samples": replace(probe, **{k: getattr(probe, k)[batch] for k in ("v", "t", "mask", "v_bar", "t_bar")}),
        "patches": replace(probe, v=probe.v[:, patches]), "tokens": replace(probe, t=t),
    }
    first = ask(probe)
    for what, other in changed.items():
        second = ask(other)
        for loss, value in first.losses.items():
            off = relative(second.losses.get(loss, math.nan), value)
            if math.isfinite(value) and not second.error and not off <= TOLERANCE[first.dtype]:
                said = f"the {what} in another order change the {loss} loss by {off:.2g} of it"
                yield Found("edge.order_dependent", what), said
                break


def batch_split(ask, on=PROBES) -> Test:
    """Eq. 6 is a mean over captions: two halves of a batch give the loss of the whole."""
    probe = on["padded"]
    whole = ask(probe)
    value = whole.losses.get("fine")
    if value is None or not math.isfinite(value):
        return
    half = len(probe.v) // 2
    parts = [part(probe, slice(0, half)), part(probe, slice(half, None))]
    answers = [ask(p) for p in parts]
    mean = sum(a.losses.get("fine", math.nan) * len(p.v) for a, p in zip(answers, parts)) / len(probe.v)
    if math.isfinite(mean) and (off := relative(mean, value)) > TOLERANCE[whole.dtype]:
        yield Found("edge.batch_split"), f"two halves give {mean:.6g} on average, the whole {value:.6g}: {off:.2g} of it"


def part(probe: Probe, where: slice) -> Probe:
    return replace(probe, **{k: getattr(probe, k)[where] for k in ("v", "t", "mask", "v_bar", "t_bar")})


def repeats(ask: Caller) -> Test:
    """The same call twice, random numbers left to run on."""
    probe = PROBES["unpadded"]
    first, second = ask.call(probe, seed=None), ask.call(probe, seed=None)
    for loss, value in first.losses.items():
        again = second.losses.get(loss, math.nan)
        if math.isfinite(value) and relative(again, value) > 1e-12:
            yield Found("edge.not_deterministic"), f"the same call gave {value:.9g}, then {again:.9g}"
            return


def mutates(ask: Caller) -> Test:
    try:
        reply, _ = ask.worker.ask(ask.convention.request(mutation=True), arrays_of(PROBES["padded"]))
    except Stopped:
        return
    if reply.get("mutated"):
        names = ", ".join(reply["mutated"])
        yield Found("edge.mutates_inputs", None, names), f"after the call {names} held other numbers"


PLACED = ("mask", "padding", "additive")                  # masks that say of each place whether a token stands there


def padding_place(ask: Caller, name: str = "padded") -> Test:
    """Padding before the tokens, as left-padded batches have it, and between them: the same tokens, so the same loss."""
    word = str(ask.convention.word("mask")).split("_")[0]
    if word not in PLACED or ask.convention.word("t") not in ("t", "t_bdl", "t_lbd"):
        return
    probe = PROBES[name]
    first = ask(probe)
    columns = probe.mask.shape[1]
    orders = {"before the tokens": np.argsort(probe.mask, axis=1, kind="stable"),
              "between the tokens": np.tile([*range(1, columns, 2), *range(0, columns, 2)], (len(probe.mask), 1))}
    for where, order in orders.items():
        moved = replace(probe, t=np.take_along_axis(probe.t, order[..., None], 1),
                        mask=np.take_along_axis(probe.mask, order, 1))
        second = ask(moved)
        for loss, value in first.losses.items():
            off = relative(second.losses.get(loss, math.nan), value)
            if math.isfinite(value) and off > TOLERANCE[first.dtype]:
                how = f"it raises {second.error}" if second.error else f"the {loss} loss is {share(off)} off"
                yield Found("edge.padding_place", None, where), f"with padding {where} {how}"
                return


def train_mode(ask: Caller, name: str = "padded") -> Test:
    """A module in train mode, in which it is made, against eval mode, in which it is asked."""
    if ask.convention.framework != "torch":
        return
    probe = PROBES[name]
    first, one, two = ask.call(probe), *(ask.call(probe, train=True, seed=seed) for seed in (0, 1))
    tolerance = TOLERANCE[first.dtype]
    for loss, value in first.losses.items():
        a, b = (x.losses.get(loss, math.nan) for x in (one, two))
        off, known = relative(a, value), first.grads.get(loss, {})
        graded = max((distance(g, known[leaf]) for leaf, g in one.grads.get(loss, {}).items()
                      if leaf in known and np.isfinite(known[leaf]).all()), default=0.0)
        if math.isfinite(value) and max(off, graded) > tolerance:
            what, far = ("loss", off) if off > tolerance else ("gradient of the loss", graded)
            how = f"it raises {one.error}" if one.error else f"the {what.replace('loss', f'{loss} loss')} is {share(far)} off"
            drawn = ", and changes from call to call" if relative(a, b) > tolerance else ""
            yield Found("edge.train_mode"), f"in train mode {how}{drawn}; all else here is of eval mode"
            return


def low_precision(ask: Caller, name: str = "padded") -> tuple[dict, list[Finding], list[str]]:
    """Relative error of the loss in float16 and bfloat16, on inputs that are exact in both.

    A finding is what bfloat16, whose range is float32's, makes NaN or refuses; the rest is said in notes.
    """
    if ask.convention.framework not in ("torch", "jax") or ask.convention.dtype != "float64":
        return {}, [], []
    probe = PROBES[name]
    exact = {k: (np.round(getattr(probe, k) * 32) / 32) for k in ("v", "t", "v_bar", "t_bar")}
    probe = replace(probe, **exact, theta=1.25)
    best = ask(probe)
    errors: dict[str, float | None] = {}
    findings, notes = [], []
    for dtype in ("float16", "bfloat16"):
        answer = Caller(ask.worker, replace(ask.convention, dtype=dtype)).call(probe)
        for loss, value in best.losses.items():
            if not math.isfinite(value):
                continue
            if answer.error:
                notes.append(f"{dtype}, on one batch: it raises {answer.error}")
                errors[dtype] = None
                break
            off = relative(answer.losses.get(loss, math.nan), value)
            errors[dtype] = off if math.isfinite(off) else None
            bad = "loss" if not math.isfinite(off) else next(
                ("gradient" for g in answer.grads.get(loss, {}).values() if not np.isfinite(g).all()), "")
            if bad and dtype == "bfloat16":
                findings.append(Finding(Found("edge.low_precision", dtype, f"the {bad} is not finite"),
                                        f"in {dtype} the {bad} is not finite"))
            elif bad:
                notes.append(f"{dtype}, on one batch: the {bad} is not finite")
            else:
                notes.append(f"{dtype}, on one batch: the {loss} loss is off by {off:.1e} of it")
            break
    return errors, findings, notes


def refusals(ask: Caller) -> list[str]:
    """Probes on which it raised although it runs on others."""
    failed = [a.error for a in ask.known.values() if a.error]
    if not failed or len(failed) == len(ask.known):
        return []
    slow = [e for e in failed if e.startswith(("time:", "memory:"))]
    notes = [f"{len(slow)} of {len(ask.known)} batches were not answered within the limits: {slow[0]}"] if slow else []
    failed = [e for e in failed if e not in slow]
    return [*notes, *([f"it raises on {len(failed)} of {len(ask.known)} batches: {failed[0]}"] if failed else [])]


def poisoned(answer: Answer) -> str:
    """ "loss", "gradient" or "": what is not finite."""
    if answer.error:
        return ""
    if any(not math.isfinite(x) for x in answer.losses.values()):
        return "loss"
    return "gradient" if any(not np.isfinite(g).all() for part in answer.grads.values() for g in part.values()) else ""


def relative(a: float, b: float) -> float:
    return abs(a - b) / max(abs(b), 1e-12) if math.isfinite(a) and math.isfinite(b) else math.inf


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(b), initial=0), 1e-12))


