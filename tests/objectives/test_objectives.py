"""Every objective under every option: three witnesses, padded and not, on every backend; what is refused by name."""

import sys

import numpy as np
import pytest
import torch
from drawn import EMBEDDINGS, B, D, L, P, embeddings, parameters
from witness import agree, close

from parity import oracle_objectives
from sparc_ref import objectives
from sparc_ref.backend import to_numpy
from sparc_ref.objectives.mgca import sinkhorn

mgca_module = sys.modules["sparc_ref.objectives.mgca"]    # the package's own name for it is the function

MGCA = ("theta", "theta_cross", "mgca")
CASES = {  # name: objective, parameters, options
    "clip": ("clip", ("theta",), {}),
    "filip": ("filip", ("theta",), {}),
    "filip all": ("filip", ("theta",), {"keep": 1.0}),
    "filip own theta": ("filip", ("theta_filip",), {"keep": 0.5}),
    "filip both": ("filip", ("theta",), {"keep": 0.8, "drop_side": "both"}),
    "filip pair": ("filip", ("theta",), {"keep": 0.5, "select": "pair", "ties": "first"}),
    "clip_filip": ("clip_filip", ("theta", "theta_filip"), {"keep": 0.5, "weight_clip": 0.3, "weight_filip": 0.9}),
    "pacl": ("pacl", ("theta", "pacl"), {}),
    "pacl plain": ("pacl", ("theta",), {"weight_scale": 10.0}),
    "pacl learned": ("pacl", ("theta", "theta_pool", "pacl"), {"values": "unit"}),
    "pacl matched": ("pacl", ("theta", "theta_pool", "pacl"), {"pairs": "matched"}),
    "pacl matched unit": ("pacl", ("theta",), {"pairs": "matched", "values": "unit", "weight_scale": 3.0}),
    "gloria": ("gloria", ("theta", "theta_local"), {}),
    "gloria learned": ("gloria", ("theta", "theta_local", "theta_words", "theta_attention"), {"similarity": "dot"}),
    "gloria double": ("gloria", ("theta", "theta_attention"), {"double_softmax": True, "similarity": "dot"}),
    "gloria mean": ("gloria", ("theta", "theta_words"), {"agg": "mean", "temp1": 2.5, "temp3": 3.0}),
    "mgca": ("mgca", MGCA, {}),
    "mgca paramfree": ("mgca", ("theta", "theta_cross", "mgca.prototypes"), {"attention": "paramfree", "attention_tau": 0.3}),
    "mgca both": ("mgca", MGCA, {"normalize": "both", "lambda_ita": 0.4, "lambda_cta": 1.6, "lambda_cpa": 0.7}),
    "mgca no cta": ("mgca", ("theta", "mgca.prototypes"), {"lambda_cta": 0.0, "iterations": 5, "epsilon": 0.2}),
    "siglip": ("siglip", ("theta", "logit_bias"), {}),
    "flair": ("flair", ("theta", "logit_bias", "flair"), {}),
    "sparc": ("sparc", ("theta",), {}),
    "sparc separate": ("sparc", ("theta", "theta_fine"), {"lambda_g": 1.2, "lambda_f": 0.4, "reduction": "token"}),
    "sparc no threshold": ("sparc", ("theta",), {"align": "no_threshold"}),
    "sparc softmax": ("sparc", ("theta",), {"align": "softmax"}),
    "sparc weights": ("sparc", ("theta",), {"threshold_on": "weights"}),
}
CHUNKED = [name for name, (objective, *_) in CASES.items() if objective in ("filip", "clip_filip", "gloria", "flair")
           or (objective == "pacl" and "matched" not in name)]
BATCHES = {"padded": (5, 2, 4, 1), "full": (5, 5, 5, 5), "one without a word": (3, 0, 5, 2)}


def call(name, x, mask, **more):
    """-> loss, parts, back for a dict of embeddings and parameters by name."""
    objective, _, options = CASES[name]
    params = {n: p for n, p in x.items() if n not in EMBEDDINGS}
    return getattr(objectives, objective)(params, x["v"], x["t"], mask, x["v_bar"], x["t_bar"], **options, **more)


def ours(name, **more):
    def function(mask, **x):
        loss, _, back = call(name, x, mask, **more)
        return loss, back

    return function


def theirs(name):
    objective, _, options = CASES[name]

    def function(mask, **x):
        params = {n: p for n, p in x.items() if n not in EMBEDDINGS}
        return getattr(oracle_objectives, objective)(params, x["v"], x["t"], mask, x["v_bar"], x["t_bar"], **options)[0]

    return function


