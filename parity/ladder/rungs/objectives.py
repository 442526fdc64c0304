"""What SPARC is compared with, by the trainer: frozen vectors, a whole model on one process and on ranks, runs from its command
line; loss and every gradient against the reference on the concatenated batch.
"""

import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from parity.ladder.rungs import entry, replay
from parity.ladder.rungs.ranks import PARTS
from parity.ladder.rungs.setup import Row, Setup
from parity.ladder.rungs.trainer_calls import IN_BLOCKS
from parity.ladder.rungs.training import pooled
from parity.ladder.rungs.whole import TOY, Drawn, cast, draw, nudge, on_host, rows, share_scalars, shuffled, sizes
from parity.vectors import budgets
from sparc_ref.data import Batches, DrawnScenes, WordTokenizer
from sparc_ref.model import PRESETS
from sparc_ref.objectives.chosen import ObjectiveConfig, after_update, loss_of, own_shapes

MODEL = replace(TOY, temperature="shared")
O = ObjectiveConfig
CASES: dict[str, ObjectiveConfig] = {
    "clip": O("clip"), "filip": O("filip"), "filip, pair": O("filip", filip_keep=0.5, filip_select="pair"),
    "filip, both": O("filip", filip_keep=0.8, filip_drop_side="both"), "filip, all": O("filip", filip_keep=1.0),
    "clip_filip": O("clip_filip", weight_filip=0.75), "pacl": O("pacl"), "pacl, matched": O("pacl", pacl_pairs="matched"),
    "pacl, learned": O("pacl", pacl_learn_scale=True, pacl_values="unit"), "gloria": O("gloria"),
    "gloria, learned": O("gloria", gloria_learn="all", gloria_agg="mean"),
    "gloria, code": O("gloria", gloria_double_softmax=True),
    "siglip": O("siglip"), "flair": O("flair"),
    "mgca": O("mgca", mgca_width=5, mgca_prototypes=9),
    "mgca, frozen": O("mgca", mgca_attention="paramfree", mgca_prototypes=9, mgca_freeze=1, mgca_normalize="both"),
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {"": {}, "in blocks": IN_BLOCKS, "2 parts": {"accumulate": 2}}
BRIEFLY = {how: options for how, options in WAYS.items() if how != "2 parts"}
RUNS = ("clip", "filip", "clip_filip", "pacl", "gloria", "mgca", "siglip", "flair")  # from the command line
OPTIONS = {"mgca": "--mgca-width 16 --mgca-prototypes 20"}


def objectives(setup: Setup) -> Iterator[Row]:
    """Vectors, one process, ranks, command line."""
    yield from replay.objectives(setup)
    setup.tick(0.4)
    wanted: dict[tuple[str, str], tuple] = {}
    batches = {"": drawn_for(setup), "an empty caption": emptied(drawn_for(setup))}
    for padded, drawn in batches.items():
        for case, objective in CASES.items():
            given = with_own(drawn, objective, setup.seed)
            want = whole_batch(setup, given, objective)
            for dtype in ("float64", "float32"):
                for how, options in (WAYS if setup.device == "cpu" else BRIEFLY).items():
                    run = partial(one_process, setup, given, objective, **options)
                    side = ", ".join(filter(None, ("trainer", case, how, padded)))
                    yield from rows(run(dtype=dtype), want, dtype, side, again=partial(run, dtype="float64"))
            wanted[case, padded] = given, objective, want
            if not padded:
                yield from narrow(setup, given, objective, want, f"trainer, {case}, bfloat16 embeddings")
    setup.tick(0.6)
    worlds = () if setup.device == "cuda" else (2,) if setup.quick else sizes(setup).worlds
    for world in worlds:
        for dtype in ("float64",) if setup.quick else ("float64", "float32"):
            yield from over_ranks(setup, batches, world, dtype)
    setup.tick(0.8)
    yield from from_the_command_line(setup)
    for (case, padded), (given, objective, want) in wanted.items() if setup.device == "cuda" else ():
        for dtype in ("float64", "float32"):
            found = reference_run(setup, given, objective, dtype, "cuda")
            yield from rows(found, want, dtype, ", ".join(filter(None, ("reference, CuPy", case, padded))))
    on = f"gloo on this machine, {' and '.join(map(str, worlds))} processes with unlike shares of 7 samples"
    setup.note(f"{on if worlds else 'one GPU, the reference on CuPy as well'}; updates from command line to export")


def drawn_for(setup: Setup) -> Drawn:
    return draw(setup, MODEL, sum(PARTS[1]), MODEL.max_tokens)


def emptied(drawn: Drawn) -> Drawn:
    """One caption of nothing but padding."""
    mask = drawn.mask.copy()
    mask[4] = False
    return replace(drawn, mask=mask)


def with_own(drawn: Drawn, objective: ObjectiveConfig, seed: int) -> Drawn:
    """The objective's parameters too: none at a special value, exact in float32."""
    return replace(drawn, params=drawn.params | own_params(objective, drawn.config.embed_dim, seed))


def own_params(objective: ObjectiveConfig, width: int, seed: int) -> dict[str, np.ndarray]:
    found = {}
    for name, shape in own_shapes(objective, width).items():
        rng = np.random.default_rng([seed, *name.encode()])  # the same under every objective
        x = np.asarray(1.4 + 0.3 * rng.standard_normal()) if name.startswith("theta") else rng.standard_normal(shape)
        x = x / np.linalg.norm(x, axis=1, keepdims=True) if name.endswith("prototypes") else x
        x = x / 3 if x.ndim and not name.endswith("prototypes") else x
        found[name] = x.astype(np.float32).astype(np.float64)
    return found


def reference_run(
    setup: Setup, drawn: Drawn, objective: ObjectiveConfig, dtype: str, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Loss and every gradient."""
    params = {name: cast(p, dtype, device) for name, p in drawn.params.items()}
    images, tokens, mask = (cast(x, dtype, device) for x in drawn.batch)
    loss, _, back = setup.reference.model.forward_with(loss_of(objective), params, images, tokens, mask, drawn.config)
    return on_host({"loss": loss} | {f"grad.{name}": g for name, g in back().items()}, drawn.mask)


def whole_batch(setup: Setup, drawn: Drawn, objective: ObjectiveConfig) -> dict[str, budgets.Measured]:
    """The reference on the whole batch in float64, and budgets, as in rungs/whole.py: its float32, also with the batch in
    reverse; float64 from parameters that were nudged."""
    def run(dtype):
        yield reference_run(setup, drawn, objective, dtype)
        if dtype == "float32":
            yield reference_run(setup, shuffled(drawn, np.arange(len(drawn.mask))[::-1]), objective, dtype)
            yield reference_run(setup, replace(drawn, params=nudge(drawn.params, dtype, setup.seed)), objective, "float64")

    return share_scalars(budgets.measure(run, ("float32",)))


def one_process(setup: Setup, drawn: Drawn, objective: ObjectiveConfig, dtype: str, **options: Any) -> dict[str, np.ndarray]:
    """By the trainer, through optim.backward."""
    t, wide = setup.trainer, torch.float64 if dtype == "float64" else torch.float32
    model = t.model.load_params(t.model.SPARC(drawn.config, objective=objective).to(setup.device, wide), drawn.params)
    images, tokens, mask = (torch.tensor(x, device=setup.device) for x in drawn.batch)
    loss = t.optim.backward(model, (images.to(wide), tokens, mask), **options)
    grads = t.model.dump_grads(model)
    return on_host({"loss": loss} | {f"grad.{name}": grads[name] for name in drawn.params}, drawn.mask)


def narrow(
    setup: Setup, drawn: Drawn, objective: ObjectiveConfig, want: Mapping[str, budgets.Measured], side: str
) -> Iterator[Row]:
    """Embeddings in bfloat16, as towers under autocast give them: the loss must be that of these very numbers, to float32's
    rounding, for everything inside is float32; gradients of parameters of the loss likewise."""
    t = setup.trainer
    rng = np.random.default_rng([setup.seed, 29])
    count, length = drawn.mask.shape
    c = drawn.config
    shapes = {"v": (count, c.grid[0] * c.grid[1], c.embed_dim), "t": (count, length, c.embed_dim),
              "v_bar": (count, c.embed_dim), "t_bar": (count, c.embed_dim)}
    given = {n: torch.tensor(rng.standard_normal(s), dtype=torch.bfloat16, device=setup.device) for n, s in shapes.items()}
    mask = torch.tensor(drawn.mask, device=setup.device)
    names = [n for n in drawn.params if n.startswith(("theta", "pacl.", "mgca.", "flair.", "logit_bias"))]
    params = {n: torch.tensor(drawn.params[n], dtype=torch.float32, device=setup.device).requires_grad_() for n in names}
    with torch.autocast(setup.device, torch.bfloat16):
        loss, _ = t.objectives.objective_loss(given, mask, params, c, objective)
    loss.backward()
    got = {"loss": loss} | {f"grad.{n}": p.grad for n, p in params.items()}

    def reference(dtype):
        x = {n: y.float().cpu().numpy().astype(dtype) for n, y in given.items()}
        own = {n: drawn.params[n].astype(dtype) for n in names}
        loss, _, back = loss_of(objective)(own, x["v"], x["t"], drawn.mask, x["v_bar"], x["t_bar"])
        return {"loss": np.asarray(loss)} | {f"grad.{n}": g for n, g in back().items() if n in names}

    exact = reference("float64")
    measured = share_scalars(budgets.measure(lambda dtype: [reference(dtype)], ("float32",)))
    yield from rows(on_host({n: got[n] for n in exact}, drawn.mask), measured, "float32", side)


def over_ranks(setup: Setup, batches: Mapping[str, Drawn], world: int, dtype: str) -> Iterator[Row]:
    """Every objective in one start of the processes: whole; in blocks under DistributedDataParallel; in parts where it can."""
    ranks, held = setup.trainer.ranks, {2: [4, 3]}.get(world, PARTS[world])
    ways: dict[str, dict[str, Any]] = {"": {}, "DistributedDataParallel, in blocks": {"ddp": True, **IN_BLOCKS}}
    ways |= {"DistributedDataParallel, 2 parts": {"ddp": True, "accumulate": 2}} if min(held) > 1 else {}
    for padded, drawn in batches.items():
        given = {case: with_own(drawn, objective, setup.seed) for case, objective in CASES.items()}
        params = {name: p.astype(dtype) for each in given.values() for name, p in each.params.items()}
        cases = {f"{case}|{how}": {"sizes": held, "objective": asdict(CASES[case]), "form": "gathered"} | options
                 for case in CASES for how, options in ways.items()}
        found = ranks.cases_over_ranks(drawn.config, params, drawn.images.astype(dtype), drawn.tokens, drawn.mask, world, cases,
                                       target=f"{ranks.__name__}:losses")
        for case, objective in CASES.items():
            want = whole_batch(setup, given[case], objective)
            for how in ways:
                loss, grads = found[f"{case}|{how}"]
                got = {"loss": np.asarray(loss)} | {f"grad.{name}": g for name, g in grads.items()}
                yield from rows(got, want, dtype, ", ".join(filter(None, (f"trainer, world {world}", case, how, padded))))


def from_the_command_line(setup: Setup) -> Iterator[Row]:
    """As rung `entry`, a few updates under each objective: one process, and two, by DDP and by FSDP2 in turn."""
    for i, name in enumerate(RUNS):
        config, seed, params, want = reference_training(setup, name)
        options = shlex.join(entry.command(config, seed, setup.device)) + f" --objective {name} {OPTIONS.get(name, '')}"
        with tempfile.TemporaryDirectory(prefix="parity-objectives-") as folder:
            save_file({key: np.array(p, order="C") for key, p in params.items()}, Path(folder) / "weights.safetensors")
            ways = ((1, "none"), (2 if setup.device == "cpu" else 1, ("ddp", "fsdp")[i % 2]))
            for world, strategy in ways:
                cases = {f"{name}, {strategy}, float64": (f"--strategy {strategy}", "float64")}
                yield from entry.compared(setup, Path(folder), want, options, world, cases)


def reference_training(setup: Setup, name: str) -> tuple[Any, int, dict, dict[str, budgets.Measured]]:
    """The reference's updates under an objective.      -> config, seed of the data, weights, what is wanted"""
    objective = ObjectiveConfig(name)
    if name == "mgca":
        objective = replace(objective, mgca_width=16, mgca_prototypes=20)
    base = PRESETS[sizes(setup).training_model]
    scenes = DrawnScenes(size=base.image_size, count=20, captions=2, style="short")
    tokenizer = WordTokenizer(scenes.vocabulary())
    config, seed = replace(base, vocab_size=tokenizer.vocab_size), setup.seed
    params = entry.random_params(config, np.random.default_rng([seed, 5])) | own_params(objective, config.embed_dim, seed)
    source = Batches(scenes, tokenizer, entry.BATCH, seed=seed, max_tokens=config.max_tokens)
    batches = [(b.images.astype(np.float64), b.tokens, b.mask) for b, _ in zip(source, range(entry.COUNT))]
    optim = setup.reference.optim

    def run(start, given, dtype):
        now = {n: p.astype(dtype) for n, p in start.items()}
        state, found = optim.adamw_init(now), {}
        for step, (images, tokens, mask) in enumerate(given):
            batch = images.astype(dtype), tokens, mask
            loss, _, back = setup.reference.model.forward_with(loss_of(objective, step), now, *batch, config)
            grads, norm = optim.clip_by_global_norm(back(), 1.0)
            rate = optim.warmup_cosine(step, peak=1e-3, warmup=2, steps=entry.COUNT)
            now, state = optim.adamw_step(now, grads, state, rate)
            now = after_update(optim.clamp_theta(now))
            found |= {f"loss {step + 1}": np.asarray(loss), f"norm {step + 1}": np.asarray(norm)}
        return found | {f"after {entry.COUNT}.{n}": np.array(p) for n, p in now.items()}

    def several(dtype):
        yield run(params, batches, dtype)
        if dtype == "float32":
            yield run(params, [tuple(x[::-1] for x in batch) for batch in batches], dtype)
            yield run(nudge(params, dtype, setup.seed), batches, "float64")

    return config, seed, params, pooled(budgets.measure(several, ("float32",)), entry.COUNT)
