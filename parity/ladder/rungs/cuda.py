"""What needs a GPU: CuPy against NumPy against torch CUDA, TF32 off and on, and a step at the paper's size.

Every function takes the device that it runs on, so that the same lines run on "cpu" where there is no GPU, NumPy in CuPy's
place.  NumPy on the CPU in float64 is what is wanted throughout.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from parity import vectors
from parity.ladder.rungs import replay
from parity.ladder.rungs.setup import NotRun, Row, Setup
from parity.ladder.rungs.variants import against
from parity.ladder.rungs.whole import (
    PRESETS,
    Drawn,
    cast,
    draw,
    measured,
    random_params,
    reference_run,
    rows,
    sizes,
    torch_batch,
    trainer_model,
    trainer_run,
)
from parity.vectors import runs

LEVELS = ("ops", "losses", "encoders", "model", "steps")


# --------------------------------------------------------------------------------------------------------- three backends


def backends(setup: Setup) -> Iterator[Row]:
    """The reference's source on CuPy and on torch CUDA: every frozen vector, every gradient of the small model."""

    def sides(setup, case):
        for name, make in (("CuPy", on_cupy), ("torch CUDA", on_torch)):
            yield f"reference, {name}", partial(replay.by_reference, setup, cast=partial(make, device=setup.device))

    for level in LEVELS:
        if any(setup.wanted(case) for case in vectors.load(setup.vectors, level)):
            yield from replay.replay(replace(setup, note=lambda text: None), level, sides)
    s = sizes(setup)
    drawn = draw(setup, PRESETS[s.model], s.batch, s.tokens)
    want = measured(setup, drawn, low=("float32",))
    for dtype in ("float64", "float32"):
        again = partial(reference_run, setup, drawn, "float64", setup.device)
        yield from rows(reference_run(setup, drawn, dtype, setup.device), want, dtype, "reference, CuPy", again=again)
    setup.note("NumPy in float64 on the CPU is what is wanted; CuPy and torch CUDA run the reference's own source")


def on_cupy(x: np.ndarray, dtype: str, device: str) -> Any:
    """A host array for CuPy, which has no bfloat16."""
    x = runs.cast(x, "numpy", dtype)
    if device == "cpu":
        return x
    import cupy

    return cupy.asarray(x)


def on_torch(x: np.ndarray, dtype: str, device: str) -> Any:
    return runs.cast(x, "torch", dtype).to(device)


# ------------------------------------------------------------------------------------------------------------------- TF32


