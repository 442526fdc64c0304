"""The two towers: a ViT without [CLS] and a bidirectional text transformer, both pre-norm.

B batch, L tokens, P patches, C width.  p is the part of the flat parameter dict that belongs to the function, its prefix
cut off; gradients come back under the same short names.
"""

import itertools
from collections.abc import Callable
from functools import reduce
from operator import iadd

import numpy as np
from array_api_compat import array_namespace

from sparc_ref import backend, ops
from sparc_ref.backend import Array


def vision_tower(
    p: dict[str, Array], images: Array, *, patch: int, grid: tuple[int, int], heads: int, gelu: str, eps: float, resize: str
) -> tuple[Array, Callable]:
    """f_v: images (B,3,H,W) -> (B,P,C), any H and W that `patch` divides; back(dy) -> gradients.

    grid: rows and columns for which the positions were learned; for another grid they are resized ("bicubic" | "linear").
    """
    x, back_patch = ops.patch_embedding(images, p["patch.weight"], p["patch.bias"], patch)
    here = (images.shape[2] // patch, images.shape[3] // patch)
    positions, back_positions = resize_positions(p["positions"], grid, here, resize)
    x = x + positions
    x, back_blocks = transformer(p, x, None, heads, gelu, eps)

    def back(dy):
        dx, g = back_blocks(dy)
        g["positions"] = back_positions(sum_batch(dx))
        _, g["patch.weight"], g["patch.bias"] = back_patch(dx)
        return g

    return x, back


def text_tower(
    p: dict[str, Array], tokens: Array, mask: Array, *, heads: int, gelu: str, eps: float
) -> tuple[Array, Callable]:
    """f_t: tokens (B,L) int, mask (B,L) bool -> (B,L,C); padding is no key for anyone; back(dy) -> gradients.

    Without "positions" among the parameters, the tower sees a caption as a bag of tokens.
    """
    x, back_embedding = ops.embedding(tokens, p["embedding.weight"])
    if "positions" in p:
        x = x + p["positions"][: tokens.shape[1], :]
    x, back_blocks = transformer(p, x, mask, heads, gelu, eps)

    def back(dy):
        xp = array_namespace(dy)
        dx, g = back_blocks(dy)
        g["embedding.weight"] = back_embedding(dx)
        if "positions" in p:
            beyond = xp.zeros_like(p["positions"][tokens.shape[1] :, :])
            g["positions"] = xp.concat([sum_batch(dx), beyond], axis=0)
        return g

    return x, back


def transformer(p, x, mask, heads, gelu, eps):
    """Blocks, then a layer norm.      x (B,L,C) -> (B,L,C); back(dy) -> dx, gradients"""
    depth = 1 + max((int(name.split(".")[1]) for name in p if name.startswith("blocks.")), default=-1)
    backs = []
    for i in range(depth):
        x, back_block = block(part(p, f"blocks.{i}."), x, mask, heads, gelu, eps)
        backs.append(back_block)
    x, back_norm = ops.layer_norm(x, p["norm.weight"], p["norm.bias"], eps)

    def back(dy):
        g = {}
        dx, g["norm.weight"], g["norm.bias"] = back_norm(dy)
        for i in reversed(range(depth)):
            dx, g_block = backs[i](dx)
            g |= {f"blocks.{i}.{name}": value for name, value in g_block.items()}
        return dx, g

    return x, back


def block(p, x, mask, heads, gelu, eps):
    """x + attention(norm(x)), then x + mlp(norm(x)).      x (B,L,C) -> (B,L,C); back(dy) -> dx, gradients

    Keys have no bias: it would shift every score of a row alike, and softmax would take it out again.
    """
    xp = array_namespace(x)
    C = x.shape[-1]
    qkv_weight = xp.concat([p[f"attn.{part}.weight"] for part in ("query", "key", "value")], axis=0)
    qkv_bias = xp.concat([p["attn.query.bias"], xp.zeros_like(p["attn.query.bias"]), p["attn.value.bias"]], axis=0)
    h, back_norm1 = ops.layer_norm(x, p["norm1.weight"], p["norm1.bias"], eps)
    qkv, back_qkv = ops.linear(h, qkv_weight, qkv_bias)                          # (B,L,3C)
    h, back_attention = ops.attention(qkv, heads, mask)
    h, back_out = ops.linear(h, p["attn.out.weight"], p["attn.out.bias"])
    x1 = x + h
    h, back_norm2 = ops.layer_norm(x1, p["norm2.weight"], p["norm2.bias"], eps)
    h, back_up = ops.linear(h, p["mlp.up.weight"], p["mlp.up.bias"])             # (B,L,4C)
    h, back_gelu = ops.gelu(h, gelu)
    h, back_down = ops.linear(h, p["mlp.down.weight"], p["mlp.down.bias"])

    def back(dy):
        g = {}
        dh, g["mlp.down.weight"], g["mlp.down.bias"] = back_down(dy)
        dh = back_gelu(dh)
        dh, g["mlp.up.weight"], g["mlp.up.bias"] = back_up(dh)
        dx1, g["norm2.weight"], g["norm2.bias"] = back_norm2(dh)
        dx1 += dy
        dh, g["attn.out.weight"], g["attn.out.bias"] = back_out(dx1)
        dqkv = back_attention(dh)
        dh, dweight, dbias = back_qkv(dqkv)
        dx, g["norm1.weight"], g["norm1.bias"] = back_norm1(dh)
        dx += dx1
        for i, name in enumerate(("query", "key", "value")):
            g[f"attn.{name}.weight"] = dweight[i * C : (i + 1) * C, :]
        g["attn.query.bias"], g["attn.value.bias"] = dbias[:C], dbias[2 * C :]
        return dx, g

    return x1 + h, back


def resize_positions(positions: Array, grid: tuple[int, int], here: tuple[int, int], kind: str) -> tuple[Array, Callable]:
    """Learned positions for another grid, by interpolation.      positions (rows*columns,C) -> (P,C); back(dy) -> dpositions

    kind "bicubic" (a = -0.75) | "linear"; samples at pixel centres, edges repeated, no antialiasing: what torch's
    interpolate(align_corners=False) does.
    """
    if grid == here:
        return positions, lambda dy: dy
    rows, columns = (interpolation(old, new, kind) for old, new in zip(grid, here))
    r = backend.like(np.kron(rows, columns), positions)   # (P,rows*columns)
    return r @ positions, lambda dy: r.T @ dy


def interpolation(old: int, new: int, kind: str) -> np.ndarray:
    """The matrix that samples `new` points from `old` ones.      -> (new,old) float64, rows sum to 1"""
    kernels = {"linear": (1, _triangle), "bicubic": (2, _cubic)}
    if kind not in kernels:
        raise ValueError(f"position_resize: expected bicubic or linear, got {kind!r}")
    reach, kernel = kernels[kind]
    at = (np.arange(new) + 0.5) * old / new - 0.5
    r = np.zeros((new, old))
    for tap in range(1 - reach, 1 + reach):
        source = np.floor(at) + tap
        np.add.at(r, (np.arange(new), np.clip(source, 0, old - 1).astype(int)), kernel(np.abs(at - source)))
    return r


def _triangle(d):
    return np.maximum(1 - d, 0)


def _cubic(d, a=-0.75):
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def in_shards(encode, shards: int, *inputs: Array) -> tuple[tuple[Array, ...], Callable]:
    """Run an encoder on parts of the batch side by side in threads: each part's arrays fit a core's cache.  8 % of a step.

    encode(*inputs) -> outputs, back; back(*doutputs) -> gradients.  All inputs and outputs have the batch first.
    The parts' gradients are summed in order, so the result does not depend on which thread ends first.
    """
    batch = inputs[0].shape[0]
    shards = max(1, min(shards, batch))
    if shards == 1:
        return encode(*inputs)
    xp = array_namespace(*inputs)
    edges = [batch * i // shards for i in range(shards + 1)]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    encoded = backend.run_threads([lambda s=s: encode(*(x[s, ...] for x in inputs)) for s in parts])
    outputs = tuple(xp.concat(each, axis=0) for each in zip(*(outputs for outputs, _ in encoded)))

    def back(*doutputs):
        gradients = backend.run_threads(
            [lambda s=s, b=b: b(*(d[s, ...] for d in doutputs)) for s, (_, b) in zip(parts, encoded)]
        )
        names = list(gradients[0])
        return dict(zip(names, backend.run_threads([lambda n=n: reduce(iadd, [g[n] for g in gradients]) for n in names])))

    return outputs, back


def part(params: dict[str, Array], prefix: str) -> dict[str, Array]:
    """The parameters whose names start with `prefix`, which is cut off."""
    return {name[len(prefix) :]: value for name, value in params.items() if name.startswith(prefix)}


def sum_batch(x: Array) -> Array:
    """(B,L,C) -> (L,C)"""
    return array_namespace(x).sum(x, axis=0)
