"""The losses that a box gives, one by one: fine-grained, global, or both in a weighted total lambda_g L_g + lambda_f L_f.

One sample has no global loss, one token per caption no fine-grained one: each is explained where the other is silent, and
taken off the total.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from parity.checker.diagnosis import search
from parity.checker.diagnosis.asking import Box, Reading, gradient_off, loss_off
from parity.checker.diagnosis.deviations import DEVIATIONS, Found
from parity.checker.diagnosis.explain import (
    ALONE,
    FIRST,
    SECOND,
    ZERO,
    Explanation,
    Reader,
    depends_on_theta,
    drops,
    explain_fine,
    named,
)
from parity.checker.diagnosis.findings import Effect
from parity.checker.diagnosis.matching import cost, simplest_factor
from parity.checker.diagnosis.pairs import explain_global, global_settings
from parity.checker.diagnosis.search import evaluated
from parity.checker.diagnosis.switches import EPSILONS, GlobalVariant, Variant, found_in, variant_of, without
from parity.checker.probes import HELD_OUT, PROBES, Probe, draw

PAIRS = ("padded", "padded_again", "unpadded", "equal_lengths", "unit_padded", "all_padding")
SINGLES = tuple(p for p in PROBES.values() if len(p.v) == 1)
ONE_TOKEN = {
    name: draw(name, (1,) * batch, 1, patches, shows="one token per caption: the global loss alone")
    for name, batch, patches in (("one_token", 4, 9), ("one_token_again", 3, 16), ("one_token_more", 5, 9))
}


@dataclass
class Part:
    """One loss and its explanation.  name: "fine" | "global"; read: Probe -> Reading."""

    name: str
    read: Reader
    how: Explanation
    scale: float = 1.0              # its lambda in a total
    probes: tuple[Probe, ...] = tuple(PROBES.values())
    held_out: tuple[Probe, ...] = tuple(HELD_OUT.values())
    lambdas: dict[str, float] = field(default_factory=dict)
    told: Callable[[Probe], bool] | None = None

    @property
    def found(self):
        mine = list(self.how.found)
        if any(d.id == "minmax.epsilon" and d.value for d in self.how.also):
            mine = [d for d in mine if d.id != "minmax.epsilon" or d.value]
        return tuple(mine)

    @property
    def facts(self):
        return self.how.facts

    @property
    def equals(self):
        return self.how.equals

    @property
    def explained(self) -> bool:
        return (self.how.fine or self.how.pairs) is not None and self.how.gradient is not False

    @property
    def one_sample(self) -> bool:
        """Only batches of one sample tell it from the rest of a total."""
        return all(len(p.v) == 1 for p in self.probes)

    @property
    def one_token(self) -> bool:
        """Only captions of one token tell it from the rest of a total, which nothing explains."""
        return all(p.t.shape[1] == 1 for p in self.probes)

    @property
    def fixed_temperature(self) -> bool:
        """Whether its temperature is a number of its own, so that there is no gradient for theta to compare."""
        return any(o is not None and o.tau is not None for o in (self.how.fine, self.how.pairs))

    @property
    def only_edges(self) -> bool:
        """Whether all that was found shows only with zeros at padding, empty captions or exact ties."""
        return all(d.id.startswith("edge.") or DEVIATIONS[d.id].edge for d in self.found)

    def told_apart(self, probe: Probe) -> bool:
        """Whether nothing of a total hides this loss on a batch: beside NaN nothing is known."""
        return self.told is None or self.told(probe)

    def without(self, found: Found) -> "Part":
        """The same with one thing that was found taken out of the explanation."""
        how = self.how
        fine, pairs = without(how.fine, how.pairs, found)
        wrong = how.wrong
        leaf = found.id.split(".")[1] if found.id.startswith("gradient.") else str(found.value)
        if wrong is not None and found.id.startswith(("gradient.", "edge.no_gradient")):
            slopes = {name: slope for name, slope in wrong.slopes.items() if name != leaf}
            wrong = replace(wrong, slopes=slopes, padding=wrong.padding and found.id != "gradient.padding_not_zero",
                            flat=wrong.flat and found.id != "gradient.flat_rows")
        also = [d for d in how.also if d != found]
        return replace(self, how=replace(how, fine=fine, pairs=pairs, wrong=wrong, also=also))

    def drops(self, probe: Probe) -> bool:
        """Whether what is exactly sigma is dropped."""
        return self.how.fine is not None and drops(self.read, self.how.fine, probe)

    def own_gradients(self, probe: Probe) -> dict:
        """The gradients of the value's explanation, nothing cut off."""
        how = self.how
        fine = replace(how.fine, detach="", gates=()) if how.fine is not None else None
        whole = replace(self, how=replace(how, fine=fine, wrong=None, also=[]))
        return whole.model(probe)[1]

    def settle(self, base: str) -> None:
        """Where probes agree with the paper and the search found nothing, the paper is the explanation."""
        if self.explained:
            return
        if self.name == "global":
            self.how.pairs = self.how.pairs or GlobalVariant()
        else:
            self.how.fine = Variant(reduction="token" if base == "listing1" else "sample")
        self.how.reached, self.how.gradient = "all", None
        self.how.also.clear()

    @property
    def bases(self):
        return ("eq6",) if self.name == "global" else ("eq6", "listing1")

    def pooled(self) -> GlobalVariant:
        """Eq. 1 of the pooled embeddings that are given, or, where none is, of the means that it has to make."""
        grads = self.read(PROBES["padded"]).grads
        if not grads or {"v_bar", "t_bar"} & grads.keys():
            return GlobalVariant()
        return GlobalVariant(vision="mean", text="mean")

    def paper(self, probe: Probe, base: str):
        """What the paper gives: value, gradients.  With the box's harmless epsilons, where it has some."""
        if self.name == "global":
            source = self.how.pairs or self.pooled()
            vision, text = ("given" if side == "given" else "mean" for side in (source.vision, source.text))
            kind = GlobalVariant(vision, text)
            return self._scaled(evaluated(probe, kind), "global")
        eps = self.how.fine.eps if self.how.fine else ()
        harmless = tuple((name, x) for name, x in eps if DEVIATIONS[EPSILONS[name]].harmless)
        paper = Variant(reduction="token" if base == "listing1" else "sample", eps=harmless)
        return self._scaled(evaluated(probe, paper), "fine")

    def model(self, probe: Probe):
        """What the explanation gives: value, gradients."""
        setting = self.how.pairs if self.name == "global" else self.how.fine
        assert setting is not None
        value, grads = self._scaled(evaluated(probe, setting), self.name)
        lacking = {d.value for d in self.how.also if d.id == "edge.no_gradient"}
        return value, {name: g for name, g in grads.items() if name not in lacking}

    def models(self, probe: Probe, empty: bool = False):
        """model(), and for rows of zeros at padding, where it is NaN on flat rows: padding may have been cut off before.

        empty: and, without min-max, what may be made of a row of which no patch passes.
        """
        for part in (self, *self._others(probe, empty)):
            value, grads = part.model(probe)
            if part.how.wrong is not None:
                grads = part.how.wrong.applied(probe, grads, self.read(probe).grads)
            yield value, grads

    def _others(self, probe, empty) -> Iterator["Part"]:
        fine = self.how.fine
        if fine is None or self.name == "global":
            return
        ways = ("zero", "nan") if empty and not fine.minmax else ()
        for how in (*ways, *("uniform",) * (probe.name in ZERO and fine.flat != "uniform")):
            wrong = self.how.wrong.with_flat(how) if self.how.wrong is not None else None
            yield replace(self, how=replace(self.how, fine=replace(fine, flat=how), wrong=wrong))

    def _scaled(self, result, name):
        return self.scale * result.losses[name], {k: self.scale * g for k, g in result.grads[name].items()}

    def excused(self, probe: Probe, reading: Reading) -> bool:
        """Is what happens on this probe said by a deviation that is no switch?"""
        ids = {d.id for d in self.how.also}
        if self.how.fine is not None and self.how.fine.flat.startswith("nan") and probe.name in ZERO:
            return not reading.finite or reading.nan_gradient  # zeros are flat rows
        return ("edge.zero_padding" in ids and probe.name in ZERO) or ("edge.all_padding" in ids and probe.name in ALONE)

    def effects(self, deviations):
        made = []
        for d in deviations:
            if d.id.startswith(("edge.", "gradient.")):
                continue
            pick = 1 if self.name == "global" else 0
            with_it, without = (variant_of(x)[pick] for x in ([d], []))
            if self.name == "global":                     # where it pools by itself, it goes on doing so
                kind = {side: "mean" for side in ("vision", "text") if getattr(self.how.pairs or with_it, side) != "given"}
                without = replace(without, **{s: k for s, k in kind.items() if getattr(without, s) == "given"})
            name = "flat" if d.id in ("minmax.nan_on_flat", "minmax.epsilon") else "padded"
            a, b = (evaluated(PROBES[name], o) for o in (with_it, without))
            given = self.read(PROBES[name]).grads or a.grads[self.name]
            grads = {leaf: g for leaf, g in a.grads[self.name].items() if leaf in given}
            loss = loss_off(a.losses[self.name], b.losses[self.name])
            made.append(Effect(d.id, name, loss, gradient_off(grads, b.grads[self.name]) or 0.0))
        return tuple(made)


