"""The training loop: data in, checkpoints and metrics out.

    for every update:  one batch from each data set -> loss -> gradients, averaged over the data sets (appendix D.2;
                       negatives stay within a batch) -> clip -> AdamW -> clamp theta

A run that is killed and resumed ends with the same bits as one that is not: everything random is a function of the seed and
of positions that the checkpoint holds, sums are taken in a fixed order, and with shards > 1 BLAS runs on one thread, so that
the number of cores does not matter. (With shards = 1, BLAS may split a product differently on a machine with other cores.)
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from sparc_ref import optim
from sparc_ref.backend import get_device, keep_memory, to_device, to_numpy
from sparc_ref.data import Batches
from sparc_ref.model import SPARCConfig, forward, forward_with, init_params
from sparc_ref.objectives.chosen import ObjectiveConfig, after_update, init_own, loss_of
from sparc_ref.run import checkpoint, remarks
from sparc_ref.run.files import WriteFailed
from sparc_ref.run.inventory import CHECKPOINTS, CONFIG, METRICS
from sparc_ref.run.measure import evaluate
from sparc_ref.run.memory import check_memory
from sparc_ref.run.rundir import Metrics, check_out, fingerprint, lock, open_run, shorten
from sparc_ref.run.telling import SHOWN, announce, brief, progress, remedy


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
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("lr", "clip", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f'device: expected "cpu" or "cuda", got {self.device!r}')
        if self.dtype not in checkpoint.DTYPES:
            raise ValueError(f"dtype: expected one of {checkpoint.DTYPES}, got {self.dtype!r}")


SPARC = ObjectiveConfig()


class NonFiniteLoss(ValueError):
    """Training produced NaN or infinity; the last checkpoint is intact.  Says at which update, on what data, and the remedy."""


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint was written."""


def train(
    config: SPARCConfig, options: TrainConfig, datasets: Sequence[Any], tokenizer: Any, out: str | os.PathLike, *,
    validation: Mapping[str, Any] | None = None, resume: bool = False, overwrite: bool = False, again: str = "",
    sources: Mapping[str, Any] | None = None, say: Callable[[str], Any] = print, objective: ObjectiveConfig = SPARC,
) -> dict[str, np.ndarray]:
    """Train a model and return its parameters (NumPy).   rundir.py says what is written to `out`.

    config      SPARCConfig; its vocab_size must be the tokenizer's
    options     TrainConfig
    datasets    data sets (see data/); every update takes one batch from each
    validation  name -> data set, measured every eval_every updates; never trained on here
    resume      continue from the newest checkpoint in `out`, or start where there is none
    overwrite   delete the run that `out` holds, and nothing else in that folder
    again       the command that continues this run, for messages
    sources     what a command line calls the data (sources.remembered), kept so that the run can be measured later
    objective   the loss and its settings, SPARC's unless another is named; its own parameters are trained with the model's
    Raises ValueError where `out` holds another run or other files, or the configuration, data or tokenizer differ from it
    (naming what), NonFiniteLoss, WriteFailed or RunGone (both OSError), and Interrupted after Ctrl-C, SIGTERM or SIGHUP.
    A start that fails before its first update leaves nothing behind.
    """
    check_out(out, resume, overwrite)
    out = Path(out)
    if config.vocab_size != tokenizer.vocab_size:
        raise ValueError(f"vocab_size: expected the tokenizer's {tokenizer.vocab_size}, got {config.vocab_size}")
    if not datasets:
        raise ValueError("datasets: expected at least one, got none")
    device = get_device(options.device)
    check_memory(config, 4 if device == "cpu" else 1, checkpoint.ITEM_BYTES[options.dtype])
    record = {"model": asdict(config), "train": asdict(options), "tokenizer": tokenizer.hash,
              "data": {f"{i}:{d.name}": fingerprint(d) for i, d in enumerate(datasets)},
              "validation": {name: fingerprint(d) for name, d in (validation or {}).items()}}
    record |= {"sources": dict(sources)} if sources else {}
    record |= {"objective": asdict(objective)} if objective != SPARC else {}
    record = json.loads(json.dumps(record))               # tuples become lists, as they come back
    batches = [Batches(d, tokenizer, options.batch, seed=options.seed + 1000 * i, max_tokens=config.max_tokens,
                       image_size=config.image_size) for i, d in enumerate(datasets)]
    keep_memory()
    # what overflows ends in an error of ours, which says where; NumPy's warnings before it would hide that
    quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")
    with stop_signals() as stop, lock(out) as undo, one_blas_thread(options.shards > 1), quiet:
        run = start = None
        try:
            start = open_run(out, record, tokenizer, resume, overwrite)
            if start:
                seen, step = restored(start, batches), start.step
                params, state = start.params, start.optimizer
            else:
                params = initial(config, options, objective)
                state, step, seen = optim.adamw_init(params), 0, dict.fromkeys(remarks.COUNTED, 0)
            run = Run(config, options, batches, tokenizer, out, validation or {}, record, again, say, objective)
            run.tell(announce(config, options, datasets, tokenizer, out, device, params, step,
                              objective if objective != SPARC else None))
            params = to_device(params, device)
            state = {"step": state["step"], "m": to_device(state["m"], device), "v": to_device(state["v"], device)}
            return run.go(params, state, step, seen, stop)
        except BaseException as error:
            if not isinstance(error, Interrupted) and not (run and run.trained):
                undo()
            raise


