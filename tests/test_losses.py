"""Alignment and both losses: gradients under every option, the properties of the method, the edges."""

import itertools

import numpy as np
import pytest
import torch
from witness import agree, close

from parity import oracle
from sparc_ref import losses
from sparc_ref.alignment import CHOICES, align_patches
from sparc_ref.backend import to_numpy
from sparc_ref.losses import fine_grained_loss, global_loss

B, L, P, D = 4, 5, 7, 6


@pytest.fixture
def case(rng):
    """Random patches, tokens and temperature with padding, one full caption, one of one token and one of none."""
    while True:
        v, t = rng.standard_normal((B, P, D)), rng.standard_normal((B, L, D))
        mask = np.arange(L) < np.array([L, 3, 1, 0])[:, None]
        s = t @ v.transpose(0, 2, 1)
        s_hat = (s - s.min(-1, keepdims=True)) / np.ptp(s, axis=-1, keepdims=True)
        weights = s_hat / s_hat.sum(-1, keepdims=True)
        if min(np.min(np.abs(x - 1 / P)) for x in (s_hat, weights)) > 1e-3:  # away from the threshold's edge
            return {"v": v, "t": t, "mask": mask, "theta": np.asarray(1.3)}


def fine(v, t, theta, mask, **options):
    loss, _, back = fine_grained_loss(v, t, mask, theta, **options)
    return loss, back


def oracle_fine(v, t, theta, mask, **options):
    return oracle.fine_grained_loss(v, t, mask, theta, **options)


def three(case):
    return {name: case[name] for name in ("v", "t", "theta")}


def test_global_loss(rng):
    inputs = {"v_bar": rng.standard_normal((5, 3)), "t_bar": rng.standard_normal((5, 3)), "theta": np.asarray(1.7)}
    agree(lambda **x: (lambda loss, _, back: (loss, back))(*global_loss(**x)), inputs, rng, oracle.global_loss)


OPTIONS = [
    dict(zip(("align", "threshold_on", "similarity", "reduction"), values))
    for values in itertools.product(CHOICES["align"], CHOICES["threshold_on"], CHOICES["similarity"], losses.REDUCTIONS)
]
OPTIONS += [{"sigma": 0.0}, {"sigma": 0.4}, {"sigma": 1.0}, {"ties": "first"}, {"flat": "zero"}]
OPTIONS += [{"sigma": 0.5, "threshold_on": "weights"}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{v}" for v in o.values()))
def test_fine_grained_loss(case, rng, options):
    agree(fine, three(case), rng, oracle_fine, {"mask": case["mask"], **options})


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{v}" for v in o.values()))
def test_alignment(case, rng, options):
    options = {name: value for name, value in options.items() if name != "reduction"}

    def grouped(t, v, mask, **options):
        rows = [oracle.group(t_i[m], v_i, **options) for t_i, v_i, m in zip(t, v, mask)]
        return torch.stack([torch.cat([c, torch.zeros(L - len(c), D)]) for c in rows])

    def ours(t, v, mask, **options):
        c, _, back = align_patches(t, v, mask, **options)
        return c, back

    mask = case["mask"].copy()
    mask[3, :2] = True  # the oracle needs a token
    agree(ours, {"t": case["t"], "v": case["v"]}, rng, grouped, {"mask": mask, **options})


def test_specimen(case, rng):
    """The division as the paper writes it, in one line each."""
    t, v = case["t"], case["v"]
    c, trace, _ = align_patches(t, v)
    s = t @ v.transpose(0, 2, 1)
    close(trace["similarity"], s, "similarity")
    s_hat = (s - s.min(-1, keepdims=True)) / (s.max(-1, keepdims=True) - s.min(-1, keepdims=True))
    close(trace["minmax"], s_hat, "eq. 2")
    s_til = np.where(s_hat >= 1 / P, s_hat, 0)
    close(trace["sparse"], s_til, "eq. 3")
    a = s_til / s_til.sum(-1, keepdims=True)
    close(trace["weights"], a, "eq. 4")
    close(c, a @ v, "eq. 5")


def test_division_free_form(case):
    """c is parallel to sum_p k (s - min s) v: eq. 4's sum and eq. 2's range cancel in the norm that follows."""
    c, trace, _ = align_patches(case["t"], case["v"])
    s = trace["similarity"]
    parallel = ((s - s.min(-1, keepdims=True)) * (trace["sparse"] > 0)) @ case["v"]
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (c, parallel)]
    close(unit[0], unit[1], "direction")


