"""The trainer's loop against one written by hand on the oracle: every setting off its default, each mixing, every logged field.

Of the trainer it takes the initial weights and the batches of its streams alone.
"""

import re
import time
from dataclasses import asdict, fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from parity import oracle
from parity.trainer import __main__ as command
from parity.trainer import train as loop
from parity.trainer.data.order import Order, sizes_of
from parity.trainer.data.stream import Stream
from parity.trainer.launch import ranks
from parity.trainer.model import SPARC, init_weights
from parity.trainer.settings import Machine, Training
from sparc_ref.data import DrawnScenes, Example, Joined, MosaicScenes, WordTokenizer
from sparc_ref.model import PRESETS, SPARCConfig
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run import checkpoint
from sparc_ref.run.measure import evaluate
from sparc_ref.run.rundir import read_metrics

WORDS = ["a", "red", "green", "blue", "big", "small", "dog", "cat", "box", "on", "by"]
TOKENIZER = WordTokenizer(WORDS)
MIXINGS = ("accumulate", "round_robin", "merged")
COUNTED = ("examples", "tokens_truncated", "captions_truncated")


class Pictures:
    """Random pictures, each with one to three captions of one to nine words."""

    classes = ()

    def __init__(self, name, count, seed, size=12):
        rng = np.random.default_rng(seed)
        self.name, self.examples = name, []
        for i in range(count):
            captions = tuple(" ".join(rng.choice(WORDS, rng.integers(1, 10))) for _ in range(rng.integers(1, 4)))
            self.examples.append(Example(rng.integers(0, 256, (size, size, 3), np.uint8), captions, key=f"{name}-{i}"))

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]

    def describe(self):
        return {"name": self.name, "count": len(self)}


CONFIG = SPARCConfig(
    image_size=12, patch_size=4, vision_width=8, vision_depth=2, vision_heads=2, text_width=6, text_depth=1, text_heads=3,
    vocab_size=TOKENIZER.vocab_size, max_tokens=6, embed_dim=5, mlp_ratio=2, gelu="erf", layer_norm_eps=1e-3,
    position_resize="linear", text_positions="none", text_pool="all", h_v="none", temperature="separate",
    temperature_init=0.0095, reduction="token", sigma=0.15, similarity="cosine", threshold_on="weights", flat="zero",
    ties="first", lambda_g=0.7, lambda_f=1.5,
)  # fmt: skip
HOW = {"steps": 7, "batch": 3, "lr": 0.03, "warmup": 2, "weight_decay": 0.4, "final_lr": 0.004, "beta1": 0.8, "beta2": 0.95,
       "eps": 1e-3, "clip": 30.0, "seed": 3, "shuffle_shards": 2, "eval_limit": 6}
MACHINE = Machine(device="cpu", strategy="none", precision="float64", fused=False, form="plain", workers=0, log_every=2,
                  eval_every=3, checkpoint_every=2, keep=3, export_every=3)
SETS = (Pictures("first", 17, 1), Pictures("second", 17, 2, size=15))
CHECKS = {"near": Pictures("near", 9, 3), "far": Pictures("far", 5, 4)}


