"""explain: a picture file and a caption in, a figure and a table out."""

import itertools
import unicodedata
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparc_ref import align_patches, encode_images, encode_texts, init_params
from sparc_ref.data import DrawnScenes, Example, Region, UnigramTokenizer, WordTokenizer, to_images
from sparc_ref.model import PRESETS
from sparc_ref.run.checkpoint import CheckpointError
from sparc_ref.run.examples import explain_caption, explain_example, words_of
from sparc_ref.run.measure import evaluate
from sparc_ref.run.rundir import load_run, read_metrics
from sparc_ref.run.sources import remembered
from sparc_ref.run.train import TrainConfig, train
from sparc_ref.show.explain import explain, table
from sparc_ref.show.results import grounding


def small():
    """A model that takes milliseconds, its training, data and tokenizer."""
    data = DrawnScenes(size=16, count=8, style="short")
    tokenizer = WordTokenizer(data.vocabulary())
    config = replace(PRESETS["tiny"], image_size=16, vision_width=16, vision_depth=1, text_width=16, text_depth=1,
                     vocab_size=tokenizer.vocab_size, max_tokens=8)
    return config, TrainConfig(steps=1, batch=4, eval_every=0), data, tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    config, options, data, tokenizer = small()
    train(config, options, [data], tokenizer, out, say=lambda text: None)
    return out


@pytest.fixture
def photo(tmp_path):
    from PIL import Image
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(path)
    return path


def test_figure_and_table(run, photo, tmp_path):
    said = []
    seen = explain(run, photo, "a red circle and a wug", tmp_path / "out.png", say=said.append)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert seen.words == ("a", "red", "circle", "and", "a", "wug") and seen.weights.shape == (6, 4)
    np.testing.assert_allclose(seen.weights.sum(-1), 1, rtol=1e-5)
    text = "\n".join(said)
    assert "does not know 'wug'" in text and "top patch" in text and str(tmp_path / "out.png") in text
    best = int(np.argmax(seen.weights[1]))
    assert f"({best // 2 + 1}, {best % 2 + 1})" in table(seen).splitlines()[3]


def test_long_captions_say_what_is_cut(run, photo, tmp_path):
    said = []
    explain(run, photo, "red circle and blue square and green star and pink ring", tmp_path / "out.png", say=said.append)
    assert any("longer than 8 tokens: the last 4 are cut" in text for text in said), "11 words, and EOS stays"


