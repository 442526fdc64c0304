"""The ladder must be able to fail, at the right place: faults planted one at a time in the trainer's or the reference's text.

A fault is a change of source text.  The packages are copied under other names with it and imported anew, so nothing is
patched halfway, and the ladder climbs with the copy in place of the original.  The harmful ones are the lines of the survey of
public SPARC losses and those of training at scale; each must be found at its own stage.  The harmless ones must not fail.
"""

import itertools
import re
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import parity.trainer
import parity.vectors.cases
import sparc_ref
from parity.ladder import climb as ladder
from parity.ladder.rungs import ranks
from parity.ladder.rungs.setup import Side, reference_side, trainer_side

NUMBERS = itertools.count()
ORDINARY = ("fine_default", "fine_token_reduction")
SIDES = {}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A folder for the copies, on the path of this process and of its children."""
    folder = tmp_path_factory.mktemp("planted")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.startswith("planted_")]:
        del sys.modules[name]


def copy(folder: Path, package, name: str, old: str, file: str = "", changes=()) -> str:
    """A package's files under another name, with changes in one of them; comments do not count.  -> its name"""
    root = Path(package.__file__).parent
    sources = sorted([*root.glob("*.py"), *root.glob("objectives/*.py")])
    assert not file or file in [source.name for source in sources], f"no {file} in {package.__name__}: where did it go?"
    for source in sources:
        text = source.read_text()
        if source.name == file:
            text = re.sub(r"[ \t]+# .*", "", text)
            for right, wrong in changes:
                assert right in text, f"{right!r} is not in {source} any more: move the fault to where it went"
                text = text.replace(right, wrong)
        target = folder / name / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(re.sub(rf"\b{re.escape(old)}\b(?!\[)", name, text))
    return name


def planted_trainer(folder: Path, file: str, *changes) -> Side:
    name = copy(folder, parity.trainer, f"planted_{next(NUMBERS)}", "parity.trainer", file, changes)
    return trainer_side(name)


def planted_reference(folder: Path, file: str, *changes) -> Side:
    """The reference with a fault, and the cases that call it."""
    number = next(NUMBERS)
    name = copy(folder, sparc_ref, f"planted_{number}", "sparc_ref", file, changes)
    cases = copy(folder, parity.vectors.cases, f"planted_{number}_cases", "parity.vectors.cases")
    for path in (folder / cases).glob("*.py"):
        path.write_text(re.sub(r"\bsparc_ref\b", name, path.read_text()))
    return reference_side(name, cases)


def climb(rungs, wanted=None, **sides):
    """The results, and the failure in one line: rung, tensor, side, dtype, case."""
    SIDES.setdefault("trainer", trainer_side())
    SIDES.setdefault("reference", reference_side())
    keep = None if wanted is None else (lambda name: any(re.fullmatch(pattern, name) for pattern in wanted))
    return ladder.run("quick", rungs=rungs, wanted=keep, **(SIDES | sides))