LOW, HIGH = ([-2.0, -1.0, 4.0], [-2.0, -1.0, -3.0]), ([3.0, 2.0, 1.0], [3.0, 2.0, -2.0])
TIES = {"minimum": [*LOW, HIGH[0]], "maximum": [LOW[0], *HIGH], "both": [*LOW, *HIGH]}


def tied(row):
    """Small whole numbers, so that ties are exact: tokens cannot see the third axis, in which tied patches differ."""
    v = np.array([[*TIES[row], [1.0, -0.5, 2.0], [0.0, 1.5, -1.0]]])
    t = np.array([[[1.0, 0.5, 0.0], [0.5, 2.0, 0.0], [2.0, 0.25, 0.0]]])
    return v, t, np.ones((1, 3), bool), np.asarray(0.5)


@pytest.mark.parametrize("ties", ["share", "first"])
@pytest.mark.parametrize("row", TIES)
def test_ties(row, ties):
    v, t, mask, theta = tied(row)
    leaves = [torch.tensor(x, requires_grad=True) for x in (v, t, theta)]
    expected = oracle.fine_grained_loss(leaves[0], leaves[1], torch.tensor(mask), leaves[2], ties=ties)
    expected.backward(torch.tensor(0.7, dtype=torch.float64))
    grads = fine_grained_loss(v, t, mask, theta, ties=ties)[2](0.7)
    for name, ours, leaf in zip(("dv", "dt", "dtheta"), grads, leaves):
        close(ours, leaf.grad.numpy(), name)
        assert np.max(np.abs(ours)) > 1e-3, name


@pytest.mark.parametrize("row", ["minimum", "both"])
def test_ties_are_told_apart(row):
    """At the minimum.  The maximum only scales a row, which cancels: it has no gradient to share."""
    grads = [fine_grained_loss(*tied(row), ties=ties)[2]()[0] for ties in ("share", "first")]
    assert np.max(np.abs(grads[0] - grads[1])) > 1e-4


@pytest.mark.parametrize("flat", ["uniform", "zero"])
@pytest.mark.parametrize("patches", [1, 3])
def test_flat_rows(rng, flat, patches):
    """One patch, or three alike: eq. 2 is 0/0.  No gradient goes through the similarity of such a row."""
    v = np.repeat(rng.standard_normal((2, 1, D)), patches, 1)
    v[1] += np.arange(patches)[:, None] * rng.standard_normal((patches, D))  # flat only where there is one patch
    t, mask, theta = rng.standard_normal((2, 3, D)), np.array([[1, 1, 1], [1, 1, 0]], bool), np.asarray(0.9)
    loss, trace, back = fine_grained_loss(v, t, mask, theta, flat=flat)
    leaves = [torch.tensor(x, requires_grad=True) for x in (v, t, theta)]
    expected = oracle.fine_grained_loss(leaves[0], leaves[1], torch.tensor(mask), leaves[2], flat=flat)
    expected.backward(torch.tensor(0.7, dtype=torch.float64))
    close(loss, expected.detach().numpy(), "loss")
    for name, ours, leaf in zip(("dv", "dt", "dtheta"), back(0.7), leaves):
        close(ours, leaf.grad.numpy(), name)
    close(trace["weights"][0], np.full((3, patches), 1 / patches if flat == "uniform" else 0.0), "weights")


def test_flat_rows_as_the_literal_0_by_0(rng):
    v, t = np.ones((1, 3, D)), rng.standard_normal((1, 2, D))
    with np.errstate(invalid="ignore"):
        loss, trace, back = fine_grained_loss(v, t, np.ones((1, 2), bool), np.asarray(0.0), flat="nan")
        assert np.isnan(loss) and np.all(np.isnan(trace["weights"]))
        assert np.all(np.isnan(back()[0]))


def test_nothing_reaches_sigma(case):
    """A threshold on weights above every weight: the row counts as flat."""
    trace = align_patches(case["t"], case["v"], sigma=1.0, threshold_on="weights")[1]
    close(trace["weights"], np.full((B, L, P), 1 / P), "weights")


# --- properties ---------------------------------------------------------------------------------------------------------


