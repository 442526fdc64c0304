"""The trainer's loop: batches in, checkpoints and metrics out, the same on one rank and on a thousand.

    for every update:  one batch from each data set (D.2), or from the next one -> losses over ranks -> gradients, averaged
                       -> all finite? else the update is skipped -> clip -> AdamW -> clamp theta

A run that is killed and resumed on as many ranks ends with the same bits as one that is not (on CPUs; on GPUs with
--deterministic, as far as torch's kernels allow).  On another number of ranks the same samples are seen, in sums of another
order.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from parity.trainer import meters, optim
from parity.trainer.boards import WANDB, Board, TensorBoard, Wandb
from parity.trainer.checkpoint import FOLDER, Checkpoints, load, steps
from parity.trainer.data.order import Order, sizes_of
from parity.trainer.data.stream import Batch, Stream, restore
from parity.trainer.evaluate import evaluate, normalized
from parity.trainer.export import export, take_weights
from parity.trainer.launch import Place, everywhere, gathered, largest, on_device, on_first
from parity.trainer.loss import reported
from parity.trainer.model import SPARC, bare, init_weights
from parity.trainer.optim import clip
from parity.trainer.settings import Machine, Training
from sparc_ref.data import Joined
from sparc_ref.model import SPARCConfig
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run.files import write_whole
from sparc_ref.run.inventory import CONFIG, METRICS, TOKENIZER, trained
from sparc_ref.run.rundir import Metrics, differences, lock, settings, stored_record
from sparc_ref.run.telling import brief, progress
from sparc_ref.run.train import Interrupted, NonFiniteLoss, stop_signals

SPARC_ALONE = ObjectiveConfig()
COUNTED = ("examples", "tokens_truncated", "captions_truncated", "skipped_updates")  # over a whole run, kept in checkpoints


def train(
    config: SPARCConfig, training: Training, machine: Machine, datasets: Sequence[Any], tokenizer: Any, out: Path, place: Place,
    *, validation: Mapping[str, Any] | None = None, record: Mapping[str, Any] | None = None, resume: bool = False,
    init: Path | None = None, again: str = "", say: Callable[[str], Any] = print,
    objective: ObjectiveConfig = SPARC_ALONE,
) -> SPARC:
    """Train, and return the model (its parameters in shards with strategy "fsdp").      all ranks call it

    config, training, machine   what, how and where; nothing of them is None any more (settings.py)
    datasets    every update takes a batch from each, or from one in turn, or from all as one (training.mixing)
    record      what the run keeps in config.json: model, train, tokenizer, data, validation, perhaps sources
    init        a safetensors file to start from, see export.take_weights
    objective   the loss and its settings, SPARC's unless another is named
    Raises ValueError where `out` holds another run, or more updates in a row than machine.skips are not finite
    (NonFiniteLoss, with the batch saved), and Interrupted after a signal, when everything is saved.
    """
    with ExitStack() as stack:
        on_first(lambda: [stack.enter_context(lock(out)), None][1])
        stop = stack.enter_context(stop_signals())
        run = Run(config, training, machine, datasets, tokenizer, Path(out), place, validation or {}, dict(record or {}), again,
                  say, objective)
        run.begin(resume, init)
        stack.enter_context(run.metrics_open())
        run.go(stop)
        return bare(run.model)


def check_free(out: Path, resume: bool) -> dict | None:
    """What the folder's run was started with; None where there is none yet, or one that was stopped before its first update.

    ValueError where there is a run that is not to be resumed, or where files of others are.
    """
    stored = stored_record(out / CONFIG) if out.is_dir() else None
    begun = bool(steps(out / FOLDER)) or trained(out / METRICS)
    if stored is not None and begun and not resume:
        raise ValueError(f"{out} holds a run already: continue it with --resume, or choose another directory with --out")
    known = {CONFIG, METRICS, TOKENIZER, FOLDER, ".lock", "index", "tensorboard", WANDB}
    others = sorted({p.name for p in out.iterdir()} - known) if out.is_dir() and stored is None else []
    if others or (out.exists() and not out.is_dir()):
        got = f"one with {others[0]}" if others else "a file"
        raise ValueError(f"--out {out}: expected a run's folder or a free name, got {got}")
    return stored if begun else None


class Run:
    """One pass through the loop: what does not change during training, and the steps of the loop as methods."""

    def __init__(self, config, training, machine, datasets, tokenizer, out, place, validation, record, again, say, objective):
        self.objective = objective
        self.config, self.training, self.machine, self.tokenizer = config, training, machine, tokenizer
        self.out, self.place, self.validation, self.record, self.again = out, place, validation, record, again
        self.say = say if place.first else lambda text: None
        self.then = f", then go on with:\n  {again or '--resume'}"
        torch.use_deterministic_algorithms(machine.deterministic)
        self.autocast = torch.bfloat16 if machine.precision == "bf16" else None
        model = SPARC(config, checkpoint=machine.checkpoint_activations, objective=objective,
                      stream="bfloat16" if machine.precision == "bf16_stream" else None)
        init_weights(model, training.seed)
        self.dtype = torch.float64 if machine.precision == "float64" else torch.float32
        self.initial = model.to(self.dtype)
        if training.mixing == "merged" and len(datasets) > 1:
            datasets = [Joined(*datasets)]
        self.streams = everywhere(lambda: [
            Stream(d, tokenizer, Order(sizes_of(d), training.seed + 1000 * i, training.shuffle_shards),
                   training.batch // place.world, image_size=config.image_size, max_tokens=config.max_tokens, rank=place.rank,
                   world=place.world, workers=machine.workers, pad=machine.compile, strict=machine.strict)
            for i, d in enumerate(datasets)])
        same = ("form", "chunk", "fine_chunk", "pair_chunk", "accumulate")
        self.options = {name: getattr(machine, name) for name in same} | {
            "compiled": machine.compile, "autocast": self.autocast}
        self.step, self.seen, self.in_a_row, self.saved = 0, dict.fromkeys(COUNTED, 0), 0, -1
        self.metrics = Metrics(out / METRICS, self.then)

    # ------------------------------------------------------------------------------------------------------------- the start

    def begin(self, resume: bool, init: Path | None) -> None:
        """The folder, the model and where it stands."""
        there = on_first(lambda: self.open(resume))
        self.checkpoints = Checkpoints(self.out, self.machine.keep, self.machine.async_checkpoints)
        found = self.checkpoints.latest() if there else None
        if init is not None and not found:
            self.say(f"weights of {init}: {everywhere(lambda: take_weights(self.initial, init))}")
        self.model, self.device = on_device(self.initial, self.machine, self.place)
        t = self.training
        self.optimizer = optim.make_adamw(self.model, t.lr, t.weight_decay, (t.beta1, t.beta2), t.eps, bool(self.machine.fused))
        if found:
            path, about = found
            load(path, about, self.model, self.optimizer)
            self.step, self.seen, self.in_a_row = about["step"], about["counters"], about["in_a_row"]
            for stream, each in zip(self.streams, about["streams"], strict=True):
                restore(stream, each["epoch"], each["deals"], each["used"])
                if self.place.first:
                    stream.skipped.update(each["skipped"])
                    stream.names |= each["names"]
            self.saved = self.step
            ranks = f", which {about['world']} ranks wrote; the rest of the epoch is dealt anew"
            self.say(f"resuming after update {self.step} from {path}{ranks if about['world'] != self.place.world else ''}")
        self.operations = meters.operations(self.config, t.batch, self.place.world, self.objective)
        self.peak = meters.peak_operations(self.device, self.machine.precision)

    def open(self, resume: bool) -> bool:
        """Make the run's folder, or see that it is this very run's.      -> whether there is something to resume"""
        stored = check_free(self.out, resume)
        record = json.loads(json.dumps(self.record))
        if stored is not None and (different := differences(settings(stored), settings(record))):
            raise ValueError(f"--resume: {self.out} was started with other settings; " + "; ".join(different[:8]))
        write_whole(self.out / CONFIG, json.dumps(record, indent=1))
        (self.out / TOKENIZER).mkdir(exist_ok=True)
        self.tokenizer.save(self.out / TOKENIZER)
        return stored is not None

    @contextmanager
    def metrics_open(self):
        """metrics.jsonl on rank 0, cut to where the run stands; whatever else the rows go to."""
        self.boards: list[Board] = []
        on_first(self.open_boards)
        if not self.place.first:
            yield
            return
        self.metrics.cut(self.step)
        with self.metrics:
            yield
        for board in self.boards:
            board.close()

    def open_boards(self) -> None:
        if self.machine.tensorboard:
            self.boards.append(TensorBoard(self.out, self.step))
        if self.machine.wandb:
            self.boards.append(Wandb(self.out, self.step, self.record))

    def write(self, row: dict) -> None:
        if self.place.first:
            self.metrics.write(row)
            kind = f"{row['kind']}{'/' + row['split'] if 'split' in row else ''}"
            numbers = {f"{kind}/{name}": x for name, x in row.items() if isinstance(x, int | float) and name != "step"}
            for board in self.boards:
                board.write(numbers, row["step"])

    # -------------------------------------------------------------------------------------------------------------- the loop

    def go(self, stop) -> None:
        m, last = self.machine, self.training.steps
        if self.step == 0 and m.eval_every:
            self.measure()
        self.clock = Clock(self.step)
        with progress(last, self.step, self.say) if self.place.first else no_progress() as bar:
            while self.step < last:
                if largest(int(stop.asked))[0]:
                    break
                loss = self.update()
                bar(self.step, loss)
                if self.step == last or (m.eval_every and self.step % m.eval_every == 0):
                    self.clock.hold()
                    self.measure()
                    self.clock.go_on()
                if self.step == last or self.step % m.checkpoint_every == 0:
                    self.clock.hold()
                    self.save()
                    self.clock.go_on()
                if self.step == last or (m.export_every and self.step % m.export_every == 0):
                    self.export()
        if self.saved != self.step:
            self.save()
        self.checkpoints.finish()
        self.say(self.left_out())
        if self.step < last:
            self.export()
            raise Interrupted(f"stopped; {self.out} holds everything up to update {self.step} of {last}. Continue with:\n"
                              f"  {self.again or '--resume'}")
        self.say(f"done: {last} updates. Measure them with sparc-ref report {self.out}")

    def batches(self) -> list[Batch]:
        """The batches of this update on this rank; where any rank's epoch has none left, all begin the next."""
        due = self.streams
        if self.training.mixing == "round_robin":
            due = [self.streams[self.step % len(self.streams)]]
        for stream in due:
            for attempt in range(2):
                if not largest(int(not everywhere_ready(stream)))[0]:
                    break
                if attempt:
                    raise ValueError(f"{stream.dataset.name}: a whole epoch has no batch of {self.training.batch} samples that "
                                     f"can be used; choose a smaller batch. {self.left_out()}")
                everywhere(stream.next_epoch)
        return everywhere(lambda: [stream.take() for stream in due]) if self.machine.strict else [s.take() for s in due]

    def update(self) -> float:
        """One update.      -> the whole batch's loss"""
        began = time.perf_counter()
        batches = self.batches()
        self.clock.waited += time.perf_counter() - began
        t, said = self.training, (self.step + 1) % self.machine.log_every == 0 or self.step + 1 == self.training.steps
        lr = optim.warmup_cosine(self.step, peak=t.lr, warmup=t.warmup, steps=t.steps, final=t.final_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        losses, rows = [], []
        for i, batch in enumerate(batches):
            tensors = self.tensors(batch)
            stages: dict[str, torch.Tensor] = {}
            losses.append(optim.backward(self.model, tensors, scale=1 / len(batches), last=i == len(batches) - 1,
                                         seen=stages if said else None, step=self.step, **self.options))
            rows.append(self.figures(stages, tensors[2]) if said else {})
        norm = clip(self.model, t.clip)
        loss, norm_is = torch.stack([torch.stack(losses).mean().double(), norm.double()]).tolist()
        self.step += 1
        self.count(batches)
        if not (np.isfinite(loss) and np.isfinite(norm_is)):
            self.skip(loss, norm_is, batches)
            return loss
        self.in_a_row = 0
        before = [p.detach().clone() for p in self.model.parameters()] if said else []
        self.optimizer.step()
        optim.after_update(self.model)
        if said:
            self.log(loss, norm_is, lr, losses, rows, before, len(batches))
        return loss

    def tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """On the model's device: images normalised there."""
        parts = [batch.images, batch.tokens, batch.mask]
        if self.device.type == "cuda":
            parts = [x.pin_memory().to(self.device, non_blocking=True) for x in parts]
        return normalized(parts[0]).to(self.dtype), parts[1], parts[2]

    def figures(self, stages, mask) -> dict[str, float]:
        found = {name: float(reported(x)) for name, x in stages.items() if name.startswith("loss_") and not x.ndim}
        return found | meters.alignment_figures(stages, mask)

    def log(self, loss, norm, lr, losses, rows, before, count) -> None:
        row = {"loss": loss} | {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}
        if len(losses) > 1:
            row |= {f"loss/{i}:{s.dataset.name}": float(x) for i, (s, x) in enumerate(zip(self.streams, losses))}
        seconds, waited = self.clock.read(self.step)
        theta = {name: float(x.detach()) for name, x in optim.loss_params(self.model).items() if name.startswith("theta")}
        row |= {"grad_norm": norm, "param_norm": meters.parameters_norm(self.model),
                "update_norm": meters.difference_norm(self.model, before), "lr": lr, **theta,
                "temperature": float(np.exp(-theta["theta"])), **self.seen}
        timing = {"seconds": round(seconds, 4), "examples_per_second": round(self.training.batch * count / seconds, 1),
                  "data_wait": round(waited, 4), "peak_memory": meters.peak_memory(self.device)}
        if self.peak:
            timing["mfu"] = round(self.operations * count / seconds / self.peak, 4)
        self.write({"kind": "train", "step": self.step, **row, **timing})

    def count(self, batches: list[Batch]) -> None:
        """Add up over ranks; small, and on the CPU."""
        told = torch.tensor([[len(b.items), b.dropped, b.cut] for b in batches]).sum(0)
        torch.distributed.all_reduce(told)
        for name, n in zip(COUNTED, told.tolist()):
            self.seen[name] += n

    def skip(self, loss: float, norm: float, batches: list[Batch]) -> None:
        """An update whose loss or gradient is not finite: counted, and after too many in a row the end."""
        self.optimizer.zero_grad()
        self.in_a_row += 1
        self.seen["skipped_updates"] += 1
        what = f"update {self.step}: the loss is {loss:g}, the gradient's norm {norm:g}"
        self.write({"kind": "skipped", "step": self.step, "loss": str(loss), "grad_norm": str(norm)})
        self.say(f"{what}: skipped, {self.in_a_row} in a row")
        if self.in_a_row < self.machine.skips:
            return
        folder = self.out / "offending"
        folder.mkdir(exist_ok=True)
        for i, batch in enumerate(batches):
            save_file({"images": batch.images, "tokens": batch.tokens, "mask": batch.mask, "items": torch.tensor(batch.items)},
                      folder / f"step_{self.step:08d}_set_{i}_rank_{self.place.rank}.safetensors")
        if self.place.first:
            params = self.checkpoints.steps()
            kept = f"{params[-1]} is kept" if params else "no checkpoint had been written"
        gathered(None)
        raise NonFiniteLoss(f"{what}, the {self.in_a_row}th in a row. The batch is in {folder}; "
                            f"{kept if self.place.first else ''}. Lower --lr or --clip, or raise --warmup, and start anew")

    # ------------------------------------------------------------------------------------------------------- what is kept

    def save(self) -> None:
        every = gathered([{"used": s.used, "skipped": dict(s.skipped), "names": s.names} for s in self.streams])
        streams = [{"epoch": s.epoch, "deals": [list(d.used) for d in s.deals], "used": [e[i]["used"] for e in every],
                    "skipped": added([e[i]["skipped"] for e in every]), "names": every[0][i]["names"]}
                   for i, s in enumerate(self.streams)]
        if self.place.first:
            self.metrics.flush()
        about = {"config": self.record, "counters": self.seen, "in_a_row": self.in_a_row, "streams": streams}
        self.checkpoints.save(self.model, self.optimizer, self.step, about)
        self.saved = self.step

    def export(self) -> None:
        export(self.out, self.step, self.model, self.optimizer, self.record, self.tokenizer, self.place.first,
               self.machine.keep)

    def measure(self) -> None:
        """Retrieval and the grounding gap on every validation set."""
        for split, dataset in self.validation.items():
            began = time.perf_counter()
            numbers = evaluate(self.model, dataset, self.tokenizer, self.training.eval_limit,
                               max(1, self.training.batch // self.place.world), self.device, self.place, self.autocast,
                               self.training.seed)
            if numbers:
                self.write({"kind": "eval", "step": self.step, "split": split, **numbers,
                            "seconds": round(time.perf_counter() - began, 4)})
                self.say(f"update {self.step}, {split}: {brief(numbers)}")

    def left_out(self) -> str:
        """What could not be used so far, by cause, over all ranks; all ranks call it."""
        every = gathered([[dict(s.skipped), s.names] for s in self.streams])
        out = []
        for i, stream in enumerate(self.streams):
            names: dict[str, list[str]] = {}
            for each in every:
                for reason, first in each[i][1].items():
                    names[reason] = (names.get(reason, []) + first)[:3]
            for reason, n in added([e[i][0] for e in every]).items():
                out.append(f"  {stream.dataset.name}: {n} samples left out, {reason}: {'; '.join(names.get(reason, []))}")
        return "\n".join(["samples left out while training, every time that they came by:", *out] if out else
                         ["no sample was left out while training"])


def everywhere_ready(stream: Stream) -> bool:
    return everywhere(stream.ready) if stream.strict else stream.ready()


def added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(each.get(name, 0) for each in counts) for each in counts for name in each}


@contextmanager
def no_progress():
    yield lambda step, loss: None


class Clock:
    """Seconds per update since the last reading, without evaluations and checkpoints; the share of them spent on data."""

    def __init__(self, step: int):
        self.began, self.step, self.waited, self.held = time.perf_counter(), step, 0.0, 0.0

    def hold(self) -> None:
        self.held -= time.perf_counter()

    def go_on(self) -> None:
        self.held += time.perf_counter()

    def read(self, step: int) -> tuple[float, float]:
        now = time.perf_counter()
        took = max(1e-9, now - self.began - self.held)
        found = took / max(1, step - self.step), min(1.0, self.waited / took)
        self.began, self.step, self.waited, self.held = now, step, 0.0, 0.0
        return found
