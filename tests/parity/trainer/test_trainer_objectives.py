"""The trainer's other objectives: faults planted in each are seen, between ranks too; blocks hold no whole; runs are opened.

That they are right is the ladder's rung `objectives`; here each of its witnesses is shown to be able to fail.
"""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import arguments
from test_trainer_loss import Largest

import parity.trainer
from parity.ladder.rungs import objectives as rung
from parity.ladder.rungs import replay
from parity.ladder.rungs.setup import Setup, reference_side, trainer_side
from parity.trainer import distributed, objectives, pairs
from parity.trainer.__main__ import main
from parity.trainer.model import SPARC, init_weights
from parity.trainer.ranks import cases_over_ranks
from sparc_ref.commands.cli import run as sparc_ref
from sparc_ref.objectives.chosen import NAMES, ObjectiveConfig, init_own, own_shapes
from sparc_ref.run.rundir import load_run, objective_of

CONFIGS = [ObjectiveConfig(name) for name in NAMES] + [
    ObjectiveConfig("pacl", pacl_learn_scale=True, pacl_embedder="none"), ObjectiveConfig("gloria", gloria_learn="all"),
    ObjectiveConfig("mgca", mgca_attention="paramfree"), ObjectiveConfig("mgca", mgca_lambda_cta=0.0),
    ObjectiveConfig("mgca", mgca_lambda_cpa=0.0)]  # fmt: skip


@pytest.mark.parametrize("objective", CONFIGS, ids=lambda o: o.objective)
def test_parameters_are_the_references(objective):
    own = {n: p for n, p in SPARC(rung.MODEL, objective=objective).state_dict().items()
           if n.startswith(("theta_", "pacl", "mgca", "flair", "logit_bias"))}  # fmt: skip
    assert {n: tuple(p.shape) for n, p in own.items()} == own_shapes(objective, rung.MODEL.embed_dim)
    started = init_weights(SPARC(rung.MODEL, objective=objective), 0).state_dict()
    for name, x in init_own(objective, rung.MODEL.embed_dim, np.random.default_rng(0)).items():
        if x.ndim == 0:
            np.testing.assert_allclose(started[name], x, rtol=1e-6)
    plain = init_weights(SPARC(rung.MODEL), 0).state_dict()
    assert all(torch.equal(started[name], p) for name, p in plain.items())  # the towers start alike under every objective


