"""Level "losses", the knife edges: exactly representable numbers, so that every sound implementation lands on the edge.

Rows of the similarity are written down as small whole numbers; tokens see one dimension each, and patches differ in two more
that no token sees, so that tied patches are different patches.  B 2, L 3, P 4, D 5 unless the edge is another size.
"""

import math

import numpy as np

from parity.vectors.cases.core import Definition, Draw, lengths, number
from parity.vectors.cases.losses import ALIGN, FINE, TAU, B, D, L, batch, without_theta

BASE, COARSE, SCATTERED, ONE, UNEQUAL, OFFSET = 15786, 15, 12, 1, 3, 4  # see losses.SEEDS


def seen(*samples, real=(3, 2), theta=1.5):
    """A batch whose similarities are these rows.      samples: (L,P) each"""
    scale, draw = np.array([1, 2, 0.5]), Draw(7)
    rows = np.array(samples, np.float64)                      # (B,L,P)
    v = np.concatenate([(rows / scale[:, None]).swapaxes(1, 2), draw.coarse(len(rows), rows.shape[2], 2)], -1)
    t = np.broadcast_to(np.concatenate([np.diag(scale), np.zeros((3, 2))], -1), (len(rows), 3, 5))
    return {"v": v.astype(np.float32), "t": t.astype(np.float32), "mask": lengths(3, *real), "theta": number(theta)}


def both(name, x, options, flags, note, mids=(), accepts=False, align=True, **more):
    """The same edge for the loss and for the alignment alone (where what cancels in the loss shows)."""
    known = {"flags": flags, "note": note, "left_out": tuple(mids), "edge": True, **more}
    accepted = (f"fine_{name}_first",) if accepts else ()
    yield Definition(f"fine_{name}", "fine_grained_loss", x, FINE | options, accepts=accepted, **known)
    if align:
        accepted = (f"align_{name}_first",) if accepts else ()
        yield Definition(f"align_{name}", "align_patches", without_theta(x), ALIGN | options, accepts=accepted, **known)


def thresholds():
    """Values that are exactly sigma."""
    hit = seen(
        [[0, 1, 4, 2], [-2, 6, 0, 3], [5, 1, 2, 1.5]],        # eq. 2: 1/4 at patch 1, 2, 2
        [[3, -1, 0, 1], [1, 2, 3, 9], [0, 1, 4, 2]],          # 1/4 at patch 2, 2
    )
    yield from both("sigma_hit", hit, {}, ("sigma_hit",),
                    "s_hat is exactly sigma = 1/4 in every row: eq. 3 keeps it. Caught: >, and any epsilon in eq. 2.")
    yield from both("sigma_half_hit", hit, {"sigma": 0.5}, ("sigma_hit",),
                    "s_hat is exactly sigma = 1/2 in two rows: kept. Caught: >, and a threshold that is always 1/P.")
    yield from both("sigma_one", hit, {"sigma": 1.0}, ("sigma_hit",),
                    "Each row keeps its maximum alone, which is exactly 1. Caught: >, and any epsilon in eq. 2.")
    weights = seen(
        [[0, 2, 2, 4], [4, 1, 0, 3], [2, 0, 4, 2]],           # eq. 4: 1/4 at patches 1, 2; none; 0, 3
        [[1, 3, 3, 5], [2, 6, 4, 4], [0, 1, 4, 2]],
    )
    yield from both("weights_hit", weights, {"threshold_on": "weights"}, ("sigma_hit",),
                    "Thresholded after eq. 4: weights that are exactly 1/4 stay. Caught: >, and thresholding s_hat.")
    close = hit | {"v": hit["v"] * np.float32(2**-20)}
    yield from both("range_small", close, {}, ("range", "sigma_hit"),
                    "A row's range is some millionths and s_hat is exactly sigma. Caught: epsilons of 1e-10 or more in eq. 2.")
    empty = seen(
        [[0, 1, 8, 1], [0, 2, 4, 3], [4, 3, 1, 0]],           # eq. 4: 0.8 stays; none; 1/2 stays exactly
        [[0, 3, 4, 2], [8, 1, 0, 1], [0, 1, 4, 2]],
    )
    for flat, words in {"uniform": "1/P each", "zero": "c = 0"}.items():
        yield from both(f"empty_{flat}", empty, {"threshold_on": "weights", "sigma": 0.5, "flat": flat}, ("empty",),
                        f"In some rows no weight reaches 1/2: they count as flat, {words}. Caught: 0/0.")


