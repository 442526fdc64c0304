"""The trainer's losses against the reference and the oracle; the step: accumulation, clipping, AdamW."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_model import TOY, make
from test_trainer_model import all_close, one_thread  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode
from witness import close

from parity import oracle
from parity.trainer import optim
from parity.trainer.loss import RowCrossEntropy, fine_grained_loss, global_loss, reported, sparc_loss
from parity.trainer.model import SPARC, dump_grads, dump_params, load_params
from sparc_ref import forward, losses
from sparc_ref import optim as reference_optim
from sparc_ref.alignment import align_patches

FORMS = {
    "plain": {"form": "plain"},
    "gathered": {"form": "gathered"},
    "chunked": {"form": "chunked"},  # 1024 columns: all at once
    **{f"chunked by {n}": {"form": "chunked", "chunk": n} for n in (1, 3, 7)},
}
FINE = {
    "default": {},
    "token": {"reduction": "token"},
    "sigma": {"sigma": 0.4},
    "cosine": {"similarity": "cosine"},
    "no threshold": {"align": "no_threshold"},
    "softmax": {"align": "softmax"},
    "on weights": {"threshold_on": "weights"},
    "on weights, none left": {"threshold_on": "weights", "sigma": 1.0},
    "zero": {"flat": "zero"},
    "zero, none left": {"flat": "zero", "threshold_on": "weights", "sigma": 1.0},
    "first": {"ties": "first"},
}
HALF = {"sigma": 0.5}
EDGES = [{}, {"ties": "first"}, {"flat": "zero"}, HALF, HALF | {"ties": "first"}, {"threshold_on": "weights"}]


def leaves(*arrays, dtype=torch.float64):
    return [torch.tensor(x, dtype=dtype, requires_grad=True) for x in arrays]


def pairs(rng, batch=7, width=6):
    """v_bar, t_bar of very different lengths, and theta."""
    return *(rng.standard_normal((batch, width)) * rng.uniform(0.1, 9, (batch, 1)) for _ in range(2)), np.asarray(2.1)


def samples(rng, lengths=(5, 3, 1, 0, 4, 2), patches=7, width=6):
    """v, t, mask, theta: patches of unequal length, padding in t, one caption of nothing else."""
    mask = np.arange(5) < np.array(lengths)[:, None]
    v = rng.standard_normal((len(lengths), patches, width)) * rng.uniform(0.3, 2, (len(lengths), patches, 1))
    return v, rng.standard_normal((*mask.shape, width)), mask, np.asarray(1.9)


def ties(rng, kind):
    """Small integers, so that similarities are exact: minima and maxima that tie, rows with all patches alike."""
    v, t, mask, theta = samples(rng)
    v, t = np.round(v), np.round(t)
    v[:, 3], v[:, 4], v[0, :] = v[:, 2], v[:, 1], v[0, 0]
    if kind == "sigma hit":                               # one column counts: s_hat is 0, 1/2 or 1
        v[..., 0], t[:] = np.arange(7) % 3, 0.0
        v[0, :, 0] = 1.0
        t[..., 0] = 2.0
    return v, t, mask, theta


@pytest.mark.parametrize("form", FORMS)
def test_global_loss(rng, form):
    for theta in (2.1, 0.0, math.log(100)):
        v_bar, t_bar, _ = pairs(rng)
        expected, trace, back = losses.global_loss(v_bar, t_bar, np.asarray(theta))
        ours = leaves(v_bar, t_bar, theta)
        loss, stages = global_loss(*ours, **FORMS[form])
        dloss = float(rng.standard_normal())
        loss.backward(torch.tensor(dloss, dtype=torch.float64))
        close(loss.detach(), expected, "loss", 1e-14)
        assert stages.keys() == trace.keys() - ({"logits"} if "chunked" in form else set())
        for name, x in stages.items():
            close(x.detach(), trace[name], name)
        for name, leaf, gradient in zip(("v_bar", "t_bar", "theta"), ours, back(dloss)):
            close(leaf.grad, gradient, name)
        second = leaves(v_bar, t_bar, theta)
        oracle.global_loss(*second).backward(torch.tensor(dloss, dtype=torch.float64))
        for leaf, other in zip(ours, second):
            close(leaf.grad, other.grad, "against the oracle")


def test_row_cross_entropy_has_the_gradient_of_its_value(rng):
    x, y, theta = leaves(rng.standard_normal((3, 4)), rng.standard_normal((8, 4)), 0.3)
    for chunk in (1, 3, 8):
        assert torch.autograd.gradcheck(lambda *a, chunk=chunk: RowCrossEntropy.apply(*a, 2, chunk), (x, y, theta))


def test_row_cross_entropy_where_exp_would_overflow():
    x, y, theta = leaves(np.eye(3), -np.eye(3), 7.0)       # z down to -1097, and 0: exp(-z) is beyond float64
    RowCrossEntropy.apply(x, y, theta, 0, 2).sum().backward()
    second = leaves(np.eye(3), -np.eye(3), 7.0)
    logits = second[2].exp() * second[0] @ second[1].T
    torch.nn.functional.cross_entropy(logits, torch.arange(3), reduction="sum").backward()
    for leaf, other in zip((x, y, theta), second):
        close(leaf.grad, other.grad, "gradient")


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, forward or backward."""

    def __enter__(self):
        self.numbers = 0
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


