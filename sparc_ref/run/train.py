"""The training loop: data in, checkpoints and metrics out.

    for every update:  one batch from each data set -> loss -> gradients, averaged over the data sets (appendix D.2;
                       negatives stay within a batch) -> clip -> AdamW -> clamp theta

A run that is killed and resumed ends with the same bits as one that is not: everything random is a function of the seed and
of positions that the checkpoint holds, sums are taken in a fixed order, and with shards > 1 BLAS runs on one thread, so that
the number of cores does not matter. (With shards = 1, BLAS may split a product differently on a machine with other cores.)
"""

import inspect
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from sparc_ref import optim
from sparc_ref.backend import get_device, keep_memory, to_device, to_numpy
from sparc_ref.data import Batches
from sparc_ref.model import SPARCConfig, forward, init_params, parameter_shapes
from sparc_ref.run import checkpoint
from sparc_ref.run.measure import evaluate
from sparc_ref.run.rundir import CHECKPOINTS, CONFIG, METRICS, Metrics, fingerprint, lock, open_run, shorten


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The model's own settings are SPARCConfig's."""

    steps: int = 600                # updates
    batch: int = 64                 # examples per data set and update: the global loss has batch - 1 negatives
    lr: float = 1e-3                # peak learning rate; appendix D.4 sweeps 7e-4 .. 1.1e-3
    warmup: int = 50                # updates of linear warm-up; a cosine follows
    final_lr: float = 0.0           # where the cosine ends
    beta1: float = 0.9              # AdamW, first moment
    beta2: float = 0.98             # AdamW, second moment: open_clip's, the paper is silent
    eps: float = 1e-6               # AdamW: open_clip's, the paper is silent
    weight_decay: float = 0.2       # decoupled, matrices only; appendix D.4 sweeps 0.1 .. 0.3
    clip: float = 1.0               # limit of the gradient's global norm; the paper is silent, this is the usual one
    attention_start: float = 1.0    # factor on the attention's output weights at the start; 0: every patch starts as itself
    seed: int = 0                   # initial weights, order of the data and draws of captions
    log_every: int = 10             # updates between two rows of metrics
    eval_every: int = 100           # updates between two evaluations; 0: at the end only
    eval_limit: int = 256           # examples per evaluation
    checkpoint_every: int = 100     # updates between two checkpoints; one is always written at the end
    keep: int = 2                   # checkpoints that stay; the last one is always among them
    shards: int = 4                 # parts of a batch that the towers run on side by side; fixes the order of sums
    device: str = "cpu"             # "cpu": NumPy | "cuda": CuPy
    dtype: str = "float32"          # of parameters and arithmetic: "float32" | "float64"

    def __post_init__(self):
        for name in ("batch", "keep", "log_every", "checkpoint_every", "shards", "eval_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("steps", "warmup", "final_lr", "weight_decay", "eval_every", "seed", "attention_start"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("lr", "clip", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")
        if self.dtype not in checkpoint.DTYPES:
            raise ValueError(f"dtype: expected one of {checkpoint.DTYPES}, got {self.dtype!r}")


class NonFiniteLoss(ValueError):
    """Training produced NaN or infinity; the last checkpoint is intact."""


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint was written."""