def ties():
    """Shared minima and maxima; who gets the gradient."""
    low = seen([[-1, -1, 3, 1], [4, 0, 2, 0], [0, 4, 0, 3]], [[2, 2, 6, 5], [1, 5, 1, 1], [0, 1, 4, 2]])
    high = seen([[0, 2, 2, 1], [3, 1, -1, 3], [4, 4, 0, 2]], [[5, 5, 1, 3], [0, 4, 4, 4], [0, 1, 4, 2]])
    two = seen([[0, 0, 4, 4], [3, 1, 1, 3], [0, 2, 0, 2]], [[5, 5, 1, 1], [2, 4, 2, 4], [0, 1, 4, 2]])
    for name, x in {"minimum": low, "maximum": high, "both": two}.items():
        at = {"minimum": "a row's minimum", "maximum": "a row's maximum", "both": "both ends of a row"}[name]
        cancels = " The maximum only scales a row, which cancels: both answers are alike." if name == "maximum" else ""
        yield from both(f"ties_{name}_first", x, {"ties": "first"}, ("ties",),
                        f"Several patches tie for {at}; the first takes the gradient (torch.min along an axis). Caught: "
                        f"sharing it.{cancels}")
        yield from both(f"ties_{name}", x, {}, ("ties",),
                        f"Several patches tie for {at}; the gradient is shared evenly (torch.amin, jax). Accepted: the first "
                        f"takes it all. Caught: the extremum's gradient given to each of them, or dropped.{cancels}",
                        accepts=True)


def flat():
    """Rows in which every patch is alike."""
    some = seen([[2, 2, 2, 2], [-2, 6, 1, 3], [1, 1, 1, 1]], [[3, -1, 1, 2], [4, 4, 4, 4], [0, 1, 4, 2]])
    answers = {"uniform": "1/P each, no gradient through s", "zero": "c = 0", "nan": "the literal 0/0"}
    caught = dict.fromkeys(answers, "NaN, in the loss or in the gradient alone") | {"nan": "any finite loss"}
    for name, words in answers.items():
        yield from both(f"flat_{name}", some, {"flat": name}, ("flat",), align=name != "nan",
                        note=f"Eq. 2 is 0/0 in some rows; here {words}. Caught: {caught[name]}. The other answers are options "
                        "with cases of their own.", mids=("minmax", "sparse"))
    alike = seen([[2] * 4, [-1] * 4, [3] * 4], [[1] * 4, [4] * 4, [0] * 4])
    yield from both("flat_all", alike, {}, ("flat",),
                    "Every row is flat: c is the plain mean of the patches for all. Caught: NaN.", ("minmax", "sparse"))
    one = {name: x[:, :1] if name == "v" else x for name, x in seen([[0, 1, 4, 2], [-2, 6, 0, 3], [5, 1, 2, 1.5]],
           [[3, -1, 0, 1], [1, 2, 3, 9], [0, 1, 4, 2]]).items()}
    for name in ("uniform", "zero"):
        yield from both(f"one_patch_{name}", one, {"flat": name}, ("one_patch", "flat"),
                        f"P = 1, every row is flat: {answers[name]}. Caught: NaN.", ("minmax", "sparse"))


