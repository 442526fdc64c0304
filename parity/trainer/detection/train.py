"""The detector's training loop, on one process or on torchrun's.

    for every update:  examples -> a forward pass each -> match, losses -> its gradient, clipped to length one -> mean -> Adam

An example is a function of (seed, update, its number), so a run that is killed and resumed goes on as if nothing had been; on
another number of ranks it sees the same examples, in sums of another order, and leaves out other layers.  Checkpoints are
sparc_ref's: safetensors and JSON.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.func import functional_call

from parity.trainer.detection.augment import Augmentation, Item, make_item
from parity.trainer.detection.data import Annotated, BoxData
from parity.trainer.detection.heads import Detector, add_droplayer
from parity.trainer.detection.losses import ONES, Weights, picture_loss
from parity.trainer.detection.matching import match, match_cost
from parity.trainer.evaluate import normalized
from parity.trainer.launch import Place, largest, on_first
from parity.trainer.model import SPARC, load_params, to_numpy
from parity.trainer.optim import warmup_cosine
from sparc_ref.data import load_tokenizer
from sparc_ref.data.load_report import Unusable
from sparc_ref.model import SPARCConfig
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run import checkpoint
from sparc_ref.run.files import write_whole
from sparc_ref.run.inventory import CHECKPOINTS, CONFIG, METRICS, TOKENIZER
from sparc_ref.run.rundir import Metrics, differences, load_run, lock, objective_of, stored_record
from sparc_ref.run.telling import progress
from sparc_ref.run.train import Interrupted, NonFiniteLoss, stop_signals

Clipping: TypeAlias = Literal["loop", "vmap", "batch"]
Device: TypeAlias = Literal["cpu", "cuda"]
Precision: TypeAlias = Literal["float32", "bf16"]
FEW = 512                                                 # pictures that are kept decoded
PARTS = ("loss", "loss_label", "loss_l1", "loss_giou")
KIND = "detector"                                         # what a checkpoint of ours says it is
MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}


@dataclass(frozen=True)
class Training:
    """How to train; a run goes on with the same only.  The defaults are OWL-ViT's for B/16 (its table A3)."""

    steps: int = 140_000            # updates
    batch: int = 256                # examples of an update, over all ranks
    lr: float = 2e-4                # peak, heads and image tower: that of towers trained from scratch; 5e-5 from CLIP's
    lr_image: float | None = None   # of the image tower; none: lr; 0: it stays as it is
    lr_text: float | None = None    # of the text tower; none: a hundredth of lr (OWL-ViT A1.9); 0: it stays as it is
    warmup: int = 1000              # updates of linear warm-up; a cosine to 0 follows
    beta1: float = 0.9              # Adam
    beta2: float = 0.999            # Adam
    eps: float = 1e-8               # Adam; not stated
    clip: float = 1.0               # limit of the norm of the gradient
    clip_by: Clipping = "loop"      # each example, one by one (loop) or at once (vmap: memory times batch); "batch": all
    droplayer_image: float = 0.2    # probability to leave out a branch of the last image block, less in those before
    droplayer_text: float = 0.1     # of the last text block
    size: int = 768                 # pixels a side of what the detector sees; positions are resampled to it
    tokens: int = 16                # longest query; the rest is cut
    mix: tuple[float, ...] = ()     # probability of each data set, such as .8 .2 for Objects365 and Visual Genome; none: alike
    label_weight: float = 1.0       # of the focal loss, in the loss and in the match
    l1_weight: float = 1.0          # of the boxes' L1
    giou_weight: float = 1.0        # of the boxes' GIoU
    seed: int = 0                   # heads, examples, dropped layers

    def __post_init__(self):
        for name in ("steps", "batch", "size", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("lr_image", "lr_text", "warmup", "label_weight", "l1_weight", "giou_weight", "seed"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "droplayer_image", "droplayer_text"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True)
class Machine:
    """Where and how fast; a run may go on with another."""

    device: Device | None = None    # what the detector runs on; none: a GPU where there is one
    precision: Precision | None = None  # "bf16": the towers by autocast; none: on a GPU that has it
    workers: int = 4                # threads that decode pictures
    checkpoint_activations: bool = False  # compute every block again in backward
    log_every: int = 10             # updates between two rows of metrics
    checkpoint_every: int = 500     # updates between two checkpoints; one is always written at the end
    keep: int = 2                   # checkpoints that stay

    def __post_init__(self):
        for name in ("workers", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Batch:
    """images (B,S,S,3) uint8, tokens, mask (B,Q,L), real (B,Q); of each picture labels (M,Q) bool and box (M,4)."""

    images: Tensor
    tokens: Tensor
    mask: Tensor
    real: Tensor
    labels: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]

    def to(self, device: torch.device) -> "Batch":
        def move(x):
            return tuple(y.to(device) for y in x) if isinstance(x, tuple) else x.to(device)

        return Batch(*(move(getattr(self, name)) for name in ("images", "tokens", "mask", "real", "labels", "boxes")))


def collate(items: Sequence[Item], tokenizer: Any, longest: int) -> Batch:
    """Queries padded to the longest list of them; padded ones are not real."""
    Q = max(1, max(len(item.texts) for item in items))
    texts = [text for item in items for text in (*item.texts, *[""] * (Q - len(item.texts)))]
    tokens, mask = (torch.from_numpy(x).unflatten(0, (len(items), Q)) for x in tokenizer.batch(texts, longest))
    real = torch.tensor([[q < len(item.texts) for q in range(Q)] for item in items])
    labels = tuple(torch.from_numpy(np.pad(item.labels, ((0, 0), (0, Q - len(item.texts))))) for item in items)
    boxes = tuple(torch.from_numpy(item.box.astype(np.float32)) for item in items)
    return Batch(torch.from_numpy(np.stack([item.image for item in items])), tokens, mask, real, labels, boxes)


class Examples:
    """Endless examples out of data sets; examples(step, number) -> Item, the same whenever it is asked for."""

    def __init__(self, sets: Sequence[BoxData], training: Training, options: Augmentation,
                 forbidden: frozenset[str] = frozenset()):
        self.sets, self.training, self.options, self.forbidden = list(sets), training, options, forbidden
        if training.mix and (len(training.mix) != len(self.sets) or min(training.mix) < 0 or not sum(training.mix)):
            raise ValueError(f"mix: expected a probability for each of the {len(self.sets)} data sets, got {training.mix}")
        self.mix = np.array(training.mix or [1.0] * len(self.sets)) / sum(training.mix or [1.0] * len(self.sets))
        self.frequency = [d.frequencies() for d in self.sets]
        self.skipped: Counter[str] = Counter()
        self.kept: dict[tuple[int, int], tuple] | None = {} if sum(map(len, self.sets)) <= FEW else None

    def __call__(self, step: int, number: int) -> Item:
        rng = np.random.default_rng([self.training.seed, step, number])
        which = int(rng.choice(len(self.sets), p=self.mix))
        data = self.sets[which]
        # a crop of a third of the area has 0.57 of the side: of the picture at twice the size no pixel is made up
        return make_item(lambda: self.read(which, rng), data.classes, self.frequency[which], self.training.size, self.options,
                         rng, self.forbidden)

    def read(self, which: int, rng: np.random.Generator) -> tuple[np.ndarray, Annotated]:
        """A picture of a data set drawn at random; what cannot be used is counted, and another one drawn."""
        data = self.sets[which]
        for _ in range(50):
            index = int(rng.integers(len(data)))
            try:
                if self.kept is None:
                    return data.read(index, min(2 * self.training.size, 4096))
                if (key := (which, index)) not in self.kept:
                    self.kept[key] = data.read(index, min(2 * self.training.size, 4096))
                return self.kept[key]
            except Unusable as error:
                self.skipped[error.reason] += 1
                last = error
        raise ValueError(f"{data.name}: 50 pictures in a row cannot be used, the last one: {last}; are the pictures there? "
                         "?images=FOLDER says where")

    def ahead(self, first: int, last: int, numbers: Sequence[int], workers: int) -> Iterator[list[Item]]:
        """The items of updates first..last-1, the next update's made while this one's are used."""
        with ThreadPoolExecutor(workers) as pool:
            def ask(step):
                return [pool.submit(self, step, n) for n in numbers] if step < last else []

            waiting = ask(first)
            for step in range(first, last):
                now, waiting = waiting, ask(step + 1)
                try:
                    yield [task.result() for task in now]
                finally:
                    if step + 1 == last:
                        waiting = []


# ----------------------------------------------------------------------------------------------------------------- the gradient


def losses_of(logits: Tensor, boxes: Tensor, labels: Tensor, truth: Tensor, weights: Weights) -> dict[str, Tensor]:
    """Match and lose, of one picture: logits (N,Q), boxes (N,4)."""
    patch, target = match(match_cost(logits, boxes, labels, truth, weights))
    return picture_loss(logits, boxes, labels, truth, patch, target, weights)


def gradient(model: Detector, batch: Batch, clip: float, by: Clipping, total: int, weights: Weights = ONES,
             autocast: torch.dtype | None = None) -> Counter[str]:
    """Add this rank's share of the mean gradient to what can be trained.      -> sums over examples: losses, norms, clipped

    by      "loop", "vmap": each example's gradient is scaled to at most `clip`, then averaged over `total` examples; "batch":
            nothing is clipped here
    """
    images = normalized(batch.images)
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    told: Any = Counter()
    device = images.device.type

    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device, autocast, enabled=autocast is not None):
            logits, boxes = model(*inputs)
        return logits.float(), boxes.float()

    def tell(parts: Mapping[str, Tensor], norm: float) -> None:
        told.update({name: float(parts[name].detach()) for name in PARTS})
        told.update({"example_norm": norm, "clipped": float(norm > clip)})

    def add(p: Tensor, g: Tensor) -> None:
        p.grad = g if p.grad is None else p.grad + g

    inputs = images, batch.tokens, batch.mask, batch.real
    if by == "loop":
        for b in range(len(images)):
            logits, boxes = forward(*(x[b:b + 1] for x in inputs))
            parts = losses_of(logits[0], boxes[0], batch.labels[b], batch.boxes[b], weights)
            found = torch.autograd.grad(parts["loss"], list(params.values()), allow_unused=True)
            norm = torch.nn.utils.get_total_norm([g for g in found if g is not None])
            factor = torch.clamp(clip / norm, max=1) / total
            for p, g in zip(params.values(), found):
                if g is not None:
                    add(p, g * factor)
            tell(parts, float(norm))
        return told
    if by == "vmap":                                      # a copy of every parameter for each example, so a gradient for each
        copies = {name: p.detach().expand(len(images), *p.shape).clone().requires_grad_() for name, p in params.items()}

        def one(own: dict[str, Tensor], *x: Tensor) -> tuple[Tensor, ...]:
            with torch.autocast(device, autocast, enabled=autocast is not None):
                return tuple(y[0] for y in functional_call(model, own, tuple(y[None] for y in x)))

        logits, boxes = torch.vmap(one, randomness="different")(copies, *inputs)
    else:
        logits, boxes = forward(*inputs)
    pictures = zip(logits.float(), boxes.float(), batch.labels, batch.boxes)
    each = [losses_of(*picture, weights) for picture in pictures]
    torch.stack([parts["loss"] for parts in each]).sum().div(1 if by == "vmap" else total).backward()
    if by == "batch":
        for parts in each:
            tell(parts, math.nan)
        del told["example_norm"], told["clipped"]
        return told
    rows = [p.grad.flatten(1) for p in copies.values() if p.grad is not None]
    norms = torch.stack([row.square().sum(1) for row in rows]).sum(0).sqrt()              # (B,)
    factors = torch.clamp(clip / norms, max=1) / total
    for p, copy in zip(params.values(), copies.values()):
        if copy.grad is not None:
            add(p, torch.tensordot(factors, copy.grad, 1))
    for parts, length in zip(each, norms.tolist()):
        tell(parts, length)
    return told


