"""Shapes, dtypes and hostile values at random: a clear error or a finite result, never a silent NaN."""

import traceback
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparc_ref import (
    PRESETS,
    align_patches,
    encode_images,
    encode_texts,
    fine_grained_loss,
    forward,
    global_loss,
    init_params,
)
from sparc_ref.alignment import CHOICES
from sparc_ref.evaluate.classification import combine, hits
from sparc_ref.evaluate.grounding import grounding_gap
from sparc_ref.evaluate.grouping import queries
from sparc_ref.evaluate.retrieval import retrieval, retrieval_chance, retrieval_of_scores
from sparc_ref.evaluate.segmentation import mean_iou, miou, segment
from sparc_ref.objectives.chosen import NAMES, ObjectiveConfig, init_own, loss_of, scores_of

HOSTILE = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, -1e-20, 1e20, -3e38, 65504.0, np.inf, -np.inf, np.nan]
FILLS = ["normal", "zeros", "constant", "tiny", "huge", "hostile"]


def fill(rng, kind, shape, dtype):
    with np.errstate(over="ignore"):
        x = {
            "normal": lambda: rng.standard_normal(shape),
            "zeros": lambda: np.zeros(shape),
            "constant": lambda: np.full(shape, 0.3),
            "tiny": lambda: rng.standard_normal(shape) * 1e-39,
            "huge": lambda: rng.standard_normal(shape) * 1e18,
            "hostile": lambda: np.where(rng.random(shape) < 0.1, rng.choice(HOSTILE, shape), rng.standard_normal(shape)),
        }[kind]()
        return x.astype(dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(*(st.integers(1, 6) for _ in range(4))),
    kinds=st.tuples(st.sampled_from(FILLS), st.sampled_from(FILLS)),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    theta=st.sampled_from([-5.0, 0.0, 2.66, 4.6, 50.0]),
    options=st.fixed_dictionaries(
        {name: st.sampled_from([v for v in values if v != "nan"]) for name, values in CHOICES.items()}
        | {"sigma": st.sampled_from([None, 0.0, 0.5, 1.0]), "reduction": st.sampled_from(["sample", "token"])}
    ),
)
def test_fine_grained_loss(seed, sizes, kinds, dtype, theta, options):
    rng = np.random.default_rng(seed)
    b, l, p, d = sizes
    v, t = fill(rng, kinds[0], (b, p, d), dtype), fill(rng, kinds[1], (b, l, d), dtype)
    mask = rng.random((b, l)) < 0.7
    theta = np.asarray(theta, dtype)
    try:
        loss, _, back = fine_grained_loss(v, t, mask, theta, **options)
        grads = back(0.5)
    except ArithmeticError as error:
        assert "NaN or infinite" in str(error) or "left the range" in str(error)
        return
    assert np.isfinite(loss) and loss >= -1e-6
    assert all(g.dtype == np.dtype(dtype) for g in grads)
    assert all(np.all(np.isfinite(g)) for g in grads)
    assert not np.any(grads[1][~mask])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    kinds=st.tuples(st.sampled_from(FILLS), st.sampled_from(FILLS)),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_global_loss(seed, sizes, kinds, dtype):
    rng = np.random.default_rng(seed)
    v_bar, t_bar = (fill(rng, kind, sizes, dtype) for kind in kinds)
    try:
        loss, _, back = global_loss(v_bar, t_bar, np.asarray(2.66, dtype))
        grads = back(0.5)
    except ArithmeticError as error:
        assert "NaN or infinite" in str(error) or "left the range" in str(error)
        return
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(g)) for g in grads)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(shapes=st.tuples(*(st.lists(st.integers(0, 3), max_size=4) for _ in range(3))))
def test_any_shapes_work_or_are_refused_by_name(shapes):
    v, t, mask = np.ones(shapes[0]), np.ones(shapes[1]), np.ones(shapes[2], bool)
    try:
        fine_grained_loss(v, t, mask, np.asarray(1.0))
    except ValueError as error:
        assert str(error).split(":")[0] in ("v", "t", "mask")


# ------------------------------------------------------------------------------- everything else that is public, any input


CONFIG = replace(PRESETS["tiny"], image_size=16, vision_width=8, vision_depth=1, vision_heads=2, text_width=8, text_depth=1,
                 text_heads=2, embed_dim=8, vocab_size=12, max_tokens=5)
PARAMS = init_params(CONFIG, np.random.default_rng(0))
B, L, P, D = 3, 4, 5, 8


