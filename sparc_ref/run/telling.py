"""What a run says while it trains: its settings at the start, how far it is, the handful of numbers, the remedy at a bad end.

remarks.py decides what else must be said aloud.
"""

import functools
import inspect
import re
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields

from sparc_ref import optim
from sparc_ref.run import checkpoint
from sparc_ref.run.inventory import CHECKPOINTS
from sparc_ref.run.rundir import shorten

SHOWN = {  # the handful of numbers that tell how training goes, and what they are
    "i2t_r1": ("R@1 i2t", "share of pictures whose nearest caption is theirs"),
    "t2i_r1": ("t2i", "share of captions whose nearest picture is theirs"),
    "miou": ("mIoU", "predicted against true masks"),
    "pointing": ("pointing", "share of names whose top patch is on their object"),
    "mass": ("mass", "share of a name's weight on its object"),
    "grounding_gap": ("grounding gap", "fine-grained loss with shuffled minus true pictures, nats"),
}


def announce(config, options, datasets, tokenizer, out, device, params, step, objective=None):
    """The effective configuration with the reason for every setting, data, device, dtype and paths."""
    where = "CuPy on the GPU" if device == "cuda" else "NumPy on the CPU"
    lines = [f"{'resuming at update ' + str(step) if step else 'training'}: {optim.count(params):,} parameters, "
             f"{options.dtype}, {where}; everything goes to {out}/"]
    parts = [("model", config), *[("objective", objective)] * bool(objective), ("training", options)]
    for title, values in parts:
        notes = reasons(type(values))
        lines.append(f"{title}:")
        lines += [f"  {k:17} {v!s:10} {notes.get(k, '')}".rstrip() for k, v in asdict(values).items()]
    lines.append("data, one batch of each per update:")
    lines += [f"  {shorten(d.describe(), 300)}" for d in datasets]
    lines.append(f"tokenizer: {shorten(tokenizer.describe(), 300)}")
    return "\n".join(lines)


@functools.cache
def reasons(cls):
    """The comment behind each field of a dataclass, from its source."""
    names = "|".join(f.name for f in fields(cls))
    return dict(re.findall(rf"^ +({names}): [^#\n]*# (.*)$", inspect.getsource(cls), re.MULTILINE))


@contextmanager
def progress(steps, first, say):
    """A bar with an estimate on a terminal, otherwise a line every twentieth of the way.   -> bar(step, loss)"""
    began = time.perf_counter()
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=steps, initial=first, unit="update", smoothing=0.05, file=sys.stderr)

        def show(step, loss):
            with suppress(OSError):                       # a closed terminal is no reason to lose updates
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update(step - bar.n)

        try:
            yield show
        finally:
            with suppress(OSError):
                bar.close()
        return
    every = max(1, steps // 20)

    def show(step, loss):
        if step % every == 0 or step == steps:
            left = (time.perf_counter() - began) / (step - first) * (steps - step)
            say(f"update {step}/{steps}, loss {loss:.4f} nats on its batch, {duration(left)} left")

    yield show


def duration(seconds):
    """In the unit that a person would use."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def brief(numbers):
    """The handful of numbers in one line."""
    return ", ".join(f"{label} {numbers[k]:.3f}" for k, (label, _) in SHOWN.items() if k in numbers)


def as_word(path):
    """A path as a word of a command, which is no option even where it begins with a dash."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def remedy(out):
    """What is left of a run that diverged, and what to do."""
    found = checkpoint.steps(out / CHECKPOINTS)
    kept = f"{found[-1]} is kept" if found else "No checkpoint had been written"
    return f"{kept}. Lower --lr or --clip, or raise --warmup, and start anew"
