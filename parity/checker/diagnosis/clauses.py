"""The one door through which a diagnosis's sentences leave: each carries the measurement that supports it.

A sentence is said only if its measurement, taken again on probes that the search did not use, says the same; else what is
weaker is said, or nothing.  TEMPLATES holds them all, by kind: lines of the survey ("survey") and the headline around them,
what is right beside a wrong gradient, limits, what locates the unknown, what ordinary values do not show.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.checker.diagnosis import confirm, search
from parity.checker.diagnosis.again import fresh
from parity.checker.diagnosis.asking import gradient_off, loss_off
from parity.checker.diagnosis.designs import mixture, pairs
from parity.checker.diagnosis.invariance import apart_from_others, left_out
from parity.checker.diagnosis.switches import Variant, variant_of
from parity.checker.probes import threshold_probe


@dataclass(frozen=True)
class Template:
    """words, with places for the facts; holds(read, **facts) measures them anew; weaker: what is said where it does not."""

    words: str
    holds: Callable[..., bool]
    weaker: str = ""


def say(read: Any, kind: str, **facts: Any) -> str:
    """Through the door of the box that is read."""
    read.box.door = read.box.door or Door()
    return read.box.door.say(kind, read, **facts)


@dataclass
class Door:
    """Counts what was said, what was said weaker, and what was withheld, by kind."""

    said: list[str] = field(default_factory=list)
    weaker: list[str] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)

    def say(self, kind: str, read: Any, **facts: Any) -> str:
        """The sentence, or its weaker form, or "".  Raises KeyError for a kind that has no template."""
        template = TEMPLATES[kind]
        try:
            true = bool(template.holds(read, **facts))
        except (ArithmeticError, ValueError, LookupError, TypeError):
            true = False
        text = template.words if true else template.weaker
        (self.said if true else self.weaker if text else self.withheld).append(kind)
        return text.format(**facts)

    @property
    def counts(self) -> dict[str, int]:
        """How many sentences were said, said weaker, withheld."""
        return {"said": len(self.said), "weaker": len(self.weaker), "withheld": len(self.withheld)}


# ------------------------------------------------------------------------------------------------------- measurements


def given(read, probe, settings, tol=None) -> bool:
    """Whether one of these settings gives the value read."""
    tol = tol or 10 * read.box.tolerances()[0]
    reading = read(probe)
    if reading.error is not None:
        raise ArithmeticError(f"{probe.name}: {reading.error}")
    values = [search.evaluated(probe, o).losses["fine"] for o in settings]
    return any(loss_off(reading.value, x) < tol for x in values)


def near(read, a, b) -> bool:
    return abs(a - b) <= 1e3 * read.box.tolerances()[0] * max(1.0, abs(a), abs(b))


def value(read, probe) -> float:
    """Raises ArithmeticError where there is no finite answer: nothing can be said of it."""
    reading = read(probe)
    if reading.error is not None or not reading.finite:
        raise ArithmeticError(f"{probe.name}: {reading.error or 'not finite'}")
    return reading.value


def raises(read, error) -> bool:
    """On every batch of one sample, and in their code: a call that was put wrongly is no error of theirs."""
    return " at " in error and all(error.partition(":")[0] == (read(p).error or "").partition(":")[0] for p in fresh("single"))


def never_finite(read) -> bool:
    return all(read(p).error is None and not read(p).finite for p in fresh("single"))


def always_zero(read) -> bool:
    return all(abs(value(read, p)) < 1e-9 for p in (*fresh("single"), *fresh("unpadded")))


def no_gradient_below(read, low, high, many) -> bool:
    """At other similarities, fewer of them below, another temperature and length: those below get none, those above do."""
    for name, theta, few, longer in (("again_threshold", 0.0, 2, 1.0), ("again_threshold_warmer", 1.0, 5, 1.7)):
        below = np.linspace(0.1, 0.97, many // few - 1) * low
        wanted = np.concatenate([below, np.linspace(min(1.03 * high, 0.98), 0.99, many - 2 - len(below))])
        reading = read(replace(threshold_probe(f"{name}_{many}", wanted, lengthen=longer), theta=theta))
        size = np.abs(reading.grads["v"][0]).max(-1)[2:]
        if ((size > 1e-13 * max(size.max(), 1e-30)) != (wanted > low)).any():
            return False
    return True


def flat_is_else(read, setting) -> bool:
    """Other batches with a flat row are not explained, and those without are."""
    kinds = [replace(setting, flat=how) for how in ("uniform", "zero", "nan", "nan_gradient", "nan_gradient_zero")]
    return given(read, fresh("unpadded")[0], [setting]) and not any(given(read, p, kinds) for p in fresh("flat"))


def two_results(read) -> bool:
    one = fresh("single")[0]
    two = replace(one, v=one.v * (1 + 1e-13), name="again_single_the_same")
    return not near(read, value(read, one), value(read, two))


def follows(read, where, stage, followed, last, **_) -> bool:
    """A trace of another batch is recognised as far, and no further.      last: the stage that is recognised there"""
    seen = followed(fresh("single")[0])
    return seen is not None and (seen.stage, seen.where, seen.seen.get(last)) == (stage, where, where) and not seen.kind


def patches_again(read, where, many, given, followed) -> bool:
    """So on another batch, with as many patches and with more."""
    again = [followed(p) for p in fresh("single")]
    return all(seen is not None and seen.where == where and seen.many not in (0, p.v.shape[1])
               for seen, p in zip(again, fresh("single")))


def had_back_again(read, told, stage, cut, followed) -> bool:
    """On another batch the weights tell the same."""
    seen = followed(fresh("single")[0])
    return seen is not None and seen.sure and (seen.stage, seen.cut) == (stage, cut)


def taken_again(read, where, taken, followed, **_) -> bool:
    """A trace of another batch shows the same arrays beside those that go on."""
    seen = followed(fresh("single")[0])
    return seen is not None and (seen.where, seen.taken) == (where, taken)


def cosine_again(read, where, followed) -> bool:
    seen = followed(fresh("single")[0])
    return seen is not None and seen.kind == "cosine" and seen.seen.get("similarity") == where


def family(read, stage, settings) -> bool:
    """Fresh pairs are the paper's, a fresh one of the family is given by none of the settings."""
    alone = [o for o in settings if o == Variant()]
    return bool(alone) and all(given(read, p, alone) for p in fresh("pairs")) and not any(
        given(read, p, settings) for p in fresh(stage))


