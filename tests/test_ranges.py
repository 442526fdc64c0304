"""What leaves a dtype's range, holds NaN, or has a wrong shape is an error that names it; no dtype changes another's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from witness import close

from parity import oracle
from sparc_ref import align_patches, fine_grained_loss, forward, global_loss, init_params, ops
from sparc_ref.model import PRESETS, replace

B, L, P, D = 3, 4, 9, 5
MASK = np.arange(L) < np.array([4, 2, 1])[:, None]


@pytest.fixture
def v(rng):
    return rng.standard_normal((B, P, D))


@pytest.fixture
def t(rng):
    return rng.standard_normal((B, L, D))


# --- align_patches: shapes, NaN, range ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": np.ones((L, D)), "v": np.ones((P, D))}, r"v: expected \(B,P,D\) with at least one of each, got \(9, 5\)"),
        ({"t": np.ones((L, D))}, r"t: expected \(B,L,D\) with B=3, D=5, got \(4, 5\)"),
        ({"t": np.ones((1, L, D))}, r"t: expected \(B,L,D\) with B=3"),
        ({"v": np.ones((1, P, D))}, r"t: expected \(B,L,D\) with B=1"),
        ({"t": np.ones((B, L, 1))}, r"t: expected .* D=5, got \(3, 4, 1\)"),
        ({"v": np.ones((B, 0, D))}, "v: expected .* at least one of each"),
        ({"mask": np.ones((B, L))}, "mask: expected bool, true = real token, got float64"),
        ({"mask": np.ones((B, P), bool)}, r"mask: expected \(B,L\) with B=3, L=4, got \(3, 9\)"),
        ({"mask": np.ones(L, bool)}, r"mask: expected \(B,L\)"),
        ({"t": np.ones((B, L, D), int)}, "t: expected float16, bfloat16, float32, float64, got int64"),
        ({"v": np.ones((B, P, D), complex)}, "v: expected float16, .*got complex128"),
    ],
)
def test_shapes_of_align_patches(t, v, change, message):
    inputs = {"t": t, "v": v, "mask": MASK} | change
    with pytest.raises(ValueError, match=message):
        align_patches(inputs["t"], inputs["v"], inputs["mask"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("options", [{}, {"similarity": "cosine"}, {"align": "softmax"}, {"threshold_on": "weights"},
                                     {"flat": "nan"}, {"align": "no_threshold"}], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["t", "v"])
def test_nan_in_a_real_token_or_a_patch(t, v, name, value, options):
    """A NaN token had weights of 1/P and a finite c."""
    x = {"t": t, "v": v}
    x[name][1, 1, 2] = value
    with pytest.raises(ArithmeticError, match=f"similarity is not finite: 1 of the .* numbers of {name} are NaN or infinite"):
        align_patches(x["t"], x["v"], MASK, **options)


def test_nan_at_padding_is_nothing(t, v):
    expected = align_patches(t, v, MASK)[0]
    got = align_patches(np.where(MASK[..., None], t, np.nan), v, MASK)[0]
    assert np.array_equal(expected, got)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("scale", [1e19, 1e20, 1e25, 1e-20, 1e-23, 1e-30])
@pytest.mark.parametrize("options", [{}, {"threshold_on": "weights"}, {"flat": "nan"}, {"flat": "zero"}], ids=str)
def test_similarities_beyond_the_range_are_an_error(t, v, scale, options):
    """s is up to scale^2 and more: infinite, of infinite width, of a few bits, or 0. None of it is a value of eq. 2."""
    t, v = (x.astype(np.float32) * np.float32(scale) for x in (t, v))
    with pytest.raises(ArithmeticError, match=r"similarity is .*it left the range of float32; \|v\| up to"):
        align_patches(t, v, MASK, **options)
    wide = align_patches(t.astype(np.float64), v.astype(np.float64), MASK, **options)[1]["weights"]
    assert np.all(np.isfinite(wide)) and np.ptp(wide[0, 0]) > 0.05


def test_a_row_that_is_truly_flat_is_no_error(v):
    """Tokens at right angles to every patch, one patch alone, no token at all: 0 is the value, not what is left of one."""
    v[..., 0] = 0
    t = np.zeros((B, L, D))
    t[..., 0] = 1e-3
    for tokens, patches in ((t, v), (t * 0, v), (t, v * 0), (v[:, :L] * 1e-30, v[:, :1] * 1e-30)):
        tokens, patches = tokens.astype(np.float32), patches.astype(np.float32)
        close(align_patches(tokens, patches)[1]["weights"], np.full((B, L, patches.shape[1]), 1 / patches.shape[1]), "a", 1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), exponents=st.tuples(*(st.integers(-44, 37) for _ in range(2))),
       threshold_on=st.sampled_from(["minmax", "weights"]))
def test_an_answer_or_an_error_but_no_other_number(seed, exponents, threshold_on):
    """Whatever the size of tokens and patches, float32's weights are float64's or there are none."""
    rng = np.random.default_rng(seed)
    t, v = (rng.standard_normal(s) * 10.0**e for s, e in zip(((1, 2, 3), (1, 4, 3)), exponents))
    t, v = t.astype(np.float32), v.astype(np.float32)
    expected = align_patches(t.astype(np.float64), v.astype(np.float64), threshold_on=threshold_on)[1]
    try:
        got = align_patches(t, v, threshold_on=threshold_on)[1]
    except ArithmeticError as error:
        assert "left the range" in str(error)
        return
    s_hat, wide = got["minmax"], expected["minmax"]
    near = np.abs(s_hat - wide).max(-1) * np.abs(expected["similarity"]).max(-1) / np.ptp(expected["similarity"], axis=-1)
    assert np.all(near < 1e-3)


@pytest.mark.parametrize("flat", ["uniform", "zero"])
@pytest.mark.parametrize("sigma", [None, 0.0, 0.9])
def test_sparse_of_flat_rows_is_the_oracles(t, v, flat, sigma):
    t, v = np.round(4 * t) / 4, np.round(4 * v) / 4           # exact products, so that alike is alike
    v[1] = v[1, :1]                                           # every row of the second picture is flat
    got = align_patches(t, v, MASK, threshold_on="weights", flat=flat, sigma=sigma)[1]
    stages = oracle.align_stages(*map(torch.tensor, (t, v, MASK)), threshold_on="weights", flat=flat, sigma=sigma)[1]
    for name in ("similarity", "minmax", "sparse", "weights"):
        close(got[name][MASK], stages[name].numpy()[MASK], name)
    assert np.all(got["sparse"][1, :2] == 1)


def test_half_precision_aligns_in_float32(t, v):
    half = align_patches(t.astype(np.float16), v.astype(np.float16), MASK)
    exact = align_patches(*(x.astype(np.float16).astype(np.float64) for x in (t, v)), MASK)
    assert half[0].dtype == half[1]["similarity"].dtype == np.float32
    close(half[0], exact[0], "c", 1e-5)
    assert all(d.dtype == np.float16 for d in half[2](half[0]))


# --- theta, dtypes ------------------------------------------------------------------------------------------------------


def losses_of(v, t, theta):
    fine, _, back_fine = fine_grained_loss(v, t, MASK if isinstance(v, np.ndarray) else torch.tensor(MASK), theta)
    whole, _, back_global = global_loss(v[:, 0], t[:, 0], theta)
    return (fine, *back_fine(0.7)), (whole, *back_global(0.7))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("theta", [1.25, 1, np.float64(1.25), np.float32(1.25), np.asarray(1.25), np.asarray(1.25, "f4")],
                         ids=repr)
def test_theta_may_be_a_number_and_changes_no_dtype(t, v, theta, dtype):
    """The second gradient of each is t's, the third theta's own."""
    t, v = t.astype(dtype), v.astype(dtype)
    own = theta.dtype if isinstance(theta, np.ndarray | np.float32) else np.dtype(dtype)
    expected = losses_of(v.astype(float), t.astype(float), np.asarray(float(theta)))
    for ours, theirs in zip(losses_of(v, t, theta), expected):
        assert [np.asarray(x).dtype for x in ours] == [np.dtype(dtype)] * 3 + [own]
        for a, b in zip(ours, theirs):
            close(a, b, "value", 1e-12 if dtype == "float64" and own == np.float64 else 3e-5)


def test_theta_of_another_dtype_on_torch(t, v):
    t, v = torch.tensor(t, dtype=torch.float32), torch.tensor(v, dtype=torch.float32)
    for theta, own in ((1.25, torch.float32), (torch.tensor(1.25, dtype=torch.float64), torch.float64),
                       (torch.tensor(1.25, dtype=torch.bfloat16), torch.bfloat16)):
        for loss, dv, dt, dtheta in losses_of(v, t, theta):
            assert loss.dtype == dv.dtype == dt.dtype == torch.float32 and dtheta.dtype == own and dtheta.ndim == 0


@pytest.mark.parametrize("theta, message", [
    (np.ones(1), r"theta: expected a number or a 0-d array, log\(1/tau\), got the shape \(1,\)"),
    (np.ones((B, 1, 1)), r"got the shape \(3, 1, 1\)"),
    (np.asarray(1), "theta: expected float16, .* got int64"),
    ("1", "theta: expected a number or a 0-d array"), (None, "theta: expected a number"), (True, "theta: expected a number"),
    ([1.0], "theta: expected a number"), (torch.tensor(1.0), "theta: expected a number or a 0-d array like the embeddings"),
], ids=repr)
def test_other_thetas_are_refused(t, v, theta, message):
    for call in (lambda: fine_grained_loss(v, t, MASK, theta), lambda: global_loss(v[:, 0], t[:, 0], theta)):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("theta", [np.nan, np.inf, -np.inf])
def test_theta_that_is_not_finite(t, v, theta):
    for call in (lambda: fine_grained_loss(v, t, MASK, theta), lambda: global_loss(v[:, 0], t[:, 0], np.asarray(theta))):
        with pytest.raises(ArithmeticError, match="1 of the 1 numbers of theta are NaN or infinite"):
            call()


def test_embeddings_of_two_dtypes_get_gradients_of_their_own(t, v):
    for left, right in (("float32", "float64"), ("float64", "float32"), ("float16", "float32"), ("float16", "float64")):
        for loss, dv, dt, _ in losses_of(v.astype(left), t.astype(right), 1.25):
            assert dv.dtype == left and dt.dtype == right and loss.dtype == max(np.dtype(left), np.dtype(right))


def test_bfloat16_of_ml_dtypes(t, v):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bf16 = ml_dtypes.bfloat16
    t, v = t.astype(bf16), v.astype(bf16)
    expected = losses_of(v.astype(float), t.astype(float), 1.25)
    theirs = losses_of(*(torch.tensor(x.astype(np.float32)).to(torch.bfloat16) for x in (v, t)), 1.25)
    for ours, exact, other in zip(losses_of(v, t, 1.25), expected, theirs):
        assert ours[0].dtype == np.float32 and ours[1].dtype == ours[2].dtype == bf16
        close(ours[0], exact[0], "loss", 1e-5)
        for a, b in zip(ours[1:3], other[1:3]):
            close(a.astype(np.float32), b.float().numpy(), "gradient", 1e-2)   # one unit of bfloat16 apart
    assert align_patches(t, v, MASK)[2](np.ones((B, L, D), np.float32))[0].dtype == bf16
    with pytest.raises(ValueError, match=r"v: expected .* got float8_e4m3fn"):
        fine_grained_loss(v.astype(ml_dtypes.float8_e4m3fn), t, MASK, 1.25)


# --- gradients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_gradient_that_float16_cannot_hold_is_announced(t, v, kind):
    t, v = t.astype(np.float16), v.astype(np.float16) / 512
    made = (lambda x: x) if kind == "numpy" else torch.tensor
    for loss, back in ((a, c) for a, _, c in (
        fine_grained_loss(made(v), made(t), made(MASK), 4.0), global_loss(made(v[:, 0]), made(t[:, 0]), 4.0))):
        assert np.isfinite(float(loss))
        assert all(np.isfinite(np.asarray(g, float)).all() for g in back(1.0))
        with pytest.raises(ArithmeticError, match=r"gradient of v(_bar)?: up to .*, it left the range of float16: call"):
            back(1e6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_gradient_that_float32_cannot_hold_is_announced(t, v):
    t, v = t.astype(np.float32), v.astype(np.float32)
    for back in (fine_grained_loss(v, t, MASK, 4.0)[2], global_loss(v[:, 0], t[:, 0], 4.0)[2]):
        with pytest.raises(ArithmeticError, match=r"gradient of [vt](_bar)? is not finite"):
            back(3e38)
        with pytest.raises(ArithmeticError, match="numbers of dloss are NaN or infinite"):
            back(np.nan)


def test_a_gradient_that_a_narrower_input_cannot_hold_is_announced(t, v):
    with pytest.raises(ArithmeticError, match=r"gradient of v: up to .* it left the range of float32"):
        fine_grained_loss(v.astype(np.float32), t, MASK, 4.0)[2](1e40)


def test_a_vector_of_zeros_gets_no_gradient():
    x = np.array([[0.0, 0, 0], [3, 0, 4]])
    y, back = ops.l2_normalize(x)
    dx = back(np.ones((2, 3)))
    assert not y[0].any() and not dx[0].any() and dx[1].any()


def small_model(dtype="float64"):
    config = replace(PRESETS["tiny"], image_size=16, vision_width=16, vision_depth=1, vision_heads=2, text_width=16,
                     text_depth=1, text_heads=2, embed_dim=8, vocab_size=11, max_tokens=6)
    rng = np.random.default_rng(0)
    params = init_params(config, rng, dtype)
    images = rng.standard_normal((3, 3, 16, 16))
    return config, params, images, rng.integers(0, 11, (3, 4))


def test_captions_of_padding_alone_at_zero_biases():
    """|d g_t.bias| was 8.8e11: the direction of a vector of zeros, divided by the epsilon of its norm."""
    config, params, images, tokens = small_model()
    assert not params["g_t.bias"].any()
    mask = np.arange(4) < np.array([4, 2, 0])[:, None]
    loss, _, back = forward(params, images, tokens, mask, config)
    grads = back()
    assert np.isfinite(loss) and max(np.abs(g).max() for g in grads.values()) < 100
    nothing = forward(params, images, tokens, np.zeros((3, 4), bool), config)[2]()
    assert not nothing["g_t.bias"].any() and not nothing["text.embedding.weight"].any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_parameters_gradient_beyond_the_range_is_announced():
    """The loss is finite, and so are the gradients of both losses; the towers make too much of them."""
    config, params, images, tokens = small_model("float32")
    mask = np.arange(4) < np.array([4, 2, 3])[:, None]
    params["vision.patch.weight"] = params["vision.patch.weight"] * np.float32(1e-30)
    params["vision.positions"] = params["vision.positions"] * np.float32(1e-30)
    config = replace(config, layer_norm_eps=1e-38)
    loss, _, back = forward(params, images, tokens, mask, config)
    assert np.isfinite(loss)
    with pytest.raises(ArithmeticError, match=r"gradient of vision\..* is not finite: it left the range of float32"):
        back(1e10)


# --- no epsilon, and what leaves the range is never a finite number ------------------------------------------------------

SIZES = st.integers(-44, 37)


def scaled(rng, shape, exponent):
    return (rng.standard_normal(shape) * 10.0**exponent).astype(np.float32)


def same_as_wide(call, inputs, most):
    """float32's answer is float64's, or an ArithmeticError says why there is none; an exact 0 may be what underflows."""
    try:
        loss, *got = call(*inputs)
    except ArithmeticError as error:
        assert "left the range" in str(error)
        return False
    wide, *expected = call(*(x.astype(np.float64) for x in inputs))
    assert np.isfinite(loss) and abs(loss - wide) <= most * abs(wide) + 1e-6
    for a, b in zip(got, expected):
        assert np.abs(a - b).max() <= 20 * most * np.abs(b).max() + 1e-38
    return True


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=120, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), v=SIZES, t=SIZES, theta=st.sampled_from([-100.0, -80.0, -20.0, 0.0, 2.66, 4.6]),
       options=st.sampled_from([{}, {"similarity": "cosine"}, {"threshold_on": "weights"}, {"align": "no_threshold"},
                                {"flat": "zero"}]))
def test_losses_of_any_size_are_float64s_or_refused(seed, v, t, theta, options):
    """The epsilon of the norm moved a loss of 0.28 to 1.06 where patches were shorter than 1e-12."""
    rng = np.random.default_rng(seed)

    def fine(v, t):
        loss, _, back = fine_grained_loss(v, t, MASK, theta, **options)
        return loss, *back(0.7)

    def whole(v, t):
        loss, _, back = global_loss(v[:, 0], t[:, 0], theta)
        return loss, *back(0.7)

    inputs = scaled(rng, (B, P, D), v), scaled(rng, (B, L, D), t)
    clear = np.abs(inputs[0].astype(float) @ inputs[1][:, 0, :, None].astype(float)).min() > 0
    answered = [same_as_wide(call, inputs, 2e-3) for call in (fine, whole)]
    if clear and abs(v) < 15 and abs(t) < 15 and theta > -50:
        assert answered == [True, True]


@pytest.mark.parametrize("exponent", [-300, -100, -13, -12, 0, 13, 100])
def test_losses_do_not_depend_on_the_length_of_patches_or_tokens(v, t, exponent):
    """eqs. 1 and 6 see directions alone; so does the oracle, which has no epsilon."""
    expected = losses_of(v, t, 2.0)
    got = losses_of(v * 10.0**exponent, t, 2.0)
    for ours, theirs in zip(got, expected):
        close(ours[0], theirs[0], "loss", 1e-13)
        close(ours[1] * 10.0**exponent, theirs[1], "dv", 1e-12)
        close(ours[2], theirs[2], "dt", 1e-12)
    texts = losses_of(v, t * 10.0**exponent, 2.0)
    for ours, theirs in zip(texts, expected):
        close(ours[0], theirs[0], "loss", 1e-13)
        close(ours[2] * 10.0**exponent, theirs[2], "dt", 1e-12)
    assert abs(float(oracle.global_loss(*(torch.tensor(x[:, 0] * 1e-13) for x in (v, t)), torch.tensor(2.0).double())) -
               float(global_loss(v[:, 0], t[:, 0], 2.0)[0])) < 1e-12


def test_an_average_of_patches_that_the_dtype_rounds_away(t, v):
    small = (v * 1e-42).astype(np.float32)
    for options in ({"similarity": "cosine"}, {"align": "softmax"}):
        with pytest.raises(ArithmeticError, match=r"c is an average of too few bits: it left the range of float32; \|v\| up"):
            align_patches(t.astype(np.float32), small, MASK, **options)
    assert not align_patches(t.astype(np.float32), small * 0, MASK, similarity="cosine")[0].any()


@pytest.mark.parametrize("theta", [-100.0, -88.0, 90.0, 1e30])
def test_a_temperature_that_the_dtype_does_not_hold(t, v, theta):
    t, v = t.astype(np.float32), v.astype(np.float32)
    with np.errstate(over="ignore"):
        for call in (lambda: fine_grained_loss(v, t, MASK, theta), lambda: global_loss(v[:, 0], t[:, 0], np.float32(theta))):
            with pytest.raises(ArithmeticError, match=r"1/tau = exp\(theta\) is .*: it left the range of float32; \|theta"):
                call()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), x=SIZES, dy=st.integers(-20, 20), shift=st.sampled_from([0.0, 1.0, 1e4]))
def test_ops_of_any_size_are_float64s_or_not_finite(seed, x, dy, shift):
    rng = np.random.default_rng(seed)
    base = (scaled(rng, (4, 6), x).astype(float) * (1 + shift)).astype(np.float32)
    upstream = scaled(rng, (4, 6), dy)
    for op in (ops.l2_normalize, ops.standardize, ops.gelu, lambda x: ops.gelu(x, "erf"), ops.softmax, ops.log_softmax):
        (y, back), (wide, back_wide) = op(base), op(base.astype(np.float64))
        for got, exact, scale in ((y, wide, 1.0), (back(upstream), back_wide(upstream.astype(np.float64)), 10.0**dy)):
            beyond = ~np.isfinite(got)
            # softmax's gradient is a difference of two that may be alike
            near = np.abs(got - exact) <= 1e-4 * np.abs(exact) + (3e-6 * np.abs(exact).max() + 1e-5 * scale * (got is not y) +
                                                                  1e-37)
            assert np.all(near | beyond), (op, x, dy)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_variance_beyond_the_range_is_no_zero(rng):
    """x_hat was 0, and its gradient too."""
    x = scaled(rng, (3, 8), 20)
    assert np.isnan(ops.standardize(x)[0]).all()
    config, params, images, tokens = small_model("float32")
    params["vision.positions"] = params["vision.positions"] * np.float32(1e25)
    with pytest.raises(ArithmeticError, match=r"loss is not finite: .* numbers of v_bar are NaN or infinite"):
        forward(params, images, tokens, np.ones((3, 4), bool), config)
