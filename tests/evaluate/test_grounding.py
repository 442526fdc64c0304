import collections

import numpy as np
import pytest

from sparc_ref.evaluate.grounding import derangement, grounding_gap


def matches(v, t, mask):
    """A loss that is 0 where a caption has its own picture."""
    return np.mean(np.any(v[:, 0] != t[:, 0], axis=-1))


def test_a_loss_that_reads_the_picture_has_a_gap_and_one_that_does_not_has_none(rng):
    v = rng.normal(size=(6, 4, 3))
    t, mask = v[:, :2], np.ones((6, 2), bool)
    assert grounding_gap(matches, v, t, mask, rng) == {"gap": 1.0, "true": 0.0, "shuffled": 1.0, "shuffled_sd": 0.0}
    got = grounding_gap(lambda v, t, mask: np.sum(t) + np.sum(v * 0), v, t, mask, rng, repeats=1)
    assert got["gap"] == 0 and "shuffled_sd" not in got


def test_the_same_generator_gives_the_same_number(rng):
    v, mask = rng.normal(size=(6, 4, 3)), np.ones((6, 2), bool)

    def loss(v, t, mask):
        return np.sum(v[:, 0] * t[:, 0])

    a, b = (grounding_gap(loss, v, v[:, :2], mask, np.random.default_rng(3)) for _ in range(2))
    assert a == b and a["shuffled_sd"] > 0


def test_derangements_are_uniform(rng):
    seen = collections.Counter(tuple(derangement(4, rng)) for _ in range(9000))
    assert len(seen) == 9                                         # all derangements of 4, no others
    assert all(abs(n - 1000) < 5 * np.sqrt(1000) for n in seen.values())
    for n in (2, 3, 64):
        assert not np.any(derangement(n, rng) == np.arange(n))


@pytest.mark.parametrize("v, t, mask, repeats, what", [
    (np.ones((1, 4, 3)), np.ones((1, 2, 3)), np.ones((1, 2), bool), 1, "at least 2 pictures, got 1"),
    (np.ones((2, 4, 3)), np.ones((3, 2, 3)), np.ones((3, 2), bool), 1, r"t: expected \(2,L,3\), got \(3, 2, 3\)"),
    (np.ones((2, 4, 3)), np.ones((2, 2, 3)), np.ones((2, 2)), 1, "mask: expected booleans"),
    (np.ones((2, 4, 3)), np.full((2, 2, 3), np.nan), np.ones((2, 2), bool), 1, "finite"),
    (np.ones((2, 4, 3)), np.ones((2, 2, 3)), np.ones((2, 2), bool), 0, "repeats"),
])
def test_refuses(v, t, mask, repeats, what):
    with pytest.raises(ValueError, match=what):
        grounding_gap(lambda *a: 0.0, v, t, mask, np.random.default_rng(0), repeats)


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_so_many_shuffles_are_averaged_and_their_spread_is_a_samples(rng, repeats):
    losses = []

    def loss(v, t, mask):
        losses.append(float(rng.normal()))
        return losses[-1]

    got = grounding_gap(loss, np.zeros((4, 2, 3)), np.zeros((4, 5, 3)), np.ones((4, 5), bool), rng, repeats)
    true, *shuffled = losses
    assert len(shuffled) == repeats and got["true"] == true and got["shuffled"] == pytest.approx(np.mean(shuffled))
    assert got["gap"] == pytest.approx(np.mean(shuffled) - true)
    assert got.get("shuffled_sd") == (pytest.approx(np.std(shuffled, ddof=1)) if repeats > 1 else None)