def by_hand(o):
    """-> the parameters after 0, 1, ... updates, and what each update has to log"""
    p = {n: x.clone() for n, x in init_weights(SPARC(CONFIG), o.seed).double().state_dict().items()}
    m, v = ({n: torch.zeros_like(x) for n, x in p.items()} for _ in range(2))
    sets = [Joined(*SETS)] if o.mixing == "merged" else SETS
    streams = [Stream(d, TOKENIZER, Order(sizes_of(d), o.seed + 1000 * i, o.shuffle_shards), o.batch, image_size=12,
                      max_tokens=6) for i, d in enumerate(sets)]
    after, logged, norms, counted = [p], [], [], dict.fromkeys((*COUNTED, "skipped_updates"), 0)
    for step in range(o.steps):
        leaves = {n: x.clone().requires_grad_() for n, x in p.items()}
        losses, parts = [], []
        for stream in [streams[step % 2]] if o.mixing == "round_robin" else streams:
            if not stream.ready():
                stream.next_epoch()
                assert stream.ready()
            b = stream.take()
            images = b.images.permute(0, 3, 1, 2) * np.float32(1 / 127.5) - np.float32(1)
            loss, stages = oracle.model_stages(leaves, images.double(), b.tokens, b.mask, CONFIG)
            losses.append(loss)
            a = stages["weights"].detach()[b.mask]
            figures = (stages["loss_global"].detach(), stages["loss_fine"].detach(),
                       (stages["sparse"] == 0)[b.mask].double().mean(), -torch.special.xlogy(a, a).sum(1).mean())
            parts.append([float(x) for x in figures])
            for name, n in zip(COUNTED, (len(b.items), b.dropped, b.cut)):
                counted[name] += n
        grads = torch.autograd.grad(sum(losses) / len(losses), list(leaves.values()))
        grads, norm = oracle.clip(dict(zip(leaves, grads)), o.clip)
        norms.append(norm)
        lr = oracle.warmup_cosine(step, o.lr, o.warmup, o.steps, o.final_lr)
        before = p
        p, m, v = oracle.adamw_step(p, grads, m, v, step + 1, lr, (o.beta1, o.beta2), o.eps, o.weight_decay)
        p = oracle.clamp_theta(p)
        after.append(p)
        alone = [float(x.detach()) for x in losses]
        each = {f"loss/{i}:{d.name}": x for i, (d, x) in enumerate(zip(sets, alone))} if len(losses) > 1 else {}
        logged.append({
            "kind": "train", "step": step + 1, "loss": np.mean(alone), "grad_norm": norm, "lr": lr,
            **dict(zip(("loss_global", "loss_fine", "zeroed", "entropy"), np.mean(parts, 0))), **each, **counted,
            "param_norm": length(p), "update_norm": length({n: x - before[n] for n, x in p.items()}),
            "theta": float(p["theta"]), "theta_fine": float(p["theta_fine"]), "temperature": float(torch.exp(-p["theta"])),
        })
    return SimpleNamespace(after=[{n: x.numpy() for n, x in each.items()} for each in after], logged=logged, norms=norms,
                           sets=len(losses))


def length(arrays):
    return float(torch.sqrt(sum((x * x).sum() for x in arrays.values())))


@pytest.fixture(scope="module", params=MIXINGS)
def both(request, tmp_path_factory):
    """A run in which every look at the clock takes a second, and the same by hand."""
    options = Training(**HOW, mixing=request.param)
    out, said, now = tmp_path_factory.mktemp("wired") / "run", [], [0.0]

    def ticking():
        now[0] += 1
        return now[0]

    with pytest.MonkeyPatch.context() as patch, ranks("cpu") as place:
        patch.setattr(time, "perf_counter", ticking)
        loop.train(CONFIG, options, MACHINE, SETS, TOKENIZER, out, place, validation=CHECKS, say=said.append,
                   record={"model": asdict(CONFIG), "train": asdict(options), "tokenizer": TOKENIZER.hash, "data": {},
                           "validation": {}})
    return SimpleNamespace(out=out, said=said, rows=read_metrics(out / "metrics.jsonl"), hand=by_hand(options), options=options)


def test_every_setting_is_off_its_default(both):
    """A new setting has to be set here too, so that nobody can forget to pass it on."""
    left = {f.name for given in (CONFIG, both.options) for f in fields(given) if getattr(given, f.name) == f.default}
    assert left <= {"align", "mixing"}, left
    assert min(both.hand.norms) < HOW["clip"] < max(both.hand.norms), "clipping acts, and not always"
    assert both.hand.logged[-1]["tokens_truncated"] > both.hand.logged[-1]["captions_truncated"] > 0


def test_updates_equal_the_hand_written_loop(both):
    assert [path.name for path in sorted((both.out / "sharded").iterdir())] == [f"step_{n:08d}" for n in (4, 6, 7)]
    exports = checkpoint.steps(both.out / "checkpoints")
    for step, path in zip((3, 6, 7), exports, strict=True):
        params = checkpoint.load(path).params
        assert path.name == f"step_{step:08d}" and params.keys() == both.hand.after[step].keys()
        for name, p in params.items():
            np.testing.assert_allclose(p, both.hand.after[step][name], rtol=0, atol=1e-9, err_msg=f"update {step}, {name}")


def test_every_logged_field_is_what_was_computed(both):
    rows = [row for row in both.rows if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [2, 4, 6, 7]
    for row in rows:
        wanted = both.hand.logged[row["step"] - 1]
        assert row.keys() == wanted.keys() | {"seconds", "examples_per_second", "data_wait", "peak_memory"}
        for name, value in wanted.items():
            assert row[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9, abs=1e-12)), name
        seconds = row["seconds"]                          # of an update; one of them was spent on data
        assert row["data_wait"] == pytest.approx(1 / seconds, abs=1e-4)
        assert row["examples_per_second"] == pytest.approx(HOW["batch"] * both.hand.sets / seconds, abs=0.06)
        assert seconds >= 2 and row["peak_memory"] > 1e7