def all_of(case, **options):
    loss, trace, back = fine_grained_loss(case["v"], case["t"], case["mask"], case["theta"], **options)
    return loss, trace, back(0.8)


@pytest.mark.parametrize("align", CHOICES["align"])
def test_rows_of_weights_sum_to_one(case, align):
    sums = all_of(case, align=align)[1]["weights"].sum(-1)
    close(sums, case["mask"].astype(float), "row sums")


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
@pytest.mark.parametrize("junk", [0.0, 1e30, np.nan, np.inf, "random"])
def test_padding_is_inert(case, rng, reduction, junk):
    """Values and gradients stay the same to the last bit, whatever padded tokens hold, and padding gets no gradient."""
    loss, trace, grads = all_of(case, reduction=reduction)
    noise = rng.standard_normal(case["t"].shape) * 9 if junk == "random" else junk
    other = case | {"t": np.where(case["mask"][..., None], case["t"], noise)}
    loss2, trace2, grads2 = all_of(other, reduction=reduction)
    assert loss == loss2
    for name in trace:
        assert np.array_equal(np.where(np.isnan(trace[name]), 0, trace[name]), trace2[name]), name
    for a, b in zip(grads, grads2):
        assert np.array_equal(a, b)
    assert np.all(grads[1][~case["mask"]] == 0)


def test_more_padding_changes_nothing(case):
    longer = case | {"t": np.pad(case["t"], ((0, 0), (0, 3), (0, 0))), "mask": np.pad(case["mask"], ((0, 0), (0, 3)))}
    for a, b in zip(all_of(case)[2][::2], all_of(longer)[2][::2]):
        close(a, b, "gradient", 1e-14)
    close(all_of(case)[0], all_of(longer)[0], "loss", 1e-14)


def test_permuting_the_batch(case, rng):
    order = rng.permutation(B)
    loss, trace, (dv, dt, _) = all_of(case)
    moved = {name: x[order] if np.ndim(x) else x for name, x in case.items()}
    loss2, trace2, (dv2, dt2, _) = all_of(moved)
    close(loss, loss2, "loss", 1e-14)
    close(trace["loss_vt"][order], trace2["loss_vt"], "per-token losses", 1e-14)
    close(dv[order], dv2, "dv", 1e-14)
    close(dt[order], dt2, "dt", 1e-14)


def test_permuting_patches_and_tokens(case, rng):
    patches, tokens = rng.permutation(P), rng.permutation(L)
    moved = case | {"v": case["v"][:, patches], "t": case["t"][:, tokens], "mask": case["mask"][:, tokens]}
    (loss, _, (dv, dt, _)), (loss2, _, (dv2, dt2, _)) = all_of(case), all_of(moved)
    close(loss, loss2, "loss", 1e-13)
    close(dv[:, patches], dv2, "dv", 1e-13)
    close(dt[:, tokens], dt2, "dt", 1e-13)


def test_any_split_of_the_batch_gives_the_same_mean(case):
    halves = [{n: x[part] if np.ndim(x) else x for n, x in case.items()} for part in (slice(0, 2), slice(2, 4))]
    loss, _, (dv, _, dtheta) = all_of(case)
    parts = [all_of(half) for half in halves]
    close(loss, np.mean([p[0] for p in parts]), "loss", 1e-14)
    close(dv, np.concatenate([p[2][0] for p in parts]) / 2, "dv", 1e-14)
    close(dtheta, np.mean([p[2][2] for p in parts]), "dtheta", 1e-13)
    token = [all_of(half, reduction="token")[0] for half in halves]
    assert abs(np.mean(token) - all_of(case, reduction="token")[0]) > 1e-3  # Listing 1 has no such property


def test_scales_that_cancel_and_one_that_does_not(case, rng):
    loss = all_of(case)[0]
    tokens = case | {"t": case["t"] * rng.uniform(0.1, 10, (B, L, 1))}
    patches = case | {"v": case["v"] * rng.uniform(0.1, 10, (B, 1, 1))}
    each = case | {"v": case["v"] / np.linalg.norm(case["v"], axis=-1, keepdims=True)}
    close(all_of(tokens)[0], loss, "tokens scaled one by one", 1e-13)
    close(all_of(patches)[0], loss, "patches scaled together", 1e-13)
    assert abs(all_of(each)[0] - loss) > 1e-3