def draw(name, rng, lengths=(5, 2, 4, 1)):
    x = embeddings(rng, lengths)
    mask = x.pop("mask")
    return x | parameters(rng, *CASES[name][1]), mask


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", CASES)
def test_three_witnesses(name, batch, rng, monkeypatch):
    """No gradient passes through MGCA's codes: differences are taken with those of the first call."""
    x, mask = draw(name, rng, BATCHES[batch])
    codes = []

    def held(*given):
        codes.append(sinkhorn(*given) if len(codes) < 2 else codes[len(codes) % 2])
        return codes[-1]

    monkeypatch.setattr(mgca_module, "sinkhorn", held)
    agree(ours(name), x, rng, theirs(name), {"mask": mask}, step=2e-5)


@pytest.mark.parametrize("name", [name for name in CASES if "sparc" not in name])
def test_parts_are_the_oracles(name, rng):
    objective, _, options = CASES[name]
    x, mask = draw(name, rng)
    parts = call(name, x, mask)[1]
    tensors = {n: torch.tensor(p) for n, p in x.items()}
    params = {n: p for n, p in tensors.items() if n not in EMBEDDINGS}
    expected = getattr(oracle_objectives, objective)(
        params, tensors["v"], tensors["t"], torch.tensor(mask), tensors["v_bar"], tensors["t_bar"], **options)[1]
    assert expected.keys() <= parts.keys()
    for part, value in expected.items():
        close(parts[part], value.numpy(), part)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_backends(name, dtype, array, rng):
    x, mask = draw(name, rng)
    x = {n: np.asarray(np.asarray(p, dtype), np.float64) for n, p in x.items()}
    expected, _, back = call(name, x, mask)
    grads = back(-0.7)
    loss, parts, back = call(name, {n: array(np.asarray(p, dtype)) for n, p in x.items()}, array(mask))
    tolerance = 1e-12 if dtype == "float64" else 3e-5
    close(to_numpy(loss), expected, "loss", tolerance)
    got = back(-0.7)
    assert got.keys() == grads.keys() == x.keys()
    for n, g in got.items():
        assert str(g.dtype).endswith(dtype), n
        close(to_numpy(g), grads[n], n, tolerance)
    assert all(str(part.dtype).endswith(dtype) for part in parts.values())


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["clip", "filip", "pacl", "gloria", "mgca", "siglip", "flair", "sparc"])
def test_half_precision_is_computed_in_float32(name, kind, rng):
    x, mask = draw(name, rng)
    half = {n: torch.tensor(p).to(getattr(torch, kind)) for n, p in x.items()}
    loss, _, back = call(name, half, torch.tensor(mask))
    assert loss.dtype == torch.float32
    assert all(g.dtype == half[n].dtype for n, g in back(0.5).items())
    exact = call(name, {n: p.double().numpy() for n, p in half.items()}, mask)[0]
    close(loss.numpy(), exact, "loss", 1e-5)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("name", CHUNKED)
def test_chunked_is_full(name, chunk, rng):
    x, mask = draw(name, rng)
    loss, parts, back = call(name, x, mask)
    loss2, parts2, back2 = call(name, x, mask, chunk=chunk)
    close(loss2, loss, "loss", 1e-14)
    for n, g in back(0.6).items():
        close(back2(0.6)[n], g, n, 1e-13)
    for n, part in parts.items():
        close(parts2[n], part, n, 1e-13)


@pytest.mark.parametrize("name", CASES)
def test_back_may_be_called_again_and_writes_nothing_that_a_caller_sees(name, rng):
    x, mask = draw(name, rng)
    before = {n: np.array(p) for n, p in x.items()}
    _, parts, back = call(name, x, mask)
    shown = {n: np.array(p) for n, p in parts.items()}
    first, second = back(0.8), back(0.8)
    assert all(np.array_equal(x[n], before[n]) for n in x)
    assert all(np.array_equal(parts[n], shown[n], equal_nan=True) for n in parts)
    assert all(np.array_equal(first[n], second[n]) for n in first)