def restored(start, batches):
    """Put the batches where a checkpoint left them.   -> its counters; CheckpointError where they are not what save() writes"""
    seen, positions = start.record.get("counters"), start.record.get("positions")
    counted = isinstance(seen, dict) and set(seen) == set(remarks.COUNTED)
    if not counted or not all(type(n) is int and n >= 0 for n in seen.values()):
        raise checkpoint.refuse(start.path, f"its counters are {shorten(seen)}")
    if not isinstance(positions, list) or len(positions) != len(batches) or not all(isinstance(p, dict) for p in positions):
        raise checkpoint.refuse(start.path, f"its positions in the data are {shorten(positions)}")
    for b, position in zip(batches, positions):
        b.restore(position)
    return seen


class Run:
    """One pass through the loop: what does not change during training, and the steps of the loop as methods."""

    def __init__(self, config, options, batches, tokenizer, out, validation, record, again, say, objective=SPARC):
        self.config, self.options, self.batches, self.tokenizer = config, options, batches, tokenizer
        self.objective = objective
        self.out, self.validation, self.record, self.again, self.say = out, validation, record, again, say
        self.then = f", then go on with:\n  {again or '--resume'}"
        self.metrics, self.saved, self.trained, self.deaf = Metrics(out / METRICS, self.then), 0, False, False
        self.explained: set[str] = set()                  # numbers whose names were explained already

    def go(self, params, state, step, seen, stop):
        o, self.saved = self.options, step
        self.trained = step > 0
        for remark in remarks.at_start(self.config, o.batch, self.objective.objective) if step == 0 else ():
            self.tell(f"note: {remark}")
        self.metrics.cut(step)
        with self.metrics, progress(o.steps, step, self.tell) as bar:
            if step == 0 and o.eval_every:
                self.measure(params, 0)
            while step < o.steps and not stop.asked and not self.deaf:
                began = time.perf_counter()
                grads, row = self.gradients(params, step)
                grads, norm = optim.clip_by_global_norm(grads, o.clip)
                if not np.isfinite(norm):
                    raise self.diverged(step + 1, f"the gradient's norm is {norm} on {self.names()}")
                lr = optim.warmup_cosine(step, peak=o.lr, warmup=o.warmup, steps=o.steps, final=o.final_lr)
                try:
                    params, state = optim.adamw_step(params, grads, state, lr, betas=(o.beta1, o.beta2), eps=o.eps,
                                                     weight_decay=o.weight_decay)
                except ArithmeticError as error:
                    raise self.diverged(step + 1, f"{error}, on {self.names()}") from error
                params = after_update(optim.clamp_theta(params))
                step += 1
                self.trained = True
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
            if step < o.steps:
                if step > self.saved:
                    self.save(params, state, step, seen)
                where = f"{self.out} holds everything up to update {step} of {o.steps}"
                raise Interrupted(f"stopped; {where}. Continue with:\n  {self.again or '--resume'}")
            self.metrics.check()
            checkpoint.prune(self.out / CHECKPOINTS, o.keep)  # where the disk refused it before
        for remark in remarks.at_end(seen, self.config.max_tokens):
            self.tell(f"note: {remark}")
        self.tell(f"done: {o.steps} updates. Checkpoint {self.out / CHECKPOINTS / f'step_{step:08d}'}, "
                  f"metrics {self.out / METRICS}, configuration {self.out / CONFIG}")
        return host(params)

    def gradients(self, params, step):
        try:
            return gradients(params, self.batches, self.config, self.options.shards, self.options.device, step,
                             loss_of(self.objective, step))
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"{error} {remedy(self.out)}") from error

    def measure(self, params, step):
        """Retrieval, localisation and the grounding gap on every validation set, whatever its kind."""
        for split, dataset in self.validation.items():
            began = time.perf_counter()
            try:
                numbers = evaluate(params, self.config, dataset, self.tokenizer, self.options.eval_limit, self.options.batch,
                                   seed=self.options.seed, shards=self.options.shards, objective=self.objective)
            except ArithmeticError as error:
                raise self.diverged(step, f"evaluation on {split}: {error}") from error
            self.metrics.write({"kind": "eval", "step": step, "split": split, **numbers,
                                "seconds": round(time.perf_counter() - began, 4)})
            if new := SHOWN.keys() & numbers.keys() - self.explained:
                self.tell("; ".join(f"{label}: {what}" for k, (label, what) in SHOWN.items() if k in new))
                self.explained |= new
            self.tell(f"update {step}, {split}: " + brief(numbers))

    def save(self, params, state, step, seen):
        self.metrics.flush()                              # first: a checkpoint's metrics are never missing
        state = {"step": state["step"], "m": host(state["m"]), "v": host(state["v"])}
        params = host(params)
        for name, x in [*params.items(), *state["m"].items(), *state["v"].items()]:
            if not np.isfinite(x).all():
                raise self.diverged(step, f"{name} or a moment of it is NaN or infinite after training on {self.names()}")
        record = {"config": self.record, "counters": seen, "positions": [b.state() for b in self.batches]}
        try:
            checkpoint.save(self.out / CHECKPOINTS, step, params, state, record, self.tokenizer)
            checkpoint.prune(self.out / CHECKPOINTS, self.options.keep)
        except WriteFailed as error:
            self.metrics.check()                          # a folder that has gone is said as that
            raise WriteFailed(str(error).removesuffix(", then try again") + self.then) from error
        self.saved = step

    def diverged(self, step, reason):
        return NonFiniteLoss(f"update {step}: {reason}. {remedy(self.out)}")

    def names(self):
        return ", ".join(b.dataset.name for b in self.batches)

    def tell(self, text):
        """Say something; where nobody listens any more (a closed terminal or pipe), stop after this update."""
        try:
            if not self.deaf:
                self.say(text)
        except OSError:
            self.deaf = True


