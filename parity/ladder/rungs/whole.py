"""The whole model on both sides: towers, features, losses and every gradient, under random parameters.

Random parameters, never initial ones: a gain of 1 or a bias of 0 hides what would be multiplied or added.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from parity.ladder.rungs import mixed, replay
from parity.ladder.rungs.judge import judge
from parity.ladder.rungs.record import Pass, recorded
from parity.ladder.rungs.rounded import BITS, rounded
from parity.ladder.rungs.setup import NotRun, Row, Setup
from parity.vectors import budgets
from sparc_ref.model import PRESETS, SPARCConfig, parameter_shapes

UPSTREAM = 0.7390851332151607       # dLoss: anything but 1, at which a forgotten factor would not show
MARGIN = 2e-5                       # no entry of eq. 2 is nearer to its threshold: float32 then keeps the same patches
FEATURES = ("image_features", "v", "v_bar", "text_features", "t", "t_bar")
AT_TOKENS = ("text_features", "t")  # (B,L,...): what stands at padding is nobody's business
LOSSES = ("loss_global", "loss_fine", "loss")


@dataclass(frozen=True)
class Sizes:
    """How large the rungs are."""

    model: str                      # preset of the encoders' and gradients' rungs
    batch: int
    tokens: int                     # longest caption
    training_model: str             # preset of the ten updates
    updates: int                    # of the loss band
    worlds: tuple[int, ...]         # how many processes


def sizes(setup: Setup) -> Sizes:
    if setup.quick:
        return Sizes("small", 6, 9, "tiny", 120, (2, 4))
    return Sizes("small", 16, 16, "small", 300, (2, 4))


# a model for what does not depend on size: unlike numbers everywhere, two blocks a tower, both temperatures
TOY = replace(
    PRESETS["tiny"], image_size=12, patch_size=4, vision_width=24, vision_heads=3, vision_depth=2, text_width=20, text_heads=2,
    text_depth=2, vocab_size=31, max_tokens=7, embed_dim=14, temperature="separate",
)


@dataclass(frozen=True)
class Drawn:
    """One batch and the parameters it meets, in float64 on the host."""

    config: SPARCConfig
    params: dict[str, np.ndarray]
    images: np.ndarray              # (B,3,H,W)
    tokens: np.ndarray              # (B,L)
    mask: np.ndarray                # (B,L)

    @property
    def batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.images, self.tokens, self.mask


def random_params(config: SPARCConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters that keep activations near 1 and leave none at a special value."""
    params = {}
    for name, shape in parameter_shapes(config).items():
        x = rng.standard_normal(shape)
        if name.startswith("theta"):
            x = np.asarray(1.9 + 0.3 * x)
        elif "norm" in name and name.endswith("weight"):
            x = 1 + 0.3 * x
        elif name.endswith("bias"):
            x = 0.3 * x
        elif name.endswith("positions") or "embedding" in name:
            x = 0.7 * x
        else:
            x = x / math.sqrt(shape[1])
        params[name] = x.astype(np.float32).astype(np.float64)  # exact in float32: what is compared is arithmetic
    return params


def draw(setup: Setup, config: SPARCConfig, batch: int, length: int) -> Drawn:
    """Random parameters, pictures and captions of unequal length, from one token to all; no entry on a knife edge."""
    rng = np.random.default_rng([setup.seed, batch, length])
    for _ in range(20):
        lengths = rng.permutation(np.resize(np.arange(1, length + 1)[::-1], batch))
        mask = np.arange(length) < lengths[:, None]
        images = rng.standard_normal((batch, 3, config.image_size, config.image_size)).astype(np.float32).astype(np.float64)
        tokens = rng.integers(0, config.vocab_size, (batch, length))
        drawn = Drawn(config, random_params(config, rng), images, tokens, mask)
        _, trace, _ = setup.reference.model.forward(drawn.params, *drawn.batch, config)
        if "minmax" not in trace:
            return drawn
        sigma = 1 / trace["minmax"].shape[-1] if config.sigma is None else config.sigma
        if np.min(np.abs(trace["minmax"][mask] - sigma)) > MARGIN:
            return drawn
    raise NotRun(f"no batch of {batch} keeps {MARGIN} between its similarities and the threshold")


# ----------------------------------------------------------------------------------------------------------- two sides


def cast(x: np.ndarray, dtype: str, device: str = "cpu") -> Any:
    """A host array as the reference computes with it: NumPy, or CuPy on "cuda".

    "bfloat16", which they lack: float32 whose matrix products round as under autocast (rounded.py), on the CPU only.
    """
    if x.dtype == np.float64:
        x = rounded(x.astype(np.float32), dtype) if dtype in BITS else x.astype(dtype)
    if device == "cuda":
        import cupy

        return cupy.asarray(x)
    return x


