"""The captioner's parts: closed gates change nothing, the resampler is what NumPy computes, words see their picture only."""

import math

import numpy as np
import pytest
import torch
from captioner_made import SMALL, batch_of, captioner, language, opened, pictures

from parity.trainer.captioning.gated import Gated, seen_by
from parity.trainer.captioning.language import next_word_loss, weights_hash
from parity.trainer.captioning.model import CaptionerConfig
from parity.trainer.captioning.resampler import Resampler
from parity.trainer.captioning.train import loss_of

TEXTS = ["a dog on the mat", "red cat"]


def test_closed_gates_leave_the_language_model_as_it_is():
    """Bit-equal, with pictures in front and without; <image> starts as a copy of <BOS>."""
    for every in (1, 2):
        model = captioner(CaptionerConfig(latents=3, resampler_depth=1, heads=2, head_width=4, every=every))
        words = model.language
        tokens = torch.from_numpy(batch_of(TEXTS, words).tokens)
        plain = torch.where(tokens == words.image, words.start, tokens)
        with torch.no_grad():
            alone = words(words.embed(plain))
            assert torch.equal(model(pictures(2), tokens), alone)
            assert torch.equal(model(pictures(2), plain), alone)
            opened(model)
            assert not torch.allclose(model(pictures(2), tokens), alone)


def test_a_first_step_opens_the_gates_alone():
    """At closed gates the loss has a gradient at the gates (and at <image>), and none behind them."""
    model = captioner()
    loss_of(model, batch_of(TEXTS, model.language)).backward()
    for name, p in model.own().items():
        moved = p.grad is not None and bool(p.grad.abs().max() > 0)
        assert moved == (name.endswith(("alpha", "beta")) or name == "image_token"), name


def numpy_resampler(params: dict, features: np.ndarray, heads: int) -> np.ndarray:
    """The resampler in NumPy, one head and one picture at a time."""
    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * params[f"{name}.weight"] + params[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    out = []
    for x in features + params["time"]:
        latents = params["latents"]
        for layer in range(1 + max(int(name.split(".")[1]) for name in params if name.startswith("layers."))):
            at = f"layers.{layer}."
            asking = norm(latents, at + "norm_latents")
            seen = np.concatenate([norm(x, at + "norm_features"), asking])
            q, k, v = (y @ params[f"{at}attn.{n}.weight"].T for n, y in (("query", asking), ("key", seen), ("value", seen)))
            width, found = q.shape[1] // heads, []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                s = q[:, part] @ k[:, part].T / math.sqrt(width)
                weights = np.exp(s) / np.exp(s).sum(1, keepdims=True)
                found.append(weights @ v[:, part])
            latents = latents + np.concatenate(found, 1) @ params[at + "attn.out.weight"].T
            inner = gelu(norm(latents, at + "ffn.norm") @ params[at + "ffn.up.weight"].T)
            latents = latents + inner @ params[at + "ffn.down.weight"].T
        out.append(norm(latents, "norm"))
    return np.stack(out)


def test_the_resampler_is_what_numpy_computes(rng):
    model = Resampler(12, SMALL).double()
    params = {name: rng.standard_normal(p.shape) * 0.5 for name, p in model.named_parameters()}
    model.load_state_dict({name: torch.from_numpy(x) for name, x in params.items()})
    features = rng.standard_normal((4, 5, 12))
    with torch.no_grad():
        found = model(torch.from_numpy(features)).numpy()
    assert found.shape == (4, 3, 12)
    np.testing.assert_allclose(found, numpy_resampler(params, features, SMALL.heads), rtol=1e-11, atol=1e-12)


def test_the_gated_layer_s_gradient_is_that_of_differences(rng):
    """Every parameter and both inputs, gates open, one word before any picture."""
    layer = Gated(6, 5, SMALL).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.from_numpy(np.asarray(rng.standard_normal(p.shape) * 0.5)))
    y = torch.from_numpy(rng.standard_normal((2, 4, 6))).requires_grad_()
    latents = torch.from_numpy(rng.standard_normal((2, 6, 5))).requires_grad_()
    mask = seen_by(torch.tensor([[False, True, False, True], [True, False, False, False]]), 2, 3)
    up = torch.from_numpy(rng.standard_normal((2, 4, 6)))
    (layer(y, latents, mask) * up).sum().backward()
    for name, x in [*layer.named_parameters(), ("y", y), ("latents", latents)]:
        step = torch.from_numpy(np.asarray(rng.standard_normal(tuple(x.shape))))
        values = []
        for e in (1e-5, -1e-5):
            with torch.no_grad():
                x.add_(e * step)
                values.append(float((layer(y, latents, mask) * up).sum()))
                x.sub_(e * step)
        expected = (values[0] - values[1]) / 2e-5
        assert float((x.grad * step).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-8), name


def test_a_word_sees_the_last_picture_before_it():
    is_picture = torch.tensor([[False, True, False, True, False], [True, False, False, False, False]])
    assert seen_by(is_picture, 2, 2).int().tolist() == [
        [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], [[1, 1, 0, 0]] * 5]