def tokens_length(read) -> bool:
    one = fresh("pairs")[0]
    other = replace(one, t=one.t * np.array([0.7, 1.6, 2.2, 1.0])[:, None], name="again_pairs_4_longer")
    return not near(read, value(read, one), value(read, other))


def spare_matter(read) -> bool:
    return all(not near(read, value(read, p), value(read, q)) for p, q in zip(fresh("spare"), fresh("pairs")))


def spare_factor(read) -> bool:
    both = [value(read, s) / value(read, p) for s, p in zip(fresh("spare"), fresh("pairs"))]
    colder = [replace(p, theta=0.7, name=f"{p.name}_colder") for p in (fresh("spare")[0], fresh("pairs")[0])]
    return near(read, value(read, colder[0]) / value(read, colder[1]), both[0]) and not near(read, both[0], 1.0)


def parallel_alone(read, tau) -> bool:
    """Some setting gives parallel patches, the same setting does not give pairs."""
    found = search.first_level(read, list(fresh("parallel")), ("keys", "none"), "tokens", tau, 10 * read.box.tolerances()[0])
    return bool(found) and not any(given(read, p, [c.fine for c in found]) for p in fresh("pairs"))


def entropy(n: int, gap: float) -> float:
    """Cross-entropy of n classes, one of which is ahead by `gap`."""
    return math.log1p((n - 1) * math.exp(-gap))