def reference_run(setup: Setup, drawn: Drawn, dtype: str, device: str = "cpu", towers: Any = None) -> dict[str, np.ndarray]:
    """The reference's features, losses and gradients in forward order.      towers: upstream gradients, see `encoders`"""
    params = {name: cast(x, dtype, device) for name, x in drawn.params.items()}
    images, tokens, mask = (cast(x, dtype, device) for x in drawn.batch)
    if towers is not None:
        return on_host(_reference_towers(setup, drawn.config, params, images, tokens, mask,
                                         [cast(d, dtype, device) for d in towers]), drawn.mask)
    loss, trace, back = setup.reference.model.forward(params, images, tokens, mask, drawn.config)
    found = {name: trace[name] for name in FEATURES + LOSSES[:2] if name in trace} | {"loss": loss}
    return on_host(found | {f"grad.{name}": g for name, g in back(UPSTREAM).items()}, drawn.mask)


def _reference_towers(setup, c, params, images, tokens, mask, upstream):
    e = setup.reference.encoders
    f_v, back_v = e.vision_tower(e.part(params, "vision."), images, patch=c.patch_size, grid=c.grid, heads=c.vision_heads,
                                 gelu=c.gelu, eps=c.layer_norm_eps, resize=c.position_resize)
    f_t, back_t = e.text_tower(e.part(params, "text."), tokens * mask, mask, heads=c.text_heads, gelu=c.gelu,
                               eps=c.layer_norm_eps)
    g = {f"grad.vision.{name}": x for name, x in back_v(upstream[0]).items()}
    g |= {f"grad.text.{name}": x for name, x in back_t(upstream[1]).items()}
    return {"image_features": f_v, "text_features": f_t} | {f"grad.{name}": g[f"grad.{name}"] for name in params
                                                            if f"grad.{name}" in g}


def trainer_model(setup: Setup, drawn: Drawn, dtype: str, device: str | None = None, **options: Any) -> Any:
    """The trainer's model with the drawn parameters.  "mixed" keeps float32 parameters for autocast."""
    model = setup.trainer.model.SPARC(drawn.config, **options)
    model = model.to(device or setup.device, torch.float64 if dtype == "float64" else torch.float32)
    return setup.trainer.model.load_params(model, drawn.params)


def torch_batch(drawn: Drawn, dtype: str, device: str) -> tuple[torch.Tensor, ...]:
    images = torch.tensor(drawn.images, dtype=torch.float64 if dtype == "float64" else torch.float32, device=device)
    return images, torch.tensor(drawn.tokens, device=device), torch.tensor(drawn.mask, device=device)


def autocast(dtype: str, device: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=dtype == "mixed")


def trainer_loss(setup: Setup, model: Any, images: Any, tokens: Any, mask: Any, config: SPARCConfig, dtype: str,
                 **options: Any) -> tuple[Any, dict]:
    """Eq. 7 by the trainer.      -> loss (), features and stages"""
    with autocast(dtype, images.device.type):
        out = model(images, tokens, mask)
    bare = setup.trainer.model.bare(model)
    loss, stages = setup.trainer.loss.sparc_loss(out, mask, bare.theta, bare.theta_fine, config, **options)
    return loss, out | stages


def trainer_run(
    setup: Setup, drawn: Drawn, dtype: str, device: str | None = None, towers: Any = None, wrap: Callable = lambda model: model,
    options: Mapping[str, Any] = {}, record: list[Pass] | None = None, **loss_options: Any,
) -> dict[str, np.ndarray]:
    """The same by the trainer.      wrap: such as torch.compile; options: SPARC's; record: gets what was computed on the way"""
    device = device or setup.device
    model = trainer_model(setup, drawn, dtype, device, **options)
    images, tokens, mask = torch_batch(drawn, dtype, device)
    with recorded(model, record):
        if towers is not None:
            with autocast(dtype, device):
                f_v, f_t = model.vision(images), model.text(tokens, mask)
            upstream = [torch.tensor(d, dtype=f.dtype, device=device) for d, f in zip(towers, (f_v, f_t))]
            torch.autograd.backward([f_v, f_t], upstream)
            found = {"image_features": f_v, "text_features": f_t}
            names = [name for name in drawn.params if name.startswith(("vision.", "text."))]
        else:
            loss, stages = trainer_loss(setup, wrap(model), images, tokens, mask, drawn.config, dtype, **loss_options)
            (loss * UPSTREAM).backward()
            found = {name: stages[name] for name in FEATURES + LOSSES[:2] if name in stages} | {"loss": loss}
            names = list(drawn.params)
    grads = setup.trainer.model.dump_grads(model)
    return on_host(found | {f"grad.{name}": grads[name] for name in names}, drawn.mask)