# (what, file, [(right, wrong), ...], the vectors that are replayed, the tensor that must be named, what `where` must say)
S = "s = key_t @ key_v.mT\n"
WEIGH = "a = torch.where(real, a, 0)\n"
OWN = "log_p = torch.log_softmax(torch.where(columns, z, -torch.inf), -1)"
LOSSES = [
    ("similarity: patches normalised first", [(S, "s = t @ F.normalize(v, dim=-1).mT\n")], ORDINARY, "similarity", ""),
    ("similarity: detached", [(S, "s = (key_t @ key_v.mT).detach()\n")], ORDINARY, "grad.v", ""),
    ("similarity: patches group tokens", [("s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)",
                                           "s.amin(-2, keepdim=True), s.amax(-2, keepdim=True)")], ORDINARY, "minmax", ""),
    ("min-max: the literal 0/0 on flat rows", [("level = hi == lo", "level = torch.zeros_like(hi) > 0"),
                                               ("torch.where(x >= sigma, x, 0)", "x * (x >= sigma)")],
     ("fine_flat_uniform",), "weights", "nan"),
    ("min-max: the literal 0/0, where padding is a flat row", [("level = hi == lo", "level = torch.zeros_like(hi) > 0")],
     ORDINARY, "grad.v", "nan"),
    ("min-max: an epsilon of 1e-10", [("hi - lo))", "hi - lo + 1e-10))")], (*ORDINARY, "fine_sigma_hit"), "sparse",
     "fine_sigma_hit"),
    ("min-max: an epsilon of 1e-6", [("hi - lo))", "hi - lo + 1e-6))")], (*ORDINARY, "fine_sigma_hit"), "sparse",
     "fine_sigma_hit"),
    ("min-max: missing", [("(s - lo) / torch.where(level, 1, hi - lo))", "s)")], ORDINARY, "minmax", ""),
    ("min-max: NaN from padding with -inf", [(S, "s = torch.where(real, key_t @ key_v.mT, -torch.inf)\n"),
                                             ("level = hi == lo", "level = (hi == lo) & torch.isfinite(lo)"),
                                             ("torch.where(x >= sigma, x, 0)", "x * (x >= sigma)"), (WEIGH, "")],
     ORDINARY, "grad.v", "nan"),
    ("threshold: absent", [("torch.where(x >= sigma, x, 0)", "x")], ORDINARY, "sparse", ""),
    ("threshold: a constant that ignores P", [("x >= sigma", "x >= 0.2")], ORDINARY, "sparse", ""),
    ("threshold: strict >", [("x >= sigma", "x > sigma")], (*ORDINARY, "fine_sigma_hit"), "sparse", "fine_sigma_hit"),
    ("weights: detached", [(WEIGH, "a = torch.where(real, a, 0).detach()\n")], ORDINARY, "grad.v", ""),
    ("weights: softmax", [("s_til / torch.where(none, 1, sums)", "torch.softmax(s_til, -1)")], ORDINARY, "weights", ""),
    ("weights: the raw similarity", [(WEIGH, "a = torch.where(real, s, 0)\n")], ORDINARY, "weights", ""),
    ("grouping: normalised patches are averaged", [("c = a @ v", "c = a @ F.normalize(v, dim=-1)")], ORDINARY, "grouped", ""),
    ("norm: none on c", [("unit(c) @", "c @")], ORDINARY, "logits_vt", ""),
    ("norm: none on t", [("@ unit(t).mT)", "@ t.mT)")], ORDINARY, "logits_vt", ""),
    ("norm: zero tokens at padding poison", [("@ unit(t).mT)", "@ (t / t.norm(dim=-1, keepdim=True)).mT)")],
     ORDINARY, "grad.v", "nan"),
    ("logits: padded keys not masked", [("columns = mask[:, None, :] | ~some", "columns = torch.ones_like(logits) > 0")],
     ORDINARY, "loss_vt", ""),
    ("logits: padded keys filled with 0", [("torch.where(columns, z, -torch.inf)", "torch.where(columns, z, 0.0)")],
     ORDINARY, "loss_vt", ""),
    ("logits: negatives from the whole batch",
     [(OWN, "every = theta.exp() * (F.normalize(c, dim=-1) @ F.normalize(t.reshape(-1, t.shape[-1]), dim=-1).mT)\n        "
            "log_p = z - torch.where(mask.reshape(-1), every, -torch.inf).logsumexp(-1, keepdim=True)")],
     ORDINARY, "loss_vt", ""),
    ("logits: rows that are all -inf",
     [("columns = mask[:, None, :] | ~some", "columns = mask[:, None, :]"),
      ("torch.where(columns, z, -torch.inf)", "z + torch.where(columns, 0.0, -torch.inf)")],
     (*ORDINARY, "fine_all_padding.*"), "grad.", "all_padding"),
    ("logits: temperature hard-coded", [("logits = theta.exp() *", "logits = 0 * theta + 1 / 0.07 *")], ORDINARY,
     "logits_vt", ""),
    ("loss: one direction used twice", [('own(named["logits_tv"])', 'own(named["logits_vt"])')], ORDINARY, "loss_tv", ""),
    ("reduction: Listing 1 for eq. 6", [('reduction == "token"', "True")], ORDINARY, "loss", "fine_default"),
    ("reduction: eq. 6 for Listing 1", [('reduction == "token"', "False")], ORDINARY, "loss", "fine_token_reduction"),
    ("reduction: a mean over B L, padding included",
     [("return loss, stages\n\n\n@cache", "return each.mean() / 2, stages\n\n\n@cache")], ORDINARY,
     "loss", ""),
]


