import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from sparc_ref.evaluate.classification import accuracy, classification_chance, combine, hits, nearest


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 30), st.integers(3, 7), st.integers(0, 2**31))
def test_equals_scikit_learn_without_ties(N, C, seed):
    rng = np.random.default_rng(seed)
    x, vec, labels = rng.normal(size=(N, 5)), combine(rng.normal(size=(C, 3, 5))), rng.integers(0, C, N)
    got = accuracy(hits(x, vec, labels, (1, 2)), labels, (1, 2))
    score = x / np.linalg.norm(x, axis=1, keepdims=True) @ vec.T
    for k in (1, 2):
        assert got[f"top{k}"] == pytest.approx(top_k_accuracy_score(labels, score, k=k, labels=range(C)))
    assert got["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, nearest(x, vec)))


def test_ties_by_expectation_where_scikit_learn_takes_an_order():
    """Two classes of one name: scikit-learn gives all pictures to one of them, so that which one decides."""
    vec = np.array([[1.0, 0], [1, 0], [0, 1]])
    x = np.array([[1.0, 0]] * 4)
    for labels in ([0] * 4, [1] * 4):
        got = accuracy(hits(x, vec, np.array(labels), (1, 2)), np.array(labels), (1, 2))
        assert got["top1"] == got["mean_per_class"] == 0.5 and got["top2"] == 1
    both = [top_k_accuracy_score([y] * 4, x @ vec.T, k=1, labels=range(3)) for y in (0, 1)]
    assert sorted(both) == [0, 1]


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**31))
def test_ties_equal_all_orders(C, k, seed):
    """The mean over every order of the classes, counted one by one, of scores with many ties."""
    from itertools import permutations

    rng = np.random.default_rng(seed)
    vec = np.eye(C)[rng.integers(0, 2, C)]                # only two kinds of classes
    x, label = np.eye(C)[:1] + 0.5 * np.eye(C)[1:2], int(rng.integers(C))
    score = (vec @ x[0]).tolist()
    first = [label in sorted(order, key=lambda c: -score[c])[:k] for order in permutations(range(C))]
    assert hits(x, vec, np.array([label]), (k,))[0, 0] == pytest.approx(sum(first) / math.factorial(C))


def test_a_constant_embedding_is_at_chance_exactly_and_a_perfect_one_at_one(rng):
    labels = rng.integers(0, 12, 40)
    got = accuracy(hits(np.ones((40, 3)), combine(np.ones((12, 2, 3))), labels), labels)
    assert got == pytest.approx(classification_chance(12)) and got["top1"] == pytest.approx(1 / 12)
    vec = combine(rng.normal(size=(12, 2, 32)))
    got = accuracy(hits(vec[labels] * rng.uniform(0.1, 9, (40, 1)), vec, labels), labels)
    assert set(got.values()) == {1.0}


def test_random_embeddings_are_at_chance(rng):
    labels = rng.integers(0, 20, 4000)
    got = accuracy(hits(rng.normal(size=(4000, 16)), combine(rng.normal(size=(20, 1, 16))), labels), labels)
    for key, chance in classification_chance(20).items():
        assert abs(got[key] - chance) < 5 * math.sqrt(chance * (1 - chance) / 4000), key


def test_only_candidates_are_chosen(rng):
    """The same as leaving the other classes out (ImageNet-A and -R)."""
    x, vec = rng.normal(size=(50, 6)), combine(rng.normal(size=(9, 1, 6)))
    some = np.array([1, 4, 5, 8])
    mask = np.isin(np.arange(9), some)
    labels = rng.integers(0, 4, 50)
    assert np.array_equal(hits(x, vec, some[labels], candidates=mask), hits(x, vec[some], labels))
    assert np.array_equal(nearest(x, vec, mask), some[nearest(x, vec[some])])
    assert hits(x, vec, some[labels]).mean() < hits(x, vec, some[labels], candidates=mask).mean()


def test_mean_per_class_weighs_classes_evenly():
    vec, labels = np.eye(3), np.array([0, 0, 0, 1])
    got = accuracy(hits(np.eye(3)[[0, 0, 0, 2]], vec, labels), labels)
    assert got["top1"] == 0.75 and got["mean_per_class"] == 0.5      # class 2 has no picture, and does not count


def test_the_two_rules_differ_where_prompts_disagree():
    """By hand: class 0's prompts agree, class 1's are 120 degrees apart, so their mean is half as long."""
    up, left, right = (0.0, 1.0), (-math.sqrt(3) / 2, 0.5), (math.sqrt(3) / 2, 0.5)
    prompts = np.array([[right, right], [left, right]]) * 7
    both = combine(prompts), combine(prompts, "similarities")
    assert np.allclose(both[0], [right, up]) and np.allclose(both[1], [right, (0, 0.5)])
    x = np.array([up])
    assert nearest(x, both[0]) == 1 and np.allclose(x @ both[1].T, 0.5)          # 1 against 0.5, and 0.5 against 0.5


@pytest.mark.parametrize("x, vec, labels, candidates, words", [
    (np.ones((2, 3)), np.ones((4, 2)), [0, 1], None, r"class_vec: expected \(C,3\), got \(4, 2\)"),
    (np.full((2, 3), np.nan), np.eye(4, 3), [0, 1], None, "image_emb: expected finite numbers, got 6 of 6"),
    (np.ones((2, 3)), np.eye(4, 3), [0, 4], None, r"labels: expected classes 0..3, got 0..4"),
    (np.ones((2, 3)), np.ones((4, 3)), [0, 1], None, "class_vec: expected vectors of length 1 at most, .* got one of 1.732"),
    (np.ones((2, 3)), np.eye(4, 3), [0.0, 1], None, "labels: expected integers"),
    (np.ones((2, 3)), np.eye(4, 3), [0, 1], np.array([True, False, True, True]), "got class 1, which is none"),
    (np.ones((2, 3)), np.eye(4, 3), [0, 1], np.zeros(4, bool), "at least one class, got none"),
])  # fmt: skip
def test_refuses(x, vec, labels, candidates, words):
    with pytest.raises(ValueError, match=words):
        hits(x, vec, np.array(labels), candidates=candidates)


def test_refuses_no_prompt_and_no_picture():
    with pytest.raises(ValueError, match="expected at least one for each class, got 0"):
        combine(np.ones((3, 0, 2)))
    with pytest.raises(ValueError, match="expected at least one picture, got 0"):
        accuracy(np.ones((0, 2)), np.zeros(0, int))


def test_scores_closer_than_the_tie_are_level_and_no_others():
    """Of three classes two are within a millionth of each other, on either side of the picture's own."""
    angles = np.array([0.7, 0.7 + 5e-7, 1.2])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    for own in (0, 1):
        picture = np.array([[1.0, 0.0]])
        assert hits(picture, vectors, np.array([own]), (1,)).item() == pytest.approx(0.5)
        assert hits(picture, vectors, np.array([own]), (1,), tie=1e-9).item() == pytest.approx(1 - own)


@pytest.mark.parametrize("ks", [(1,), (5,), (1, 3), (2, 5), (3, 1)])
def test_chance_has_the_keys_of_the_accuracy(ks):
    """The mean over classes is of top-1, wherever it stands."""
    hit = np.array([[float(k == 1 and n == 2) for k in ks] for n in range(3)])
    found, chance = accuracy(hit, np.array([0, 0, 1]), ks), classification_chance(4, ks)
    assert found.keys() == chance.keys() and ("mean_per_class" in found) == (1 in ks)
    assert found.get("mean_per_class", 0.5) == 0.5 and chance.get("mean_per_class", 0.25) == 0.25
