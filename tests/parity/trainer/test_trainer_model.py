"""The trainer's model against the reference and the oracle: weights, stages and every gradient, however it is run."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_model import TOY, VARIANTS, make, variant
from witness import AUTOGRAD, close

from parity import oracle
from parity.trainer import model as trainer
from parity.trainer.loss import sparc_loss
from parity.trainer.model import SPARC, dump_grads, dump_params, load_params
from sparc_ref import PRESETS, forward, init_params
from sparc_ref.model import _pair, check_inputs, parameter_shapes

# In float64 the worst of what this file compares was measured as 5.6e-14, over three seeds; witness.AUTOGRAD is 1e-12.
WAYS = {
    "as it comes": {},
    "plain attention": {"attention": "plain"},
    "three products": {"fused_qkv": False},
    "checkpointed": {"checkpoint": True},
    "all three": {"attention": "plain", "fused_qkv": False, "checkpoint": True},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small gain nothing from a second one, and lose much where the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(config, params, batch, dloss=1.0, dtype=torch.float64, way=None, autocast=False, **options):
    """The trainer's loss, its stages and every gradient."""
    model = load_params(SPARC(config, **way or {}).to(dtype), params)
    images, tokens, mask = (torch.tensor(x) for x in batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(images.to(dtype), tokens, mask)
        loss, stages = sparc_loss(out, mask, model.theta, model.theta_fine, config, **options)
    loss.backward(torch.tensor(dloss, dtype=loss.dtype))
    return loss.detach(), {name: x.detach() for name, x in (out | stages).items()}, dump_grads(model)


def all_close(ours, theirs, tolerance=AUTOGRAD):
    """By name, each within `tolerance` of its largest entry; a tensor that is nothing but rounding, of the largest of all."""
    assert ours.keys() == theirs.keys()
    largest = max(np.max(np.abs(x), initial=0) for x in theirs.values())
    for name, x in theirs.items():
        if np.max(np.abs(x), initial=0) > 1e-10 * largest:
            close(ours[name], x, name, tolerance)
        else:
            assert np.max(np.abs(ours[name]), initial=0) <= tolerance * largest, name


@pytest.mark.parametrize("name", VARIANTS)
def test_every_stage_and_gradient(rng, name):
    config, shape = variant(name)
    params, *batch = make(rng, config, **shape)
    dloss = float(rng.standard_normal())
    expected, trace, back = forward(params, *batch, config)
    gradients = back(dloss)

    leaves = {n: torch.tensor(p, requires_grad=True) for n, p in params.items()}
    oracle.model(leaves, *(torch.tensor(x) for x in batch), config).backward(torch.tensor(dloss, dtype=torch.float64))
    second = {n: np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy() for n, leaf in leaves.items()}

    for way in WAYS.values():
        loss, stages, grads = run(config, params, batch, dloss, way=way)
        close(loss, expected, "loss")
        assert stages.keys() == trace.keys()
        for stage in trace:
            close(stages[stage], trace[stage], stage)
        assert list(grads) == list(params)                # forward order
        all_close(grads, gradients)
        all_close(grads, second)


@pytest.mark.parametrize("name", ["default", "pool all", "no h_v", "erf", "larger picture"])
def test_any_gradient_that_arrives_at_the_embeddings(rng, name):
    config, shape = variant(name)
    params, *batch = make(rng, config, **shape)
    images, tokens, mask = batch
    (_, v, v_bar, _, t, t_bar), back = _pair(params, config, *check_inputs(params, images, tokens, mask, config), mask)
    upstream = [rng.standard_normal(x.shape) for x in (v, v_bar, t, t_bar)]
    expected = back(*upstream)
    for way in WAYS.values():
        model = load_params(SPARC(config, **way).double(), params)
        out = model(*(torch.tensor(x) for x in batch))
        torch.autograd.backward([out[n] for n in ("v", "v_bar", "t", "t_bar")], [torch.tensor(d) for d in upstream])
        grads = dump_grads(model)
        all_close({n: grads[n] for n in expected}, expected)


def small(rng, batch=4):
    """The preset "small" with random parameters of trained sizes, and a padded batch."""
    config, params = PRESETS["small"], {}
    for name, shape in parameter_shapes(PRESETS["small"]).items():
        params[name] = rng.standard_normal(shape) * (shape[1] ** -0.5 if name.endswith("weight") and len(shape) == 2 else 0.3)
        if "norm" in name and name.endswith("weight"):
            params[name] += 1
    params |= {"text.embedding.weight": rng.standard_normal((2048, 192)), "theta": np.asarray(2.7)}
    images, mask = rng.standard_normal((batch, 3, 64, 64)), np.arange(16) < np.array([16, 9, 5, 1])[:, None]
    return config, params, [images, np.where(mask, rng.integers(0, 2048, mask.shape), -100), mask]


def test_preset_small_in_float64_and_float32(rng):
    config, params, batch = small(rng)
    expected, _, back = forward(params, *batch, config)
    gradients = back()
    loss, _, grads = run(config, params, batch)
    close(loss, expected, "loss", 1e-14)
    for name in gradients:
        close(grads[name], gradients[name], name, 1e-13)  # measured 2.4e-14
    loss, stages, grads = run(config, params, batch, dtype=torch.float32)
    assert {x.dtype for x in stages.values()} == {torch.float32} and {g.dtype for g in grads.values()} == {np.dtype("float32")}
    for name in gradients:
        close(grads[name], gradients[name], name, 5e-5)   # measured 8.7e-6 over two seeds


def test_weights_move_both_ways(rng):
    config = variant("separate temperatures")[0]
    params = init_params(config, rng)
    model = load_params(SPARC(config), params)
    assert list(model.state_dict()) == list(parameter_shapes(config)) == list(dump_params(model))
    for name, p in dump_params(model).items():
        assert p.dtype == np.float32 and p.shape == params[name].shape and np.array_equal(p, params[name])
    for p in params.values():
        p.flags.writeable = False
    other = load_params(SPARC(config), params)            # read-only, and back into the reference
    other.load_state_dict(model.state_dict())
    batch = make(rng, config)[1:]
    assert forward(dump_params(other), *batch, config)[0] == forward(params, *batch, config)[0]
    again = load_params(SPARC(config).bfloat16(), model.state_dict())
    assert {p.dtype for p in dump_params(again).values()} == {np.dtype("float32")}  # NumPy has no bfloat16
    dump_params(model)["theta"][...] = 0
    assert model.theta.item() != 0                        # a copy


def test_weights_that_do_not_fit_are_named(rng):
    params = init_params(TOY, rng)
    model = SPARC(TOY).double()
    before = dump_params(model)
    faulty = {n: p for n, p in params.items() if n != "h_v.bias"} | {"g_v.bias": np.zeros(8), "module.theta": np.zeros(())}
    with pytest.raises(ValueError, match=r"h_v\.bias is missing; module\.theta is unknown; g_v\.bias is \(8,\), not \(7,\)"):
        load_params(model, faulty)
    assert all(np.array_equal(p, before[n]) for n, p in dump_params(model).items())
    with pytest.raises(ValueError, match=r"vision\.patch\.weight is missing; .*, and 56 more"):
        load_params(model, {})


@pytest.mark.parametrize("way", WAYS)
def test_a_caption_of_padding_alone(rng, way):
    params, images, tokens, mask = make(rng, TOY)
    mask[1] = False
    for config in (TOY, replace(TOY, text_pool="all"), replace(TOY, reduction="token")):
        expected, trace, back = forward(params, images, tokens, mask, config)
        loss, stages, grads = run(config, params, (images, tokens, mask), way=WAYS[way])
        close(loss, expected, "loss")
        for name in trace:
            close(stages[name], trace[name], name)
        all_close(grads, back())
    mask[:] = False
    loss, _, grads = run(TOY, params, (images, tokens, mask), way=WAYS[way])
    assert torch.isfinite(loss) and all(np.isfinite(g).all() for g in grads.values())


def test_padding_is_inert(rng):
    params, images, tokens, mask = make(rng, TOY)
    first = run(TOY, params, (images, tokens, mask))
    for other in (2**40, -1, 12):
        again = run(TOY, params, (images, np.where(mask, tokens, other), mask))
        assert again[0] == first[0] and all(np.array_equal(again[2][n], g) for n, g in first[2].items())


@pytest.mark.parametrize(("name", "checkpoint"), [
    pytest.param("default", False, marks=pytest.mark.slow), ("larger picture", True)])
def test_compiled_whole_equals_eager(rng, name, checkpoint):
    """One graph, no break, forward and backward; code is generated for it in the slow test below."""
    torch._dynamo.reset()
    compiled(rng, name, "aot_eager", {"checkpoint": checkpoint})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "larger picture"])