# what, changes in objectives.py, the vector that sees it, the tensor
FAULTS = [
    ("clip: a sum of both directions", [("return loss, {\"loss_global\": loss, **stages}", "return 2 * loss, {}")],
     "objective_clip", "clip.loss"),
    ("filip: padding in the maximum", [("torch.where(real | ~real.any(1, keepdim=True), a, -torch.inf)", "a")],
     "objective_filip_all", "filip."),
    ("filip: the least alike are kept", [("descending=True, stable=True", "descending=False, stable=True")],
     "objective_filip", "filip."),
    ("filip: a mean over L", [("weight / weight.sum(1, keepdim=True).clamp(min=1)", "weight / weight.shape[1]")],
     "objective_filip", "filip."),
    ("clip_filip: one temperature", [('p["theta_filip"] if "theta_filip" in p else p["theta"]', 'p["theta"]')],
     "objective_clip_filip", "clip_filip."),
    ("pacl: the length left out", [("(a * s * length[:, None]).sum(-1)", "(a * s).sum(-1)")], "objective_pacl", "pacl."),
    ("pacl: no residual", [("return v + hidden", "return hidden")], "objective_pacl", "pacl."),
    ("gloria: half of the sums", [("local, both = pairs.mean(loss_image + loss_text),",
                                   "local, both = pairs.mean(loss_image + loss_text) / 2,")], "objective_gloria", "gloria."),
    ("gloria: padding votes", [("votes = torch.where(own | ~some[:, None], q, -torch.inf).logsumexp(-1)",
                                "votes = q.logsumexp(-1)")], "objective_gloria", "gloria."),
    ("mgca: a gradient through the codes", [("@torch.no_grad()\ndef sinkhorn", "def sinkhorn"),
                                            ("sinkhorn(o.detach(),", "sinkhorn(o,")], "objective_mgca", "mgca.grad"),
    ("mgca: padding is a key", [('attend(p, "patch", v_hat, t_hat, columns,', 'attend(p, "patch", v_hat, t_hat, None,')],
     "objective_mgca", "mgca."),
    ("siglip: a mean over all pairs", [("softplus(-sign * z).sum()", "softplus(-sign * z).mean()")],
     "objective_siglip", "siglip."),
    ("flair: no empty token", [('.weight"].T, (0, 0, 0, 1))', '.weight"].T, (0, 0, 0, 0))')], "objective_flair", "flair."),
    ("mgca: no last norm of the codes", [("return torch.softmax(log_q, -1)", "return torch.softmax(2 * log_q, -1)")],
     "objective_mgca", "mgca."),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "vector", "tensor"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_a_fault_is_seen_by_the_frozen_vectors(tmp_path, monkeypatch, changes, vector, tensor):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name = f"faulty_{vector}_{abs(hash(str(changes)))}"
    (tmp_path / name).mkdir()
    for source in Path(parity.trainer.__file__).parent.glob("*.py"):
        text = source.read_text()
        for right, wrong in changes if source.name == "objectives.py" else ():
            assert right in text, f"{right!r} is not in {source} any more: move the fault to where it went"
            text = text.replace(right, wrong)
        (tmp_path / name / source.name).write_text(re.sub(r"\bparity\.trainer\b", name, text))
    setup = Setup("quick", "cpu", 0, reference_side(), trainer_side(name), wanted=lambda case: case == vector)
    wrong = [row for row in replay.objectives(setup) if not row.ok]
    assert wrong and wrong[0].name.startswith(tensor) and wrong[0].side.startswith("trainer"), wrong[:2]


# ------------------------------------------------------------------------------------------------------------ between ranks


def pieces():
    """What goes between ranks, forgotten one at a time: (owner, name, what it does instead)."""
    honest = distributed.gather

    def alone(z, group):
        return torch.logsumexp(z, 0)

    def one_sided(ctx, dlse):
        z, lse = ctx.saved_tensors
        return torch.where(lse.isfinite(), dlse * (z - lse).exp(), 0), None

    def own_count(self, each):
        return each.sum() / self.real.sum().clamp(min=1)

    return {
        "none": (),
        "gathered without gradient": ((distributed, "gather", lambda x, sizes, group=None: honest(x, sizes, group).detach()),),
        "sums over this rank alone": ((objectives, "log_sum_over_ranks", alone), (pairs, "log_sum_over_ranks", alone)),
        "a column's gradient from this rank alone": ((pairs.LogSumOverRanks, "backward", staticmethod(one_sided)),),
        "each rank counts its own pairs": ((pairs.Pairs, "mean", own_count),),
        "maxima of this rank alone": ((distributed, "largest", lambda x, group=None: x),),
    }


SEEN = {
    "none": (),
    "gathered without gradient": ("clip", "filip", "pacl", "gloria", "mgca", "siglip", "flair"),
    "sums over this rank alone": ("pacl", "gloria", "mgca"),
    "maxima of this rank alone": ("filip", "pacl", "gloria", "mgca"),
    "a column's gradient from this rank alone": ("pacl", "gloria"),
    "each rank counts its own pairs": ("filip", "pacl", "gloria"),
}  # fmt: skip


def with_faults(arrays, options):
    """cases_over_ranks' target: the fault that a case's label begins with."""
    from parity.trainer import ranks

    out = {}
    for label, case in options["cases"].items():
        with pytest.MonkeyPatch.context() as patch:
            for owner, name, value in pieces()[label.partition("|")[0]]:
                patch.setattr(owner, name, value)
            out |= ranks.losses(arrays, options | {"cases": {label: case}})
    return out


@pytest.mark.slow
def test_faults_between_ranks_are_seen():
    setup = Setup("quick", "cpu", 0, reference_side(), trainer_side())
    drawn = rung.emptied(rung.drawn_for(setup))
    names = ("clip", "filip", "pacl", "gloria", "mgca", "siglip", "flair")
    configs = {name: rung.CASES[name] for name in names} | {"filip": ObjectiveConfig("filip", filip_keep=0.5)}
    given = {name: rung.with_own(drawn, configs[name], 0) for name in names}
    params = {n: p for each in given.values() for n, p in each.params.items()}
    cases = {f"{fault}|{name}": {"sizes": [5, 2], "objective": asdict(configs[name]), "form": "gathered"}
             for fault in SEEN for name in names}  # fmt: skip
    found = cases_over_ranks(drawn.config, params, drawn.images, drawn.tokens, drawn.mask, 2, cases,
                             target="test_trainer_objectives:with_faults", agree=False)
    for name in names:
        want = rung.whole_batch(setup, given[name], configs[name])
        for fault, sees in SEEN.items():
            loss, grads = found[f"{fault}|{name}"]
            got = {"loss": np.asarray(loss)} | {f"grad.{n}": g for n, g in grads.items()}
            wrong = [row.name for row in rung.rows(got, want, "float64", name) if not row.ok]
            assert bool(wrong) == (name in sees), (fault, name, wrong[:3])


# --------------------------------------------------------------------------------------------------------- memory, whole runs


@pytest.mark.parametrize("name", ["filip", "pacl", "gloria"])
def test_blocks_never_hold_all_pairs(rng, name):
    B, P, L, D = 24, 20, 6, 4
    x = {"v": (B, P, D), "t": (B, L, D), "v_bar": (B, D), "t_bar": (B, D)}
    x = {n: torch.tensor(rng.standard_normal(s), requires_grad=True) for n, s in x.items()}
    params = {n: torch.tensor(1.3, dtype=torch.float64, requires_grad=True) for n in ("theta", "theta_local")}
    mask = torch.arange(L) < torch.tensor(rng.integers(1, L + 1, (B, 1)))
    largest, results = {}, {}
    for size in (None, 3):
        with Largest() as made:
            loss, _ = objectives.compared(name, x, mask, params, objectives.How(pair_chunk=size))
            grads = torch.autograd.grad(loss, list(x.values()), allow_unused=True)
        largest[size], results[size] = made.numbers, [loss, *(g for g in grads if g is not None)]
    for one, other in zip(results[None], results[3]):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert largest[3] < largest[None] and largest[3] <= max(B * P * P, 3 * B * L * P), largest  # PACL's Gram matrices; a block


def test_a_run_is_opened_by_sparc_ref(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(arguments(run, "--objective", "mgca", "--mgca-width", "4", "--mgca-prototypes", "6", "--steps", "2")) == 0
    params, config, _, found = load_run(run)
    kept = objective_of(found.record["config"])
    assert kept == ObjectiveConfig("mgca", mgca_width=4, mgca_prototypes=6)
    assert own_shapes(kept, config.embed_dim).keys() == {n for n in params if n.startswith(("mgca", "theta_"))}
    np.testing.assert_allclose(np.linalg.norm(params["mgca.prototypes"], axis=1), 1, rtol=1e-6)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_ita", "loss_cta", "loss_cpa", "theta_cross"} <= next(x for x in lines if x["kind"] == "train").keys()
    capsys.readouterr()
    assert not sparc_ref(["evaluate", "--checkpoint", str(run)]) and "t2i_r1" in capsys.readouterr().out
    assert main(arguments(run, "--objective", "clip", "--resume")) == 2  # another objective is another run