def tokens_and_padding():
    """Captions of one token, of none; what padding holds."""
    def fine(name, x, flags, note, options=None, **more):
        return Definition(f"fine_{name}", "fine_grained_loss", x, FINE | (options or {}), flags, note, **more)

    yield fine("one_token_each", batch(BASE, (1, 1, 1, 1)), ("one_token",),
               "L_i = 1 everywhere: loss and gradients are exactly 0. Caught: other captions' tokens or padding as negatives.")
    yield fine("one_token_unpadded", {n: x[:, :1] if n in ("t", "mask") else x for n, x in batch(BASE, (1, 1, 1, 1)).items()},
               ("one_token",), "L = 1, no padding: loss and gradients are exactly 0. Caught: squeezed dimensions, other "
               "captions' tokens as negatives.")
    yield fine("one_token_among_others", batch(BASE, (5, 1, 3, 1)), ("one_token",),
               "Captions of one token add 0 to the sum and 1 to the number of samples. Caught: means over what is not zero.")
    for reduction in ("sample", "token"):
        yield fine(f"all_padding_caption_{reduction}", batch(BASE, (5, 0, 3, 2)), ("all_padding",),
                   "A caption without a real token adds 0 and gets no gradient; B still counts it. Caught: 0/0 in its mean, "
                   "a softmax over nothing.", {"reduction": reduction})
        yield fine(f"all_padding_batch_{reduction}", batch(BASE, (0, 0, 0, 0)), ("all_padding",),
                   "No real token at all: loss and gradients are exactly 0. Caught: 0/0.", {"reduction": reduction})
    base = batch(BASE)
    out = ~base["mask"][..., None]
    other = batch(BASE + 1)["t"]
    for name, content, note in (
        ("zeros", 0.0, "Padded tokens are zero. Caught: NaN from normalising them, in the loss or in the gradient alone."),
        ("words", other, "Padded tokens hold other words, in other directions. Caught: padding as softmax column or row."),
        ("like_words", base["t"][:, :1] * 2, "Padded tokens repeat the first, twice as long. Caught: padding as a column."),
        ("huge", 1e30, "Padded tokens hold 1e30. Caught: masks by multiplication or by adding a large number; inf - inf."),
    ):
        x = base | {"t": np.where(out, np.float32(content), base["t"]).astype(np.float32)}
        for reduction in ("sample", "token"):
            yield fine(f"padding_{name}_{reduction}", x, ("padding",),
                       f"{note} Every value is that of fine_{'default' if reduction == 'sample' else 'token_reduction'}.",
                       {"reduction": reduction})
    scattered = base["mask"].copy()
    scattered[:] = [[1, 0, 1, 1, 1], [0, 1, 0, 1, 1], [1, 0, 0, 0, 1], [0, 1, 1, 1, 1]]
    yield fine("padding_scattered", batch(SCATTERED) | {"mask": scattered}, ("padding",),
               "Real tokens are not the first ones. Caught: lengths in place of masks.")