def explain(box: Box) -> list[Part]:
    """Every loss that the box gives."""
    given = box(PROBES["padded"]).losses
    parts = []
    if "fine" in given:
        read = Reader(box, "fine")
        parts.append(Part("fine", read, explain_fine(read)))
    if "global" in given:
        read = Reader(box, "global")
        parts.append(Part("global", read, explain_pairs(read, named(PAIRS))))
    if "total" not in given:
        return parts
    if not parts:
        return explain_total(box)
    if "fine" not in given:                               # what is called a total may be the fine-grained loss by itself
        return [part for part in explain_total(box) if part.name == "fine"] + parts
    return rest_of_total(box, parts)


def rest_of_total(box, parts) -> list[Part]:
    """A total beside the losses that it holds: its lambdas, and the global loss where that is not given itself."""
    total, fine = Reader(box, "total"), parts[0].read
    one, many = PROBES["single"], PROBES["padded"]
    tol, _ = box.tolerances()
    if not abs(fine(one).value) > 1e-9:
        return parts
    share = simplest_factor(total(one).value / fine(one).value, 10 * tol)
    parts[0].lambdas["lambda_f"] = share

    def part(p):
        reading = fine(p)
        return Reading(share * reading.value, {name: share * g for name, g in reading.grads.items()})

    left = Reader(box, "total", known=part)
    if len(parts) == 2:
        both = [left(p).value / parts[1].read(p).value for p in (many, PROBES["unpadded"])]
        if abs(both[0] - both[1]) < 1e3 * tol * max(1e-3, abs(both[0])):
            parts[1].lambdas["lambda_g"] = simplest_factor(both[0], 1e2 * tol) if abs(both[0]) > 1e-6 else 0.0
        return parts
    if max(abs(left(p).value) for p in named(PAIRS)) < 1e-6:
        return parts
    how = explain_pairs(left, named(PAIRS))
    weight = 1.0
    if how.pairs is not None:
        weight, how.pairs = how.pairs.factor, replace(how.pairs, factor=1.0)
    return [*parts, Part("global", left, how, scale=weight, lambdas={"lambda_g": weight})]


