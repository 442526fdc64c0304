import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparc_ref.evaluate.retrieval import retrieval, retrieval_chance, retrieval_of_scores


def by_loops(x, y, owner, ks):
    """Any-caption-hit recall from the definition, for scores without ties."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    out = {}
    for k in ks:
        hits = []
        for i in range(len(x)):
            if i in owner:
                top = sorted(range(len(y)), key=lambda j: -float(x[i] @ y[j]))[:k]
                hits.append(any(owner[j] == i for j in top))
        out[f"i2t_r{k}"] = sum(hits) / len(hits)
        hits = [owner[j] in sorted(range(len(x)), key=lambda i: -float(x[i] @ y[j]))[:k] for j in range(len(y))]
        out[f"t2i_r{k}"] = sum(hits) / len(hits)
    return out


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 15), st.integers(2, 6), st.integers(0, 2**31), st.sampled_from([1, 3, 100]))
def test_equals_the_definition(N, M, D, seed, chunk):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(N, D)), rng.normal(size=(M, D))
    owner = rng.integers(0, N, M)
    got = retrieval(x, y, owner, (1, 2, 5), tie=0, chunk=chunk)
    assert got == pytest.approx(by_loops(x, y, owner, (1, 2, 5)))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([1, 3, 100]))
def test_scores_with_a_direction_equal_the_definition(N, M, seed, chunk):
    """Other scores when texts ask than when images ask; kept in a file of another order they give the same."""
    rng = np.random.default_rng(seed)
    i2t, t2i, owner = rng.normal(size=(N, M)), rng.normal(size=(N, M)), rng.integers(0, N, M)
    want = {}
    for k in (1, 2):
        asked = [i for i in range(N) if i in owner]
        want[f"i2t_r{k}"] = np.mean([any(owner[j] == i for j in np.argsort(-i2t[i])[:k]) for i in asked])
        want[f"t2i_r{k}"] = np.mean([owner[j] in np.argsort(-t2i[:, j])[:k] for j in range(M)])
    assert retrieval_of_scores(i2t, t2i, owner, (1, 2), tie=0, chunk=chunk) == pytest.approx(want)
    turned = [np.asfortranarray(s.astype(np.float32)) for s in (i2t, t2i)]
    assert retrieval_of_scores(*turned, owner, (1, 2), tie=0, chunk=chunk) == pytest.approx(want)


def test_by_hand():
    x = np.eye(3)
    y = np.array([[1, 0.1, 0], [0, 0.5, 1.0], [0, 0.1, 1]])       # the second caption looks like the wrong picture
    got = retrieval(x, y, np.array([0, 1, 2]), (1, 2))
    assert got == pytest.approx({"i2t_r1": 1, "i2t_r2": 1, "t2i_r1": 2 / 3, "t2i_r2": 1})


def test_any_caption_hits_not_recall_of_all():
    x = np.eye(2)
    y = np.array([[1, 0], [0, 1], [0, 1.0]])                      # picture 0: one caption right, one wrong
    got = retrieval(x, y, np.array([0, 0, 1]), (1,))
    assert got["i2t_r1"] == pytest.approx((1 + 0.5) / 2)          # picture 1's caption ties with a wrong one
    assert got["t2i_r1"] == pytest.approx(2 / 3)


def test_perfect_is_one_in_any_order(rng):
    x = rng.normal(size=(20, 8))
    owner = rng.integers(0, 20, 50)
    got = retrieval(x, x[owner] * rng.uniform(0.1, 9, (50, 1)), owner)
    assert got["i2t_r1"] == 1 and got["t2i_r1"] == 1


def test_a_constant_embedding_is_at_chance_exactly():
    owner = np.array([0, 0, 1, 2, 2, 2, 3])
    for zero in (0.0, 0.3):
        got = retrieval(np.full((4, 7), zero, np.float32), np.full((7, 7), zero, np.float32), owner, (1, 2, 5, 9))
        assert got == pytest.approx(retrieval_chance(owner, 4, (1, 2, 5, 9)))
    assert got["t2i_r1"] == pytest.approx(1 / 4) and got["t2i_r9"] == 1
    miss = [math.comb(7 - p, 2) / math.comb(7, 2) for p in (2, 1, 3, 1)]
    assert got["i2t_r2"] == pytest.approx(1 - np.mean(miss))


def test_rounding_noise_is_a_tie(rng):
    x = 1 + 1e-8 * rng.normal(size=(50, 16))
    got = retrieval(x, np.ones((50, 16)), np.arange(50))
    assert got == pytest.approx(retrieval_chance(np.arange(50), 50))


def test_ties_are_the_mean_over_orders(rng):
    kinds = np.array([[1.0, 0], [0, 1], [1, 1]])                  # three kinds only: many equal cosines
    x, y, owner = kinds[rng.integers(0, 3, 6)], kinds[rng.integers(0, 3, 9)], rng.integers(0, 6, 9)

    def noisy():
        return retrieval(x + 1e-4 * rng.normal(size=x.shape), y + 1e-4 * rng.normal(size=y.shape), owner, (1, 2), tie=0)

    runs = [noisy() for _ in range(2000)]
    for k, value in retrieval(x, y, owner, (1, 2)).items():
        assert np.mean([r[k] for r in runs]) == pytest.approx(value, abs=0.04)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_permuting_the_gallery_and_the_chunk_change_nothing(rng, chunk):
    x, y, owner = rng.normal(size=(30, 5)), rng.normal(size=(60, 5)), rng.integers(0, 30, 60)
    want = retrieval(x, y, owner)
    p, q = rng.permutation(30), rng.permutation(60)
    assert retrieval(x[p], y[q], np.argsort(p)[owner[q]], chunk=chunk) == want


def test_random_is_at_chance_within_binomial_bounds(rng):
    N = 2000
    got = retrieval(rng.normal(size=(N, 64)), rng.normal(size=(N, 64)), np.arange(N))
    for name, p in retrieval_chance(np.arange(N), N).items():
        assert abs(got[name] - p) < 5 * math.sqrt(p * (1 - p) / N) + 1e-9


def test_the_gallery_may_be_smaller_than_k_and_have_distractors():
    got = retrieval(np.eye(3), np.eye(3)[:1], np.array([0]), (1, 10))
    assert got == {"i2t_r1": 1, "i2t_r10": 1, "t2i_r1": 1, "t2i_r10": 1}


@pytest.mark.parametrize("x, y, owner, ks, what", [
    (np.ones((2, 3)), np.ones((2, 4)), [0, 1], (1,), r"text_emb: expected \(M,3\), got \(2, 4\)"),
    (np.ones((2, 3)), np.ones((2, 3)), [0], (1,), r"image_of_text: expected \(2\), got \(1,\)"),
    (np.ones((2, 3)), np.ones((2, 3)), [0, 2], (1,), r"indices 0..1, got 0..2"),
    (np.ones((2, 3)), np.ones((2, 3)), [0.0, 1.0], (1,), "expected integers"),
    (np.full((2, 3), np.nan), np.ones((2, 3)), [0, 1], (1,), "image_emb: expected finite numbers, got 6 of 6"),
    (np.ones((2, 3)), np.ones((0, 3)), np.zeros(0, int), (1,), "at least one text"),
    (np.ones((2, 3)), np.ones((2, 3)), [0, 1], (0,), "positive integers"),
    (np.ones((2, 3), complex), np.ones((2, 3)), [0, 1], (1,), "real numbers"),
])
def test_refuses(x, y, owner, ks, what):
    with pytest.raises(ValueError, match=what):
        retrieval(x, y, np.asarray(owner), ks)