@pytest.mark.parametrize(("changes", "wanted", "tensor", "where"), [row[1:] for row in LOSSES], ids=[row[0] for row in LOSSES])
def test_a_fault_in_the_fine_grained_loss_is_found_at_its_stage(copies, changes, wanted, tensor, where):
    results = climb(["losses"], wanted, trainer=planted_trainer(copies, "loss.py", *changes))
    row = results["failure"]["row"]
    assert row["name"].removeprefix("fine_grained_loss.").startswith(tensor) and row["side"] == "trainer", row
    assert where in row["where"] and row["dtype"] == "float64", row
    assert not results["passed"] and "a fault, not rounding" in results["failure"]["verdict"]


@pytest.mark.parametrize("file, right", [("loss.py", "this is nowhere"), ("lost.py", "F.normalize")])
def test_what_cannot_be_planted_says_so(copies, file, right):
    with pytest.raises(AssertionError, match=r"move the fault to where it went|where did it go"):
        copy(copies, parity.trainer, f"planted_{next(NUMBERS)}", "parity.trainer", file, [(right, "")])


def test_the_sound_trainer_passes(copies):
    """A copy without a fault, through every vector that the faults are shown."""
    wanted = {pattern for row in LOSSES for pattern in row[2]} | {row[4] for row in MODEL if row[4]}
    rungs = ["ops", "losses", "gradients"]
    assert climb(rungs, wanted, trainer=planted_trainer(copies, "loss.py"))["passed"]