def test_chunks_never_hold_the_whole(rng):
    v_bar, t_bar, theta = pairs(rng, batch=40)
    made = {}
    for form, how in FORMS.items():
        with Largest() as largest:
            global_loss(*leaves(v_bar, t_bar, theta), **how)[0].backward()
        made[form] = largest.numbers
    assert made["plain"] == made["gathered"] == made["chunked"] == 40 * 40
    assert made["chunked by 7"] == 40 * 7 and made["chunked by 3"] == made["chunked by 1"] == 40 * 6  # 6 is the width

    v, t, mask, theta = samples(rng, (5, 4) * 10, patches=50)
    for chunk, samples_at_once in ((None, 20), (8, 8), (3, 3)):
        with Largest() as largest:
            fine_grained_loss(*leaves(v, t), torch.tensor(mask), *leaves(theta), chunk=chunk)[0].backward()
        assert largest.numbers == max(20 * 50 * 6, samples_at_once * 5 * 50), chunk  # v itself, one chunk's similarity
    for chunk, expected in ((None, 20 * 5 * 50), (8, 8 * 5 * 50)):
        with Largest() as largest:
            fine_grained_loss(*leaves(v[..., :2], t[..., :2]), torch.tensor(mask), *leaves(theta), chunk=chunk)[0].backward()
        assert largest.numbers == expected


def test_chunks_keep_nothing_for_backward(rng):
    """Between forward and backward a chunked loss holds its inputs and a few numbers a row, not its stages."""
    v_bar, t_bar, theta = leaves(*pairs(rng, batch=40))
    v, t, mask, _ = samples(rng, (5, 4) * 10, patches=50)
    v, t = leaves(v[..., :2], t[..., :2])

    def kept(loss, *inputs, **options):
        numbers = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: numbers.append(x.numel()) or x, lambda x: x):
            loss(*inputs, theta, **options)
        return sum(numbers)

    assert kept(global_loss, v_bar, t_bar) > 2 * 40 * 40 > kept(global_loss, v_bar, t_bar, form="chunked", chunk=8)
    fine = fine_grained_loss, v, t, torch.tensor(mask)
    assert kept(*fine) > 4 * 20 * 5 * 50 > 20 * 5 * 50 > kept(*fine, chunk=8)


@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
@pytest.mark.parametrize("name", FINE)
def test_fine_grained_loss(rng, name, chunk):
    against_reference(rng, samples(rng), FINE[name], chunk)


@pytest.mark.parametrize("kind", ["ties", "sigma hit"])
@pytest.mark.parametrize("options", EDGES)
def test_knife_edges(rng, kind, options):
    """Tied extrema, flat rows, a similarity exactly at the threshold: the same choice as the reference's, to the bit."""
    inputs = ties(rng, kind)
    s = align_patches(inputs[1], inputs[0], inputs[2])[1]["similarity"][inputs[2]]
    assert ((s == s.max(-1, keepdims=True)).sum(-1) > 1).any() and (s.max(-1) == s.min(-1)).any()
    against_reference(rng, inputs, options, None)


