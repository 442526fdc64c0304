"""What must hold of the objectives whatever their numbers are: where they are the same, what stays, what never counts."""

import importlib

import numpy as np
import pytest
import torch
from drawn import embeddings, parameters
from test_objectives import CASES, call, draw
from witness import close

from parity import oracle_objectives
from sparc_ref import objectives
from sparc_ref.losses import global_loss
from sparc_ref.model import SPARCConfig
from sparc_ref.objectives.filip import late_interaction
from sparc_ref.objectives.gloria import log_sum_exp
from sparc_ref.objectives.mgca import sinkhorn

THETA = {"theta": np.asarray(1.3)}


def same(a, b, names, factor=1.0, tolerance=1e-13):
    """Two results (loss, parts, back): value and gradients of the inputs that `names` pairs up."""
    close(a[0], factor * b[0], "loss", tolerance)
    da, db = a[2](0.7), b[2](0.7)
    for left, right in names.items():
        close(np.reshape(da[left], db[right].shape), factor * db[right], left, tolerance)


def run(objective, x, params, **options):
    return getattr(objectives, objective)(params, x["v"], x["t"], x["mask"], x["v_bar"], x["t_bar"], **options)


def single(rng):
    """One patch and one token a pair, which are also the global embeddings."""
    x = embeddings(rng, (1, 1, 1, 1), tokens=1, patches=1)
    return x | {"v_bar": x["v"][:, 0], "t_bar": x["t"][:, 0]}


@pytest.mark.parametrize("keep", [1.0, 0.2])
def test_filip_of_one_patch_and_one_token_is_clip(rng, keep):
    x = single(rng)
    same(run("filip", x, THETA, keep=keep), run("clip", x, THETA), {"v": "v_bar", "t": "t_bar", "theta": "theta"})


@pytest.mark.parametrize("pairs", ["all", "matched"])
def test_pacl_of_one_patch_is_clip(rng, pairs):
    x = single(rng)
    same(run("pacl", x, THETA, pairs=pairs), run("clip", x, THETA), {"v": "v_bar", "t_bar": "t_bar", "theta": "theta"})


def test_mgca_of_its_first_term_is_twice_clip(rng):
    x = embeddings(rng)
    got = run("mgca", x, THETA, lambda_cta=0.0, lambda_cpa=0.0)
    same(got, run("clip", x, THETA), {n: n for n in ("v", "t", "v_bar", "t_bar", "theta")}, 2.0)


def test_gloria_of_one_patch_and_one_token_is_cross_entropy_of_scaled_cosines(rng):
    """temp2 temp3 phi: the two temperatures multiply; 2 L_g of the same embeddings is added."""
    x = single(rng)
    params = THETA | {"theta_local": np.asarray(0.6), "theta_words": np.asarray(0.8)}
    loss, parts, _ = run("gloria", x, params)
    expected = global_loss(x["v_bar"], x["t_bar"], 0.6 + 0.8)[0]
    close(parts["loss_local"], 2 * expected, "local", 1e-13)
    close(loss, parts["loss_local"] + 2 * global_loss(x["v_bar"], x["t_bar"], 1.3)[0], "loss", 1e-13)


def test_sparc_is_the_models_loss_to_the_last_bit(rng):
    """Eq. 7 with the configuration's defaults, as sparc_ref.model computes it."""
    from sparc_ref.losses import fine_grained_loss

    x, config = embeddings(rng), SPARCConfig()
    loss, _, back = run("sparc", x, THETA)
    loss_g, _, back_g = global_loss(x["v_bar"], x["t_bar"], THETA["theta"])
    loss_f, _, back_f = fine_grained_loss(x["v"], x["t"], x["mask"], THETA["theta"], **config.align_options)
    assert loss == config.lambda_g * loss_g + config.lambda_f * loss_f
    grads, (dv, dt, _) = back(0.7), back_f(config.lambda_f * 0.7)
    assert np.array_equal(grads["v"], dv) and np.array_equal(grads["t"], dt)
    assert np.array_equal(grads["v_bar"], back_g(config.lambda_g * 0.7)[0])


def test_keeping_every_token_is_no_dropping(rng):
    """keep = 1 takes another path than a share that rounds up to every token."""
    x = embeddings(rng)
    every = {n: n for n in ("v", "t", "theta")}
    for side in ("gathered", "both"):
        same(run("filip", x, THETA, keep=1.0), run("filip", x, THETA, keep=0.99, drop_side=side), every)