def explain_total(box: Box) -> list[Part]:
    """Both losses of a weighted total, and both lambdas; one of them alone, where that is all there is."""
    total = Reader(box, "total")
    tokens = [p for p in ONE_TOKEN.values() if total(p).error is None]
    tol, _ = box.tolerances()
    pairs = explain_global(total, tokens, not depends_on_theta(total, tokens[0]), tol) if tokens else []
    if max(abs(total(p).value) for p in named(FIRST)) < 1e-9 and pairs:
        how = explain_pairs(total, named(PAIRS))
        if how.pairs is not None:
            return [Part("global", total, how)]
    fine, best, weight = Explanation(), None, 0.0
    for o in pairs[:8]:                                   # one token hides how captions are pooled
        weight, o = o.factor, replace(o, factor=1.0)
        how = explain_fine(less(box, o, weight))
        if best is None or how.reached == "all":
            fine, best = how, o
        if how.reached == "all" and how.gradient is not False:
            break
    if not pairs:
        fine = explain_fine(total)
        if fine.reached == "all":
            return [Part("fine", total, fine)]
        if fine.reached == "one sample":
            best, weight = joint(total, fine)
            fine = explain_fine(less(box, best, weight)) if best is not None else fine
    if best is not None and fine.reached == "all" and fine.gradient is False and right_alone(total, fine):
        return other_gradient(box, total, fine, best, weight)
    return parts_of(box, total, fine, best, weight)


def right_alone(total, fine) -> bool:
    """Whether gradients are the fine-grained loss's where one sample is alone, which silences the global loss."""
    _, tol = total.box.tolerances()
    alone = [p for p in named(("single", "single_again", "unit_single", "single_padded")) if total(p).finite]
    offs = [gradient_off(total(p).grads, evaluated(p, fine.fine).grads["fine"]) for p in alone if not total(p).nan_gradient]
    return bool(offs) and all(x is not None and x < tol for x in offs)


def other_gradient(box, total, fine, best, weight) -> list[Part]:
    """The fine-grained loss by batches of one sample; what else there is of the gradient is the global loss's."""
    fine.gradient, fine.wrong = True, None
    fine.also = [d for d in fine.also if not d.id.startswith("gradient.")]
    made = parts_of(box, total, fine, best, weight)
    made[1].how.gradient = False
    return [replace(made[0], probes=SINGLES, held_out=()), *made[1:]]