def against_reference(rng, inputs, options, chunk):
    v, t, mask, theta = inputs
    dloss = float(rng.standard_normal())
    expected, trace, back = losses.fine_grained_loss(v, t, mask, theta, **options)
    ours = leaves(v, t, theta)
    loss, stages = fine_grained_loss(*ours[:2], torch.tensor(mask), ours[2], chunk=chunk, **options)
    loss.backward(torch.tensor(dloss, dtype=torch.float64))
    close(loss.detach(), expected, "loss")
    assert stages.keys() == (trace.keys() if chunk is None else {"loss_vt", "loss_tv"})
    for name, x in stages.items():
        close(x.detach(), trace[name], name)
    names = ("v", "t", "theta")
    gradients = {name: leaf.grad.numpy() for name, leaf in zip(names, ours)}
    all_close(gradients, dict(zip(names, back(dloss))))
    assert not ours[1].grad[~torch.tensor(mask)].any()
    second = leaves(v, t, theta)
    again = oracle.fine_grained_loss(*second[:2], torch.tensor(mask), second[2], **options)
    again.backward(torch.tensor(dloss, dtype=torch.float64))
    all_close(gradients, {name: leaf.grad.numpy() for name, leaf in zip(names, second)})


def test_flat_rows_as_nan(rng):
    v, t, mask, theta = ties(rng, "ties")
    loss, stages = fine_grained_loss(*leaves(v, t), torch.tensor(mask), *leaves(theta), flat="nan")
    _, trace, _ = losses.fine_grained_loss(v, t, mask, theta, flat="nan")
    assert loss.isnan() and np.array_equal(stages["weights"].isnan().numpy(), np.isnan(trace["weights"]))
    v, t, mask, theta = samples(rng)                      # no flat row but padding's, and they are not among the undefined
    assert fine_grained_loss(*leaves(v, t), torch.tensor(mask), *leaves(theta), flat="nan")[0].isfinite()


