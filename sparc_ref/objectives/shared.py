"""What the objectives share: inputs in one dtype, scores made a block of columns at a time, cross-entropy both ways.

B batch, L tokens, P patches, D joint width, N, M any numbers of samples.  d<name> is dLoss/d<name>.
"""

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace, device, is_array_api_obj

from sparc_ref.alignment import check_finite, check_shapes
from sparc_ref.backend import Array, check_arrays, in_one_dtype, narrow, scatter_add
from sparc_ref.losses import diagonal_cross_entropy, temperature

BLOCK = 1 << 22                                           # numbers in a block of scores, unless a chunk is given: 16 MB


def open_inputs(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, uses: tuple[str, ...] = ("theta",)
) -> tuple[dict[str, Array], Callable]:
    """Check what an objective is given and widen it to one dtype, at least float32.   -> x, close

    x           v (B,P,D), t (B,L,D) with zeros at padding, v_bar, t_bar (B,D), real (B,): which captions have a real token,
                and the parameters that the objective uses
    close(what, dloss, grads)  -> the gradients by name in their inputs' dtypes: of v, t, v_bar, t_bar (zeros where `grads`
                has none) and of every parameter in `uses`; ArithmeticError where one is not finite
    ValueError names the first input of another shape or dtype, and a parameter that is missing.
    """
    if mask is None:
        raise ValueError("mask: expected (B,L) bool, true = real token, got None; all true where nothing is padding")
    check_shapes(t, v, mask)
    for name, bar in (("v_bar", v_bar), ("t_bar", t_bar)):
        if not is_array_api_obj(bar) or tuple(bar.shape) != (v.shape[0], v.shape[2]):
            got = tuple(bar.shape) if is_array_api_obj(bar) else type(bar).__name__
            raise ValueError(f"{name}: expected (B,D) with B={v.shape[0]}, D={v.shape[2]}, got {got}")
    check_arrays(v_bar=v_bar, t_bar=t_bar)
    if missing := [name for name in uses if name not in params]:
        raise ValueError(f"params: expected {', '.join(uses)}; {missing[0]} is missing")
    xp = array_namespace(v, t)
    given = {"v": v, "t": t, "v_bar": v_bar, "t_bar": t_bar}
    arrays, narrows = in_one_dtype(**given)
    x: dict[str, Any] = dict(zip(given, arrays))
    back_to = dict(zip(given, narrows))
    for name in uses:
        if is_temperature(name):
            x[name], back_to[name] = temperature(params[name], x["v"])
        else:
            own = params[name].dtype
            in_one_dtype(**{name: params[name]})          # refuses what is no float
            x[name] = xp.astype(params[name], x["v"].dtype, copy=False)
            back_to[name] = lambda d, own=own, name=name: narrow(d, own, name)
    x["t"] = xp.where(mask[..., None], x["t"], 0.0)
    x["real"] = xp.any(mask, axis=1)
    shown = {name: x[name] for name in (*given, *uses)}

    def close(what, dloss, grads):
        grads = {name: xp.zeros_like(x[name]) for name in (*given, *uses)} | grads
        grads["t"] = xp.where(mask[..., None], grads["t"], 0.0)
        for name, d in grads.items():
            check_finite(f"{what}: gradient of {name}", d, dloss=xp.asarray(dloss, dtype=d.dtype, device=device(d)), **shown)
        return {name: back_to[name](d) for name, d in grads.items()}

    return x, close


SCORED = {"v": "NPD", "t": "MLD", "mask": "ML", "v_bar": "ND", "t_bar": "MD"}


def open_scores(**given: Array) -> tuple[Array, ...]:
    """Check what a scoring rule is given, of v, t, mask, v_bar and t_bar, and widen all but the mask to one dtype.

    -> all but the mask, in order, t with zeros at padding.  ValueError names the first of another shape or dtype,
    ArithmeticError one that is not finite.
    """
    check_arrays(**given)
    sizes: dict[str, int] = {}
    for name, x in given.items():
        if x.ndim != len(SCORED[name]) or 0 in x.shape or any(
                sizes.setdefault(n, size) != size for n, size in zip(SCORED[name], x.shape)):
            known = "".join(f", {n}={sizes[n]}" for n in SCORED[name] if n in sizes)
            raise ValueError(f"{name}: expected ({','.join(SCORED[name])}), at least one of each{known}; got {tuple(x.shape)}")
    mask = given.pop("mask", None)
    if mask is not None:
        xp = array_namespace(mask)
        if mask.dtype != xp.bool:
            raise ValueError(f"mask: expected bool, got {mask.dtype}")
        given["t"] = xp.where(mask[..., None], given["t"], xp.zeros_like(given["t"]))
    arrays, _ = in_one_dtype(**given)
    for name, x in zip(given, arrays):
        check_finite(name, x, **{name: x})
    return arrays