@contextmanager
def tf32_products(on: bool) -> Iterator[None]:
    """Allow or forbid torch and CuPy to round float32 products to TF32; as before afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        from cupy import _core
        from cupy._core import _routines_linalg as linalg

        before = _core.get_compute_type(np.float32)
        _core.set_compute_type(np.float32, linalg.COMPUTE_TYPE_TF32 if on else linalg.COMPUTE_TYPE_DEFAULT)

        def restore() -> None:
            _core.set_compute_type(np.float32, before)

    except (ImportError, AttributeError):                 # no CuPy, or one that names it differently
        def restore() -> None:
            pass

    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
        restore()


def tf32(setup: Setup) -> Iterator[Row]:
    """Off: every gradient keeps its float32 budget.  On: some gradient must be seen leaving it, or off proves nothing."""
    if setup.device == "cuda" and torch.cuda.get_device_capability()[0] < 8:
        raise NotRun(f"TF32 needs compute capability 8.0, {torch.cuda.get_device_name()} is older")
    s = sizes(setup)
    drawn = draw(setup, PRESETS[s.model], s.batch, s.tokens)
    want = measured(setup, drawn, low=("float32",))
    sides = {"trainer": trainer_run, "reference, CuPy": reference_run}
    for name, run in sides.items():
        with tf32_products(False):
            yield from rows(run(setup, drawn, "float32", device=setup.device), want, "float32", f"{name}, TF32 off",
                            again=partial(run, setup, drawn, "float64", device=setup.device))
    for name, run in sides.items():
        with tf32_products(True):
            found = list(rows(run(setup, drawn, "float32", device=setup.device), want, "float32", f"{name}, TF32 on"))
        farthest = max(found, key=lambda row: row.error / row.budget)
        beyond = sum(not row.ok for row in found)
        yield replace(farthest, name=f"TF32 on: {farthest.name}", must_leave=True,
                      note=f"a planted error that must be seen; {beyond} of {len(found)} tensors leave their budget")
        setup.note(f"{name}: with TF32 on, {beyond} of {len(found)} tensors leave the float32 budget; the farthest is "
                   f"{farthest.name}, off by {farthest.error:.1e}, budget {farthest.budget:.1e}")


# ---------------------------------------------------------------------------------------------------- a step at full size


def vit_b_16(setup: Setup, model: str = "vit_b_16", batch: int = 256, small: int = 16) -> Iterator[Row]:
    """Loss and every gradient of one step in float32, CuPy reference against trainer, at batch >= 256; then an update each.

    What is wanted is the trainer's mirror image: the reference's float32 run.  Its budget is measured on a batch of `small`,
    where float64 fits: the reference's float32 against its float64.
    """
    if setup.device == "cuda":
        _, total = torch.cuda.mem_get_info()
        if total < 60e9:
            raise NotRun(f"a {model} step at batch {batch} keeps about 45 GB of activations; this GPU has {total / 1e9:.0f} GB")
    config = PRESETS[model]
    length = min(32, config.max_tokens)
    params = random_params(config, np.random.default_rng(setup.seed))
    budgeted = measured(setup, plain_draw(setup, config, small, length, params), low=("float32",), device=setup.device)
    setup.tick(0.4)
    drawn = plain_draw(setup, config, batch, length, params)
    with tf32_products(False):
        want = against(reference_run(setup, drawn, "float32", setup.device), budgeted)
        setup.tick(0.6)
        release(setup.device)
        got = trainer_run(setup, drawn, "float32", setup.device)
        release(setup.device)
        setup.tick(0.8)
        yield from rows(got, want, "float32", "trainer")
        for name, step in (("reference, CuPy", reference_step), ("trainer", trainer_step)):
            seconds, peak = step(setup, drawn)
            release(setup.device)
            setup.note(f"{model}, batch {batch}, {length} tokens, float32 without TF32, {name}: "
                       f"{seconds:.2f} s an update, {peak / 2**30:.1f} GiB at its peak")


def plain_draw(setup: Setup, config: Any, batch: int, length: int, params: dict | None = None) -> Drawn:
    """As whole.draw, without a look at how near to the threshold a similarity is: among millions some are."""
    rng = np.random.default_rng([setup.seed, batch, length])
    images = rng.standard_normal((batch, 3, config.image_size, config.image_size), np.float32).astype(np.float64)
    mask = np.arange(length) < rng.integers(1, length + 1, batch)[:, None]
    params = random_params(config, np.random.default_rng(setup.seed)) if params is None else params
    return Drawn(config, params, images, rng.integers(0, config.vocab_size, (batch, length)), mask)


def reference_step(setup: Setup, drawn: Drawn, rounds: int = 3) -> tuple[float, float]:
    """Forward, back, clipping, AdamW, on CuPy.      -> median seconds, peak bytes"""
    optim = setup.reference.optim
    params = {name: cast(x, "float32", setup.device) for name, x in drawn.params.items()}
    images, tokens, mask = (cast(x, "float32", setup.device) for x in drawn.batch)
    state, seconds = optim.adamw_init(params), []
    for _ in range(rounds):
        wait(setup.device)
        began = time.perf_counter()
        _, _, back = setup.reference.model.forward(params, images, tokens, mask, drawn.config)
        grads = back()
        del back                                          # and with it the activations
        grads, _ = optim.clip_by_global_norm(grads, 1.0)
        params, state = optim.adamw_step(params, grads, state, 1e-4)
        wait(setup.device)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[rounds // 2], pool_bytes(setup.device)


def trainer_step(setup: Setup, drawn: Drawn, rounds: int = 3, dtype: str = "float32", **options: Any) -> tuple[float, float]:
    """The same by the trainer.      options: of its model"""
    model = trainer_model(setup, drawn, dtype, setup.device, **options)
    optimizer = setup.trainer.optim.make_adamw(model, 1e-4)
    batch, seconds = torch_batch(drawn, dtype, setup.device), []
    if setup.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(rounds):
        wait(setup.device)
        began = time.perf_counter()
        setup.trainer.optim.train_step(model, batch, optimizer, 1e-4, autocast=torch.bfloat16 if dtype == "mixed" else None)
        wait(setup.device)
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if setup.device == "cuda" else 0
    return sorted(seconds)[rounds // 2], peak


def wait(device: str) -> None:
    """Until the GPU has done all that was asked."""
    if device == "cuda":
        import cupy

        torch.cuda.synchronize()
        cupy.cuda.Device().synchronize()


def pool_bytes(device: str) -> int:
    """What CuPy's pool holds: the most that it needed since it was last released."""
    if device == "cpu":
        return 0
    import cupy

    return cupy.get_default_memory_pool().total_bytes()


def release(device: str) -> None:
    """Hand memory that nobody uses back to the GPU, so that the other library can have it."""
    gc.collect()
    if device == "cuda":
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()
        torch.cuda.empty_cache()