@pytest.mark.parametrize("chunk", [None, 2])
def test_padding_is_inert_whatever_it_holds(rng, chunk):
    v, t, mask, theta = samples(rng)
    results = []
    for filler in (0.0, 1e30, math.inf, math.nan):
        ours = leaves(v, np.where(mask[..., None], t, filler), theta)
        loss, _ = fine_grained_loss(*ours[:2], torch.tensor(mask), ours[2], chunk=chunk)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in ours)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_no_real_token_at_all(rng):
    v, t, mask, theta = samples(rng, (0, 0, 0))
    for reduction in ("sample", "token"):
        ours = leaves(v, t, theta)
        with torch.autograd.detect_anomaly(check_nan=True):  # no NaN on the way either
            loss, _ = fine_grained_loss(*ours[:2], torch.tensor(mask), ours[2], reduction=reduction)
            loss.backward()
        assert loss == 0 and not any(leaf.grad.any() for leaf in ours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_and_autocast_are_computed_in_float32(rng, dtype):
    v, t, mask, theta = samples(rng)
    v_bar, t_bar, _ = pairs(rng)
    narrow = leaves(v, t, v_bar, t_bar, theta, dtype=dtype)
    wide = [x.detach().float().requires_grad_() for x in narrow]
    results = []
    for x, autocast in ((wide, False), (narrow, False), (narrow, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            fine, _ = fine_grained_loss(*x[:2], torch.tensor(mask), x[4], chunk=2 if autocast else None)
            both = [global_loss(*x[2:], **how)[0] for how in FORMS.values()]
        assert {loss.dtype for loss in (fine, *both)} == {torch.float32}
        results.append([fine.detach(), *(loss.detach() for loss in both)])
        for leaf in x:
            leaf.grad = None
        (fine + sum(both)).backward()
        assert all(leaf.grad.dtype == leaf.dtype for leaf in x)
    for other in results[1:]:
        for a, b in zip(other, results[0]):
            close(a, b, "loss", 1e-6)
    for a, b in zip(narrow[:4], wide[:4]):
        close(a.grad.float(), b.grad, "gradient", 2 * torch.finfo(dtype).eps)  # one rounding, on the way out


def test_stages_are_part_of_the_graph(rng):
    """A ladder asks for the gradient that arrives at any stage."""
    v, t, mask, theta = samples(rng)
    v_bar, t_bar, _ = leaves(*pairs(rng))
    fine, stages = fine_grained_loss(*leaves(v, t), torch.tensor(mask), *leaves(theta))
    loss, more = global_loss(v_bar, t_bar, torch.tensor(2.0))
    named = stages | more
    for (name, x), d in zip(named.items(), torch.autograd.grad(fine + loss, list(named.values()))):
        assert d.shape == x.shape and d.isfinite().all() and d.any(), name


def test_both_losses_as_one(rng):
    """Eq. 7, and what is left out where lambda_f is 0."""
    v, t, mask, _ = samples(rng)
    v_bar, t_bar, _ = pairs(rng, batch=6)
    embeddings = dict(zip(("v", "t", "v_bar", "t_bar"), leaves(v, t, v_bar, t_bar)))
    theta, theta_fine = leaves(2.0, 1.0)
    config = replace(TOY, lambda_g=0.3, lambda_f=1.7, reduction="token", ties="first", sigma=0.2)
    loss, stages = sparc_loss(embeddings, torch.tensor(mask), theta, theta_fine, config)
    close(loss.detach(), (0.3 * stages["loss_global"] + 1.7 * stages["loss_fine"]).detach(), "loss", 1e-15)
    alone = fine_grained_loss(embeddings["v"], embeddings["t"], torch.tensor(mask), theta_fine, reduction="token", sigma=0.2)[0]
    close(stages["loss_fine"].detach(), alone.detach(), "fine", 1e-15)
    _, stages = sparc_loss(embeddings, torch.tensor(mask), theta, None, replace(config, lambda_f=0.0))
    assert set(stages) == {"loss_global", "logits", "loss_image", "loss_text"}
    assert reported(loss) == loss.detach() and not reported(loss).requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: global_loss(x[0, 0], x[0], x.sum()), r"v_bar, t_bar: expected \(B,D\) alike, got \(4,\) and \(3, 4\)"),
        (lambda x: global_loss(x[0], x[0], x.sum(), form="local"), "form: expected one of plain, gathered, chunked; got 'loc"),
        (lambda x: global_loss(x[0], x[0], x.sum(), form="chunked", chunk=0), "chunk: expected a positive number of columns"),
        (lambda x: fine_grained_loss(x, x[:1], x[0] > 0, x.sum()), r"v, t: expected \(B,P,D\) and \(B,L,D\)"),
        (lambda x: fine_grained_loss(x, x, x > 0, x.sum()), r"mask: expected bool \(2, 3\), got torch.bool \(2, 3, 4\)"),
        (lambda x: fine_grained_loss(x, x, x[..., 0], x.sum()), r"mask: expected bool \(2, 3\), got torch.float32"),
        (lambda x: fine_grained_loss(x, x, x[..., 0] > 0, x.sum(), sigma=1.1), r"sigma: expected a threshold in \[0, 1\]"),
        (lambda x: fine_grained_loss(x, x, x[..., 0] > 0, x.sum(), chunk=0), "chunk: expected a positive number of samples"),
        (lambda x: fine_grained_loss(x, x, x[..., 0] > 0, x.sum(), flat="eps"), "flat: expected one of uniform, zero, nan"),
    ],
)
def test_wrong_inputs_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3, 4))


def seven(rng, config=TOY):
    """Parameters and a batch of seven that no small number divides."""
    params, *first = make(rng, config)
    batch = [np.concatenate(x) for x in zip(first, make(rng, config)[1:], (x[1:2] for x in make(rng, config)[1:]))]
    return params, batch