def is_temperature(name: str) -> bool:
    """Whether a parameter is the logarithm of a scale, which training keeps in [0, log 100]."""
    return name.startswith("theta")


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """ValueError that names the option, its choices and what came."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, choices))}; got {value!r}")


def by_columns(block: Callable, columns: int, row: int, chunk: int | None) -> tuple[Array, Callable]:
    """Scores of all rows against `columns` samples, some samples at a time.      -> (N,M), back

    block(part: slice) -> scores (N,m), back_block; back_block(dscores) -> whole, own: gradients to be added up over the
    blocks, and gradients of the part's own samples, to be put side by side.  back(dscores) -> whole, own, each a tuple.
    With several blocks none is kept: the way back makes each again, so that memory is that of one block.
    row         numbers that a block holds for each of its samples; chunk: samples in a block, None: about BLOCK numbers
    """
    parts = blocks(columns, row, chunk)
    kept = [block(parts[0])] if len(parts) == 1 else []
    scores = [kept[0][0]] if kept else [block(part)[0] for part in parts]
    xp = array_namespace(scores[0])

    def back(dscores):
        whole, own = None, []
        for part in parts:
            back_block = kept[0][1] if kept else block(part)[1]
            more, mine = back_block(dscores[:, part])
            whole = more if whole is None else tuple(a + b for a, b in zip(whole, more))
            own.append(mine)
        return whole, tuple(xp.concat(each, axis=0) for each in zip(*own))

    return xp.concat(scores, axis=1), back


def blocks(columns: int, row: int, chunk: int | None) -> list[slice]:
    """Parts of `columns` samples: `chunk` of them each, or as many as make about BLOCK numbers of `row` a sample."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: expected at least 1 sample in a block, got {chunk}")
    step = max(1, BLOCK // row) if chunk is None else chunk
    return [slice(a, min(a + step, columns)) for a in range(0, columns, step)]


def cosine_of_mean(a: Array, w: Array, gram: Array) -> tuple[Array, Callable]:
    """The cosine of a weighted sum with a unit vector, without the sum: <u, t> = a.w, |u|^2 = a' G a.

    a (N,m,P) weights, w (N,m,P) products with the unit vectors, gram (N,P,P) -> (N,m), 0 where the sum has no direction;
    back(dphi) -> da, dw, dgram (symmetric)
    """
    xp = array_namespace(a)
    ag = a @ gram
    square = xp.vecdot(a, ag)                             # |u|^2 (N,m)
    none = square <= 0
    square = xp.where(none, 1.0, square)
    phi = xp.where(none, 0.0, xp.vecdot(a, w) / xp.sqrt(square))

    def back(dphi):
        dphi = xp.where(none, 0.0, dphi)
        dnum = (dphi / xp.sqrt(square))[..., None]
        dsquare = (-dphi * phi / (2 * square))[..., None]
        return dnum * w + 2 * dsquare * ag, dnum * a, xp.matrix_transpose(a * dsquare) @ a

    return phi, back


def both_ways(z_image: Array, z_text: Array, real: Array) -> tuple[Array, dict[str, Array], Callable]:
    """1/2 [CE of every picture's row + CE of every caption's row], own place as the label, mean over the pairs.

    z_image (B,B) pictures x captions, z_text (B,B) captions x pictures, real (B,) bool: a pair whose caption has no real
    token is left out of the batch, as row and as column.
    Returns (), {"loss_image", "loss_text"} (B,), back; back(dloss) -> dz_image, dz_text
    """
    xp = array_namespace(z_image)
    weight = xp.astype(real, z_image.dtype)
    count = xp.sum(weight)
    weight = weight / xp.where(count == 0, 1.0, count)
    columns = real[None, :]
    loss_image, back_image = diagonal_cross_entropy(z_image, columns)
    loss_text, back_text = diagonal_cross_entropy(z_text, columns)
    loss = xp.sum(weight * (loss_image + loss_text)) / 2

    def back(dloss):
        each = weight * (float(dloss) / 2)
        return back_image(each), back_text(each)

    parts = {"loss_image": xp.where(real, loss_image, 0.0), "loss_text": xp.where(real, loss_text, 0.0)}
    return loss, parts, back


def scaled(theta: Array, scores: Array) -> tuple[Array, Callable]:
    """z = exp(theta) scores.      theta (), scores (...) -> (...); back(dz) -> dtheta, dscores"""
    xp = array_namespace(scores)
    z = xp.exp(theta) * scores
    return z, lambda dz: (xp.sum(dz * z), xp.exp(theta) * dz)


def rows_of(x: Array, index: Array) -> tuple[Array, Callable]:
    """Some tokens of every sample.      x (B,N,D), index (B,K) int -> (B,K,D); back -> dx, rows of equal index summed"""
    xp = array_namespace(x)
    B, N, D = x.shape
    first = xp.arange(B, dtype=index.dtype, device=device(index))[:, None] * N
    flat = xp.reshape(index + first, (-1,))
    y = xp.reshape(xp.take(xp.reshape(x, (B * N, D)), flat, axis=0), (*index.shape, D))

    def back(dy):
        return xp.reshape(scatter_add(flat, xp.reshape(dy, (-1, D)), B * N), (B, N, D))

    return y, back