def test_gradient_of_a_normalised_embedding_is_orthogonal_to_it(rng):
    v_bar, t_bar = rng.standard_normal((2, 5, 3))
    dv_bar, dt_bar, _ = global_loss(v_bar, t_bar, np.asarray(2.0))[2](1.7)
    assert np.max(np.abs(np.sum(dv_bar * v_bar, -1))) < 1e-14
    assert np.max(np.abs(np.sum(dt_bar * t_bar, -1))) < 1e-14


def test_zero_logits_give_log_of_the_number_of_choices():
    zero = np.zeros((B, D))
    close(global_loss(zero, zero, np.asarray(1.0))[0], np.log(B), "L_g")
    loss = fine_grained_loss(np.zeros((B, P, D)), np.zeros((B, L, D)), np.ones((B, L), bool), np.asarray(1.0))[0]
    close(loss, np.log(L), "L_f")


def test_one_token_has_nothing_to_be_told_apart_from(case):
    one = case | {"mask": np.arange(L) < np.ones((B, 1))}
    loss, _, (dv, dt, dtheta) = all_of(one)
    assert loss == 0 and dtheta == 0 and not dv.any() and not dt.any()


def test_a_batch_of_padding(case):
    loss, _, grads = all_of(case | {"mask": np.zeros((B, L), bool)})
    assert loss == 0
    assert all(not np.any(g) for g in grads)


# --- backends, precision, bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_backends(case, array, dtype):
    expected = all_of(case)
    data = {n: array(np.asarray(x, dtype) if x.dtype == float else x) for n, x in case.items()}
    loss, trace, grads = all_of(data)
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    close(to_numpy(loss), expected[0], "loss", tolerance)
    for name in trace:
        assert str(trace[name].dtype).endswith(dtype), name
        close(to_numpy(trace[name]), expected[1][name], name, tolerance)
    for name, ours, theirs in zip(("dv", "dt", "dtheta"), grads, expected[2]):
        assert str(ours.dtype).endswith(dtype), name
        close(to_numpy(ours), theirs, name, tolerance)
    v_bar, t_bar = data["v"][:, 0, :], data["t"][:, 0, :]
    ours = global_loss(v_bar, t_bar, data["theta"])
    theirs = global_loss(case["v"][:, 0], case["t"][:, 0], case["theta"])
    close(to_numpy(ours[0]), theirs[0], "global loss", tolerance)
    for a, b in zip(ours[2](0.3), theirs[2](0.3)):
        close(to_numpy(a), b, "global gradient", tolerance)


def test_every_option_on_every_backend(case, array):
    data = {n: array(x) for n, x in case.items()}
    for options in OPTIONS:
        ours, theirs = all_of(data, **options), all_of(case, **options)
        for a, b in zip((ours[0], *ours[2]), (theirs[0], *theirs[2])):
            close(to_numpy(a), b, str(options))


def test_half_precision(case):
    half = {n: torch.tensor(x, dtype=torch.bfloat16) if x.dtype == float else torch.tensor(x) for n, x in case.items()}
    loss, trace, (dv, _, _) = all_of(half)
    assert loss.dtype == trace["similarity"].dtype == torch.float32
    assert dv.dtype == torch.bfloat16
    exact = {n: x.to(torch.float64).numpy() if x.is_floating_point() else x.numpy() for n, x in half.items()}
    close(loss.numpy(), all_of(exact)[0], "loss", 1e-5)
    assert all_of({n: np.asarray(x, np.float16) if x.dtype == float else x for n, x in case.items()})[0].dtype == np.float32


