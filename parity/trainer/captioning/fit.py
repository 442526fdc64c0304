"""The loop of both commands: updates, metrics, checkpoints; killed and resumed, it ends with the same bits.

Checkpoints are sparc_ref.run.checkpoint's: safetensors, hashes, written whole or not at all.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.trainer.optim import decays, warmup_cosine
from sparc_ref.run import checkpoint
from sparc_ref.run.files import write_whole
from sparc_ref.run.inventory import CHECKPOINTS, CONFIG, METRICS
from sparc_ref.run.rundir import Metrics, differences, lock, stored_record
from sparc_ref.run.telling import progress
from sparc_ref.run.train import Interrupted, stop_signals


@dataclass(frozen=True)
class Training:
    """How to train."""

    steps: int = 250_000            # updates; SPARC, appendix D.8
    batch: int = 64                 # examples of each data set in an update; the paper is silent
    lr: float = 1e-4                # peak learning rate; SPARC, appendix D.8
    warmup: int = 5_000             # updates of linear warm-up, then a cosine to 0; SPARC, appendix D.8
    weight_decay: float = 0.1       # AdamW, matrices only and none of the resampler's; Flamingo, section 4.1.4
    beta1: float = 0.9              # AdamW; the papers are silent
    beta2: float = 0.999            # AdamW; the papers are silent
    eps: float = 1e-8               # AdamW; the papers are silent
    clip: float = 1.0               # limit of the gradient's global norm; Flamingo
    seed: int = 0                   # initial weights, order and draws
    log_every: int = 20             # updates between two rows of metrics
    checkpoint_every: int = 500     # updates between two checkpoints

    def __post_init__(self):
        for name in ("steps", "batch", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("lr", "clip", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")


def fit(
    params: Mapping[str, nn.Parameter], loss_of: Callable[[list], Tensor], streams: Sequence[Any], t: Training, out: Path,
    record: dict, tokenizer: Any, *, resume: bool = False, say: Callable[[str], Any] = print,
    decayed: Callable[[str], bool] = decays,
) -> None:
    """Train `params` in place.

    loss_of(batches): the loss of one batch of each stream, a graph; streams: endless iterators with state() and restore()
    Raises ValueError where `out` holds another run or a loss is not finite, and Interrupted after a signal, when everything is
    saved.
    """
    with lock_of(out, record, resume), stop_signals() as stop, Metrics(out / METRICS) as metrics:
        optimizer = torch.optim.AdamW(
            [{"params": [p for name, p in params.items() if decayed(name) == kind], "weight_decay": t.weight_decay * kind}
             for kind in (True, False)], lr=t.lr, betas=(t.beta1, t.beta2), eps=t.eps)
        step = begin(params, optimizer, streams, out) if resume else 0
        if step:
            say(f"resuming after update {step}")
        metrics.cut(step)
        saved, since, began = step, step, time.perf_counter()
        with progress(t.steps, step, say) as bar:
            while step < t.steps and not stop.asked:
                lr = warmup_cosine(step, peak=t.lr, warmup=t.warmup, steps=t.steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of([next(stream) for stream in streams])
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(params.values(), t.clip)
                if not torch.isfinite(loss + norm):
                    raise ValueError(f"update {step + 1}: the loss is {loss:g}, the gradient's norm {norm:g}; the checkpoint "
                                     f"of update {saved} is kept: start anew with a lower --lr")
                optimizer.step()
                step += 1
                bar(step, float(loss.detach()))
                if step % t.log_every == 0 or step == t.steps:
                    now = time.perf_counter()
                    metrics.write({"kind": "train", "step": step, "loss": float(loss.detach()), "grad_norm": float(norm),
                                   "lr": lr, "seconds": round((now - began) / (step - since), 4)})
                    since, began = step, now
                if step % t.checkpoint_every == 0 or step == t.steps:
                    save(out, step, params, optimizer, streams, record, tokenizer)
                    saved = step
        if saved != step:
            save(out, step, params, optimizer, streams, record, tokenizer)
        if step < t.steps:
            raise Interrupted(f"stopped; {out} holds everything up to update {step} of {t.steps}; continue with --resume")


@contextmanager
def lock_of(out: Path, record: dict, resume: bool) -> Iterator[None]:
    """The folder of this very run, held by this process.   ValueError where it is another's"""
    stored = stored_record(out / CONFIG) if out.is_dir() else None
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: expected a folder or a free name, got a file")
    begun = bool(checkpoint.steps(out / CHECKPOINTS))
    if begun and not resume:
        raise ValueError(f"{out} holds a run already: continue it with --resume, or choose another --out")
    others = sorted({p.name for p in out.iterdir()} - {CONFIG, METRICS, CHECKPOINTS, ".lock"}) if out.is_dir() else []
    if others and stored is None:
        raise ValueError(f"--out {out}: expected a run's folder or a free name, got one with {others[0]}")
    wanted = json.loads(json.dumps(record))
    if begun and stored is None:
        raise ValueError(f"--resume: {out} has checkpoints, but {CONFIG} is missing or damaged: put it back, or choose another "
                         "--out")
    if begun and (different := differences(stored, wanted)):
        raise ValueError(f"--resume: {out} was started with other settings; " + "; ".join(different[:8]))
    with lock(out):
        write_whole(out / CONFIG, json.dumps(record, indent=1))
        yield


def save(out, step, params, optimizer, streams, record, tokenizer) -> None:
    if (out / CHECKPOINTS / f"step_{step:08d}").exists():
        return
    arrays = {name: p.detach().cpu().numpy() for name, p in params.items()}
    state = {name: optimizer.state[p] for name, p in params.items()}
    moments = {kind: {name: s[key].cpu().numpy() for name, s in state.items()} for kind, key in
               (("m", "exp_avg"), ("v", "exp_avg_sq"))}
    checkpoint.save(out / CHECKPOINTS, step, arrays, {"step": step} | moments,
                    {"config": record, "streams": [stream.state() for stream in streams]}, tokenizer)
    checkpoint.prune(out / CHECKPOINTS, 2)


@torch.no_grad()
def begin(params, optimizer, streams, out) -> int:
    """Go to the newest checkpoint, if there is one.      -> updates done"""
    if not checkpoint.steps(out / CHECKPOINTS):
        return 0
    found = checkpoint.load(out)
    for name, p in params.items():
        p.copy_(torch.from_numpy(found.params[name].copy()))
        optimizer.state[p] = {"step": torch.tensor(float(found.step)), **{
            key: torch.from_numpy(np.array(found.optimizer[kind][name])).to(p.device)
            for kind, key in (("m", "exp_avg"), ("v", "exp_avg_sq"))}}
    for stream, state in zip(streams, found.record["streams"], strict=True):
        stream.restore(state)
    return found.step


@contextmanager
def left_by(name: str) -> Iterator[list[int]]:
    """A command's exit status: 0, 2 for what the user can mend, which is printed, 130 when interrupted."""
    status = [0]
    try:
        yield status
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        status[0] = 130
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        status[0] = 2