# --------------------------------------------------------------------------------------------------------------------- the loop


def new_detector(path: str | Path, training: Training, machine: Machine) -> tuple[Detector, Any, dict]:
    """The towers of a trained SPARC with new heads.      -> detector, tokenizer, what it is"""
    params, config, tokenizer, found = load_run(path)
    if training.size % config.patch_size:
        raise ValueError(f"size: expected a multiple of the model's patches of {config.patch_size} pixels, got {training.size}")
    objective = objective_of(found.record["config"], found.path)
    towers = load_params(SPARC(config, objective=objective, **how(training, machine)), params)
    torch.manual_seed(training.seed)
    detector = Detector(towers)
    about = {"kind": KIND, "model": asdict(config), "objective": asdict(objective), "size": training.size,
             "tokens": training.tokens, "from": f"{found.path.name}, {found.step} updates"}
    return detector, tokenizer, about


def how(training: Training, machine: Machine) -> dict[str, Any]:
    return {"attention": "plain" if training.clip_by == "vmap" else "sdpa", "checkpoint": machine.checkpoint_activations}


def load_detector(path: str | Path) -> tuple[Detector, Any, dict, checkpoint.Checkpoint]:
    """A trained detector.      -> detector, tokenizer, what it is, its checkpoint; CheckpointError (a ValueError)"""
    def check(found: Path, index: dict) -> None:
        if not isinstance(about := index["record"].get("config"), dict) or about.get("kind") != KIND:
            raise checkpoint.CheckpointError(f"{found}: it holds no detector; train one with "
                                             "python -m parity.trainer.detection")
        wanted = {name: ["float32", list(p.shape)] for name, p in bare_detector(about, found).state_dict().items()}
        checkpoint.compare(found, "the detector of its configuration", index["tensors"][checkpoint.PARAMETERS], wanted)

    found = checkpoint.load(path, check)
    about = found.record["config"]
    model = bare_detector(about, found.path).to_empty(device="cpu")
    model.load_state_dict({name: torch.from_numpy(x) for name, x in found.params.items()})
    tokenizer = load_tokenizer(found.tokenizer_dir)
    if tokenizer.hash != found.tokenizer or tokenizer.vocab_size != model.config.vocab_size:
        raise checkpoint.CheckpointError(f"{found.path}: its tokenizer is not the one that the detector was trained with")
    return model.eval(), tokenizer, about, found