def less(box, setting, weight) -> Reader:
    """The total without its global loss."""
    return Reader(box, "total", known=lambda p: _weighted(p, setting, weight))


def parts_of(box, total, fine, best, weight) -> list[Part]:
    share = fine.fine.factor if fine.fine else fine.survivors[0].factor if fine.survivors else 1.0
    if fine.fine is not None:
        fine.fine = replace(fine.fine, factor=1.0)
    lambdas = {"lambda_f": share}
    if best is not None:
        lambdas["lambda_g"] = weight
    read = Reader(box, "total", known=lambda p: _weighted(p, best, weight)) if best is not None else total
    parts = [Part("fine", read, fine, scale=share, lambdas=lambdas)]
    if best is None:
        parts = [replace(parts[0], probes=SINGLES, held_out=())]
    pairs = Explanation(pairs=best, reached="all" if best is not None else "nothing")
    if fine.fine is not None and best is not None:
        rest = Reader(box, "total", known=lambda p: _as_it_is(p, parts[0]))
        asked, held_out = (tuple(p for p in ps if _leaves_the_rest(p, parts[0])) for ps in (PROBES.values(), HELD_OUT.values()))
        parts.append(Part("global", rest, pairs, scale=weight, probes=asked, held_out=held_out,
                          told=lambda p: _leaves_the_rest(p, parts[0])))
    else:
        parts.append(Part("global", total, pairs, scale=weight, probes=tuple(ONE_TOKEN.values()), held_out=()))
    return parts


def _weighted(probe, setting, weight) -> Reading:
    made = evaluated(probe, setting)
    ((_, value),), ((_, grads),) = made.losses.items(), made.grads.items()
    return Reading(weight * value, {name: weight * g for name, g in grads.items()})


def _as_it_is(probe, part) -> Reading:
    """The fine-grained part of a total, with gradients that are not those of its value."""
    return Reading(*next(iter(part.models(probe))))


def _leaves_the_rest(probe, part) -> bool:
    """Whether the fine-grained part is finite: beside NaN nothing is known of the other."""
    made, reading = _as_it_is(probe, part), part.read(probe)
    return made.finite and not made.nan_gradient and not part.excused(probe, reading)


def joint(total, fine):
    """Both second levels at once, where one token does not silence the fine-grained loss.      -> GlobalVariant, lambda_g"""
    probes = [p for p in named(SECOND) if len(p.v) > 1 and total(p).error is None]
    wanted = np.array([total(p).value for p in probes])
    tol, _ = total.box.tolerances()
    settings = [o for front in fine.survivors for o in search.second_settings(front)]
    table = np.stack([search.second_values(settings, p) for p in probes], 1)
    for o in global_settings():
        pairs = np.array([evaluated(p, o).losses["global"] for p in probes])
        with np.errstate(all="ignore"):
            left = wanted - table
            weights = left[:, 0] / pairs[0]
            off = np.abs(left - weights[:, None] * pairs).max(1) / np.abs(wanted).max()
        for i in np.flatnonzero(off < tol):
            weight = simplest_factor(weights[i], 10 * tol)
            if abs(weight) > 1e-6:
                return o, weight
    return None, 0.0


def explain_pairs(read, probes) -> Explanation:
    """Eq. 1's settings that reproduce what is read, value and gradients."""
    out = Explanation()
    tol, grad_tol = read.box.tolerances()
    probes = [p for p in probes if read(p).error is None and (read(p).finite or p not in named(ALONE))]
    found = explain_global(read, probes, not depends_on_theta(read, probes[0]), tol)
    if not found:
        return out
    out.reached = "all"
    if any(read(p).error is not None for p in named(ALONE)):
        out.also.append(Found("edge.all_padding", "raises"))
    elif not all(read(p).finite for p in named(ALONE)):
        out.also.append(Found("edge.all_padding", "poison"))
    for o in found:
        offs = [search.gradient_error(read(p), p, o) for p in probes]
        if all(x is None or x < grad_tol for x in offs):
            out.pairs, out.gradient = o, None if all(x is None for x in offs) else True
            break
    else:
        out.pairs, out.gradient = found[0], False
    first = cost(found_in(None, out.pairs))[0]
    others = [found_in(None, o) for o in found if o != out.pairs]
    out.equals += [f for f in others if cost(f)[0] == first and f != found_in(None, out.pairs)][:3]
    return out
