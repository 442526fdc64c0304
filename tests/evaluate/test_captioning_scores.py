"""CIDEr-D, BLEU and ROUGE-L: equal to pycocoevalcap's, on random and on awkward captions; and what they must be by hand."""

import contextlib
import io

import numpy as np
import pytest

from sparc_ref.evaluate.captioning import bleu, captioning, cider, plain_words, rouge_l

WORDS = ["a", "dog", "cat", "on", "the", "red", "mat", "sits", "near", "big", "blue", "house", "and", "two"]


def theirs(candidates, references):
    """pycocoevalcap's numbers: CIDEr (N,), BLEU (4,), ROUGE-L (N,)"""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gts, res = dict(enumerate(map(list, references))), {i: [text] for i, text in enumerate(candidates)}
    with contextlib.redirect_stdout(io.StringIO()):
        return Cider().compute_score(gts, res)[1], Bleu(4).compute_score(gts, res)[0], Rouge().compute_score(gts, res)[1]


def made_up(rng, pictures, shortest=0):
    def text():
        return " ".join(rng.choice(WORDS, rng.integers(shortest, 14)))

    return [text() for _ in range(pictures)], [[text() for _ in range(rng.integers(1, 6))] for _ in range(pictures)]


AWKWARD = {
    "empty candidate": (["", "a dog"], [["a dog on the mat"], ["a dog"]]),
    "empty candidate and reference": (["", "a dog"], [[""], ["a dog", ""]]),
    "single picture": (["a dog on the mat"], [["a dog on the mat", "the cat"]]),
    "three words": (["red big cat", "a b c d"], [["red big cat"], ["a b c d"]]),
    "repeated words": (["dog dog dog dog dog", "the the the"], [["a dog sits"], ["the cat on the mat"]]),
    "every picture has the word": (["a", "a", "a"], [["a"], ["a a"], ["a b"]]),
    "none in common": (["x y z w", "p q r s"], [["a b c d"], ["e f g h"]]),
    "equal distances of length": (["a b c", "d"], [["a b", "a b c d"], ["d"]]),
}  # fmt: skip


@pytest.mark.parametrize("case", AWKWARD)
def test_awkward_captions_score_as_theirs(case):
    for ours, other in zip((cider(*AWKWARD[case]), bleu(*AWKWARD[case]), rouge_l(*AWKWARD[case])), theirs(*AWKWARD[case])):
        np.testing.assert_allclose(ours, other, rtol=1e-12, atol=1e-14)


def test_random_captions_score_as_theirs(rng):
    for _ in range(40):
        given = made_up(rng, int(rng.integers(1, 30)))
        for ours, other in zip((cider(*given), bleu(*given), rouge_l(*given)), theirs(*given)):
            np.testing.assert_allclose(ours, other, rtol=1e-12, atol=1e-14)


def test_an_identical_caption_scores_ten_and_three_words_score_seven_and_a_half():
    """Where pictures share no n-gram."""
    texts = ["red big cat sits", "two blue dogs run away", "one old tree"]
    found = cider(texts, [[text] for text in texts])
    np.testing.assert_allclose(found, [10, 10, 7.5], rtol=1e-12)
    assert captioning(texts[:2], [[text] for text in texts[:2]])["cider"] == pytest.approx(1000, rel=1e-12)


def test_other_captions_of_the_corpus_move_a_score(rng):
    """The idf is of the references: the same picture scores otherwise among others."""
    candidates, references = made_up(rng, 12, 4)
    assert cider(candidates, references)[0] != cider(candidates[:6], references[:6])[0]


def test_order_of_pictures_and_of_references_does_not_matter(rng):
    candidates, references = made_up(rng, 10, 2)
    order = rng.permutation(10)
    moved = [candidates[i] for i in order], [references[i][::-1] for i in order]
    np.testing.assert_allclose(cider(*moved), cider(candidates, references)[order], rtol=1e-12)
    np.testing.assert_allclose(rouge_l(*moved), rouge_l(candidates, references)[order], rtol=1e-12)
    np.testing.assert_allclose(bleu(*moved), bleu(candidates, references), rtol=1e-12)


def test_plain_words():
    assert plain_words("A man's dog (brown), it isn't 3.5 feet – two-tone!") == "a man 's dog brown it is n't 3.5 feet two-tone"
    assert plain_words("...") == ""


@pytest.mark.parametrize("candidates, references, said", [
    (["a"], [], "expected one string for each of 0"), ([], [], "at least one"), ("a", [["a"]], "got a string"),
    (["a"], [[]], "none for number 0"), (["a"], ["a"], "a list of strings"), ([None], [["a"]], "a list of strings"),
])  # fmt: skip
def test_what_is_no_caption_is_refused(candidates, references, said):
    with pytest.raises(ValueError, match=said):
        captioning(candidates, references)


def test_every_measure_stands_under_its_own_name():
    candidates = ["a red cat sits on the mat", "two dogs run in a big park", "a man"]
    references = [["a red cat on a mat", "the cat sits on the red mat"], ["dogs run through a park"],
                  ["a man stands", "one man"]]
    found = captioning(candidates, references)
    assert list(found) == ["cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"]
    assert found["cider"] == pytest.approx(100 * cider(candidates, references).mean())
    assert [found[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx(bleu(candidates, references))
    assert found["rouge_l"] == pytest.approx(rouge_l(candidates, references).mean()) and len(set(found.values())) == 6
