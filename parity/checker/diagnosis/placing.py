"""Where an unexplained loss leaves the paper: by the arrays that it makes, where these can be watched, and by its values."""

from dataclasses import replace
from typing import Any

from parity.checker.diagnosis.asking import Box, loss_off
from parity.checker.diagnosis.clauses import say
from parity.checker.diagnosis.deviations import STAGES
from parity.checker.diagnosis.explain import FIRST
from parity.checker.diagnosis.locate import Place, locate
from parity.checker.diagnosis.search import evaluated
from parity.checker.diagnosis.switches import Variant
from parity.checker.diagnosis.traced import Followed, follow
from parity.checker.probes import PROBES, Probe


def place_of(box: Box, part: Any, failing: list[str]) -> Place:
    """Where it leaves the paper: by the arrays that it makes, where it can be watched, and by its values."""
    if part.name == "global":
        return Place("gradient" if part.how.gradient is False else "global", "padded")
    if part.how.wrong is not None and part.how.wrong.place:
        return Place("gradient", part.how.wrong.probe)
    if part.how.reached == "all":
        first = failing[0] if failing else "padded"
        stage = "minmax" if first.startswith("flat") else "edge" if first.startswith(("zero", "all_padding")) else "weights"
        words = say(part.read, "does not hold", part=part, batch=first, probe=box.probes[first], tol=box.tolerances())
        return Place(stage, first, words)
    again = replace(PROBES["single"], v=PROBES["single"].v * (1 + 1e-13), name="single_again_the_same")
    if abs(part.read(again).value - part.read(PROBES["single"]).value) > 1e-6:
        seen = followed(box, part)
        return Place(seen.stage if seen and seen.stage else "loss", "single", say(part.read, "two results"))
    seen = followed(box, part, differing(part.read)) if part.how.reached == "nothing" else None
    if part.how.cut:                                      # eq. 2's similarities, and others are dropped: the threshold
        stretched = seen or followed(box, part)
        if stretched is not None and "minmax" in stretched.seen and not stretched.kind:
            return Place("threshold", "single", "" if part.how.cut in part.facts else part.how.cut)

    def follow_again(probe):
        return followed(box, part, probe)

    if seen is not None and seen.kind:
        at = seen.seen["similarity"]
        return Place("similarity", "single", say(part.read, "cosine", where=at, followed=follow_again))

    def as_seen():
        last = next((k for k in reversed(seen.seen) if seen.seen[k] == seen.where), "")
        if seen.many:
            given = PROBES["single"].v.shape[1]
            words = say(part.read, "patches", where=seen.where, many=seen.many, given=given, followed=follow_again)
            return Place(seen.stage, "single", words)
        if seen.taken:
            words = say(part.read, "taken", where=seen.where, taken=seen.taken, followed=follow_again, **TAKEN[seen.stage])
            return Place(seen.stage, "single", words)
        words = say(part.read, "followed", where=seen.where, stage=seen.stage, followed=follow_again, last=last,
                    made=MADE[last]) if last else ""
        if seen.sure:
            had = say(part.read, "had back", told=HAD[seen.cut or seen.stage], cut=seen.cut, stage=seen.stage,
                      followed=follow_again)
            words = " ".join(filter(None, [words, had]))
        return Place(seen.stage, "single", words)

    if seen is not None and seen.stage not in (None, "loss", "reduction"):
        if seen.every or seen.sure or seen.taken or seen.many:
            return as_seen()
        if seen.stage == "logits" and (place := locate(part.read, part.how)).stage == "loss":
            return replace(place, words=" ".join(filter(None, [as_seen().words, place.words])))
        last = "grouping" if STAGES.index(seen.stage) < STAGES.index("grouping") else "reduction"  # inside a line: any of these
        return replace(as_seen(), open=STAGES[STAGES.index(seen.stage) + 1:STAGES.index(last) + 1])
    place = locate(part.read, part.how)
    if seen is None:
        return place
    ours = [k for k in seen.seen if seen.stage and k in STAGES]
    if ours and STAGES.index(place.stage) <= max(map(STAGES.index, ours)):
        if place.stage == "logits" and not seen.softmax:  # cross-entropy, of what was made of them: capped, say
            return replace(place, words=" ".join(filter(None, [as_seen().words, place.words])))
        return as_seen()                                  # its logits are the paper's: values misled about earlier stages
    return place


def differing(read: Any) -> Probe:
    """One sample without padding on which it is another loss than the paper's."""
    for probe in (PROBES[name] for name in FIRST):
        reading = read(probe)
        if reading.error is None and loss_off(reading.value, evaluated(probe, Variant()).losses["fine"]) > 1e-6:
            return probe
    return PROBES["single"]


MADE = {"similarity": "similarities", "minmax": "min-max similarities", "threshold": "thresholded similarities",
        "gate": "kept patches", "weights": "weights", "grouping": "grouped patches", "norm": "unit vectors",
        "cosine": "cosines", "logits": "logits", "loss": "cross-entropies"}
HAD = {"minmax": "Rows taken together, the weights that made its groups have another order than eq. 2's similarities",
       "threshold": "The weights that made its groups are eq. 2's similarities behind another threshold than eq. 3's",
       "shrunk": "The weights that made its groups are in proportion to eq. 2's similarities less sigma, a soft threshold",
       "bent": "The weights that made its groups are eq. 2's similarities above 0.6, and others below",
       "weights": "The weights that made its groups grow with eq. 2's similarities, and not in proportion",
       "grouping": "None of its arrays is a sum of patches with weights"}
TAKEN = {"similarity": {"what": "similarities", "tail": "min and max are those of others"},
         "minmax": {"what": "similarities", "tail": "the threshold is put to them over another range than their row's"},
         "logits": {"what": "logits", "tail": "the softmax takes others"}}


def followed(box: Box, part: Any, probe: Probe = PROBES["single"]) -> Followed | None:
    """Their arrays on one sample without padding, recognised."""
    how = part.how
    settings = [o for o in [how.fine, *how.survivors] if o is not None]
    sigmas = [o.sigma for o in settings if isinstance(o.sigma, float)]
    taus = [o.tau for o in settings if o.tau is not None]
    records = box.trace(probe)
    return follow(records, probe, sigmas, taus, loose=box.dtype() == "float32") if records else None