TF32 = """import torch.nn.functional as F


def tf32(x):
    if x.dtype == torch.float64:
        return x
    raw = x.detach().float().view(torch.int32)
    raw = (raw + 0xFFF + ((raw >> 13) & 1)) & ~0x1FFF
    return x + (raw.view(torch.float32) - x).detach()
"""
# what, file, changes, rung, vector, tensor, words of `where` or the verdict
MODEL = [
    ("padding leaks into attention", "model.py", [("keys = mask[:, None, None, :] | ~real", "keys = None")],
     "ops", "attention_padding", "attention.y", ""),
    ("padding leaks into the pooled caption", "model.py", [("torch.where(real, f_t, 0).sum(1, dtype", "f_t.sum(1, dtype")],
     "gradients", "model_default", "model.t_bar", ""),
    ("padding leaks into the alignment's gradient", "loss.py",
     [("torch.where(mask[..., None], wide(t), 0)", "wide(t)"),
      ("columns = mask[:, None, :] | ~some", "columns = mask[:, None] > -1")],
     "losses", "fine_default", "fine_grained_loss.loss_vt", ""),
    ("queries, keys and values in another order", "model.py",
     [("for part in (self.query, self.key, self.value)", "for part in (self.key, self.query, self.value)"),
      ("for b in (self.query.bias, torch.zeros_like(self.query.bias),",
       "for b in (torch.zeros_like(self.query.bias), self.query.bias,")],
     "encoders", "vision_default", "vision_tower.y", "trainer, sdpa"),
    ("scores not divided by the root of the width", "model.py", [("s = q * q.shape[-1] ** -0.5 @ k.mT", "s = q @ k.mT")],
     "ops", "attention_2", "attention.y", "trainer, plain"),
    ("the other GELU", "model.py", [('approximate="tanh" if kind == "tanh" else "none"', 'approximate="none"')],
     "ops", "gelu_tanh", "gelu.y", ""),
    ("LayerNorm with torch's own epsilon", "model.py", [('LayerNorm(width, how["eps"])', "LayerNorm(width)")],
     "encoders", "vision_eps", "vision_tower.y", ""),
    ("a residual dropped", "model.py", [("return x + self.mlp(self.norm2(x))", "return self.mlp(self.norm2(x))")],
     "encoders", "vision_default", "vision_tower.y", ""),
    ("no last norm", "model.py", [("return self.norm(x)", "return x")], "encoders", "text_no_blocks", "text_tower.y", ""),
    ("global: normalised tokens are pooled", "model.py",
     [("torch.where(real, f_t, 0).sum(1, dtype", "torch.where(real, F.normalize(f_t, dim=-1), 0).sum(1, dtype")],
     "gradients", "model_default", "model.t_bar", ""),
    ("global: the first patch as [CLS]", "model.py", [("self.image_head(pooled)", "self.image_head(f_v[:, 0])")],
     "gradients", "model_default", "model.v_bar", ""),
    ("global: h_v left out", "model.py", [("if self.h_v is not None:", "if False:")], "encoders", "image_head_tanh",
     "image_head.y", ""),
    ("global: no l2 norm", "loss.py", [("unit(wide(x)) for x in", "wide(x) for x in")], "losses", "global_default",
     "global_loss.logits", ""),
    ("global: captions alone", "loss.py", [("for z in (logits, logits.T))", "for z in (logits.T, logits.T))")],
     "losses", "global_default", "global_loss.loss_image", ""),
    ("one theta for both losses where there are two", "loss.py", [("theta if theta_fine is None else theta_fine", "theta")],
     "gradients", "model_separate_temperatures", "model.logits_vt", ""),
    ("a wrong gradient of theta", "loss.py", [("dtheta += (dz * z).sum()", "dtheta += (dz * z).sum() / scale")],
     "losses", "global_default", "global_loss.grad.theta", "trainer, chunked"),
    ("weight decay on biases", "optim.py", [('name.endswith(".weight") and', 'name.endswith((".weight", ".bias")) and')],
     "steps", "adamw_ten_steps", "adamw.params.g_v.bias", ""),
    ("weight decay on norms", "optim.py", [('"norm" not in name and', "")], "steps", "adamw_ten_steps",
     "adamw.params.vision.norm.weight", ""),
    ("the warm-up starts at 0", "optim.py", [("peak * (step + 1) / warmup", "peak * step / warmup")],
     "steps", "adamw_ten_steps", "adamw.rates", ""),
    ("the longest gradient's norm for that of all", "optim.py",
     [("torch.nn.utils.get_total_norm(part) for part", "max(g.norm() for g in part) for part")],
     "steps", "adamw_clip", "adamw.norms", ""),
    ("theta is not clamped", "optim.py", [("theta.clamp_(0.0, math.log(100))", "theta.clamp_(0.0, 9.0)")],
     "steps", "adamw_clamp", "adamw.params.theta", ""),
    ("gradients that are not reset", "optim.py", [("optimizer.zero_grad()", "pass")], "steps", "train_default", "train.", ""),
    ("TF32 left on (simulated: a layer's operands rounded to 10 bits)", "model.py",
     [("import torch.nn.functional as F\n", TF32),
      ("return F.linear(x, used(self.weight, x),", "return F.linear(tf32(x), tf32(used(self.weight, x)),")],
     "encoders", "vision_default", "vision_tower.y", "the formula is right and its arithmetic in float32 is not"),
]


@pytest.mark.parametrize(
    ("file", "changes", "rung", "vector", "tensor", "words"), [row[1:] for row in MODEL], ids=[row[0] for row in MODEL]
)
def test_a_fault_in_the_model_or_the_optimiser_is_found_at_its_tensor(copies, file, changes, rung, vector, tensor, words):
    results = climb([rung], [vector], trainer=planted_trainer(copies, file, *changes))
    failure = results["failure"]
    row = failure["row"]
    assert failure["rung"] == rung and row["name"].startswith(tensor) and row["side"].startswith("trainer"), row
    assert vector in row["where"], row
    assert words in f"{row['name']}, {row['side']}, {row['where']}, {failure['verdict']}", failure
    assert row["dtype"] == ("float32" if "arithmetic" in words else "float64"), row


