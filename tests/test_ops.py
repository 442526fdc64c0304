"""Every primitive, by three witnesses."""

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from witness import agree, close

from parity import oracle
from sparc_ref import encoders, ops
from sparc_ref.backend import erf, to_numpy


def draw(rng, *shape):
    return rng.standard_normal(shape)


def test_linear(rng):
    inputs = {"x": draw(rng, 2, 3, 5), "weight": draw(rng, 4, 5), "bias": draw(rng, 4)}
    agree(ops.linear, inputs, rng, F.linear)
    del inputs["bias"]
    agree(ops.linear, inputs, rng, F.linear)


def test_standardize(rng):
    agree(ops.standardize, {"x": draw(rng, 2, 3, 7) * 3 + 1}, rng, lambda x: F.layer_norm(x, (7,), eps=1e-6))


def test_layer_norm(rng):
    inputs = {"x": draw(rng, 2, 3, 7) * 3 + 1, "gain": draw(rng, 7), "shift": draw(rng, 7)}
    agree(ops.layer_norm, inputs, rng, lambda x, gain, shift: F.layer_norm(x, (7,), gain, shift, 1e-6))


def test_layer_norm_of_large_offsets(rng):
    """The second pass: E[x^2] - E[x]^2 would lose every digit here."""
    x = draw(rng, 4, 8).astype(np.float32)
    near = ops.standardize(x)[0]
    far = ops.standardize(x + np.float32(4096))[0]
    assert np.max(np.abs(near - far)) < 4e-3


@pytest.mark.parametrize("kind", ["tanh", "erf"])
def test_gelu(rng, kind):
    x = np.concatenate([draw(rng, 40, 3) * 3, [[0.0, 30.0, -30.0]]])
    approximate = {"tanh": "tanh", "erf": "none"}[kind]
    agree(ops.gelu, {"x": x}, rng, lambda x, kind: F.gelu(x, approximate=approximate), {"kind": kind})


def test_gelu_kinds_differ(rng):
    x = draw(rng, 50, 1)
    assert 1e-5 < np.max(np.abs(ops.gelu(x, "tanh")[0] - ops.gelu(x, "erf")[0])) < 1e-3
    with pytest.raises(ValueError, match='expected "tanh" or "erf", got \'relu\''):
        ops.gelu(x, "relu")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_erf_without_scipy(rng, array, monkeypatch, dtype):
    """SciPy is no requirement: math.erf, number by number, in the dtype that came."""
    x = np.concatenate([np.linspace(-7, 7, 141), draw(rng, 20), [0.0, 1e-300, np.inf, -np.inf]]).astype(dtype)
    for missing in ("scipy", "scipy.special"):
        monkeypatch.setitem(sys.modules, missing, None)
    wanted = np.array([math.erf(float(each)) for each in x]).astype(dtype)
    ours = to_numpy(erf(array(x.reshape(-1, 3))))
    assert ours.shape == (55, 3) and ours.dtype == dtype
    np.testing.assert_allclose(ours.ravel(), wanted, rtol=0, atol=2 * np.finfo(dtype).eps)
    assert float(to_numpy(erf(array(np.asarray(0.5, dtype))))) == pytest.approx(math.erf(0.5), rel=1e-6)
    agree(ops.gelu, {"x": draw(rng, 9, 3) * 3}, rng, lambda x, kind: F.gelu(x), {"kind": "erf"})


def masks(rng, batch, length):
    mask = rng.random((batch, length)) < 0.6
    mask[0], mask[-1], mask[1, 0] = True, False, True
    return mask


def test_softmax(rng):
    agree(ops.softmax, {"z": draw(rng, 3, 4, 5) * 4}, rng, lambda z: torch.softmax(z, -1))
    mask = masks(rng, 3, 5)[:, None, :]
    agree(ops.softmax, {"z": draw(rng, 3, 4, 5)}, rng, None, {"mask": mask})
    a = ops.softmax(draw(rng, 3, 4, 5) * 1e3, mask)[0]
    assert np.all(a[np.broadcast_to(~mask, a.shape)] == 0)
    close(a.sum(-1), np.broadcast_to(mask.any(-1), (3, 4)).astype(float), "row sums")


def test_log_softmax(rng):
    agree(ops.log_softmax, {"z": draw(rng, 3, 4, 5) * 4}, rng, lambda z: torch.log_softmax(z, -1))
    mask = masks(rng, 3, 5)[:, None, :]

    def masked(z, mask):
        log_p = torch.log_softmax(torch.where(mask, z, -1e9), -1)
        return torch.where(mask, log_p, 0)

    agree(ops.log_softmax, {"z": draw(rng, 3, 4, 5)}, rng, masked, {"mask": mask})