def test_an_upstream_gradient_of_another_dtype_does_not_widen(case):
    data = {n: np.asarray(x, np.float32) if x.dtype == float else x for n, x in case.items()}
    _, _, back = fine_grained_loss(**{n: data[n] for n in ("v", "t", "mask", "theta")})
    assert all(g.dtype == np.float32 for g in back(np.float64(0.3)))
    assert all(g.dtype == np.float32 for g in global_loss(data["v"][:, 0], data["t"][:, 0], data["theta"])[2](np.float64(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": np.ones((4, 6))}, r"t: expected \(B,L,D\) with B=4, D=6, got \(4, 6\)"),
        ({"t": np.ones((4, 5, 3))}, r"t: expected .* got \(4, 5, 3\)"),
        ({"v": np.ones((4, 6))}, r"v: expected \(B,P,D\)"),
        ({"v": np.ones((4, 0, 6))}, "at least one of each"),
        ({"mask": np.ones((4, 3), bool)}, r"mask: expected \(B,L\) with B=4, L=5, got \(4, 3\)"),
        ({"mask": np.ones((4, 5))}, "mask: expected bool, true = real token, got float64"),
    ],
)
def test_wrong_shapes_are_named(case, change, message):
    with pytest.raises(ValueError, match=message):
        all_of(case | change)


@pytest.mark.parametrize("name", ["similarity", "align", "threshold_on", "flat", "ties", "reduction"])
def test_unknown_options_are_named(case, name):
    with pytest.raises(ValueError, match=f"{name}: expected one of .* got 'best'"):
        all_of(case, **{name: "best"})


@pytest.mark.parametrize("sigma", [-0.1, 1.5, np.nan])
def test_sigma_out_of_range(case, sigma):
    with pytest.raises(ValueError, match=r"sigma: expected a threshold in \[0, 1\]"):
        all_of(case, sigma=sigma)


def test_global_loss_shapes():
    with pytest.raises(ValueError, match=r"t_bar: expected \(B,D\) as v_bar, got \(3, 4\)"):
        global_loss(np.ones((2, 4)), np.ones((3, 4)), np.asarray(1.0))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["v", "t"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_never_silent(case, name, value):
    x = case[name].copy()
    x[0, 1, 2] = value
    with pytest.raises(ArithmeticError, match=f"1 of the .* numbers of {name} are NaN or infinite"):
        all_of(case | {name: x})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_overflow_is_named(case):
    data = {n: np.asarray(x, np.float32) if x.dtype == float else x for n, x in case.items()}
    with pytest.raises(ArithmeticError, match=r"left the range of float32; \|v\| up to .*e\+2"):
        all_of(data | {"v": data["v"] * np.float32(1e25), "t": data["t"] * np.float32(1e25)})


def test_nothing_is_written_where_a_caller_can_see(case):
    before = {n: x.copy() for n, x in case.items()}
    _, trace, back = fine_grained_loss(case["v"], case["t"], case["mask"], case["theta"])
    kept = {n: x.copy() for n, x in trace.items()}
    first, second = back(0.8), back(0.8)
    assert all(np.array_equal(case[n], before[n]) for n in case)
    assert all(np.array_equal(trace[n], kept[n]) for n in trace)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize(("change", "message"), [
    ({"mask": None}, r"mask: expected \(B,L\) bool, true = real token, got None"),
    ({"mask": [[True] * 2]}, "mask: expected an array, got list"),
    ({"v": [[[1.0, 2.0]]]}, "v: expected an array, got list"),
    ({"t": None}, "t: expected an array, got NoneType")])
def test_what_is_no_array_is_named(change, message):
    inputs = {"v": np.ones((1, 3, 2)), "t": np.ones((1, 2, 2)), "mask": np.ones((1, 2), bool)} | change
    with pytest.raises(ValueError, match=message):
        fine_grained_loss(**inputs, theta=1.0)
    if inputs["mask"] is not None:
        with pytest.raises(ValueError, match=message):
            align_patches(inputs["t"], inputs["v"], inputs["mask"])


def test_arrays_of_two_kinds_are_refused_by_name(rng):
    """They ended in a TypeError of array-api-compat, without a name."""
    v, t, mask = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 5, 4)), np.ones((2, 5), bool)
    torch_v, torch_mask = torch.tensor(v), torch.tensor(mask)
    for call, message in (
        (lambda: fine_grained_loss(torch_v, t, mask, 1.0), "t: expected an array of torch on cpu, as v is, got an array of n"),
        (lambda: fine_grained_loss(v, t, torch_mask, 1.0), "mask: expected an array of numpy, as v is, got an array"),
        (lambda: align_patches(t, torch_v), "t: expected an array of torch on cpu, as v is"),
        (lambda: global_loss(v[:, 0], torch_v[:, 0], 1.0), "t_bar: expected an array of numpy, as v_bar is, got an"),
        (lambda: global_loss(v[:, 0].tolist(), t[:, 0], 1.0), "v_bar: expected an array, got list"),
        (lambda: align_patches(np.ma.masked_array(t), v), "t: expected a plain array, got NumPy's MaskedArray"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