def factor_of_count(read) -> bool:
    ratios = [value(read, p) / entropy(p.t.shape[1], math.exp(p.theta)) for p in (*fresh("pairs"), *fresh("warmer"))]
    return near(read, ratios[0], ratios[2]) and near(read, ratios[1], ratios[3]) and not near(read, ratios[0], ratios[1])


def turning(read) -> bool:
    return all(not near(read, value(read, p), value(read, q)) for p, q in zip(fresh("pairs"), fresh("norm")))


def pairs_left_out(read, many, few) -> bool:
    """Also among six, and eight, some pairs have no part in the loss, and some have."""
    for probe in (fresh("pairs")[1], pairs("again_pairs_8", 8, 8)):
        n = probe.t.shape[1]
        if not 0 < left_out(read, probe) < n * (n - 1):
            return False
    return True


def samples_apart(read) -> bool:
    """On other batches too."""
    tol = read.box.tolerances()[0]
    return all(apart_from_others(read, p, tol) for p in fresh("unpadded"))


def gap_is(read, gap, factor) -> bool:
    return all(near(read, value(read, p), factor * entropy(p.t.shape[1], gap)) for p in fresh("pairs"))


def two_gaps(read, gap) -> bool:
    """One direction with the paper's logits, the other with one difference of them, whatever the number of tokens."""
    return all(near(read, value(read, p), (entropy(p.t.shape[1], math.exp(p.theta)) + entropy(p.t.shape[1], gap)) / 2)
               for p in fresh("pairs"))


def gap_in_scale(read, gap) -> bool:
    """Two temperatures give one difference of cosines."""
    cosines = []
    for p in (fresh("pairs")[0], fresh("warmer")[0]):
        x = math.expm1(value(read, p)) / (p.t.shape[1] - 1)
        cosines.append(-math.log(x) / math.exp(p.theta))
    return near(read, *cosines) and near(read, cosines[0], gap)


def no_gap(read) -> bool:
    """No gap and factor give 3 (known), 4 and 6 pairs."""
    counts, values = (4, 6, 5), [value(read, p) for p in (*fresh("pairs"), pairs("again_pairs_5", 5, 5))]
    if min(values) <= 0:
        return True
    for gap in np.linspace(-20, 40, 2401):
        made = [entropy(n, gap) for n in counts]
        factor = values[0] / made[0]
        if all(abs(factor * m / y - 1) < 2e-3 for m, y in zip(made, values)):
            return False
    return True


def unit_alone(read, settings) -> bool:
    return all(given(read, p, settings) for p in fresh("unit")) and not any(given(read, p, settings) for p in fresh("single"))


def mixtures_right(read, settings) -> bool:
    made = [mixture("again_mixture", x=0.5, other=-0.05)[0], mixture("again_mixture_more", x=0.7, patches=11)[0]]
    return all(given(read, p, settings) for p in made)


def weighs(read, weight, measured) -> bool:
    """The weight of 0.6 again, at other temperatures: it is inferred from the loss, which knows the temperature."""
    probe, a, b = mixture("again_mixture_weight", x=0.6)
    for theta in (0.4, 1.6):
        again = measured(read, replace(probe, theta=theta, name=f"{probe.name}_{theta}"), a, b)
        if again is None or abs(again - weight) > 1e-4:
            return False
    return True


def equal_lengths_alone(read, settings) -> bool:
    """Some way to mask and to average gives batches of captions of equal length, none those of several."""
    made = [o for s in settings for o in search.second_settings(s)]
    fitting = [o for o in made if all(given(read, p, [o]) for p in fresh("equal"))]
    return bool(fitting) and not any(all(given(read, p, [o]) for p in fresh("padded")) for o in fitting)


def one_caption(read, settings, factor) -> bool:
    """No way to mask gives one caption with padding; factor: but it is only off by one that embeddings do not change."""
    made = [o for s in settings for o in search.second_settings(s)]
    return constant_share(read, fresh("single padded"), made, factor)


def no_padding(read, settings, factor) -> bool:
    made = [o for s in settings for o in search.second_settings(s)]
    return constant_share(read, fresh("unpadded"), made, factor)


