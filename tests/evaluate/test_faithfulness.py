"""K-Precision: the words as instruct-qa counts them, the definition by brute force, ties, and what must hold of any model."""

import re
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparc_ref.evaluate.check import unit
from sparc_ref.evaluate.faithfulness import content_words, faithfulness, faithfulness_chance, k_precision, words
from sparc_ref.evaluate.retrieval import retrieval


def instruct_qa(text):
    """Its steps in its order, written from its definition: lower, punctuation, articles, white space."""
    text = "".join("" if ch in set(string.punctuation) else ch for ch in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split()).split()


@pytest.mark.parametrize("text, expected", [
    ("The black-and-white cat's toy.", ["blackandwhite", "cats", "toy"]),
    ("A man, an apple & the theatre", ["man", "apple", "theatre"]),
    ("a. An! the", []), ("", []), ("Two  CATS\n sit", ["two", "cats", "sit"]),
])
def test_words_by_hand(text, expected):
    assert words(text) == expected == instruct_qa(text)


@settings(deadline=None, max_examples=80)
@given(st.text(alphabet="aAnNtThHe \t.,'-\"“”éΣσ3", max_size=30))
def test_words_are_instruct_qas_and_a_text_is_its_words_one_by_one(text):
    assert words(text) == instruct_qa(text) == [w for part in text.split() for w in words(part)]


@pytest.mark.parametrize("ref, count, expected", [
    ("joined", "clipped", 3 / 4), ("max", "clipped", 2 / 4), ("joined", "set", 2 / 3), ("max", "set", 2 / 3)])
def test_every_reading_by_hand(ref, count, expected):
    """red red cat runs against "red cat" and "a red dog": two reds among both, one in each."""
    refs = [words("red cat"), words("a red dog")]
    assert k_precision(words("A red, red cat runs"), refs, ref=ref, count=count) == expected


def test_a_prediction_without_words_and_a_picture_without_references():
    assert k_precision([], [["cat"]]) == k_precision(["cat"], []) == k_precision(["cat"], [], ref="max") == 0


def test_content_is_found_in_the_words_that_white_space_makes():
    text = 'The black-and-white cat\'s "toy" is big.'
    pairs = "The/DET black/ADJ -/PUNCT and/CCONJ -/PUNCT white/ADJ cat/NOUN 's/PART ``/`` toy/NN ''/'' is/AUX big/ADJ ./PUNCT"
    tagged = [pair.split("/") for pair in pairs.split()]
    assert content_words(text, tagged) == ["blackandwhite", "cats", "toy", "big"]
    assert content_words(text, [(t, "X") for t, _ in tagged]) == content_words(text, []) == []
    with pytest.raises(ValueError, match="expected the tokens of 'a cat' in their order, got 'dog'"):
        content_words("a cat", [("a", "DET"), ("dog", "NOUN")])


VOCABULARY = ("red", "blue", "cat", "dog", "runs", "big")


def drawn_case(rng):
    N = int(rng.integers(1, 6))
    owner = np.concatenate([np.arange(N), rng.integers(0, N, rng.integers(0, 6))])
    captions = [[VOCABULARY[i] for i in rng.integers(0, 6, rng.integers(1, 5))] for _ in owner]
    content = [[w for w in c if w != "runs"][:rng.integers(0, 4)] for c in captions]
    extra = int(rng.integers(0, 2))                               # a picture without captions: never asked
    return rng.integers(-1, 2, (N + extra, 2)) + 0.0, rng.integers(-1, 2, (len(owner), 2)) + 0.0, owner, captions, content


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from(["joined", "max"]), st.sampled_from(["clipped", "set"]))
def test_faithfulness_equals_the_definition_caption_by_caption(seed, ref, count):
    """Embeddings on nine points, so that ties are the rule."""
    x, y, owner, captions, content = drawn_case(np.random.default_rng(seed))
    got = faithfulness(x, y, owner, captions, content, ref=ref, count=count, chunk=2)
    s = unit(x) @ unit(y).T
    every, share, weight = [], 0.0, 0.0
    for n in np.unique(owner):
        tied = np.flatnonzero(s[n] >= s[n].max() - 1e-9)
        refs = [captions[m] for m in np.flatnonzero(owner == n)]
        every.append(np.mean([k_precision(captions[m], refs, ref=ref, count=count) for m in tied]))
        for m in tied:
            if content[m]:
                share += k_precision(content[m], refs, ref=ref, count=count) / len(tied)
                weight += 1 / len(tied)
    assert got["kp"] == pytest.approx(np.mean(every))
    assert got["kp_na"] == pytest.approx(share / weight if weight else np.nan, nan_ok=True)
    assert got["skipped"] == pytest.approx(len(every) - weight)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from(["clipped", "set"]), st.sampled_from([0.0, 3e-7, 1e-3]))