def train(
    config: SPARCConfig, options: TrainConfig, datasets: Sequence[Any], tokenizer: Any, out: str | os.PathLike, *,
    validation: Mapping[str, Any] | None = None, resume: bool = False, overwrite: bool = False, again: str = "",
    say: Callable[[str], Any] = print,
) -> dict[str, np.ndarray]:
    """Train a model and return its parameters (NumPy).   rundir.py says what is written to `out`.

    config      SPARCConfig; its vocab_size must be the tokenizer's
    options     TrainConfig
    datasets    data sets (see data/); every update takes one batch from each
    validation  name -> data set, measured every eval_every updates; never trained on here
    resume      continue from the newest checkpoint in `out`, or start where there is none
    overwrite   delete the run that `out` holds
    again       the command that continues this run, for messages
    Raises ValueError where `out` holds another run or the configuration, data or tokenizer differ from it (naming what),
    NonFiniteLoss, and Interrupted after Ctrl-C or SIGTERM.
    """
    out = Path(out)
    if config.vocab_size != tokenizer.vocab_size:
        raise ValueError(f"vocab_size: expected the tokenizer's {tokenizer.vocab_size}, got {config.vocab_size}")
    if not datasets:
        raise ValueError("datasets: expected at least one, got none")
    device = get_device(options.device)
    record = {"model": asdict(config), "train": asdict(options), "tokenizer": tokenizer.hash,
              "data": {f"{i}:{d.name}": fingerprint(d) for i, d in enumerate(datasets)},
              "validation": {name: fingerprint(d) for name, d in (validation or {}).items()}}
    record = json.loads(json.dumps(record))               # tuples become lists, as they come back
    keep_memory()
    with lock(out), one_blas_thread(options.shards > 1):
        start = open_run(out, record, tokenizer, resume, overwrite)
        batches = [Batches(d, tokenizer, options.batch, seed=options.seed + 1000 * i, max_tokens=config.max_tokens,
                           image_size=config.image_size) for i, d in enumerate(datasets)]
        if start:
            checkpoint.check_params(start.path, start.params, parameter_shapes(config))
            params, state, step, seen = start.params, start.optimizer, start.step, start.record["counters"]
            for b, position in zip(batches, start.record["positions"]):
                b.restore(position)
        else:
            params = initial(config, options)
            state, step, seen = optim.adamw_init(params), 0, {"examples": 0, "tokens_truncated": 0}
        say(announce(config, options, datasets, tokenizer, out, device, params, step))
        params = to_device(params, device)
        state = {"step": state["step"], "m": to_device(state["m"], device), "v": to_device(state["v"], device)}
        run = Run(config, options, batches, tokenizer, out, validation or {}, record, again, say)
        params = run.go(params, state, step, seen)
    return params


class Run:
    """One pass through the loop: what does not change during training, and the steps of the loop as methods."""

    def __init__(self, config, options, batches, tokenizer, out, validation, record, again, say):
        self.config, self.options, self.batches, self.tokenizer = config, options, batches, tokenizer
        self.out, self.validation, self.record, self.again, self.say = out, validation, record, again, say
        self.metrics, self.saved = Metrics(out / METRICS), 0

    def go(self, params, state, step, seen):
        o, self.saved = self.options, step
        self.metrics.cut(step)
        with self.metrics, stop_signals() as stop, progress(o.steps, step, self.say) as bar:
            if step == 0 and o.eval_every:
                self.measure(params, 0)
            while step < o.steps and not stop.asked:
                began = time.perf_counter()
                grads, row = gradients(params, self.batches, self.config, o.shards, o.device, step)
                grads, norm = optim.clip_by_global_norm(grads, o.clip)
                if not np.isfinite(norm):
                    raise NonFiniteLoss(f"update {step + 1}: the gradient's norm is {norm}; {remedy(self.out)}")
                lr = optim.warmup_cosine(step, peak=o.lr, warmup=o.warmup, steps=o.steps, final=o.final_lr)
                params, state = optim.adamw_step(params, grads, state, lr, betas=(o.beta1, o.beta2), eps=o.eps,
                                                 weight_decay=o.weight_decay)
                params = optim.clamp_theta(params)
                step += 1
                seen = {k: seen[k] + row.pop(k) for k in seen}
                took = time.perf_counter() - began
                if step % o.log_every == 0 or step == o.steps:
                    temperature = float(np.exp(-float(to_numpy(params["theta"]))))
                    self.metrics.write({"kind": "train", "step": step, **row, "grad_norm": norm, "lr": lr,
                                        "temperature": temperature, **seen, "seconds": round(took, 4),
                                        "examples_per_second": round(o.batch * len(self.batches) / took, 1)})
                bar(step, row["loss"])
                if step == o.steps or (o.eval_every and step % o.eval_every == 0):
                    self.measure(params, step)
                if step == o.steps or step % o.checkpoint_every == 0:
                    self.save(params, state, step, seen)
            if stop.asked and step < o.steps:
                if step > self.saved:
                    self.save(params, state, step, seen)
                where = f"{self.out} holds everything up to update {step} of {o.steps}"
                raise Interrupted(f"stopped; {where}. Continue with:\n  {self.again or '--resume'}")
        self.say(f"done: {o.steps} updates. Checkpoint {self.out / CHECKPOINTS / f'step_{step:08d}'}, "
                 f"metrics {self.out / METRICS}, configuration {self.out / CONFIG}")
        return host(params)

    def measure(self, params, step):
        """Retrieval, localisation and the grounding gap on every validation set, whatever its kind."""
        for split, dataset in self.validation.items():
            began = time.perf_counter()
            numbers = evaluate(params, self.config, dataset, self.tokenizer, self.options.eval_limit, self.options.batch,
                               seed=self.options.seed, shards=self.options.shards)
            self.metrics.write({"kind": "eval", "step": step, "split": split, **numbers,
                                "seconds": round(time.perf_counter() - began, 4)})
            self.say(f"update {step}, {split}: " + brief(numbers))

    def save(self, params, state, step, seen):
        self.metrics.flush()                              # first: a checkpoint's metrics are never missing
        state = {"step": state["step"], "m": host(state["m"]), "v": host(state["v"])}
        record = {"config": self.record, "counters": seen, "positions": [b.state() for b in self.batches]}
        checkpoint.save(self.out / CHECKPOINTS, step, host(params), state, record, self.tokenizer)
        checkpoint.prune(self.out / CHECKPOINTS, self.options.keep)
        self.saved = step