def sizes():
    """Temperatures, types, norms, one sample."""
    def fine(name, x, flags, note, options=None, **more):
        return Definition(f"fine_{name}", "fine_grained_loss", x, FINE | (options or {}), flags, note, **more)

    for name, theta, note in (
        ("zero", 0.0, "theta = 0, tau = 1. Caught: a hard-coded temperature."),
        ("log100", math.log(100), "The end of the trainer's range. Caught: a clamp whose gradient is cut at its end."),
        ("beyond", 6.0, "1/tau = 403. Caught: a clamp inside the loss, where it cuts the gradient; overflow of exp."),
        ("below", -1.0, "1/tau = 0.37. Caught: a clamp inside the loss."),
    ):
        yield fine(f"theta_{name}", batch(BASE, theta=theta), ("temperature",), note)
    for dtype in ("float16", "bfloat16"):
        yield fine(dtype, batch(COARSE, coarse=True), ("half",), f"Inputs are exact in {dtype}; all that follows is computed "
                   "in float32. Caught: similarity, min-max, norms, softmax or the loss in half precision.", input_dtype=dtype)
        x = batch(COARSE, coarse=True)
        large = x | {"v": x["v"] * np.float32(32), "t": x["t"] * np.float32(32)}
        yield fine(f"{dtype}_large", large, ("half", "norms"), "Similarities beyond 65504, float16's end. Caught: products or "
                   "sums of squares in float16.", input_dtype=dtype)
    yield fine("one_sample", batch(ONE, (4,)), ("one_sample",), "B = 1. Caught: squeezed dimensions; hides what mixes samples.")
    base, draw = batch(BASE), Draw(11)
    patches = np.ldexp(np.float32(1), draw.ids(7, B, 7, 1) - 3).astype(np.float32)
    words = np.ldexp(np.float32(1), draw.ids(7, B, L, 1) - 3).astype(np.float32)
    x = batch(UNEQUAL)
    yield fine("unequal_norms", x | {"v": x["v"] * patches, "t": x["t"] * words}, ("norms",),
               "Patches and tokens whose lengths differ up to 64 times. Caught: cosine for the inner product, normalised "
               "patches averaged, a norm forgotten before the logits.")
    small = base | {"v": base["v"] * np.float32(2**-20), "t": base["t"] * np.float32(2**-30)}
    yield fine("small_norms", small, ("norms", "range"), "Tokens of length 3e-9, patches of 3e-6: the loss is that of "
               "fine_default, which no scale changes. Caught: epsilons above 1e-10 in norms, and in eq. 2.")
    common = (np.array([16, -8, 24, 8, -16, 32]) * np.ones((1, 1, 1))).astype(np.float32)
    yield fine("offset", batch(OFFSET) | {"v": batch(OFFSET)["v"] + common}, ("range",),
               "All patches share one large part, as features of real encoders do. Caught: similarities in low precision.")
    steep = base | {"t": base["t"] * np.float32(32)}
    yield fine("softmax_large", steep, ("range",), "Softmax over similarities of several hundred. Caught: exp without its "
               "maximum taken off.", {"align": "softmax"})


def global_edges():
    """Eq. 1 at its edges."""
    def case(name, x, flags, note, **more):
        return Definition(f"global_{name}", "global_loss", x, {}, flags, note, **more)

    def pair(seed, size=B, theta=TAU, coarse=False):
        draw = Draw(seed)
        normal = draw.coarse if coarse else draw.normal
        return {"v_bar": normal(size, D), "t_bar": normal(size, D), "theta": number(theta)}

    yield case("default", pair(41), ("ordinary",), "")
    for name, theta, note in (
        ("zero", 0.0, "theta = 0, tau = 1. Caught: a hard-coded temperature."),
        ("log100", math.log(100), "The end of the trainer's range. Caught: a clamp whose gradient is cut at its end."),
        ("beyond", 6.0, "1/tau = 403. Caught: a clamp inside the loss; overflow of exp."),
        ("below", -1.0, "1/tau = 0.37. Caught: a clamp inside the loss."),
    ):
        yield case(f"theta_{name}", pair(41, theta=theta), ("temperature",), note)
    for dtype in ("float16", "bfloat16"):
        x = pair(42, coarse=True)
        yield case(dtype, x, ("half",), f"Inputs are exact in {dtype}. Caught: norms, logits or loss in half precision.",
                   input_dtype=dtype)
        large = x | {"v_bar": x["v_bar"] * np.float32(128), "t_bar": x["t_bar"] * np.float32(128)}
        yield case(f"{dtype}_large", large, ("half", "norms"), "Sums of squares beyond 65504. Caught: norms in float16.",
                   input_dtype=dtype)
    yield case("one_sample", pair(43, 1), ("one_sample",), "B = 1: loss and gradients are exactly 0. Caught: squeezed axes.")
    x, draw = pair(44), Draw(45)
    far = {n: x[n] * np.ldexp(np.float32(1), draw.ids(13, B, 1) - 6).astype(np.float32) for n in ("v_bar", "t_bar")}
    yield case("unequal_norms", x | far, ("norms",), "Lengths differ 4000 times. Caught: a missing norm, epsilons in norms.")
    twin = x | {"t_bar": np.concatenate([x["t_bar"][:1], x["t_bar"][:1], x["t_bar"][2:]])}
    yield case("twins", twin, ("ordinary",), "Two captions are the same: a draw between them.")


def cases():
    """Every knife edge."""
    return [*thresholds(), *ties(), *flat(), *tokens_and_padding(), *sizes(), *global_edges()]