def test_a_word_before_any_picture_gets_nothing():
    """Not the mean of all latents, as a softmax over nothing but masked entries would give."""
    model = opened(captioner())
    layer = model.gated["0"].attn
    y, latents = torch.randn(1, 3, 16), torch.randn(1, 6, 12)
    found = layer(y, latents, seen_by(torch.tensor([[False, False, True]]), 2, 3))
    assert not found[0, :2].any() and found[0, 2].abs().min() > 0


def test_pictures_change_the_words_after_them_only():
    model = opened(captioner())
    words = model.language
    row = [words.start, 4, words.image, 5, 6, words.image, 7, words.end]
    tokens, images = torch.tensor([row]), pictures(1, 2)
    with torch.no_grad():
        before = model(images, tokens)
        for which, first in ((0, 2), (1, 5)):
            changed = images.clone()
            changed[:, which] += 1
            after = model(changed, tokens)
            same = [torch.equal(before[0, i], after[0, i]) for i in range(len(row))]
            assert same == [i < first for i in range(len(row))]      # frozen causal blocks carry a picture further
        spare = torch.cat([images, images + 1], 1)                   # places that no <image> is for
        torch.testing.assert_close(model(spare, tokens), before, rtol=1e-6, atol=1e-6)
    layer = model.gated["0"]                                          # one layer alone carries nothing further
    y, latents = torch.randn(1, 8, 16), torch.randn(1, 6, 12)
    mask = seen_by(tokens == words.image, 2, 3)
    moved = latents + torch.tensor([1.0, 1, 1, 0, 0, 0])[None, :, None]
    with torch.no_grad():
        same = (layer(y, latents, mask) == layer(y, moved, mask)).all(-1)[0].tolist()
    assert same == [True, True, False, False, False, True, True, True]


def test_padding_is_inert():
    """Logits of real words and the loss are the same alone, beside a longer caption, and over any ids at padding."""
    model = opened(captioner().double())
    words = model.language
    both, alone = (batch_of(texts, words) for texts in (TEXTS, TEXTS[1:]))
    images = pictures(2, dtype=torch.float64)
    length = alone.tokens.shape[1]
    with torch.no_grad():
        together = model(images, torch.from_numpy(both.tokens))[1, :length]
        single = model(images[1:], torch.from_numpy(alone.tokens))[0]
        torch.testing.assert_close(together, single, rtol=1e-12, atol=1e-12)
        scribbled = torch.from_numpy(np.where(both.mask, both.tokens, 5))
        torch.testing.assert_close(model(images, scribbled)[1, :length], single, rtol=1e-12, atol=1e-12)


def test_the_loss_is_of_text_and_eoc():
    model = opened(captioner().double())
    batch = batch_of(TEXTS, model.language)
    batch.images = batch.images.astype(np.float64)
    tokens, mask = torch.from_numpy(batch.tokens), torch.from_numpy(batch.mask)
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.from_numpy(batch.images)[:, None], tokens), -1)
        found = float(loss_of(model, batch))
    by_hand = [-float(logs[i, l - 1, tokens[i, l]]) for i in range(2) for l in range(2, tokens.shape[1]) if mask[i, l]]
    assert len(by_hand) == 5 + 2 + 2 and found == pytest.approx(np.mean(by_hand), rel=1e-12)
    assert tokens[0, :2].tolist() == [model.language.start, model.language.image]
    assert [int(row[m][-1]) for row, m in zip(tokens, mask)] == [model.language.end] * 2


def test_tower_and_language_model_stay_as_they_are():
    """No gradient, no bit changed by updates, never in training mode."""
    model = captioner().train()
    before = weights_hash(model.tower), weights_hash(model.language)
    optimizer = torch.optim.AdamW(model.own().values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, batch_of(TEXTS, model.language)).backward()
        optimizer.step()
    assert (weights_hash(model.tower), weights_hash(model.language)) == before
    frozen = [p for name, p in model.named_parameters() if name not in model.own()]
    assert frozen and all(p.grad is None and not p.requires_grad for p in frozen)
    assert all(p.grad is not None for p in model.own().values())
    assert not model.tower.training and not model.language.training and model.resampler.training
    assert {name.split(".")[0] for name in model.own()} == {"image_token", "resampler", "gated"}


def test_wrong_numbers_of_pictures_are_refused():
    model = captioner()
    row = [model.language.start, model.language.image, model.language.image, 4]
    with pytest.raises(ValueError, match=r"up to 2 <image> each, got 1"):
        model(pictures(1), torch.tensor([row]))
    with pytest.raises(ValueError, match="every: expected at most the 2 blocks"):
        captioner(CaptionerConfig(every=3))


def test_the_language_model_is_causal():
    """A later word changes nothing before it."""
    words = language()
    tokens = torch.tensor([[words.start, 3, 4, 5, 6]])
    other = tokens.clone()
    other[0, 3] = 7
    with torch.no_grad():
        a, b = words(words.embed(tokens)), words(words.embed(other))
    assert torch.equal(a[:, :3], b[:, :3]) and not torch.equal(a[:, 3], b[:, 3])
    loss = next_word_loss(a, tokens, tokens != words.start)
    assert float(loss) == pytest.approx(float(-torch.log_softmax(a, -1)[0, range(4), tokens[0, 1:]].mean()), rel=1e-6)