def initial(config: SPARCConfig, options: TrainConfig) -> dict[str, np.ndarray]:
    """The parameters before the first update: init_params, the attention's output scaled by attention_start."""
    params = init_params(config, np.random.default_rng(options.seed), options.dtype)
    start = np.asarray(options.attention_start, options.dtype)
    return {name: p * start if name.endswith("attn.out.weight") else p for name, p in params.items()}


def gradients(
    params: dict, batches: Sequence[Batches], config: SPARCConfig, shards: int = 1, device: str = "cpu", step: int = 0
) -> tuple[dict, dict[str, float]]:
    """One batch from each data set; the mean of their gradients and of their losses (appendix D.2).   -> grads, row

    row: loss, loss_global, loss_fine, zeroed (share of weights that the threshold set to zero), examples, tokens_truncated,
    and with several data sets each one's loss. Raises NonFiniteLoss that names the data set and the examples.
    """
    total: dict = {}
    rows: list[dict] = []
    for source in batches:
        dropped = source.tokenizer.counts.dropped
        batch = next(source)
        images, tokens, mask = to_device((batch.images, batch.tokens, batch.mask), device)
        loss, trace, back = forward(params, images, tokens, mask, config, shards)
        row = {"loss": number(loss), "loss_global": number(trace["loss_global"])}
        if "loss_fine" in trace:
            row["loss_fine"] = number(trace["loss_fine"])
        if trace.get("sparse") is not None:
            row["zeroed"] = zeroed(trace["sparse"], mask)
        row |= {"examples": len(batch.index), "tokens_truncated": source.tokenizer.counts.dropped - dropped}
        rows.append(row)
        if not np.isfinite(row["loss"]):
            raise NonFiniteLoss(f"update {step + 1}: the loss is {row['loss']} on {source.dataset.name}, examples "
                                f"{batch.index.tolist()}; the parameters before this update are kept: lower lr or clip, "
                                "or raise warmup, and start anew")
        grads = back(1 / len(batches))
        total = {name: total[name] + g for name, g in grads.items()} if total else grads
    mean = {k: sum(r[k] for r in rows) / len(rows) for k in rows[0] if k not in ("examples", "tokens_truncated")}
    mean |= {k: sum(r[k] for r in rows) for k in ("examples", "tokens_truncated")}
    if len(batches) > 1:
        mean |= {f"loss/{i}:{b.dataset.name}": r["loss"] for i, (b, r) in enumerate(zip(batches, rows))}
    return total, mean