def constant_share(read, probes, made, factor) -> bool:
    if any(all(given(read, p, [o]) for p in probes) for o in made):
        return False
    first = probes[0]
    other = replace(first, v=first.v[:, ::-1] * 1.3, t=first.t[..., ::-1] + 0.2 * first.t, name=f"{first.name}_other")
    shares = [value(read, p) / search.evaluated(p, made[0]).losses["fine"] for p in (first, other)]
    return near(read, *shares) == factor


def same_losses(one: Variant, two: Variant) -> bool:
    """Two settings give the same value and gradients on batches of every kind."""
    for kind in ("padded", "unpadded", "single", "equal", "single padded"):
        for p in fresh(kind):
            a, b = (search.evaluated(p, o) for o in (one, two))
            off = gradient_off(a.grads["fine"], b.grads["fine"])
            if loss_off(a.losses["fine"], b.losses["fine"]) > 1e-9 or (off or 0.0) > 1e-7:
                return False
    return True


def same_as(part, found) -> bool:
    """Another set of deviations gives what the explanation gives."""
    fine, pairs = variant_of(found)
    if part.name != "global":
        return same_losses(part.how.fine, fine)
    made = [[search.evaluated(p, o).losses["global"] for p in confirm.batches(part)] for o in (part.how.pairs, pairs)]
    return all(loss_off(a, b) < 1e-9 for a, b in zip(*made))


def explained_to(part, tol) -> bool:
    return all(confirm.gives(part, p, tol) for p in confirm.batches(part))


def alone_gives(read) -> float:
    """The total of one token of one caption."""
    return read.box.read(fresh("one token alone")[0], "total").value


def no_gradients(read) -> bool:
    return not any(read(p).grads for p in (*fresh("padded"), *fresh("single")))


def explained_by(holds):
    """A measurement of confirm as a template takes it."""
    return lambda read, part, base, tol, **_: holds(read, part, base, tol)


