"""Zero-shot segmentation (section 4.5, appendix D.7, Table 6): every patch gets the class whose name is nearest to it.

Pictures are squeezed to the model's square, as in training; predictions are enlarged to the truth's own size, where they are
counted, one picture at a time. evaluate/segmentation.py counts, segmentation_layouts.py opens data;
docs/tasks/segmentation.md measures what each choice of the protocol changes.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref.data.load_report import Unusable
from sparc_ref.evaluate.check import chosen
from sparc_ref.evaluate.segmentation import Tally, cells, centre, drawn, intersections, segment
from sparc_ref.run.measure import as_compared
from sparc_ref.tasks.embedder import Embedder, batches
from sparc_ref.tasks.prompts import PROMPTS, class_vectors, templates_of
from sparc_ref.tasks.result import Result
from sparc_ref.tasks.segmentation_layouts import KINDS, Labelled
from sparc_ref.tasks.stream import spread

__all__ = ["KINDS", "Protocol", "measure", "open_model"]
DRAWS = 10                                                        # random labellings of every picture, for chance
open_model = Embedder.open


@dataclass(frozen=True)
class Protocol:
    """How mIoU is counted. D.7 says the average; the rest it leaves open."""

    average: str = "per_image"      # mean over the classes of a picture's truth, then pictures (D.7) | "dataset": the usual
    background: str = "in_union"    # a class on background is wrong, as low numbers say | "ignore" | "class": it is one more
    background_name: str = "background"  # that class's text
    upsample: str = "nearest"       # label patches, then enlarge (D.7) | "bilinear": enlarge cosines, then label (PACL)
    size: int = 0                   # of the square that the model sees; 0: its own | 448: finer, positions resampled
    classes: str = "all"            # candidates: the whole list, as PACL's 1.23 implies | "present": those in the picture
    prompt: str = "bare"            # the bare name (table 1's "one prompt") | "clip7": CLIP's seven best | any of prompts.py
    resolution: int = 0             # of the truth; 0: its own | 320: squeezed to 320 x 320 first

    def __post_init__(self):
        for name, allowed in (("average", ("per_image", "dataset")), ("background", ("in_union", "ignore", "class")),
                              ("upsample", ("nearest", "bilinear")), ("classes", ("all", "present")),
                              ("prompt", PROMPTS[:-1])):
            chosen(name, getattr(self, name), allowed)
        for name, most in (("size", 4096), ("resolution", 5000)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: expected 0..{most}, got {getattr(self, name)}")


def measure(
    model: Embedder, data: Labelled, protocol: Protocol, *, limit: int | None = None, pictures: Path | None = None,
    say: Callable[[str], Any] = print,
) -> Result:
    """mIoU of `limit` pictures, evenly spread, through h_v then g_v (D.7) as "miou" and through g_v alone as "miou_g_v".

    The numbers of both averages and both readings of background come from the same predictions, under their own names.
    ValueError: nothing could be measured, with what was wrong.
    """
    from tqdm import tqdm

    side = protocol.size or model.config.image_size
    if side % model.config.patch_size:
        raise ValueError(f"size: expected a multiple of the patch, {model.config.patch_size}, got {side}")
    which = spread(len(data.keys), limit)
    if not len(which):
        raise ValueError(f"limit: expected at least one picture, got {limit}")
    grid = (side // model.config.patch_size,) * 2
    one_more = protocol.background == "class"
    classes = (*data.classes, protocol.background_name) if one_more else data.classes
    emb = class_vectors(model, classes, templates_of(protocol.prompt), "embeddings")
    readings = ("in_union",) if one_more else ("in_union", "ignore")
    heads = ("miou",) if model.config.h_v == "none" else ("miou", "miou_g_v")
    tallies = {(head, how): Tally(len(classes)) for head in heads for how in readings}
    random = {how: [Tally(len(classes)) for _ in range(DRAWS)] for how in readings}
    rng = np.random.default_rng(0)
    shown = set(which[spread(len(which), 6)].tolist()) if pictures else set()
    overlays, measured, report = [], 0, deepcopy(data.report)
    for part in batches(tqdm(which.tolist(), "pictures", unit="picture", disable=None, delay=1), model.batch):
        for i, picture, patches in embedded(model, data, part, side, heads, report):
            try:
                truth = squeezed(data.truth(i), protocol.resolution)
            except Unusable as error:
                report.skip(error.reason, data.keys[i], error.note)
                continue
            measured += 1
            truth = np.where(truth == -1, len(data.classes), truth) if one_more else truth
            among = np.arange(len(classes))
            if protocol.classes == "present":
                among = np.unique(truth[(truth >= 0) & (truth != data.ignore)])
            if len(among):
                labels = {head: among[segment(x[None], emb[among], grid, truth.shape, upsample=protocol.upsample)[0]]
                          for head, x in patches.items()}
            else:                                                 # nothing in the picture, so nothing to choose from
                labels = {head: np.full(truth.shape, -1) for head in patches}
            for how in readings:
                for head in heads:
                    tallies[head, how].add(*intersections(
                        labels[head][None], truth[None], len(classes), background=how, ignore=data.ignore))
                held = cells(truth, grid, len(classes), background=how, ignore=data.ignore)
                for tally in random[how] if len(among) else ():
                    tally.add(*drawn(held, among[rng.integers(0, len(among), grid[0] * grid[1])]))
            if i in shown:
                overlays.append((picture, truth, labels))
    if not measured:
        raise ValueError(f"expected pictures that can be measured, found none\n{report}")
    numbers, chance = {}, {}
    how = "in_union" if one_more else protocol.background
    for head in heads:
        numbers[head] = tallies[head, how].mean(protocol.average)
        chance[head] = np.mean([tally.mean(protocol.average) for tally in random[how]])
    for how in readings:
        for average in ("per_image", "dataset"):
            key = f"{average}_{'class' if one_more else how}"
            numbers[key] = tallies["miou", how].mean(average)
            chance[key] = np.mean([tally.mean(average) for tally in random[how]])
    if not np.isfinite(numbers["miou"]):
        raise ValueError(f"{data.name}: expected a class in some picture, found background alone in {measured}\n{report}")
    notes = [f"{reason}, {n}: {', '.join(report.names.get(reason, []))}" for reason, n in report.skipped.items()]
    files = draw(pictures, overlays, classes, data.ignore, side) if pictures and overlays else ()
    return Result("segmentation", report.source, data.name, measured, {k: float(x) for k, x in numbers.items()},
                  {k: float(x) for k, x in chance.items()}, asdict(protocol) | {"size": side},
                  {"classes": len(classes)} | dict(report.skipped), tuple(notes), files)


def embedded(model, data, part, side, heads, report):
    """Each picture that can be read, with its patches through every head.      -> number, (side,side,3), {head: (P,D)}"""
    read = []
    for i in part:
        try:
            read.append((i, data.picture(i, side)))
        except Unusable as error:
            report.skip(error.reason, data.keys[i], error.note)
    if not read:
        return
    out = model.images([picture for _, picture in read])
    out["v"] = as_compared(model.params, model.config, out["v"], model.objective)
    of = {"miou": "segment", "miou_g_v": "v"}
    for n, (i, picture) in enumerate(read):
        yield i, picture, {head: out[of[head]][n] for head in heads}


def squeezed(labels: np.ndarray, side: int) -> np.ndarray:
    """Labels at another resolution, the nearest pixel's; 0: as they are."""
    return labels[centre(side, labels.shape[0])][:, centre(side, labels.shape[1])] if side else labels


def draw(folder: Path, overlays, classes, ignore: int, side: int) -> tuple[str, ...]:
    """Pictures as the model sees them, truth and predictions; what is not counted is white."""
    from sparc_ref.run.files import write_whole
    from sparc_ref.show.plots import masks, png

    side = max(side, 224)
    heads = {"miou": "h_v, g_v", "miou_g_v": "g_v"}
    photos, truths = [], []
    predictions: dict[str, list] = {heads[head]: [] for head in overlays[0][2]}
    for picture, truth, labels in overlays:
        truth = squeezed(truth, side)
        photos.append(squeezed(picture, side))
        truths.append(np.where(truth == ignore, -1, truth))
        for head, x in labels.items():
            predictions[heads[head]].append(np.where(truth == ignore, -1, squeezed(x, side)))
    write_whole(folder / "segmentation.png", png(masks(photos, truths, predictions, classes), 110))
    return ("segmentation.png",)