def test_dropping_is_seen(rng):
    x = embeddings(rng)
    losses = [float(run("filip", x, THETA, **o)[0]) for o in (
        {"keep": 1.0}, {"keep": 0.2}, {"keep": 0.2, "drop_side": "both"}, {"keep": 0.2, "select": "pair"})]
    assert np.min(np.abs(np.subtract.outer(losses, losses)[~np.eye(4, dtype=bool)])) > 1e-3


@pytest.mark.parametrize("ties", ["share", "first"])
def test_a_tied_maximum(rng, ties):
    """Two tokens alike: each has half of the gradient, or the first has it all; torch's amax and max do the same."""
    q, k = rng.standard_normal((2, 3, 2)), rng.standard_normal((2, 3, 2))
    k[:, 1] = k[:, 0]
    every = np.ones((2, 3), bool)
    dscores = rng.standard_normal((2, 2))
    dq, dk = late_interaction(q, every, k, every, ties)[1](dscores)
    leaves = [torch.tensor(x, requires_grad=True) for x in (q, k)]
    a = torch.einsum("ind,jmd->ijnm", *leaves)
    score = (a.amax(-1) if ties == "share" else a.max(-1).values).mean(-1)
    score.backward(torch.tensor(dscores))
    close(dq, leaves[0].grad.numpy(), "dq")
    close(dk, leaves[1].grad.numpy(), "dk")
    assert np.abs(dk[:, 0]).max() > 1e-3 and (np.abs(dk[:, 1]).max() > 1e-3) == (ties == "share")


def test_codes_are_what_the_public_code_computes(rng):
    """The same matrix by divisions, in float64; columns sum to 1, rows are balanced within a few per cent."""
    scores = np.clip(rng.standard_normal((64, 500)) / 6, -1, 1)
    codes = sinkhorn(scores)
    close(codes, oracle_objectives.sinkhorn(torch.tensor(scores)).numpy(), "codes", 1e-12)
    close(codes.sum(1), np.ones(64), "samples", 1e-14)
    balance = codes.sum(0) * 500 / 64
    assert 0.8 < balance.min() < 0.99 and 1.01 < balance.max() < 1.2
    close(sinkhorn(np.full((4, 5), 0.3)), np.full((4, 5), 0.2), "constant scores", 1e-14)
    assert np.all(np.isfinite(sinkhorn(np.asarray(scores * 300, np.float32))))


def test_frozen_prototypes_get_no_gradient(rng):
    x, params = embeddings(rng), parameters(rng, "theta", "theta_cross", "mgca")
    free, frozen = (run("mgca", x, params, freeze_prototypes=f)[2](0.7) for f in (False, True))
    assert np.abs(free["mgca.prototypes"]).max() > 1e-3 and not frozen["mgca.prototypes"].any()
    assert all(np.array_equal(free[n], frozen[n]) for n in free if n != "mgca.prototypes")


@pytest.mark.parametrize("junk", [1e30, np.nan])
@pytest.mark.parametrize("name", CASES)
def test_padding_is_inert(name, junk, rng):
    """To the last bit, whatever padded tokens hold; padding gets no gradient."""
    x, mask = draw(name, rng)
    loss, parts, back = call(name, x, mask)
    loss2, parts2, back2 = call(name, x | {"t": np.where(mask[..., None], x["t"], junk)}, mask)
    assert loss == loss2
    assert all(np.array_equal(parts[n], parts2[n]) for n in parts)
    grads, grads2 = back(0.7), back2(0.7)
    assert all(np.array_equal(grads[n], grads2[n]) for n in grads)
    assert not grads["t"][~mask].any()


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][2].get("keep", 1) == 1 and name != "filip"])
def test_more_padding_changes_nothing(name, rng):
    x, mask = draw(name, rng)
    longer = x | {"t": np.pad(x["t"], ((0, 0), (0, 3), (0, 0)), constant_values=9.0)}
    same(call(name, longer, np.pad(mask, ((0, 0), (0, 3)))), call(name, x, mask), {n: n for n in x if n != "t"})


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_more_padding_changes_nothing_where_tokens_are_dropped(keep, rng):
    """How many tokens are kept follows a caption's real ones, not what it is padded to."""
    x = embeddings(rng)
    longer = x | {"t": np.pad(x["t"], ((0, 0), (0, 6), (0, 0))), "mask": np.pad(x["mask"], ((0, 0), (0, 6)))}
    same(run("filip", longer, THETA, keep=keep), run("filip", x, THETA, keep=keep), {"v": "v", "theta": "theta"})