def change(rng, x):
    """What a caller may hand over instead: other shapes, sizes of 0, 0-d, views, dtypes, values, other things altogether."""
    kinds = [
        lambda: x[None], lambda: x[0], lambda: x[..., :0], lambda: x[:0], lambda: np.asarray(x.flat[0]), lambda: x[..., :-1],
        lambda: np.repeat(x, 2, -1)[..., ::2], lambda: x[::-1], lambda: np.asfortranarray(x),
        lambda: np.broadcast_to(x[:1], x.shape), lambda: x.astype(x.dtype.newbyteorder()), lambda: x.astype(np.int64),
        lambda: x.astype(bool),
        lambda: x.astype(complex), lambda: x.astype(object), lambda: x.astype(str), lambda: x.astype(np.float16),
        lambda: x.astype(np.longdouble),
        lambda: np.ma.masked_array(x, mask=rng.random(x.shape) < 0.3), x.tolist, lambda: None, lambda: x * 0,
        lambda: x * 1e30, lambda: (x * 1e-30).astype(np.float32), lambda: np.where(rng.random(x.shape) < 0.2, np.nan, x),
        lambda: np.where(rng.random(x.shape) < 0.2, np.inf, x), lambda: np.where(rng.random(x.shape) < 0.2, -3e38, x),
    ]
    return kinds[rng.integers(len(kinds))]()


def with_gradients(function):
    """The loss and every gradient."""
    def call(*args):
        loss, _, back = function(*args)
        grads = back()
        return loss, *(grads.values() if isinstance(grads, dict) else grads)
    return call


def aligned(t, v, mask):
    c, _, back = align_patches(t, v, mask)
    return c, *back(np.ones_like(c))


def gap(v, t, mask):
    return grounding_gap(lambda *given: float(fine_grained_loss(*given, 1.0)[0]), v, t, mask, np.random.default_rng(0))


PUBLIC = {
    "align_patches": ("t v mask", aligned),
    "fine_grained_loss": ("v t mask theta", with_gradients(fine_grained_loss)),
    "global_loss": ("v_bar t_bar theta", with_gradients(global_loss)),
    "forward": ("images tokens mask", with_gradients(lambda *given: forward(PARAMS, *given, CONFIG))),
    "encode_images": ("images", lambda images: encode_images(PARAMS, images, CONFIG).values()),
    "encode_texts": ("tokens mask", lambda *given: encode_texts(PARAMS, *given, CONFIG).values()),
    "retrieval": ("v_bar t_bar owner", lambda *given: retrieval(*given).values()),
    "retrieval_of_scores": ("scores scores owner", lambda *given: retrieval_of_scores(*given).values()),
    "retrieval_chance": ("owner", lambda owner: retrieval_chance(owner, B).values()),
    "hits": ("v_bar t owner", lambda v, t, owner: [hits(v, combine(t), owner)]),
    "combine": ("t", lambda t: [combine(t), combine(t, "similarities")]),
    "segment": ("cells t_bar", lambda *given: [segment(*given, (2, 2), (4, 4))]),
    "miou": ("labels labels", lambda *given: [miou(*given, 3)]),
    "mean_iou": ("counts counts counts", lambda *given: [mean_iou(*given)]),
    "queries": ("heat labels_of masks", lambda *given: queries(*given, (2, 2)).values()),
    "grounding_gap": ("v t mask", lambda *given: gap(*given).values()),
}
for name in NAMES[1:]:
    chosen = ObjectiveConfig(objective=name)
    own = PARAMS | init_own(chosen, D, np.random.default_rng(0), "float32")
    PUBLIC[name] = ("v t mask v_bar t_bar", with_gradients(partial(loss_of(chosen), own)))
    if scores := scores_of(chosen):
        PUBLIC[f"{name}'s scores"] = ("v t mask v_bar t_bar", partial(scores, own))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PUBLIC)
def test_a_clear_error_or_a_finite_answer(name):
    """An error is one that this package raises; a finite loss has finite gradients; nothing that is handed over changes."""
    wanted, call = PUBLIC[name]
    rng = np.random.default_rng(0)
    for _ in range(60):
        normal = lambda *shape: rng.standard_normal(shape).astype(rng.choice(["float32", "float64"]))  # noqa: E731
        made = {
            "v": normal(B, P, D), "t": normal(B, L, D), "v_bar": normal(B, D), "t_bar": normal(B, D), "theta": normal(),
            "mask": rng.random((B, L)) < 0.7, "images": normal(B, 3, 16, 16), "tokens": rng.integers(0, 12, (B, L)),
            "owner": rng.integers(0, B, B), "scores": normal(B, B), "cells": normal(2, 4, D),
            "labels": rng.integers(-1, 3, (2, 4, 4)), "counts": rng.integers(1, 5, (2, 3)), "heat": rng.random((2, L, 4)),
            "labels_of": rng.integers(-1, 2, (2, L)),
            "masks": rng.random((2, 2, 4, 4)) < 0.5,
        }
        handed = [np.asarray(made[key]) for key in wanted.split()]
        for i in rng.permutation(len(handed))[:2]:
            handed[i] = change(rng, handed[i]) if handed[i].ndim else handed[i]
            if isinstance(handed[i], np.ndarray):
                handed[i].flags.writeable = False
        try:
            answer = [np.asarray(x) for x in call(*handed)]
        except (ValueError, TypeError, ArithmeticError) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            assert "sparc_ref" in last.filename and last.line.startswith("raise"), (handed, error)
            continue
        if name not in ("miou", "mean_iou"):              # NaN where no picture has a class
            assert all(np.all(np.isfinite(x)) for x in answer), handed