def bare_detector(about: Mapping[str, Any], where: Path) -> Detector:
    """A detector without numbers."""
    config = checkpoint.from_json(SPARCConfig, about.get("model"), where)
    objective = checkpoint.from_json(ObjectiveConfig, about.get("objective"), where)
    with torch.device("meta"):
        return Detector(SPARC(config, objective=objective))


class Run:
    """One training run, in the folder `out`: config.json, metrics.jsonl, tokenizer/, checkpoints/."""

    def __init__(self, model: Detector, tokenizer: Any, about: Mapping[str, Any], examples: Examples, training: Training,
                 machine: Machine, out: Path, place: Place, say: Callable[[str], Any] = print):
        self.model, self.tokenizer, self.examples, self.training, self.machine = model, tokenizer, examples, training, machine
        self.out, self.place, self.say = out, place, say if place.first else lambda text: None
        if training.batch % place.world:
            raise ValueError(f"batch: expected a multiple of the {place.world} ranks, got {training.batch}")
        self.record = json.loads(json.dumps({**about, "training": asdict(training), "augmentation": asdict(examples.options),
                                             "forbidden": sorted(examples.forbidden), "tokenizer": tokenizer.hash}))
        self.step, self.saved = 0, -1

    def begin(self, resume: bool) -> None:
        """The folder, the model where it trains, and the newest checkpoint where there is one."""
        stored = on_first(lambda: self.check_free(resume))
        t, kind = self.training, self.machine.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(kind, self.place.local_rank) if kind == "cuda" else torch.device("cpu")
        narrow = self.machine.precision == "bf16" or (self.machine.precision is None and kind == "cuda"
                                                      and torch.cuda.is_bf16_supported())
        self.autocast = torch.bfloat16 if narrow else None
        self.model.to(self.device).train()
        self.longest = min(t.tokens, self.model.config.max_tokens)
        rates = {"vision.": t.lr if t.lr_image is None else t.lr_image, "text.": t.lr / 100 if t.lr_text is None else t.lr_text}
        rates["g_t."] = rates["text."]
        groups: dict[float, list] = {}
        for name, p in self.model.named_parameters():
            rate = next((r for start, r in rates.items() if name.startswith(start)), t.lr)
            p.requires_grad_(rate > 0)
            if rate > 0:
                groups.setdefault(rate, []).append(p)
        for name, rate in (("vision", t.droplayer_image), ("text", t.droplayer_text)):
            if rates[f"{name}."]:                         # a tower that learns nothing is used whole
                add_droplayer(getattr(self.model, name), rate)
        self.optimizer = torch.optim.Adam([{"params": ps, "peak": rate} for rate, ps in groups.items()], lr=t.lr,
                                          betas=(t.beta1, t.beta2), eps=t.eps)
        if stored and checkpoint.steps(self.out / CHECKPOINTS):
            self.load()
        count = sum(p.numel() for ps in groups.values() for p in ps)
        self.say(f"{count:,} parameters learn, on {self.place.world} x {kind}{', bf16' if narrow else ''}; "
                 f"everything goes to {self.out}/")

    def check_free(self, resume: bool) -> bool:
        """Make the folder, or see that it holds this very run.      -> whether there is something to resume"""
        self.out.mkdir(parents=True, exist_ok=True)
        stored = stored_record(self.out / CONFIG)
        others = sorted({p.name for p in self.out.iterdir()} - {CONFIG, METRICS, TOKENIZER, CHECKPOINTS, ".lock", "evaluation"})
        if stored is None and others:
            raise ValueError(f"--out {self.out}: expected a run's folder or a free name, got one with {others[0]}")
        if checkpoint.steps(self.out / CHECKPOINTS):
            if not resume:
                raise ValueError(f"{self.out} holds a run already: continue it with --resume, or choose another --out")
            if stored is None:
                raise ValueError(f"--resume: {self.out} has checkpoints, but {CONFIG} is missing or damaged: put it back, or "
                                 "choose another --out")
            if different := differences(stored, self.record):
                raise ValueError(f"--resume: {self.out} was started with other settings; " + "; ".join(different[:8]))
        write_whole(self.out / CONFIG, json.dumps(self.record, indent=1))
        (self.out / TOKENIZER).mkdir(exist_ok=True)
        self.tokenizer.save(self.out / TOKENIZER)
        return stored is not None

    def load(self) -> None:
        model, _, _, found = load_detector(self.out)
        self.model.load_state_dict(model.state_dict())
        self.step = self.saved = found.step
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                own = {MOMENTS[kind]: torch.from_numpy(found.optimizer[kind][name]).to(self.device) for kind in MOMENTS}
                self.optimizer.state[p] = {"step": torch.tensor(float(found.optimizer["step"])), **own}
        self.say(f"resuming after update {self.step} from {found.path}")

    def save(self) -> None:
        def write() -> None:
            moments: dict[str, dict] = {kind: {} for kind in MOMENTS}
            for name, p in self.model.named_parameters():
                own = self.optimizer.state.get(p) or {key: torch.zeros_like(p) for key in MOMENTS.values()}
                for kind, key in MOMENTS.items():
                    moments[kind][name] = to_numpy(own[key])
            params = {name: to_numpy(p) for name, p in self.model.named_parameters()}
            checkpoint.save(self.out / CHECKPOINTS, self.step, params, {"step": self.step, **moments}, {"config": self.record},
                            self.tokenizer)
            checkpoint.prune(self.out / CHECKPOINTS, self.machine.keep)

        if self.saved != self.step:
            on_first(write)
        self.saved = self.step

    def update(self, items: Sequence[Item]) -> dict[str, float]:
        """One update.      -> the whole batch's mean losses and norms"""
        t = self.training
        torch.manual_seed(hash((t.seed, self.step, self.place.rank)) % 2**63)                # the layers that are left out
        for group in self.optimizer.param_groups:
            group["lr"] = warmup_cosine(self.step, peak=group["peak"], warmup=t.warmup, steps=t.steps)
        self.optimizer.zero_grad()
        batch = collate(items, self.tokenizer, self.longest).to(self.device)
        weights = Weights(t.label_weight, t.l1_weight, t.giou_weight)
        told = gradient(self.model, batch, t.clip, t.clip_by, t.batch, weights, self.autocast)
        sums = torch.tensor([told[name] for name in sorted(told)], dtype=torch.float64)
        params = [p for p in self.model.parameters() if p.requires_grad]
        if self.place.world > 1:
            dist.all_reduce(sums)
            for p in params:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad)
        norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        if t.clip_by == "batch":
            for p in params:
                if p.grad is not None:
                    p.grad *= torch.clamp(t.clip / norm, max=1)
        row = dict(zip(sorted(told), (sums / t.batch).tolist())) | {"grad_norm": float(norm)}
        if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
            raise NonFiniteLoss(f"update {self.step + 1}: the loss is {row['loss']:g}, the gradient's norm "
                                f"{row['grad_norm']:g}; {self.out} keeps the last checkpoint. Lower --lr, or raise --warmup, "
                                "and start anew")
        self.optimizer.step()
        self.step += 1
        return row | {"lr": self.optimizer.param_groups[0]["lr"]}

    def go(self, again: str = "--resume") -> Detector:
        """Train to the end.      Interrupted after a signal, when everything is saved"""
        t, m = self.training, self.machine
        mine = range(self.place.rank, t.batch, self.place.world)
        metrics = Metrics(self.out / METRICS)
        with ExitStack() as stack:
            stop = stack.enter_context(stop_signals())
            if self.place.first:
                stack.enter_context(lock(self.out))
                metrics.cut(self.step)
                stack.enter_context(metrics)
            bar = stack.enter_context(progress(t.steps, self.step, self.say)) if self.place.first else lambda step, loss: None
            began, since = time.perf_counter(), self.step
            for items in self.examples.ahead(self.step, t.steps, mine, m.workers):
                row = self.update(items)
                bar(self.step, row["loss"])
                if self.place.first and (self.step % m.log_every == 0 or self.step == t.steps):
                    seconds = (time.perf_counter() - began) / (self.step - since)
                    metrics.write({"kind": "train", "step": self.step, **row, "seconds": round(seconds, 4)})
                    began, since = time.perf_counter(), self.step
                if self.step == t.steps or self.step % m.checkpoint_every == 0:
                    self.save()
                if largest(int(stop.asked))[0]:
                    break
            self.save()
        for reason, n in self.examples.skipped.items():
            self.say(f"{n} pictures left out while training: {reason}")
        if self.step < t.steps:
            raise Interrupted(f"stopped; {self.out} holds everything up to update {self.step} of {t.steps}. Continue with:\n"
                              f"  {again}")
        self.say(f"done: {t.steps} updates. Measure: sparc-ref evaluate --task detection --checkpoint {self.out} --data ...")
        return self.model