def test_errors(run, photo, tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        explain(tmp_path / "nothing", photo, "red", tmp_path / "o.png")
    with pytest.raises(ValueError, match="image missing"):
        explain(run, tmp_path / "no.png", "red", tmp_path / "o.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match="not an image"):
        explain(run, tmp_path / "text.png", "red", tmp_path / "o.png")
    with pytest.raises(ValueError, match="out: expected a file in an existing folder"):
        explain(run, photo, "red", tmp_path / "no" / "o.png")
    with pytest.raises(ValueError):
        explain(run, photo, "   ", tmp_path / "o.png")
    assert not (tmp_path / "o.png").exists()


# ---------------------------------------------------------------------------------------- words and what maps are worth


SPLIT = UnigramTokenizer.train(["a dog on a bed", "the cat's red hat, well-known", "犬がいる 猫", "कुत्ता"] * 5, 60)


@pytest.mark.parametrize("caption, words", [
    ("a dog on a red sofa.", ["a", "dog", "on", "a", "red", "sofa", "."]),
    ("the dog's well-known hat, 'red' a--b", ["the", "dog's", "well-known", "hat", ",", "'", "red", "'", "a", "-", "-", "b"]),
    ("犬がいる dog", ["犬", "が", "い", "る", "dog"]),               # no spaces between words: pieces stay
    ("कुत्ता dog", ["कुत्ता", "dog"]),                             # vowel signs are marks, no letters
    (unicodedata.normalize("NFD", "été"), [unicodedata.normalize("NFD", "été")]), ("🙂dog", ["🙂", "dog"]),
])
def test_pieces_of_a_word_are_joined(caption, words):
    offsets = [(a, b) for a, b in SPLIT.encode(caption).offsets if caption[a:b].strip()]
    joined = words_of(caption, offsets)
    assert [caption[w[0][0]:w[-1][1]] for w in joined] == words
    assert [o for w in joined for o in w] == offsets


@given(st.text(st.sampled_from("ab -'.é犬ต\u0301🙂_3"), max_size=20), st.data())
def test_every_piece_belongs_to_one_word(caption, data):
    """However a tokenizer cuts: order is kept, nothing is lost, and nothing is joined over a gap or white space."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(caption)))) | {0, len(caption)})
    offsets = [(a, b) for a, b in itertools.pairwise(cuts) if caption[a:b].strip() == caption[a:b] != ""]
    joined = words_of(caption, offsets)
    assert [o for w in joined for o in w] == offsets
    for word in joined:
        for (_, end), (start, _) in itertools.pairwise(word):
            assert end == start and not caption[end - 1].isspace() and not caption[start].isspace()


def test_a_word_is_the_mean_of_its_pieces():
    config = replace(PRESETS["tiny"], image_size=16, vision_width=16, vision_depth=1, text_width=16, text_depth=1,
                     vocab_size=SPLIT.vocab_size)
    params = init_params(config, np.random.default_rng(0))
    image, caption = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8), "a dog, red"
    seen = explain_caption(params, config, SPLIT, image, caption)
    tokens, mask = SPLIT.batch([caption], config.max_tokens)
    t, v = encode_texts(params, tokens, mask, config)["t"], encode_images(params, to_images([image]), config)["v"]
    _, trace, _ = align_patches(t, v, mask, **config.align_options)
    pieces = {i: caption[a:b] for i, (a, b) in enumerate(SPLIT.encode(caption).offsets) if a < b}   # not EOS, not bare spaces
    kept, start = list(pieces), 0
    assert seen.words == ("a", "dog", ",", "red") and sum(seen.pieces) == len(pieces) > 4
    for word, count, weights, minmax in zip(seen.words, seen.pieces, seen.weights, seen.minmax):
        at, start = kept[start:start + count], start + count
        assert "".join(pieces[i] for i in at) == word
        np.testing.assert_allclose(weights, trace["weights"][0, at].mean(0), rtol=1e-6)
        np.testing.assert_allclose(minmax, trace["minmax"][0, at].mean(0), rtol=1e-6, atol=1e-7)
    within = [i for i in pieces if caption.index("dog") <= SPLIT.encode(caption).offsets[i][0] < caption.index(",")]
    assert len(within) > 1, "the case can tell"
    for i in within:
        region = Region("dog", np.ones((16, 16), bool), ((0, *SPLIT.encode(caption).offsets[i]),))
        told = explain_example(params, config, SPLIT, Example(image, (caption,), (region,)))
        assert told.objects.tolist() == [-1, 0, -1, -1], "one of its pieces, whichever, names the region"
    assert seen.weights.sum(-1) == pytest.approx(np.ones(4)) and f"mean of {seen.pieces[1]} pieces" in table(seen)


def measured(gap, sd=0.001, **more):
    return {"grounding_gap": gap, "fine_loss": 0.5, "fine_loss_shuffled": 0.5 + gap, "grounding_gap_sd": sd} | more


@pytest.mark.parametrize("numbers, words", [
    (measured(0.005), "its maps mean nothing"), (measured(-0.3), "its maps mean nothing"),
    (measured(0.09, sd=0.05), "its maps mean nothing"),             # within twice its own spread
    (measured(0.09), "was not measured: that takes masks"),
    (measured(1.7, pointing=0.35, pointing_chance=0.057, objects=1000.0), "for 35.0 % of the names (chance 5.7 %)."),
    (measured(0.2, pointing=0.075, pointing_chance=0.057, objects=100.0), "no better than chance"),
    (measured(0.2, pointing=0.075, pointing_chance=0.057, objects=1000.0), "for 7.5 % of the names (chance 5.7 %)."),
])
def test_what_a_gap_says_of_maps(numbers, words):
    text = grounding(numbers)
    assert words in text and f"{numbers['grounding_gap']:.3f} nats" in text
    assert ("mean nothing" in text) == ("mean nothing" in words)
    assert grounding({k: x for k, x in numbers.items() if k != "fine_loss"}) == ""


def test_explain_says_what_its_maps_are_worth(run, photo, tmp_path, monkeypatch):
    """From the run's metrics; without them measured on the run's own data; without that, it is not known."""
    said = []
    monkeypatch.setattr("sparc_ref.show.plots.png", lambda figure, dpi=150: b"PNG")
    explain(run, photo, "a red circle", tmp_path / "out.png", say=said.append)
    assert any(line.startswith("The grounding gap of this model is not known") for line in said)
    other = tmp_path / "run"
    config, options, data, tokenizer = small()
    train(config, replace(options, steps=3, eval_every=2, checkpoint_every=1, keep=3), [data], tokenizer, other,
          validation={"own": data, "second": replace(data, split="test")}, say=lambda text: None,
          sources=remembered(["drawn?style=short&count=70"]))
    rows = [row for row in read_metrics(other / "metrics.jsonl") if row["kind"] == "eval" and row["split"] == "own"]
    for step, at in ((1, 0), (2, 2), (3, 3)):                     # of the first set, at the checkpoint or the last before it
        explain(other / "checkpoints" / f"step_{step:08d}", photo, "a red circle", tmp_path / "out.png", say=said.append)
        (gap,) = [row["grounding_gap"] for row in rows if row["step"] == at]
        assert f"(Measured at update {at}, on own.)" in said[-2] and f"Grounding gap {gap:.3f} nats" in said[-2]
    (other / "metrics.jsonl").unlink()
    explain(other, photo, "a red circle", tmp_path / "out.png", say=said.append)
    assert "(Measured now, on 64 examples of drawn-test.)" in said[-2]
    numbers = evaluate(*load_run(other)[:2], DrawnScenes("test", 16, 64, style="short"), tokenizer)
    gap, true, shuffled = (numbers[name] for name in ("grounding_gap", "fine_loss", "fine_loss_shuffled"))
    assert (f"Grounding gap {gap:.3f} nats: the fine-grained loss is {true:.3f} with the true pictures, {shuffled:.3f} with "
            "shuffled ones") in said[-2]


def test_the_table_says_what_evenly_spread_weights_would_be():
    weights = np.linspace(0, 1, 100)[None] / 50
    seen = SimpleNamespace(weights=weights, words=("red",), pieces=(1,), grid=(4, 25))
    _, even, row, _ = table(seen).splitlines()
    assert even.split()[-2:] == ["0.010", "0.100"]
    assert row.split() == ["red", "(4,", "25)", "0.020", f"{weights[0, -10:].sum():.3f}"] and "top 10 of 100" in table(seen)