def zeroed(sparse, mask):
    """The share of weights of real tokens that are exactly zero.   sparse (B,L,P), mask (B,L)"""
    xp = array_namespace(sparse)
    off = xp.sum(xp.astype((sparse == 0) & mask[:, :, None], xp.int64))
    return number(off) / max(1, number(xp.sum(xp.astype(mask, xp.int64))) * sparse.shape[-1])


def one_blas_thread(wanted):
    """Limit BLAS to one thread; the threads of the shards share the cores."""
    if not wanted:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, "blas")


# ------------------------------------------------------------------------------------------------- what a person sees


class Stop:
    asked = False


@contextmanager
def stop_signals():
    """Ctrl-C and SIGTERM end the loop after the running update; a second one ends at once."""
    stop, before = Stop(), {}

    def ask(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        print("stopping after this update; again to stop at once", file=sys.stderr)

    try:
        for name in (signal.SIGINT, signal.SIGTERM):
            before[name] = signal.signal(name, ask)
    except ValueError:                                    # not the main thread: signals are the caller's
        pass
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def progress(steps, first, say):
    """A bar with an estimate on a terminal, otherwise a line every twentieth of the way.   -> bar(step, loss)"""
    began = time.perf_counter()
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=steps, initial=first, unit="update", smoothing=0.05, file=sys.stderr) as bar:

            def show(step, loss):
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update(step - bar.n)

            yield show
        return
    every = max(1, steps // 20)

    def show(step, loss):
        if step % every == 0 or step == steps:
            left = (time.perf_counter() - began) / (step - first) * (steps - step)
            say(f"update {step}/{steps}, loss {loss:.4f}, {left:.0f} s left")

    yield show


def announce(config, options, datasets, tokenizer, out, device, params, step):
    """The effective configuration with the reason for every setting, data, device, dtype and paths."""
    where = "CuPy on the GPU" if device == "cuda" else "NumPy on the CPU"
    lines = [f"{'resuming at update ' + str(step) if step else 'training'}: {optim.count(params):,} parameters, "
             f"{options.dtype}, {where}; everything goes to {out}/"]
    for title, values in (("model", config), ("training", options)):
        notes = reasons(type(values))
        lines.append(f"{title}:")
        lines += [f"  {k:17} {v!s:10} {notes.get(k, '')}".rstrip() for k, v in asdict(values).items()]
    lines.append("data, one batch of each per update:")
    lines += [f"  {shorten(d.describe(), 300)}" for d in datasets]
    lines.append(f"tokenizer: {shorten(tokenizer.describe(), 300)}")
    return "\n".join(lines)


def reasons(cls):
    """The comment behind each field of a dataclass, from its source."""
    names = "|".join(f.name for f in fields(cls))
    return dict(re.findall(rf"^ +({names}): [^#\n]*# (.*)$", inspect.getsource(cls), re.MULTILINE))


def brief(numbers):
    """The handful of numbers that tell how training goes."""
    shown = {"i2t_r1": "R@1 i2t", "t2i_r1": "t2i", "miou": "mIoU", "pointing": "pointing", "mass": "mass",
             "grounding_gap": "grounding gap"}
    return ", ".join(f"{label} {numbers[k]:.3f}" for k, label in shown.items() if k in numbers)


def remedy(out):
    found = checkpoint.steps(out / CHECKPOINTS)
    kept = f"{found[-1]} is kept" if found else "no checkpoint had been written"
    return f"{kept}; lower lr or clip, or raise warmup, and start anew"


def number(x):
    return float(to_numpy(x))


def host(arrays):
    return {name: to_numpy(x) for name, x in arrays.items()}