TEMPLATES = {
    "unsteady": Template("The same batch gives {one:.9g}, and then {two:.9g}: it holds a state, or draws numbers, so that what "
                         "it computes was not looked for.", lambda read, again, **_: again()),
    "raises on one": Template("A batch of one sample raises {error}.", raises, "A batch of one sample gave no answer."),
    "never finite": Template("Even one sample without padding gives no finite loss.", never_finite),
    "always zero": Template("The loss is 0 on every batch without padding that was tried.", always_zero),
    "threshold": Template("With {many} patches and two tokens, patches of min-max similarity below {low:.6g} get no "
                          "gradient, those above {high:.6g} do.", no_gradient_below),
    "threshold law": Template("With {many} patches and with {few} that is {law}.", lambda read, at, **_: no_gradient_below(
        read, at * (1 - 1e-3), at * (1 + 1e-3), 36)),
    "flat": Template("Where a row has no range it gives neither equal weights, nor c = 0, nor NaN.", flat_is_else),
    "two results": Template("Two calls with inputs that differ by 1e-13 give two results.", two_results),
    "followed": Template("Its {made} are the paper's ({where}); what the paper makes next was not found among its "
                         "arrays.", follows),
    "patches": Template("Its similarities are those of {many} patches, where {given} were given ({where}).", patches_again),
    "had back": Template("{told}.", had_back_again),
    "taken": Template("It makes the paper's {what} ({where}), and {tail} ({taken}).", taken_again),
    "cosine": Template("Its similarity is that of l2-normalised patches ({where}); that alone does not explain it.",
                       cosine_again),
    "norm": Template("It is right for cosines of 0 and 1 along the axes, and wrong for other directions or lengths.", family,
                     "Other directions or lengths of embeddings whose cosines are 0 and 1 show it."),
    "logits": Template("It is right for cosines of 0 and 1, and wrong between, with groups that are the tokens themselves.",
                       family, "Cosines between 0 and 1 show it, with groups that are the tokens themselves."),
    "grouping": Template("It is right where each token's one patch points where the token does, and wrong where it does not.",
                         family, "Tokens that have one patch each, in another direction than their own, show it."),
    "reduction": Template("It is right where all tokens have the same loss, and wrong where their losses differ.",
                          family, "Tokens of different losses show it."),
    "reduction lengths": Template("It is right where all tokens' embeddings have one length, and wrong where their lengths "
                                  "differ.", family, "Tokens whose embeddings differ in length show it."),
    "token length": Template("Where each token has its one patch, the loss changes with the length of tokens.", tokens_length),
    "spare": Template("Patches that resemble no token, all of them equally little, change it.", spare_matter),
    "spare factor": Template("Patches that resemble no token change it by a factor.", spare_factor),
    "parallel": Template("Where all patches point one way a known setting gives its values; where each token is one patch, "
                         "that does not.", parallel_alone),
    "factor of count": Template("With tokens that are one patch each it is cross-entropy times a factor that changes with "
                                "their number.", factor_of_count),
    "zero pairs": Template("It is 0 where tokens are one patch each and cosines are 0 and 1; cross-entropy is not.",
                           lambda read: all(abs(value(read, p)) < 1e-12 for p in fresh("pairs"))),
    "turning": Template("It changes as vectors are turned or lengthened whose cosines are 0 and 1.", turning),
    "gap": Template("Logits of pairs of cosine 1 and 0 differ by {gap:.4g}, where 1/tau is {scale:.4g}.",
                    lambda read, gap, factor, scale: gap_is(read, gap, factor)),
    "gap in scale": Template("With tokens that are one patch each it is cross-entropy of cosines that differ by {gap:.4g}, "
                             "where those of the tokens differ by 1.", gap_in_scale),
    "two gaps": Template("Logits of pairs of cosine 1 and 0 differ by {scale:.4g} in one direction and by {gap:.4g} in the "
                         "other.", lambda read, gap, scale: two_gaps(read, gap)),
    "no gap": Template("No one difference of logits, times any factor, makes cross-entropy of it where cosines are 0 and 1.",
                       no_gap),
    "unit alone": Template("It agrees where all patches have length 1.", unit_alone),
    "mixtures": Template("Weights of patches well above the threshold are right.", mixtures_right),
    "weight": Template("A patch of min-max similarity 0.6 weighs {weight:.4g} times as much as the likest one.",
                       weighs),
    "weight and": Template("A patch of min-max similarity 0.6 weighs {weight:.4g} times as much as the likest one, and {other} "
                           "with {name}.", lambda read, weight, measured, other, name: weighs(read, weight, measured)),
    "one caption": Template("One caption with padding is enough to show it.",
                            lambda read, settings: one_caption(read, settings, False)),
    "one caption factor": Template("One caption with padding is off by a factor that embeddings do not change.",
                                   lambda read, settings: one_caption(read, settings, True)),
    "left out": Template("Of the pairs of a token and another's patch, where {many} tokens are one patch each, {few} have no "
                         "part in the loss: not every token of a caption is a negative of the others.", pairs_left_out),
    "samples apart": Template("Turning the space of one sample and reversing its tokens, which leaves its own loss as it is, "
                              "changes nothing: what differs is how the samples' losses are put together.", samples_apart),
    "captions": Template("It takes other captions, and no padding, to show it.",
                         lambda read, settings: no_padding(read, settings, False)),
    "captions factor": Template("A batch without padding is off by a factor that embeddings do not change.",
                                lambda read, settings: no_padding(read, settings, True)),
    "equal lengths": Template("Captions of equal length hide it.", equal_lengths_alone),
    "no gradients": Template("No gradient was had of it, so values alone were compared.", lambda read, **_: no_gradients(read)),
    # ------------------------------------------------------------------------------------- an explanation and its clauses
    "survey": Template("{clause}", lambda read, part, found, tol, **_: confirm.supported(read, part, found, tol)),
    "equals": Template("{what} equals {equation}, {compared}{ties}.", explained_by(confirm.equals)),
    "equals listing1": Template("{what} equals Listing 1, {compared}{ties}: the mean runs over all real tokens of the batch.",
                                explained_by(confirm.equals)),
    "inside": Template("{what} equals {equation} in all that was tried with {conditions}, and not beyond.",
                       explained_by(confirm.equals), "{what} equals {equation} in all that was tried with {conditions}."),
    "except": Template("{what} equals {equation}, except that {clauses}.", explained_by(confirm.equals_but_for),
                       "{what} differs from {equation}: {clauses}; that does not explain every batch."),
    "partly": Template("{what} differs from {equation}: {clauses}; and in more, which other batches did not show again.",
                       explained_by(confirm.differs), "{what} differs from {equation}."),
    "inside except": Template("With {sizes} {what_inside} equals {equation}, except that {clauses}.",
                              explained_by(confirm.equals_but_for),
                              "{what} differs from {equation}: {clauses}; that does not explain every batch."),
    "smaller except": Template("On the smaller batches that were tried {what_inside} equals {equation}, except that {clauses}.",
                               explained_by(confirm.equals_but_for),
                               "{what} differs from {equation}: {clauses}; that does not explain every batch."),
    "value except": Template("The value of {what_inside} is that of {equation}, except that {clauses}; its gradient is "
                             "another.", explained_by(confirm.value_but_for)),
    "gradient": Template("{what} differs from {equation} in its gradient.",
                         explained_by(confirm.value_but_for),
                         "{what} differs from {equation}, and no known deviation explains it."),
    "differs": Template("{what} differs from {equation}, and no known deviation explains it.", explained_by(confirm.differs),
                        "{what} differs from {equation} on some batch that was asked, and no known deviation explains it."),
    "where": Template("It equals {equation} where this holds: {conditions}.",
                      lambda read, part, base, tol, held, **_: confirm.holds_under(read, part, base, tol, held)),
    "untold": Template("On fresh batches of five kinds it is the same as if {others}.",
                       lambda read, part, sets, **_: all(same_as(part, found) for found in sets)),
    "value right": Template("The loss itself is {rest} on all {many} batches asked.",
                            lambda read, part, tol, **_: confirm.value_right(read, part, tol)),
    "gradients right": Template("The gradient{s} for {names} {are} right.", lambda read, part, tol, leaves, padded, **_:
                                confirm.gradients_right(read, part, tol, leaves, padded)),
    "gradient off": Template("{place}", lambda read, part, tol, leaf, **_: confirm.gradient_wrong(read, part, tol, leaf)),
    "float32 alone": Template("It is equal to rounding of float32, not of float64.", lambda read, part, base, near, tol, **_:
                              confirm.equals(read, part, base, near) and not confirm.equals(read, part, base, tol)),
    "rounded": Template("What is said here holds to rounding of float32, not of float64.",
                        lambda read, part, near, tol, **_: explained_to(part, near) and not explained_to(part, tol)),
    "one width": Template("A width other than 16 was not tried: it runs with one width.", lambda read, refused: refused()),
    "squares": Template("Patches were tried in square numbers alone: in others it raises.", lambda read, refused: refused()),
    "neither": Template("Your total holds something that is neither eq. 1 nor eq. 6: one token of one caption, where both "
                        "are 0, gives {alone:.3g}.", lambda read, alone, **_: near(read, alone, alone_gives(read)) and all(
                            abs(read.box.read(p, "total").value) > 1e-6 for p in fresh("one token alone"))),
    "nothing known": Template("Nothing is known of its global loss: it was not told from the rest of the total.",
                              lambda read, part, **_: part.one_token),
    "one token alone": Template("Only captions of one token tell it from the rest of the total.",
                                lambda read, part, **_: part.one_token),
    "does not hold": Template("On the batch {batch} the explanation does not hold.",
                              lambda read, part, probe, tol, **_: not confirm.gives(part, probe, tol)),
    "limit": Template("{words}", lambda read, limit, **_: limit.ends_there or limit.key in ("float32", "runs")
                      or bool(limit.error), "{weaker}"),
    "behaviour": Template("{evidence}", lambda read, again, **_: again()),
}  # fmt: skip