def test_generated_code_equals_eager(rng, name):
    torch._dynamo.reset()
    compiled(rng, name, "inductor", {})


def compiled(rng, name, backend, way):
    config, shape = variant(name)
    config = replace(config, vision_depth=1, text_depth=1)
    params, *batch = make(rng, config, **shape)
    images, tokens, mask = (torch.tensor(x) for x in batch)
    model = load_params(SPARC(config, **way).double(), params)

    def loss_of(*batch):
        return sparc_loss(model(*batch), batch[2], model.theta, model.theta_fine, config)[0]

    loss = torch.compile(loss_of, fullgraph=True, backend=backend)(images, tokens, mask)
    loss.backward()
    expected, _, gradients = run(config, params, batch)
    close(loss.detach(), expected, "loss")
    all_close(dump_grads(model), gradients)


def test_autocast_is_finite_and_close(rng):
    """Measured over three batches: the loss off by 2.6e-4, gradients by 0.03 in the median over tensors and 0.09 at most."""
    config, params, batch = small(rng)
    expected, _, gradients = run(config, params, batch, dtype=torch.float32)
    for way in (WAYS["as it comes"], WAYS["all three"]):
        loss, stages, grads = run(config, params, batch, dtype=torch.float32, way=way, autocast=True)
        assert stages["v"].dtype == torch.bfloat16 and loss.dtype == torch.float32
        assert {stages[n].dtype for n in ("similarity", "weights", "logits", "loss_vt")} == {torch.float32}
        assert abs(loss / expected - 1) < 1e-3
        off = {n: np.linalg.norm(g - gradients[n]) / np.linalg.norm(gradients[n]) for n, g in grads.items()}
        assert {g.dtype for g in grads.values()} == {np.dtype("float32")}
        assert max(off.values()) < 0.3 and np.median(list(off.values())) < 0.1  # NaN is below nothing