REFERENCE = [
    ("no bias correction", "optim.py", [("rate = lr * root / (1 - beta1**step)", "rate = lr"), ("eps * root", "eps")],
     "steps", "adamw_first_step", "adamw.params."),
    ("decay on biases", "optim.py", [("if decays(name) else p", "")], "steps", "adamw_first_step", "adamw.params."),
    ("a wrong gradient of theta", "losses.py", [("dtheta = xp.sum(dlogits * logits)", "dtheta = xp.sum(dlogits * cosine)")],
     "losses", "global_default", "global_loss.grad.theta"),
    ("eq. 2's gradient through the minimum left out", "alignment.py", [("ds + share(dlo, s == lo, ties)", "ds")],
     "losses", "align_default", "align_patches.grad.v"),
    ("strict >", "alignment.py", [("keep = x >= sigma", "keep = x > sigma")],
     "losses", "align_sigma_hit", "align_patches.sparse"),
    ("a LayerNorm gradient without its mean", "ops.py",
     [("(dx_hat - xp.mean(dx_hat, axis=-1, keepdims=True) - x_hat", "(dx_hat - x_hat")],
     "ops", "layer_norm", "layer_norm.grad.x"),
    ("query and key gradients exchanged", "encoders.py",
     [('enumerate(("query", "key", "value"))', 'enumerate(("key", "query", "value"))')],
     "encoders", "vision_default", "vision_tower.grad.vision.blocks.0.attn.query.weight"),
    ("padding leaks", "ops.py",
     [("softmax(q @ T(k), None if mask is None else mask[:, None, None, :])", "softmax(q @ T(k))")],
     "ops", "attention_padding", "attention.y"),
]


@pytest.mark.parametrize(
    ("file", "changes", "rung", "vector", "tensor"), [row[1:] for row in REFERENCE], ids=[row[0] for row in REFERENCE]
)
def test_a_fault_in_the_reference_is_found_by_its_frozen_vectors(copies, file, changes, rung, vector, tensor):
    results = climb([rung], [vector], reference=planted_reference(copies, file, *changes))
    row = results["failure"]["row"]
    assert row["name"].startswith(tensor) and row["side"] == "reference" and vector in row["where"], row


def test_the_sound_reference_passes(copies):
    wanted = {row[4] for row in REFERENCE}
    assert climb(["ops", "losses"], wanted, reference=planted_reference(copies, "ops.py"))["passed"]


# ------------------------------------------------------------------------------------------ several processes, and others

RANKS = [
    ("none", "loss.py", [], ""),
    ("gradients off by the world size: a sum for the mean", "distributed.py", [("flat /= world", "pass")], "grad."),
    ("gathered without a gradient", "distributed.py", [("dist.all_reduce(dy, group=ctx.group)", "pass")], "grad."),
    ("negatives of this rank alone", "loss.py",
     [("v_all, t_all = (distributed.gather(x, sizes, group) for x in (v_hat, t_hat))",
       "v_all, t_all, sizes = v_hat, t_hat, [len(v_hat)]"), ("start = sum(sizes[:rank])", "start = 0")], "loss"),
    ("each rank divides by its own batch", "loss.py", [("(world / (2 * whole))", "(1 / (2 * len(v)))")], "loss"),
    ("each rank counts its own tokens", "loss.py", [("distributed.total(real.sum(), group)", "real.sum()")], "loss"),
]
ALL = """
import importlib


def losses(arrays, options):
    out = {}
    for name in options["packages"]:
        found = importlib.import_module(f"{name}.ranks").losses(arrays, options)
        out |= {f"{name}/{key}": x for key, x in found.items()}
    return out
"""


@pytest.fixture(scope="module")
def over_ranks(copies):
    """One start of two gloo processes serves all faults: each child runs every planted trainer, one after the other."""
    from parity.trainer.ranks import run_ranks

    (copies / "planted_all.py").write_text(ALL)
    sides = [planted_trainer(copies, file, *changes) for _, file, changes, _ in RANKS]
    names, found = [side.ranks.__name__.removesuffix(".ranks") for side in sides], []

    def for_one(name):
        def cases_over_ranks(config, params, images, tokens, mask, world, cases, target):
            if not found:
                arrays = {f"params.{n}": p for n, p in params.items()} | {"images": images, "tokens": tokens, "mask": mask}
                options = {"config": asdict(config), "cases": cases, "packages": names}
                found.extend(run_ranks(world, "planted_all:losses", arrays, options))
            mine = {label: f"{name}/{label}" for label in cases}
            return {label: (np.mean([each[f"{key}.loss"] for each in found]), {n: found[0][f"{key}.grad.{n}"] for n in params})
                    for label, key in mine.items()}

        return cases_over_ranks

    return [Side(side.modules | {"ranks": SimpleNamespace(__name__=name, cases_over_ranks=for_one(name))})
            for side, name in zip(sides, names)]