def test_k_precision_is_at_least_recall_at_one(seed, count, noise):
    """Of any embeddings, ties and near ties (3e-7: within what counts as equal) included."""
    rng = np.random.default_rng(seed)
    x, y, owner, captions, _ = drawn_case(rng)
    y += noise * rng.normal(size=y.shape)
    assert faithfulness(x, y, owner, captions, count=count)["kp"] >= retrieval(x, y, owner)["i2t_r1"] - 1e-12


def test_what_is_level_is_what_retrieval_calls_level():
    """Cosines .5 of another's caption, 6e-7 and 1.2e-6 less of its own two: level with its best are all three."""
    angles = np.arccos(0.5 - np.array([0, 6e-7, 1.2e-6]))
    y = np.stack([np.cos(angles), np.sin(angles)], 1)
    x = np.array([[1.0, 0.0], [0.0, 1.0]])
    got = faithfulness(x, y, [1, 0, 0], [["red"], ["cat"], ["dog"]])["kp"]
    assert got == pytest.approx((2 / 3 + 1 / 3) / 2) and got >= retrieval(x, y, [1, 0, 0])["i2t_r1"] - 1e-12


def test_a_single_reference_breaks_the_bound_that_joined_ones_keep():
    """What the bound needs: a hit scores 1. Of words that no caption has, it scores 0, as instruct-qa says."""
    x = np.eye(2)
    assert faithfulness(x, x, [0, 1], [[], ["cat"]])["kp"] == 0.5 < retrieval(x, x, [0, 1])["i2t_r1"] == 1


def test_perfect_embeddings_score_one_and_a_constant_one_scores_chance():
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(20), 3)
    captions = [[VOCABULARY[i] for i in rng.integers(0, 6, 4)] for _ in owner]
    content = [[w for w in c if w != "runs"] for c in captions]
    x = rng.normal(size=(20, 64))
    for ref in ("joined", "max"):
        perfect = faithfulness(x, x[owner], owner, captions, content, ref=ref)
        assert perfect["kp"] == perfect["kp_na"] == 1
        chance = faithfulness_chance(owner, captions, content, ref=ref)
        assert faithfulness(0 * x, 0 * x[owner], owner, captions, content, ref=ref) == chance
        random = [faithfulness(rng.normal(size=x.shape), rng.normal(size=(60, 64)), owner, captions, ref=ref)["kp"]
                  for _ in range(20)]
        assert np.mean(random) == pytest.approx(chance["kp"], abs=4 * np.std(random) / 20**0.5)
        assert 0.2 < chance["kp"] < 0.9


def test_wrong_input_is_refused():
    x = np.eye(2)
    for arguments, message in (((x, np.eye(3)[:, :2], [0, 1], [["a"], ["b"]]), "text_emb"),
                               ((x, x, [0, 2], [["a"], ["b"]]), "indices 0..1"),
                               ((x * np.nan, x, [0, 1], [["a"], ["b"]]), "finite")):
        with pytest.raises(ValueError, match=message):
            faithfulness(*arguments)
    for option in ({"ref": "mean"}, {"count": "all"}):
        with pytest.raises(ValueError, match="expected one of"):
            k_precision(["a"], [["a"]], **option)