def test_l2_normalize(rng):
    agree(ops.l2_normalize, {"x": draw(rng, 3, 4, 6)}, rng, lambda x: F.normalize(x, dim=-1))


@pytest.mark.parametrize("scale", [1e30, 1e-8, 1e-30])
def test_l2_normalize_at_any_scale(rng, scale):
    x = draw(rng, 5, 8).astype(np.float32)
    y, back = ops.l2_normalize(x * np.float32(scale))
    if scale > 1e-12:
        close(y, ops.l2_normalize(x)[0], "y", 1e-6)
        close(np.sum(back(x) * y, -1) * scale, np.zeros(5), "gradient along the embedding", 1e-2)
    assert np.all(np.isfinite(back(x)))


def test_l2_normalize_of_zero(rng):
    y, back = ops.l2_normalize(np.zeros((2, 3)))
    assert np.all(y == 0)
    assert np.all(np.isfinite(back(np.ones((2, 3)))))


def test_masked_mean(rng):
    mask = masks(rng, 4, 5)

    def mean(x, mask=None):
        if mask is None:
            return x.mean(1)
        return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)

    agree(ops.masked_mean, {"x": draw(rng, 4, 5, 3)}, rng, mean, {"mask": mask})
    agree(ops.masked_mean, {"x": draw(rng, 4, 5, 3)}, rng, mean)
    x = draw(rng, 4, 5, 3)
    x[~mask] = np.nan
    assert np.all(np.isfinite(ops.masked_mean(x, mask)[0]))


def packed(attention):
    """The oracle's attention for queries, keys and values side by side."""
    return lambda qkv, **fixed: attention(*qkv.chunk(3, -1), **fixed)


@pytest.mark.parametrize("masked", [False, True])
def test_attention(rng, masked):
    fixed = {"heads": 2, "mask": masks(rng, 3, 5) if masked else None}
    agree(ops.attention, {"qkv": draw(rng, 3, 5, 24)}, rng, packed(oracle.attention), fixed)


def test_attention_of_one_token_and_of_none(rng):
    x = draw(rng, 2, 1, 4)
    y, back = ops.attention(np.concatenate([x, x, x], -1), 2, np.array([[True], [False]]))
    close(y[0], x[0], "one token")
    assert np.all(y[1] == 0)
    dqkv = back(x)
    assert np.all(dqkv[1] == 0) and np.all(np.isfinite(dqkv))
    with pytest.raises(ValueError, match="expected a width that 3 heads divide, got 4"):
        ops.attention(np.concatenate([x, x, x], -1), 3)


def test_embedding(rng):
    ids = np.array([[4, 0, 4], [2, 4, 0]])
    agree(lambda weight, ids: ops.embedding(ids, weight), {"weight": draw(rng, 6, 3)}, rng,
          lambda weight, ids: F.embedding(ids, weight), {"ids": ids})  # fmt: skip


def test_patch_embedding(rng):
    inputs = {"images": draw(rng, 2, 3, 4, 6), "weight": draw(rng, 5, 12), "bias": draw(rng, 5)}

    def convolution(images, weight, bias, patch):
        return F.conv2d(images, weight.reshape(-1, 3, patch, patch), bias, stride=patch).flatten(2).transpose(1, 2)

    agree(ops.patch_embedding, inputs, rng, convolution, {"patch": 2})
    with pytest.raises(ValueError, match="that the patch size 4 divides, got 4 x 6"):
        ops.patch_embedding(inputs["images"], draw(rng, 5, 48), inputs["bias"], 4)


@pytest.mark.parametrize("kind", ["bicubic", "linear"])
@pytest.mark.parametrize("here", [(3, 4), (5, 7), (9, 2), (1, 1)])
def test_resize_positions(rng, kind, here):
    def interpolate(positions):
        image = positions.T.reshape(1, 2, 3, 4)
        mode = {"bicubic": "bicubic", "linear": "bilinear"}[kind]
        return F.interpolate(image, here, mode=mode, align_corners=False)[0].flatten(1).T

    agree(lambda positions: encoders.resize_positions(positions, (3, 4), here, kind), {"positions": draw(rng, 12, 2)}, rng,
          interpolate)  # fmt: skip


def test_low_precision_is_widened():
    x = np.ones(3, np.float16)
    wide, back = ops.at_least_float32(x)
    assert wide.dtype == np.float32
    assert back(wide).dtype == np.float16
    bfloat = torch.ones(3, dtype=torch.bfloat16)
    wide, back = ops.at_least_float32(bfloat)
    assert wide.dtype == torch.float32
    assert back(wide).dtype == torch.bfloat16