def initial(config: SPARCConfig, options: TrainConfig, objective: ObjectiveConfig = SPARC) -> dict[str, np.ndarray]:
    """The parameters before the first update: init_params, the attention's output scaled by attention_start; then the
    objective's own, so that the model starts alike under every objective."""
    rng = np.random.default_rng(options.seed)
    params = init_params(config, rng, options.dtype)
    start = np.asarray(options.attention_start, options.dtype)
    params = {name: p * start if name.endswith("attn.out.weight") else p for name, p in params.items()}
    return params | init_own(objective, config.embed_dim, rng, options.dtype)


def gradients(
    params: dict, batches: Sequence[Batches], config: SPARCConfig, shards: int = 1, device: str = "cpu", step: int = 0,
    objective: Callable | None = None,
) -> tuple[dict, dict[str, float]]:
    """One batch from each data set; the mean of their gradients and of their losses (appendix D.2).   -> grads, row

    objective: another loss than SPARC's, as loss_of gives it.
    row: loss, loss_global, loss_fine (or whatever losses the objective is made of), zeroed (share of weights that the
    threshold set to zero), what remarks.COUNTED names, and with several data sets each one's loss.
    Raises NonFiniteLoss that names the update, the data set and the examples.
    """
    total: dict = {}
    rows: list[dict] = []
    for source in batches:
        counts, same = source.tokenizer.counts, source.duplicates
        dropped, cut = counts.dropped, counts.truncated
        batch = next(source)
        images, tokens, mask = to_device((batch.images, batch.tokens, batch.mask), device)
        where = f"on {source.dataset.name}, examples {batch.index.tolist()}."
        try:
            if objective:
                loss, trace, back = forward_with(objective, params, images, tokens, mask, config, shards)
            else:
                loss, trace, back = forward(params, images, tokens, mask, config, shards)
        except ArithmeticError as error:
            raise NonFiniteLoss(f"update {step + 1}: {error}, {where}") from error
        row = {"loss": number(loss)} | {k: number(x) for k, x in trace.items() if k.startswith("loss_") and x.ndim == 0}
        if trace.get("sparse") is not None:
            row["zeroed"] = zeroed(trace["sparse"], mask)
        row |= {"examples": len(batch.index), "tokens_truncated": counts.dropped - dropped,
                "captions_truncated": counts.truncated - cut, "duplicate_pictures": source.duplicates - same}
        rows.append(row)
        if not np.isfinite(row["loss"]):
            raise NonFiniteLoss(f"update {step + 1}: the loss is {row['loss']} {where}")
        try:
            grads = back(1 / len(batches))
        except ArithmeticError as error:
            raise NonFiniteLoss(f"update {step + 1}: {error}, {where}") from error
        total = {name: total[name] + g for name, g in grads.items()} if total else grads
    mean = {k: sum(r[k] for r in rows) / len(rows) for k in rows[0] if k not in remarks.COUNTED}
    mean |= {k: sum(r[k] for r in rows) for k in remarks.COUNTED}
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


class Stop:
    asked = False


@contextmanager
def stop_signals():
    """Ctrl-C, SIGTERM and SIGHUP (a closed terminal; nohup keeps it off) end the loop after the running update; a second
    one ends at once."""
    stop, before = Stop(), {}

    def ask(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        with suppress(OSError):                           # the terminal may be what has gone
            print("stopping after this update; again to stop at once", file=sys.stderr)

    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)          # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, ask)
    except ValueError:                                    # not the main thread: signals are the caller's
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def number(x):
    return float(to_numpy(x))


def host(arrays):
    return {name: to_numpy(x) for name, x in arrays.items()}