def test_evaluation_gets_the_validation_sets_and_the_weights_of_the_update(both):
    rows = [row for row in both.rows if row["kind"] == "eval"]
    assert [(row["step"], row["split"]) for row in rows] == [(s, name) for s in (0, 3, 6, 7) for name in CHECKS]
    for row in rows:
        numbers = evaluate(both.hand.after[row["step"]], CONFIG, CHECKS[row["split"]], TOKENIZER, HOW["eval_limit"],
                           HOW["batch"], seed=HOW["seed"])
        assert row.keys() == numbers.keys() | {"kind", "step", "split", "seconds"} and row["seconds"] == 1
        for name, value in numbers.items():
            assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (row["step"], row["split"], name)
        (said,) = [line for line in both.said if line.startswith(f"update {row['step']}, {row['split']}: ")]
        shown = {"R@1 i2t": "i2t_r1", "t2i": "t2i_r1", "grounding gap": "grounding_gap"}
        assert said.split(": ")[1] == ", ".join(f"{label} {row[key]:.3f}" for label, key in shown.items())


def test_what_is_printed_of_an_update_is_its_own(both):
    said = [line for line in both.said if line.startswith("update ") and "loss" in line]
    assert [re.match(r"update (\d)/7, loss ([\d.]+)", line).groups() for line in said] == [
        (str(row["step"]), f"{row['loss']:.4f}") for row in both.hand.logged]


def flags(given):
    """An options' object as a command line."""
    words = []
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        words += [option if value else option.replace("--", "--no-", 1)] if isinstance(value, bool) else [option, str(value)]
    return words


def test_the_command_line_is_handed_on(monkeypatch, tmp_path):
    """Every option of what, how and where; which data is trained on and which measured."""
    handed = SimpleNamespace()
    monkeypatch.setattr(command, "train", lambda *given, **named: vars(handed).update(given=given, **named))
    model = {k: x for k, x in asdict(CONFIG).items() if k != "vocab_size"} | {"image_size": 24}
    machine = {"device": "cpu", "strategy": "none", "precision": "float64", "form": "chunked", "chunk": 7, "fine_chunk": 2,
               "pair_chunk": 3, "accumulate": 2, "workers": 1, "log_every": 3, "eval_every": 4, "checkpoint_every": 5,
               "keep": 6, "export_every": 7, "skips": 8, "compile": True, "checkpoint_activations": True,
               "async_checkpoints": True, "strict": True, "tensorboard": True, "wandb": True, "deterministic": True}
    assert machine.keys() | {"fused"} == {f.name for f in fields(Machine)}
    own = {"objective": "filip", "filip_keep": 0.5}
    training = HOW | {"mixing": "round_robin"}
    named = ["--validation", "drawn?count=8&style=full", "mosaic?count=9"]
    for more, checks in ((named, [8, 9]), ([], [20, HOW["eval_limit"]])):
        out = tmp_path / str(len(more))
        argv = ["--out", str(out), "--data", "drawn?count=20&style=short", "mosaic", *more, "--no-eos", "--no-lower",
                *flags(model | training | machine | own), "--fused", "True"]
        assert command.main(argv, say=lambda text: None) == 0
        config, how, where, sets, tokenizer, there, place = handed.given
        assert asdict(config) == model | {"vocab_size": tokenizer.vocab_size} and there == out and place.world == 1
        assert asdict(how) == training and asdict(where) == machine | {"fused": True}
        assert asdict(handed.objective) == asdict(ObjectiveConfig()) | own and not tokenizer.eos and not tokenizer.lower
        assert [(type(d), d.split) for d in sets] == [(DrawnScenes, "train"), (MosaicScenes, "train")] and len(sets[0]) == 20
        assert [(type(d), d.split, len(d)) for d in handed.validation.values()] == [
            (DrawnScenes, "validation", checks[0]), (MosaicScenes, "validation", checks[1])]
        assert not handed.resume and handed.init is None and handed.again.endswith("--resume")
    argv = ["--out", str(tmp_path / "small"), "--data", "drawn?style=short", "--preset", "small", "--resume"]
    assert command.main([*argv, "--init", str(tmp_path / "weights")], say=lambda text: None) == 0
    assert handed.resume and handed.init == tmp_path / "weights"
    assert handed.given[0].vision_width == PRESETS["small"].vision_width != PRESETS["tiny"].vision_width
    assert handed.given[1].steps == 2000