@pytest.mark.parametrize("options", [{}, {"form": "chunked", "chunk": 3, "fine_chunk": 2}, {"form": "gathered"}])
@pytest.mark.parametrize("change", [{}, {"reduction": "token", "temperature": "separate"}, {"lambda_f": 0.0}])
def test_parts_of_a_batch_equal_the_whole(rng, change, options):
    config = replace(TOY, **change)
    params, batch = seven(rng, config)
    expected, _, back = forward(params, *batch, config)
    for accumulate in (1, 3, 7):
        model = load_params(SPARC(config, checkpoint=accumulate == 3).double(), params)
        loss = optim.backward(model, tuple(torch.tensor(x) for x in batch), accumulate=accumulate, **options)
        close(loss, expected, "loss")
        all_close(dump_grads(model), back())
    with pytest.raises(ValueError, match="accumulate: expected 1 to 7 parts, one sample each at least, got 8"):
        optim.backward(model, tuple(torch.tensor(x) for x in batch), accumulate=8)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ten_steps_equal_the_reference(rng, accumulate):
    """Random batches, a schedule, clipping that bites and clipping that does not, both thetas at their limits."""
    config = replace(TOY, temperature="separate")
    params, _ = seven(rng, config)
    params = {n: 0.5 * p if p.shape else np.asarray({"theta": 4.9, "theta_fine": -0.5}[n]) for n, p in params.items()}
    model = load_params(SPARC(config).double(), params)
    optimizer, state = optim.make_adamw(model, 1.0), reference_optim.adamw_init(params)
    limits = []
    for step in range(10):
        batch = seven(rng, config)[1]
        schedule = {"peak": 3e-2, "warmup": 3, "steps": 10, "final": 1e-4}
        lr, limit = optim.warmup_cosine(step, **schedule), None if step == 4 else (1e9 if step % 3 == 0 else 0.1)
        assert lr == reference_optim.warmup_cosine(step, **schedule)
        done = optim.train_step(model, tuple(torch.tensor(x) for x in batch), optimizer, lr, clip=limit, accumulate=accumulate)
        loss, _, back = forward(params, *batch, config)
        grads, norm = reference_optim.clip_by_global_norm(back(), math.inf if limit is None else limit)
        params, state = reference_optim.adamw_step(params, grads, state, lr)
        params = reference_optim.clamp_theta(params)
        close(done["loss"], loss, "loss")
        close(done["norm"], norm, "norm")
        for name, p in dump_params(model).items():
            close(p, params[name], f"{name} after step {step}")  # measured 6e-14 over five seeds
        limits += [model.theta.item() == math.log(100), model.theta_fine.item() == 0]
    assert all(limits[:2]) and optimizer.param_groups[0]["lr"] == lr


def test_what_decays_is_what_the_reference_says():
    model = SPARC(replace(TOY, temperature="separate"))
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = optim.make_adamw(model, 1e-3, weight_decay=0.3)
    groups = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
    assert groups[0.3] == {name for name in model.state_dict() if reference_optim.decays(name)}
    assert groups[0.0] == {name for name in model.state_dict() if not reference_optim.decays(name)}
    assert all(g["betas"] == (0.9, 0.98) and g["eps"] == 1e-6 and not g["fused"] for g in optimizer.param_groups)
    assert optim.make_adamw(model, 1e-3, fused=True).param_groups[0]["fused"]


def test_a_wrapped_model_is_stepped_too(rng):
    torch._dynamo.reset()
    params, batch = seven(rng)
    batch = tuple(torch.tensor(x) for x in batch)
    results = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, backend="eager")):
        model = load_params(SPARC(TOY).double(), params)
        done = optim.train_step(wrap(model), batch, optim.make_adamw(model, 1.0), 1e-3, autocast=None, accumulate=2)
        results.append({"loss": done["loss"].numpy(), **dump_params(model)})
    all_close(results[1], results[0], 1e-14)
    model = load_params(SPARC(TOY), params)
    done = optim.train_step(model, (batch[0].float(), *batch[1:]), optim.make_adamw(model, 1.0), 1e-3, autocast=torch.bfloat16)
    assert done["loss"].dtype == torch.float32 and abs(done["loss"].item() / results[0]["loss"] - 1) < 0.1