BAD = [
    ({"t": np.ones((B, D))}, r"t: expected \(B,L,D\) with B=4, D=7, got \(4, 7\)"),
    ({"v": np.ones((B, P))}, r"v: expected \(B,P,D\)"),
    ({"v_bar": np.ones((B, D + 1))}, r"v_bar: expected \(B,D\) with B=4, D=7, got \(4, 8\)"),
    ({"t_bar": np.ones((B - 1, D))}, r"t_bar: expected \(B,D\) with B=4, D=7, got \(3, 7\)"),
    ({"t_bar": [1.0]}, r"t_bar: expected \(B,D\) with B=4, D=7, got list"),
    ({"v_bar": np.ones((B, D), int)}, "v_bar: expected float16, bfloat16, float32, float64, got int64"),
    ({"theta": np.ones(2)}, r"theta: expected a number or a 0-d array, log\(1/tau\), got the shape \(2,\)"),
    ({"mask": np.ones((B, L + 1), bool)}, r"mask: expected \(B,L\) with B=4, L=5, got \(4, 6\)"),
    ({"mask": np.ones((B, L))}, "mask: expected bool, true = real token, got float64"),
    ({"mask": None}, r"mask: expected \(B,L\) bool, true = real token, got None"),
]


@pytest.mark.parametrize("name", ["clip", "filip", "clip_filip", "pacl", "gloria", "mgca", "siglip", "flair", "sparc"])
@pytest.mark.parametrize(("change", "message"), BAD, ids=[next(iter(c)) + f" {i}" for i, (c, _) in enumerate(BAD)])
def test_bad_input_is_refused_by_name(name, change, message, rng):
    x, mask = draw(name, rng)
    if "theta" in change and name == "clip_filip":
        change = {"theta": change["theta"], "theta_filip": np.asarray(1.0)}
    x = x | {"mask": mask} | change
    with pytest.raises(ValueError, match=message):
        call(name, x, x.pop("mask"))


@pytest.mark.parametrize(("name", "missing"), [
    ("clip", "theta"), ("filip", "theta"), ("pacl", "pacl.down.weight"), ("gloria", "theta"), ("mgca", "theta_cross"),
    ("mgca", "mgca.prototypes"), ("mgca", "mgca.word.key.weight"), ("siglip", "logit_bias"),
    ("flair", "flair.out.bias"), ("sparc", "theta")])
def test_a_missing_parameter_is_named(name, missing, rng):
    x, mask = draw(name, rng)
    del x[missing]
    with pytest.raises(ValueError, match=f"params: expected .*{missing} is missing"):
        call(name, x, mask)


OPTIONS = [
    ("filip", {"keep": 0.0}, r"keep: expected a share of tokens in \(0, 1\], got 0.0"),
    ("filip", {"drop_side": "query"}, "drop_side: expected one of gathered, both; got 'query'"),
    ("filip", {"select": "all"}, "select: expected one of batch, pair"),
    ("filip", {"ties": "last"}, "ties: expected one of share, first"),
    ("filip", {"chunk": 0}, "chunk: expected at least 1"),
    ("pacl", {"pairs": "own"}, "pairs: expected one of all, matched"),
    ("pacl", {"values": "raw"}, "values: expected one of plain, unit"),
    ("pacl", {"weight_scale": float("nan")}, "weight_scale: expected at least 0"),
    ("gloria", {"similarity": "cosine"}, "similarity: expected one of scaled, dot"),
    ("gloria", {"agg": "max"}, "agg: expected one of sum, mean"),
    ("gloria", {"temp2": 0.0}, "temp2: expected a positive number, got 0.0"),
    ("mgca", {"attention": "none"}, "attention: expected one of mha, paramfree"),
    ("mgca", {"normalize": "none"}, "normalize: expected one of word, both"),
    ("mgca", {"epsilon": 0.0}, "epsilon: expected a positive number"),
    ("sparc", {"align": "hard"}, "align: expected one of minmax, no_threshold, softmax"),
]


@pytest.mark.parametrize(("name", "options", "message"), OPTIONS, ids=[f"{n} {o}" for n, o, _ in OPTIONS])
def test_unknown_options_are_named(name, options, message, rng):
    x, mask = draw(name, rng)
    params = {n: p for n, p in x.items() if n not in EMBEDDINGS}
    with pytest.raises(ValueError, match=message):
        getattr(objectives, name)(params, x["v"], x["t"], mask, x["v_bar"], x["t_bar"], **options)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["clip", "filip", "pacl", "gloria", "mgca", "siglip", "flair", "sparc"])
def test_nan_is_never_silent(name, rng):
    x, mask = draw(name, rng)
    for n in EMBEDDINGS:
        bad = np.array(x[n])
        bad[(0,) * bad.ndim] = np.nan
        try:
            loss, _, back = call(name, x | {n: bad}, mask)
            grads = back()
        except ArithmeticError as error:
            assert "NaN or infinite" in str(error)
        else:                                             # an input that the objective does not use
            assert np.isfinite(loss) and not grads[n].any()
