"""The search: one beam is greedy, enough beams find the best text of all, and each picture is searched for itself."""

import itertools
import math

import numpy as np
import pytest
import torch
from captioner_made import captioner, opened, pictures

from parity.trainer.captioning.generate import captions_of, search, text_of

END = 0


def table(rng, V=4, spread=2.0):
    """logits of a made-up language: the next word depends on the whole text so far.   tokens (N,L) -> (N,V)"""
    seed = int(rng.integers(1 << 30))

    def logits(tokens):
        return torch.stack([torch.from_numpy(np.random.default_rng([seed, *row]).standard_normal(V) * spread)
                            for row in tokens.tolist()])

    return logits


def every_text(logits, start, V, most):
    """All texts of at most `most` words that end, or are cut, with their log-probability."""
    known = {}

    def logs(tokens):
        if tokens not in known:
            known[tokens] = torch.log_softmax(logits(torch.tensor([tokens])), -1)[0].tolist()
        return known[tokens]

    for length in range(1, most + 1):
        for words in itertools.product(range(V), repeat=length):
            if END in words[:-1] or (words[-1] != END and length < most):
                continue
            yield words, sum(logs((*start, *words[:i]))[w] for i, w in enumerate(words))


@pytest.mark.parametrize("penalty", [0.0, 1.0, 0.6, -0.5])
def test_enough_beams_find_the_best_of_all_texts(rng, penalty):
    for _ in range(3):
        logits, start = table(rng), (3, int(rng.integers(4)))
        ranked = sorted(every_text(logits, start, 4, 4), key=lambda pair: -pair[1] / len(pair[0])**penalty)
        tokens, score = search(logits, torch.tensor([start]), END, beams=200, most=4, penalty=penalty)
        for k in range(10 if penalty else 1):                         # without a penalty it stops when the first is certain
            words, total = ranked[k]
            found = tokens[0, k].tolist()
            assert tuple(found[:len(words)]) == words and not any(found[len(words):])
            assert float(score[0, k]) == pytest.approx(total / len(words)**penalty, rel=1e-12)


def test_all_texts_together_have_probability_one(rng):
    """That the brute force above is one: it leaves out no text and has none twice."""
    assert sum(math.exp(total) for _, total in every_text(table(rng), (1,), 4, 4)) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
def test_one_beam_is_greedy(rng, penalty):
    for _ in range(20):
        logits, tokens = table(rng), [2]
        while len(tokens) < 7 and tokens[-1] != END:
            tokens.append(int(logits(torch.tensor([tokens])).argmax()))
        found, _ = search(logits, torch.tensor([[2]]), END, beams=1, most=6, penalty=penalty)
        assert found[0, 0].tolist() == tokens[1:]


def test_more_beams_beat_greedy_where_the_best_text_begins_badly():
    """First word 1 has 0.6, but then only 0.3s follow; 2 has 0.4 and then certainty."""
    after = {(): [0, .6, .4, 0], (1,): [.1, .3, .3, .3], (2,): [1, 0, 0, 0]}

    def logits(tokens):
        return torch.tensor([after.get(tuple(row[1:]), [1, 0, 0, 0]) for row in tokens.tolist()], dtype=torch.float64).log()

    assert search(logits, torch.tensor([[3]]), END, beams=1, most=3)[0][0, 0].tolist()[0] == 1
    assert search(logits, torch.tensor([[3]]), END, beams=2, most=3)[0][0, 0].tolist()[:2] == [2, END]


def test_prompts_are_searched_each_for_itself(rng):
    """A batch gives what each of its prompts gives alone, though they end at different lengths."""
    logits = table(rng)
    prompts = torch.tensor([[1, 2], [3, 1], [2, 2], [1, 1]])
    for penalty in (0.0, 1.0):
        tokens, score = search(logits, prompts, END, beams=3, most=6, penalty=penalty)
        for n, prompt in enumerate(prompts):
            alone, alone_score = search(logits, prompt[None], END, beams=3, most=6, penalty=penalty)
            length = alone.shape[-1]
            assert tokens[n, 0, :length].tolist() == alone[0, 0].tolist() and not tokens[n, 0, length:].any()
            assert score[n, 0] == alone_score[0, 0]


def test_captions_are_the_model_s_own(rng):
    """Searched through the media alone, they are what whole forward passes give, picture by picture."""
    model = opened(captioner())
    words, images = model.language, pictures(3)[:, 0]
    found = captions_of(model, images, beams=1, most=5)
    for image, caption in zip(images, found):
        tokens = [words.start, words.image]
        with torch.no_grad():
            while len(tokens) < 7 and tokens[-1] != words.end:
                tokens.append(int(model(image[None, None], torch.tensor([tokens]))[0, -1].argmax()))
        assert caption == text_of(words, tokens[2:])
    assert len({text for text, _ in found}) > 1                       # the pictures are seen


def test_a_caption_s_length_is_bounded_by_the_language_model():
    model = captioner()
    with pytest.raises(ValueError, match="at most 17 new tokens after this prompt, got 18"):
        captions_of(model, pictures(1)[:, 0], most=18, prompt="dog")
    with pytest.raises(ValueError, match="beams, most: expected at least 1"):
        search(lambda x: x, torch.tensor([[1]]), 0, beams=0)
