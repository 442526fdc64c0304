"""Small numbers that ordinary embeddings never reach: measured where they are, and not said where they are not."""

import pytest
import torch
import torch.nn.functional as F
from boxes import box, divide, plain, wrapped

from parity.checker.diagnosis.floors import floors
from parity.checker.diagnosis.switches import Variant
from parity.checker.probes import Answer

PAPER = wrapped(plain)


def floored(s, least=1e-6):
    low, high = s.amin(2, keepdim=True), s.amax(2, keepdim=True)
    flat = high - low < least
    return torch.where(flat, 1.0, (s - low) / torch.where(flat, 1.0, high - low))


def short(x):
    return F.normalize(x, dim=2, eps=1e-2)


FLOORED = {
    "range": ({"stretch": floored}, 1e-6), "tokens": ({"t_unit": short}, 1e-2), "groups": ({"c_unit": short}, 1e-2),
    "sums": ({"weigh": lambda h: h, "c_unit": short}, 1e-2),
}


@pytest.mark.parametrize("what", FLOORED)
@pytest.mark.parametrize("again", [False, True])
def test_a_floor_is_measured_on_two_pairs_of_batches(what, again):
    how, least = FLOORED[what]
    (seen,) = floors(wrapped(plain, **how), PAPER, again)
    assert seen.what == what and seen.below == pytest.approx(least, rel=0.02) and seen.off > 1e-3
    assert f"{seen.below:.2g}" in seen.words and "ordinary" in seen.words


def test_what_is_not_finite_there_is_said():
    (seen,) = floors(wrapped(plain, t_unit=lambda t: t / (n := t.norm(dim=2, keepdim=True)) * (n > 1e-2) / (n > 1e-2)), PAPER)
    assert seen.what == "tokens" and "(not finite at" in seen.words


def test_two_floors_are_two():
    seen = floors(wrapped(plain, t_unit=short, c_unit=short), PAPER)
    assert [x.what for x in seen] == ["tokens", "groups"]


@pytest.mark.parametrize("how", [
    {}, {"weigh": lambda h: divide(h, 1e-12)}, {"t_unit": lambda t: F.normalize(t, dim=2, eps=1e-30)}])
def test_sound_code_has_none(how):
    assert floors(wrapped(plain, **how), PAPER) == ()


def test_what_is_off_on_ordinary_batches_has_none_either():
    assert floors(box(Variant(sigma=0.3)), PAPER) == ()


def test_where_small_numbers_give_no_answer_nothing_is_said():
    def ask(probe):
        return Answer(error="ValueError: too small") if abs(probe.t).max() < 1e-3 else PAPER(probe)

    assert floors(ask, PAPER) == ()
