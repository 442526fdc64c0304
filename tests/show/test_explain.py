"""explain: a picture file and a caption in, a figure and a table out."""

from dataclasses import replace

import numpy as np
import pytest

from sparc_ref.data import DrawnScenes, WordTokenizer
from sparc_ref.model import PRESETS
from sparc_ref.run.checkpoint import CheckpointError
from sparc_ref.run.train import TrainConfig, train
from sparc_ref.show.explain import explain, table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    data = DrawnScenes(size=16, count=8, style="short")
    tokenizer = WordTokenizer(data.vocabulary())
    config = replace(PRESETS["tiny"], image_size=16, vision_width=16, vision_depth=1, text_width=16, text_depth=1,
                     vocab_size=tokenizer.vocab_size, max_tokens=8)
    train(config, TrainConfig(steps=1, batch=4, eval_every=0), [data], tokenizer, out, say=lambda text: None)
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
    assert any("longer than 8 tokens" in text for text in said)


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