def step_by_step(
    setup: Setup, drawn: Drawn, run: Callable[..., dict[str, np.ndarray]], side: str, dloss: mixed.Upstream = UPSTREAM
) -> Iterator[Row]:
    """Mixed precision: see mixed.py.      run(setup, drawn, dtype, record=...) -> losses and gradients by name

    bfloat16 embeddings are other ones than those that `draw` looked at: where one of theirs comes too near to the threshold for
    float32 to keep the same patches, another batch is drawn.
    """
    def trained(drawn: Drawn, dtype: str) -> mixed.Trained:
        passes: list[Pass] = []
        found = run(setup, drawn, dtype, record=passes)
        passes = [each for each in passes if each.grads]  # those without are embeddings that were made again
        return mixed.Trained(passes, {name: found[name] for name in (*LOSSES, *FEATURES) if name in found},
                             {name: g for name, g in found.items() if name.startswith("grad.")})

    for attempt in range(20):
        ran = trained(drawn, "mixed")
        if not isinstance(dloss, float) or mixed.threshold_distance(setup, drawn, ran) > mixed.NEAR:
            yield from mixed.rows(setup, drawn, ran, "mixed", side, dloss, again=partial(trained, drawn, "float64"))
            return
        drawn = draw(replace(setup, seed=setup.seed + 1000 * (attempt + 1)), drawn.config, *drawn.mask.shape)
    raise NotRun(f"no batch of {len(drawn.mask)} keeps {mixed.NEAR} between its bfloat16 similarities and the threshold")


def on_host(found: Mapping[str, Any], mask: np.ndarray) -> dict[str, np.ndarray]:
    """Everything as NumPy float64 or float32, padding as zeros."""
    out = {}
    for name, x in found.items():
        dtype = budgets.dtype_of(x, "float64")
        x = budgets.to_float64(x)
        x = np.where(mask[..., None], x, 0) if name in AT_TOKENS else x
        out[name] = x.astype(np.float32) if dtype == "float32" else x
    return out


def shuffled(drawn: Drawn, order: np.ndarray) -> Drawn:
    """The same batch in another order: sums over the batch round in another way."""
    return replace(drawn, images=drawn.images[order], tokens=drawn.tokens[order], mask=drawn.mask[order])


def measured(
    setup: Setup, drawn: Drawn, towers: Any = None, low: Iterable[str] = ("float32",), device: str = "cpu"
) -> dict[str, budgets.Measured]:
    """Each tensor's float64 value and budgets, by the reference's own runs.      -> name -> budgets.Measured

    float32 runs twice, the second time with the batch in reverse: sums over the batch then round in another way.  And what no
    float32 program can tell apart is no error: float64, from parameters that were each moved by one unit of float32's rounding.
    """
    order = np.arange(len(drawn.mask))[::-1]

    def run(dtype):
        yield reference_run(setup, drawn, dtype, device, towers)
        if dtype == "float32":
            turned = None if towers is None else [d[order] for d in towers]
            again = reference_run(setup, shuffled(drawn, order), dtype, device, turned)
            yield {name: x[order] if name in FEATURES else x for name, x in again.items()}
            moved = replace(drawn, params=nudge(drawn.params, dtype, setup.seed))
            yield reference_run(setup, moved, "float64", device, towers)

    found = budgets.measure(run, low)
    if "bfloat16" in low:
        for i in range(3):
            dithered = replace(drawn, params=dither(drawn.params, setup.seed + i))
            widen(found, [reference_run(setup, dithered, "bfloat16", device, towers)], found)
    return share_scalars(found)


def nudge(params: Mapping[str, np.ndarray], dtype: str, seed: int) -> dict[str, np.ndarray]:
    """Every parameter moved by one unit of rounding of `dtype`, up or down at random."""
    rng = np.random.default_rng([seed, 17])
    return {name: p * (1 + budgets.EPS[dtype] * rng.choice([-1.0, 1.0], p.shape)) for name, p in params.items()}