def test_initial_weights(rng):
    config = PRESETS["tiny"]
    drawn, reference = dump_params(trainer.init_weights(SPARC(config), 3)), init_params(config, rng)
    for name, p in reference.items():
        spread = np.std(p)
        assert abs(np.std(drawn[name]) - spread) < 0.15 * spread + 1e-7, name
        assert abs(np.mean(drawn[name]) - np.mean(p)) < 0.2 * spread + 1e-7, name
    again, other = (dump_params(trainer.init_weights(SPARC(config), seed)) for seed in (3, 4))
    assert all(np.array_equal(p, again[name]) for name, p in drawn.items())
    assert not np.array_equal(other["g_v.weight"], drawn["g_v.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 3, 13, 12)}, r"images: expected \(B,3,H,W\) with H and W that 4 divides, got \(3, 3, 13"),
        ({"images": torch.zeros(3, 12, 12, 3)}, r"images: expected \(B,3,H,W\)"),
        ({"tokens": torch.zeros(3, 9, dtype=torch.long)}, r"tokens: expected \(B,L\) with L from 1 to 8, got \(3, 9\)"),
        ({"mask": torch.ones(3, 5)}, r"mask: expected bool \(3, 5\), got torch.float32 \(3, 5\)"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, r"mask: expected bool \(3, 5\), got torch.bool \(3, 4\)"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    batch = {"images": torch.zeros(3, 3, 12, 12), "tokens": torch.zeros(3, 5, dtype=torch.long), "mask": torch.ones(3, 5) > 0}
    with pytest.raises(ValueError, match=message):
        SPARC(TOY)(**batch | change)
    with pytest.raises(ValueError, match="attention: expected sdpa or plain; got 'flash'"):
        SPARC(TOY, attention="flash")


def test_the_trainer_does_not_import_the_reference():
    code = "import sys, parity.trainer.optim, parity.trainer.ranks; print(*(m for m in sys.modules if 'sparc_ref' in m))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""
