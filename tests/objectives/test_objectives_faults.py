"""The witnesses must be able to fail: a fault planted in each objective's value or gradient, one at a time, and seen."""

import importlib

import numpy as np
import pytest
import torch
from drawn import EMBEDDINGS
from test_faults import planted
from test_objectives import CASES, draw, ours, theirs
from witness import close

from sparc_ref.objectives import shared

FAULTS = [  # a case, the file, right, wrong
    ("filip", "filip", "back_v(dkept_v) if gathered", "0 * back_v(dkept_v) if gathered"),
    ("filip", "filip", "theta: dtheta_i + dtheta_t}", "theta: 2 * dtheta_i}"),
    ("filip all", "filip", "xp.where(k_real[part, :], a, -xp.inf)", "a"),
    ("filip", "filip", "descending=True", "descending=False"),
    ("filip all", "filip", "weight = (weight / xp.where(total == 0, 1.0, total))[:, :, None]",
     "weight = xp.ones_like(weight)[:, :, None] / weight.shape[1]"),
    ("filip all", "filip", "(xp.reshape(da.T @ asking, (m, K, D)),)", "(0.99 * xp.reshape(da.T @ asking, (m, K, D)),)"),
    ("filip both", "filip", "dkept_t) if gathered else back_t(dask_t + dkept_t)", "dkept_t) if gathered else back_t(dkept_t)"),
    ("clip_filip", "filip", "back_f(weight_filip * float(dloss))", "back_f(weight_clip * float(dloss))"),
    ("pacl", "pacl", "return dv + de, g", "return dv, g"),
    ("pacl", "pacl", "xp.where(on, dh, 0.0)", "dh"),
    ("pacl", "pacl", "+ dlength[..., None] * e_hat + dbase", "+ dbase"),
    ("pacl", "pacl", "dbase = 2 * (dgram @ base)", "dbase = dgram @ base"),
    ("pacl learned", "pacl", "\"theta_pool\": dk * k", "\"theta_pool\": dk"),
    ("pacl matched", "pacl", "dphi.T @ u_hat + xp.sum(ds * e_hat, axis=1)", "dphi.T @ u_hat"),
    ("gloria", "gloria", "dnum * r + 2 * dsquare * ag", "dnum * r"),
    ("gloria", "gloria", "return dv + 2 * (dgram @ v)", "return dv"),
    ("gloria", "gloria", "(xp.reshape(dlength, (m, L)) / length[part, :])", "(0 * xp.reshape(dlength, (m, L)))"),
    ("gloria", "gloria", "scale = 1 / math.sqrt(D)", "scale = 1 / D"),
    ("gloria learned", "gloria", "dtemp1 * xp.exp(theta1)", "dtemp1"),
    ("gloria double", "gloria", "ops.softmax(by_word, own[:, None, :])", "ops.softmax(by_word)"),
    ("mgca", "mgca", "back_v(dv_hat + dv_seen + dv_asked)", "back_v(dv_hat + dv_asked)"),
    ("mgca", "mgca", "return dasking, dseen_k + dseen_u, g", "return dasking, dseen_u, g"),
    ("mgca", "mgca", "a, back_a = ops.softmax(scale * (q @ T(k)), columns)", "a, back_a = ops.softmax(scale * (q @ T(k)))"),
    ("mgca", "mgca", "diagonal_cross_entropy(T(z), columns)", "diagonal_cross_entropy(T(z))"),
    ("mgca", "mgca", "do_v = back_log_v(-q_t", "do_v = back_log_v(-q_v"),
    ("mgca", "mgca", "do_v.T @ v_hat + do_t.T @ t_hat", "do_v.T @ v_hat"),
    ("mgca paramfree", "mgca", "T(ds) @ asking + T(a) @ dy, {}", "T(a) @ dy, {}"),
    ("siglip", "siglip", "xp.sum(each) / B", "xp.mean(each)"),
    ("siglip", "siglip", "return dscores, dtheta, xp.sum(dz)", "return dscores, dtheta, 0 * xp.sum(dz)"),
    ("siglip", "siglip", "xp.where(wrong > 0, 1.0, e) / (1 + e)", "e / (1 + e)"),
    ("flair", "flair", "dv + dv_k, dt_bar, dt_hat, g", "dv, dt_bar, dt_hat, g"),
    ("flair", "flair", "dt_bar + back_t(dt_hat + dcosine.T @ v_hat)", "back_t(dt_hat + dcosine.T @ v_hat)"),
    ("flair", "flair", "dy + 2 * (dgram @ y)", "dy + dgram @ y"),
    ("flair", "flair", "scale * back_a(da)", "back_a(da)"),
    ("flair", "flair", "with_empty(k), q", "xp.concat([k, k[:, :1, :]], axis=1), q"),
    ("sparc separate", "sparc", "back_fine(lambda_f * float(dloss))", "back_fine(lambda_g * float(dloss))"),
]


@pytest.mark.parametrize(("name", "file", "right", "wrong"), FAULTS, ids=[f"{f[0]}: {f[3]}" for f in FAULTS])
def test_a_fault_is_seen(name, file, right, wrong, rng):
    faulty = planted(importlib.import_module(f"sparc_ref.objectives.{file}"), right, wrong)
    objective, _, options = CASES[name]

    def from_faulty(mask, **x):
        params = {n: p for n, p in x.items() if n not in EMBEDDINGS}
        loss, _, back = getattr(faulty, objective)(params, x["v"], x["t"], mask, x["v_bar"], x["t_bar"], **options)
        return loss, back

    x, mask = draw(name, rng)
    with pytest.raises(AssertionError):
        compare_with_oracle(from_faulty, x, mask, theirs(name))


@pytest.mark.parametrize("name", ["pacl", "flair"])
def test_a_fault_in_what_they_share_is_seen(name, rng, monkeypatch):
    faulty = planted(shared, "dnum * w + 2 * dsquare * ag", "dnum * w")
    monkeypatch.setattr(importlib.import_module(f"sparc_ref.objectives.{name}"), "cosine_of_mean", faulty.cosine_of_mean)
    x, mask = draw(name, rng)
    with pytest.raises(AssertionError):
        compare_with_oracle(ours(name), x, mask, theirs(name))


def compare_with_oracle(ours, x, mask, oracle):
    """Autograd's word alone: MGCA's codes do not hold still for differences."""
    y, back = ours(mask, **x)
    leaves = {n: torch.tensor(np.asarray(p), requires_grad=True) for n, p in x.items()}
    expected = oracle(torch.tensor(mask), **leaves)
    close(y, expected.detach().numpy(), "y")
    expected.backward(torch.tensor(0.7, dtype=torch.float64))
    grads = back(0.7)
    for n, leaf in leaves.items():
        close(grads[n], np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy(), n)