def dither(params: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Every parameter moved by up to half a unit of bfloat16's rounding: rounded afterwards, it is rounded at random."""
    rng = np.random.default_rng([seed, 18])
    return {name: p * (1 + budgets.EPS["bfloat16"] / 2 * rng.uniform(-1, 1, p.shape)) for name, p in params.items()}


def widen(found: dict[str, budgets.Measured], runs: Iterable[Mapping[str, np.ndarray]], names: Iterable[str]) -> None:
    """More bfloat16 runs count too.  One run can be right by luck: a number alone, and any gradient of an alignment in which
    rounding moved no patch across the threshold."""
    for run in runs:
        for name in names:
            m = found[name]
            error = budgets.error(run[name], m.want, m.scale)
            m.budget["bfloat16"] = max(m.budget["bfloat16"], budgets.from_measured(error, "float32"))
            if "bfloat16" in m.along:
                m.along["bfloat16"] = max(m.along["bfloat16"], budgets.SLACK * budgets.factor_noise(run[name], m.want))


def share_scalars(found: dict[str, budgets.Measured]) -> dict[str, budgets.Measured]:
    """For the same reason losses share the largest budget among them, and so do the gradients of theta and theta_fine."""
    for start in ("loss", "grad."):
        scalars = [m for name, m in found.items() if m.want.ndim == 0 and name.startswith(start)]
        for dtype in scalars[0].budget if scalars else ():
            most = max(m.budget[dtype] for m in scalars)
            along = max((m.along[dtype] for m in scalars if dtype in m.along), default=0.0)
            for m in scalars:
                m.budget[dtype] = most
                if m.along:
                    m.along[dtype] = along
    return found


# ----------------------------------------------------------------------------------------------------------- two rungs

BUDGET = {"float64": "float64", "float32": "float32", "mixed": "bfloat16"}  # whose error measures whose budget


def rows(got: Mapping[str, np.ndarray], want: Mapping[str, Any], dtype: str, side: str, note: str = "",
         again: Callable[[], Mapping[str, np.ndarray]] | None = None) -> Iterator[Row]:
    """Compare by name, in the order of `want` (budgets.Measured)."""
    missing = want.keys() ^ got.keys()
    if missing:
        raise ValueError(f"{side}: expected the tensors {', '.join(sorted(want)[:5])}, ...; differs in {sorted(missing)[:5]}")
    for name, m in want.items():
        low = BUDGET[dtype]
        yield judge(name, dtype, side, got[name], m.want, m.scale, m.budget[low], m.along.get(low), note=note,
                    again=partial(_again, again, name, m) if again else None)


def _again(again, name, m):
    return budgets.error(again()[name], m.want, m.scale), m.budget["float64"]


DTYPES = ("float64", "float32", "mixed")
WIDE = DTYPES[:2]                   # compared from end to end; "mixed" step by step


def encoders(setup: Setup) -> Iterator[Row]:
    """Frozen vectors of the towers; then both towers of the preset with a random upstream gradient for every feature."""
    yield from replay.inside(setup, "encoders")
    s = sizes(setup)
    drawn = draw(setup, PRESETS[s.model], s.batch, s.tokens)
    towers = upstream(setup, drawn)
    want = measured(setup, drawn, towers)
    for dtype in WIDE:
        again = partial(trainer_run, setup, drawn, "float64", towers=towers)
        yield from rows(trainer_run(setup, drawn, dtype, towers=towers), want, dtype, "trainer", again=again)
    yield from step_by_step(setup, drawn, partial(trainer_run, towers=towers), "trainer", towers)


def upstream(setup: Setup, drawn: Drawn) -> list[np.ndarray]:
    """A random gradient for every feature of both towers, 0 at padding; exact in float32."""
    rng, c = np.random.default_rng(setup.seed + 1), drawn.config
    d_v = rng.standard_normal((len(drawn.mask), c.grid[0] * c.grid[1], c.vision_width))
    d_t = rng.standard_normal((*drawn.mask.shape, c.text_width)) * drawn.mask[..., None]
    return [d.astype(np.float32).astype(np.float64) for d in (d_v, d_t)]


def gradients(setup: Setup) -> Iterator[Row]:
    """Frozen vectors of a toy model; then features, losses and every gradient of the preset.  Says the largest error."""
    yield from replay.inside(setup, "model")
    s = sizes(setup)
    drawn = draw(setup, PRESETS[s.model], s.batch, s.tokens)
    want = measured(setup, drawn)
    largest = {}
    for dtype in DTYPES:
        if dtype == "mixed":
            found = list(step_by_step(setup, drawn, trainer_run, "trainer"))
        else:
            again = partial(trainer_run, setup, drawn, "float64")
            found = list(rows(trainer_run(setup, drawn, dtype), want, dtype, "trainer", again=again))
        yield from found
        grads = [row for row in found if row.name.startswith("grad.")]
        largest[dtype] = max(grads, key=lambda row: row.error / row.budget)
    setup.note(f"{s.model}, {len(grads)} gradients, batch {s.batch}: the closest to its budget is "
               + "; ".join(f"{row.name.removeprefix('grad.')} in {dtype}, {row.error:.1e} of {row.budget:.1e}"
                           for dtype, row in largest.items()))
    setup.note("mixed: every tensor that the trainer rounded, again in float64 from the tensors before it (rungs/mixed.py)")