@pytest.mark.parametrize("name", ["filip", "filip both", "filip pair", "gloria", "gloria double", "gloria mean"])
def test_a_pair_without_a_word_is_as_if_it_were_not_there(name, rng):
    x, mask = draw(name, rng, (3, 0, 5, 2))
    left = np.array([0, 2, 3])
    fewer = {n: p[left] if n in ("v", "t") else p for n, p in x.items()}
    fewer |= {n: x[n][left] for n in ("v_bar", "t_bar")}
    _, parts, back = call(name, x, mask)
    _, parts2, back2 = call(name, fewer, mask[left])
    key = "loss_local" if "gloria" in name else "loss_image"
    close(parts[key] if parts[key].ndim == 0 else parts[key][left], parts2[key], key, 1e-13)
    close(back(0.7)["v"][left], back2(0.7)["v"], "dv", 1e-12)
    assert not back(0.7)["v"][1].any()


@pytest.mark.parametrize("name", CASES)
def test_permuting_the_batch(name, rng):
    x, mask = draw(name, rng)
    order = rng.permutation(len(mask))
    per_sample = ("v", "t", "v_bar", "t_bar")
    moved = {n: p[order] if n in per_sample else p for n, p in x.items()}
    loss, _, back = call(name, x, mask)
    loss2, _, back2 = call(name, moved, mask[order])
    close(loss2, loss, "loss", 1e-13)
    grads, grads2 = back(0.7), back2(0.7)
    for n in grads:
        close(grads2[n], grads[n][order] if n in per_sample else grads[n], n, 1e-12)


@pytest.mark.parametrize("name", CASES)
def test_permuting_patches_and_tokens(name, rng):
    x, mask = draw(name, rng)
    patches, tokens = rng.permutation(x["v"].shape[1]), rng.permutation(x["t"].shape[1])
    moved = x | {"v": x["v"][:, patches], "t": x["t"][:, tokens]}
    loss, _, back = call(name, x, mask)
    loss2, _, back2 = call(name, moved, mask[:, tokens])
    close(loss2, loss, "loss", 1e-13)
    close(back2(0.7)["v"], back(0.7)["v"][:, patches], "dv", 1e-12)
    close(back2(0.7)["t"], back(0.7)["t"][:, tokens], "dt", 1e-12)


@pytest.mark.parametrize("name", ["mgca", "mgca paramfree", "sparc"])
def test_token_alignment_needs_no_batch(name, rng):
    """The local parts of SPARC and MGCA are means over single samples: any split of the batch gives the same."""
    part = "loss_fine" if name == "sparc" else "loss_cta"
    x, mask = draw(name, rng)

    def local(rows):
        return call(name, {n: p[rows] if n in ("v", "t", "v_bar", "t_bar") else p for n, p in x.items()}, mask[rows])[1][part]

    close(np.mean([local(slice(0, 2)), local(slice(2, 4))]), local(slice(0, 4)), part, 1e-13)


def test_long_captions_are_favoured_by_the_sum_and_not_by_the_mean():
    """One word said twice: log 2 more under agg="sum"."""
    q = np.array([[0.3, 0.3, 9.0]])
    once, twice = np.array([[True, False, False]]), np.array([[True, True, False]])
    assert np.isclose(log_sum_exp(q, twice)[0] - log_sum_exp(q, once)[0], np.log(2), atol=1e-15)
    assert log_sum_exp(q, np.zeros((1, 3), bool))[0] == 0


@pytest.mark.parametrize("name", ["filip", "pacl", "gloria", "flair"])
def test_scores_of_a_batch_are_those_of_any_pictures_and_captions(name, rng):
    """The scoring rules take other numbers of captions than of pictures, and one pair at a time says the same."""
    x, mask = draw(name, rng)
    params = {n: p for n, p in x.items() if n not in ("v", "t", "v_bar", "t_bar")}
    rule = getattr(importlib.import_module(f"sparc_ref.objectives.{name}"), f"{name}_scores")

    def scores(pictures, captions):
        return rule(params, x["v"][pictures], x["t"][captions], mask[captions], x["v_bar"][pictures], x["t_bar"][captions])

    whole = scores(slice(0, 4), slice(0, 3))
    for i in range(4):
        for j in range(3):
            for k in (0, 1):
                close(scores(slice(i, i + 1), slice(j, j + 1))[k][0, 0], whole[k][i, j], f"{i} {j}", 1e-13)
    assert whole[0].shape == (4, 3)