@pytest.mark.parametrize(("number", "tensor"), [(i, row[3]) for i, row in enumerate(RANKS)], ids=[row[0] for row in RANKS])
def test_a_fault_between_ranks_is_found(copies, over_ranks, monkeypatch, number, tensor):
    """Two processes see it, and one process alone does not."""
    monkeypatch.setattr(ranks, "FORMS", {"gathered": {"form": "gathered"}})
    results = climb(["ranks"], trainer=over_ranks[number])
    if not tensor:
        assert results["passed"], results["failure"]
        return
    row = results["failure"]["row"]
    assert row["name"].startswith(tensor) and row["side"].startswith("trainer, world 2, gathered"), row
    assert any(r["side"].startswith("trainer, world 1") for r in results["rungs"][0]["rows"])


def test_parts_that_see_only_their_own_negatives_are_found(copies):
    own = "sum(objective_loss(e, p[2], params, config)[0] for e, p in zip(embedded, parts)) / accumulate"
    changes = [("loss = loss_of(leaves, copies)", f"loss = {own} + 0 * loss_of(leaves, copies)")]
    row = climb(["accumulation"], trainer=planted_trainer(copies, "optim.py", *changes))["failure"]["row"]
    assert row["name"] == "loss" and row["side"] == "trainer, 2 parts", row


def test_a_fault_in_what_is_computed_again_is_found(copies):
    changes = [("return checkpoint(self.compute, x, mask, use_reentrant=False)",
                "return checkpoint(self.compute, x, None, use_reentrant=False)")]
    row = climb(["checkpointing"], trainer=planted_trainer(copies, "model.py", *changes))["failure"]["row"]
    assert row["name"] == "text_features" and row["side"] == "trainer, checkpointed", row


# ------------------------------------------------------------------------------------------------------------- harmless

HARMLESS = [
    ("similarity times 1/tau", [(S, "s = theta.exp() * (key_t @ key_v.mT)\n")], "similarity"),
    ("tokens normalised", [(S, "s = F.normalize(t, dim=-1) @ key_v.mT\n")], "similarity"),
    ("similarity shifted", [(S, "s = key_t @ key_v.mT + t.sum(-1, keepdim=True)\n")], "similarity"),
    ("mean for sum", [("sums = s_til.sum(-1, keepdim=True)", "sums = s_til.mean(-1, keepdim=True)")], "weights"),
    ("directions exchanged", [('own(named["logits_vt"])', "own(logits.mT)"), ('own(named["logits_tv"])', "own(logits)")],
     "loss_vt"),
    ("logits exchanged too", [('"logits_vt": logits, "logits_tv": logits.mT', '"logits_vt": logits.mT, "logits_tv": logits')],
     "logits_vt"),
    ("division-free", [("(s - lo) / torch.where(level, 1, hi - lo))", "s - lo)"),
                       ("x >= sigma", "x >= (sigma if threshold_on == 'weights' else sigma * torch.where(level, 1, hi - lo))"),
                       ("torch.where(none, 1, sums)", "1")], "minmax"),
]


@pytest.mark.parametrize(("changes", "stage"), [row[1:] for row in HARMLESS], ids=[row[0] for row in HARMLESS])
def test_what_is_harmless_passes_and_is_reported(copies, changes, stage):
    """Ordinary cases: on a knife edge a factor that is not a power of two rounds across it."""
    wanted = ("fine_default", "fine_token_reduction", "fine_sigma_0375", "fine_no_padding", "fine_unequal_norms")
    results = climb(["losses"], wanted, trainer=planted_trainer(copies, "loss.py", *changes))
    assert results["passed"], results["failure"]
    notes = results["rungs"][0]["notes"]
    assert any(note.startswith(f"fine_grained_loss.{stage} (trainer)") and "harmless" in note for note in notes), notes


def test_the_first_of_tied_patches_may_take_the_gradient(copies):
    changes = [('if ties == "first":', "if True:")]
    assert climb(["losses"], ["fine_ties.*"], trainer=planted_trainer(copies, "loss.py", *changes))["passed"]
