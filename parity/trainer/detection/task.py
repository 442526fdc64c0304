"""The task "detection" of sparc-ref evaluate: average precision of a trained detector on named boxes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity.trainer.detection.data import KINDS, PAGE, Annotated, BoxData
from parity.trainer.detection.pictures import draw
from parity.trainer.detection.predict import Ensemble, detect, embed_names
from parity.trainer.detection.train import load_detector
from sparc_ref.data.load_report import Unusable
from sparc_ref.evaluate.detection import LARGE, SMALL, Found, Truth, average_precision, averaged
from sparc_ref.run.telling import progress
from sparc_ref.tasks.embedder import identity_of
from sparc_ref.tasks.prompts import templates_of
from sparc_ref.tasks.result import Result

__all__ = ["KINDS", "Protocol", "measure", "open_model"]
GROUPS = {"r": "ap_rare", "c": "ap_common", "f": "ap_frequent"}
SHOWN = 12                                                # pictures that are drawn


@dataclass(frozen=True)
class Protocol:
    """What moves the numbers."""

    prompt: str = "clip7"           # CLIP's 7 best templates, OWL-ViT's choice; bare: the name alone; clip80
    ensemble: Ensemble = "logits"   # how templates are averaged: the published code's; probs: what the paper says
    most: int = 300                 # detections of a picture, over patches and classes
    pixels: int = 0                 # a side; 0: what the detector was trained with
    per_class: bool = False         # also the AP of every class

    def __post_init__(self):
        templates_of(self.prompt)
        if self.ensemble not in ("logits", "probs"):
            raise ValueError(f"ensemble: expected logits or probs, got {self.ensemble!r}")
        if self.most < 1 or self.pixels < 0:
            raise ValueError(f"most, pixels: expected at least 1 and 0, got {self.most} and {self.pixels}")


@dataclass(frozen=True)
class Model:
    """A trained detector as this task needs it."""

    detector: Any
    tokenizer: Any
    about: dict
    name: str
    identity: str
    trained_on: tuple[str, ...]


def open_model(checkpoint: str | Path, *, batch: int = 64, shards: int = 4) -> Model:
    """A detector's checkpoint or run directory.      ValueError for anything that is wrong with it; pictures go one by one"""
    detector, tokenizer, about, found = load_detector(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Model(detector.to(device), tokenizer, about, str(found.path), identity_of(found.path),
                 tuple(map(str, about.get("data", ()))))


def measure(
    model: Model, data: BoxData, protocol: Protocol, *, limit: int | None = None, pictures: Path | None = None,
    say: Callable[[str], Any] = print,
) -> Result:
    """AP, AP50, AP75, by size; of LVIS also of rare, common, frequent classes.      ValueError where nothing can be measured"""
    size = protocol.pixels or model.about["size"]
    patch = model.detector.config.patch_size
    if size % patch:
        raise ValueError(f"pixels: expected a multiple of the detector's patches of {patch} pixels, got {size}")
    say(str(data.report))
    queries = embed_names(model.detector, model.tokenizer, data.classes, protocol.prompt, model.about["tokens"])
    lost = Counter(data.report.skipped)
    used: list[Annotated] = []
    found: list[tuple] = []
    shown: list[tuple] = []
    count = min(limit or len(data), len(data))
    with progress(count, 0, lambda text: say(text.split(",")[0].replace("update", "picture"))) as bar:
        for index in range(count):
            try:
                image, annotated = data.read(index, size)
            except Unusable as error:
                lost[error.reason] += 1
                continue
            boxes = detect(model.detector, image, annotated.size, queries, size, protocol.most, protocol.ensemble)
            found.append(boxes)
            used.append(annotated)
            if pictures is not None and len(shown) < SHOWN:
                shown.append((image, annotated, boxes))
            bar(index + 1, 0.0)
    if not used:
        raise ValueError(f"{data.name}: no picture can be measured; {dict(lost)}; see {PAGE}")
    federated = bool(data.frequency)
    truth, most = truth_of(used, federated), protocol.most if federated else 100
    if all(annotated.crowd.all() for annotated in used):
        raise ValueError(f"{data.name}: none of the {len(used)} pictures has a box to be found; {dict(lost)}; see {PAGE}")
    numbers, per_class = scores(truth, found_of(found), data, most)
    numbers |= per_class if protocol.per_class else {}
    chance, _ = scores(truth, guesses(used, truth, protocol.most), data, most)
    names = draw(shown, data.classes, pictures) if pictures is not None else []
    notes = [f"chance: boxes and names of the data, dealt at random, {protocol.most} a picture, one draw"]
    if federated:
        notes.append("federated, as lvis has it: detections of classes that were not looked for in a picture are left out")
    return Result(
        task="detection", data=str(data.report.source), name=data.name, examples=len(used), numbers=numbers,
        chance={k: x for k, x in chance.items() if k in numbers},
        protocol=asdict(protocol) | {"pixels": size, "counted": f"{most} a picture{'' if federated else ' and class'}"},
        counts={**lost, **{f"{what}, used": n for what, n in data.report.converted.items()}, "boxes": len(truth.label),
                "classes with boxes": len(np.unique(truth.label)), "classes": len(data.classes)},
        notes=tuple(notes), pictures=tuple(names))


def scores(truth: Truth, found: Found, data: BoxData, most: int) -> tuple[dict[str, float], dict[str, float]]:
    """The usual summary, and AP by class; what no class has truth for is left out."""
    K = len(data.classes)
    every = average_precision(truth, found, K, most=most)
    numbers = {"ap": averaged(every), "ap50": averaged(every[:, 0]), "ap75": averaged(every[:, 5])}
    for name, area in (("ap_small", (0, SMALL)), ("ap_medium", (SMALL, LARGE)), ("ap_large", (LARGE, 1e10))):
        numbers[name] = averaged(average_precision(truth, found, K, most=most, area=area))
    for letter, name in GROUPS.items() if data.frequency else ():
        numbers[name] = averaged(every[[how == letter for how in data.frequency]])
    per_class = {f"ap of {data.classes[k]}": averaged(every[k]) for k in range(K)}
    return tuple({k: x for k, x in each.items() if np.isfinite(x)} for each in (numbers, per_class))  # type: ignore


def truth_of(used: Sequence[Annotated], federated: bool) -> Truth:
    """All boxes of the pictures that were measured, each picture by its place among them."""
    owner = np.repeat(np.arange(len(used)), [len(a.label) for a in used])
    def whole(name):
        return np.concatenate([getattr(a, name) for a in used])

    return Truth(owner, whole("label"), whole("box"), whole("area"), whole("crowd"),
                 frozenset((n, k) for n, a in enumerate(used) for k in a.negative) if federated else None,
                 frozenset((n, k) for n, a in enumerate(used) for k in a.incomplete))


def found_of(found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Found:
    box, label, score = (np.concatenate(each) for each in zip(*found))
    return Found(np.repeat(np.arange(len(found)), [len(each[1]) for each in found]), label, box, score)


def guesses(used: Sequence[Annotated], truth: Truth, most: int) -> Found:
    """What knows the data and not the picture: true names, and true boxes by their place in the picture, drawn at random."""
    rng = np.random.default_rng(0)
    if not len(truth.label):
        return Found(*(np.zeros(0, np.int64),) * 2, np.zeros((0, 4)), np.zeros(0))
    sizes = np.array([[*a.size, *a.size] for a in used], np.float64)
    relative = truth.box / sizes[truth.image]
    most = min(most, 4 * len(truth.label))
    owner = np.repeat(np.arange(len(used)), most)
    box = relative[rng.integers(len(relative), size=len(owner))] * sizes[owner]
    return Found(owner, rng.choice(truth.label, len(owner)), box, rng.random(len(owner)))
