"""Zero-shot classification (section 4.2, Tables 1 and 2): ImageNet and its variants, any folder of classes, webdatasets.

    folders:PATH            PATH/<class>/*.jpg; the folders' names are the classes', or classnames= gives them
    imagenet:PATH           PATH/<wnid>/*.JPEG; imagenet-sketch too. classnames= and wnids=: see classes.py
    imagenet-v2:PATH        PATH/0 ... PATH/999, in the order of the numbers
    imagenet-r, imagenet-a  200 of the classes: only they may be chosen
    imagenet-c:PATH         PATH/<corruption>/<1..5>/<wnid>/*.JPEG
    webdataset:PATH         CLIP_benchmark's layout, see webdataset.py
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparc_ref.evaluate.check import chosen
from sparc_ref.evaluate.classification import COMBINE, accuracy, classification_chance, hits, nearest
from sparc_ref.tasks.classes import ClassData, open_folders, open_imagenet_c, open_webdataset
from sparc_ref.tasks.embedder import Embedder
from sparc_ref.tasks.prompts import PROMPTS, canonical, class_vectors, templates_of
from sparc_ref.tasks.result import Result
from sparc_ref.tasks.stream import Source, read, spread

KINDS: dict[str, Callable[..., ClassData]] = {
    "folders": partial(open_folders, "folders", "", 0),
    "imagenet": partial(open_folders, "imagenet", "ImageNet", 1000),
    "imagenet-v2": partial(open_folders, "imagenet-v2", "ImageNet-V2", 1000),
    "imagenet-r": partial(open_folders, "imagenet-r", "ImageNet-R", 200),
    "imagenet-a": partial(open_folders, "imagenet-a", "ImageNet-A", 200),
    "imagenet-sketch": partial(open_folders, "imagenet-sketch", "ImageNet-Sketch", 1000),
    "imagenet-c": open_imagenet_c,
    "webdataset": open_webdataset,
}
open_model = Embedder.open


@dataclass(frozen=True)
class Protocol:
    """Every choice that moves the numbers."""

    prompt: str = "bare"            # "bare": the label alone, "one prompt per example" (Table 1) | "ensemble": eq. 9, CLIP's 80
    #                                 with FILIP's 6 suffixes (which ones Table 2 took is not said) | "ensemble7": CLIP's 7 best
    #                                 with them | "clip80" | "clip7" | "filip": its 5 x 6 | "data": the set's own templates
    combine: str = "embeddings"     # of several prompts: the mean of unit embeddings, made unit (CLIP; the paper is silent) |
    #                                 "similarities": the mean of the cosines (FILIP)
    eval_resize: str = "squash"     # as in training: "images are resized to 224" | "crop": the largest centred square
    candidates: str = "own"         # the classes that the set has pictures of (200 of R and A) | "all" that have a name
    canonical: bool = False         # names in lower case without punctuation, as big_vision does; the paper does not say

    def __post_init__(self):
        chosen("prompt", self.prompt, PROMPTS)
        chosen("combine", self.combine, COMBINE)
        chosen("eval_resize", self.eval_resize, ("squash", "crop"))
        chosen("candidates", self.candidates, ("own", "all"))


def measure(model: Embedder, data: ClassData, protocol: Protocol, *, limit: int | None = None, pictures: Path | None = None,
            say: Callable[[str], Any] = print) -> Result:
    """top1, top5, mean_per_class with the protocol's prompts; bare_top1, ... with the bare labels where these are others.

    Of ImageNet-C means over corruptions and severities, and top1_<corruption>, top1_severity_<n>.
    limit: pictures at most, evenly spread over the classes.   ValueError: no picture could be read
    """
    own = data.own if protocol.candidates == "own" else np.ones(len(data.classes), bool)
    names = tuple(map(canonical, data.classes)) if protocol.canonical else data.classes
    before = model.tokenizer.counts.as_dict()
    sets = {"": protocol.prompt} | ({"bare_": "bare"} if protocol.prompt != "bare" else {})
    templates = {head: templates_of(which, data.templates) for head, which in sets.items()}
    vectors = {head: class_vectors(model, names, some, protocol.combine) for head, some in templates.items()}
    after = model.tokenizer.counts.as_dict()
    counts = Counter(data.counts)
    counts[f"prompts cut at {model.config.max_tokens} tokens"] = after["truncated"] - before["truncated"]
    counts["tokens of prompts that the tokenizer does not know"] = after["unknown"] - before["unknown"]

    scores: dict[str, dict[tuple[str, str], dict[str, float]]] = {head: {} for head in sets}
    shown: list[Shown] = []
    examples, whole = 0, True
    for cell in data.cells:
        sources, labels = cell.list(counts)
        keep = spread(len(sources), None if limit is None else max(1, limit // len(data.cells)))
        whole &= len(keep) == len(sources)
        sources, labels = [sources[i] for i in keep], labels[keep]
        got: dict[str, list[np.ndarray]] = {head: [] for head in sets}
        index, guesses = [], []
        what = f"{cell.corruption} {cell.severity}".strip() or "pictures"
        for batch in read(sources, model.config.image_size, protocol.eval_resize, model.batch, counts, what):
            v = model.images(batch.pictures)["v_bar"]
            for head, matrix in vectors.items():
                got[head].append(hits(v, matrix, labels[batch.at], candidates=own))
            guesses.append(nearest(v, vectors[""], own))
            index.append(batch.at)
        if not index:
            causes = ", ".join(f"{n} {cause}" for cause, n in counts.items() if n)
            raise ValueError(f"{data.path}: {what}: expected pictures, none of {len(sources)} could be read: {causes}")
        at = np.concatenate(index)
        for head in sets:
            scores[head][cell.corruption, cell.severity] = accuracy(np.concatenate(got[head]), labels[at])
        examples += len(at)
        if cell is data.cells[0]:
            shown = [Shown(sources[i], int(labels[i]), int(k)) for i, k in zip(at, np.concatenate(guesses))]

    numbers = {f"{head}{key}": x for head, cells in scores.items() for key, x in over_cells(cells).items()}
    chance = classification_chance(int(own.sum()))
    used = asdict(protocol) | {"templates": len(templates[""]), "classes": int(own.sum()),
                               "image_size": model.config.image_size}
    notes = list(data.notes)
    if data.kind == "imagenet-c":
        notes.append("top-1 accuracy, averaged over corruptions and severities: not the mean corruption error")
    if model.objective.objective in ("filip", "clip_filip", "pacl", "gloria", "flair"):
        notes.append(f"scored by the cosine of the global embeddings, not by the own scores of {model.objective.objective}")
    if not whole:
        notes.append(f"{examples} pictures, evenly spread over the classes: not the whole set")
    files = draw(pictures, data, shown, model.config.image_size, protocol.eval_resize) if pictures else ()
    return Result("classification", f"{data.kind}:{data.path.resolve()}", data.name, examples, numbers,
                  {key: chance[base] for key in numbers if (base := base_of(key)) in chance}, used,
                  {cause: n for cause, n in counts.items() if n}, tuple(notes), files)


class Shown(NamedTuple):
    """What became of one picture: its class and the one that it was given."""

    source: Source
    label: int
    guess: int


def base_of(key: str) -> str:
    """bare_top1, top1_fog, top1_severity_3 -> top1"""
    return next((base for base in ("top1", "top5", "mean_per_class") if base in key), key)


def over_cells(cells: dict[tuple[str, str], dict[str, float]]) -> dict[str, float]:
    """The mean over corruptions of their means over severities; one cell as it is."""
    if len(cells) == 1 and ("", "") in cells:
        return cells["", ""]
    kinds, levels = list(dict.fromkeys(c for c, _ in cells)), list(dict.fromkeys(s for _, s in cells))
    out = {key: float(np.mean([np.mean([x[key] for (c, _), x in cells.items() if c == kind]) for kind in kinds]))
           for key in next(iter(cells.values()))}
    out |= {f"top1_{kind}": float(np.mean([x["top1"] for (c, _), x in cells.items() if c == kind])) for kind in kinds}
    return out | {f"top1_severity_{s}": float(np.mean([x["top1"] for (_, t), x in cells.items() if t == s])) for s in levels}


def draw(folder: Path, data: ClassData, shown: list[Shown], size: int, how: str) -> tuple[str, ...]:
    """Pictures with what they were taken for, and which classes are taken for which.      -> files in the folder"""
    from sparc_ref.show.plots import png
    from sparc_ref.show.sheets import Tile, confusions, sheet

    def tiles(some: list[Shown]) -> list[Tile]:
        some = [some[i] for i in spread(len(some), 12)]
        decoded = {int(i): p for batch in read([s.source for s in some], size, how, 12, Counter()) for i, p in
                   zip(batch.at, batch.pictures)}
        return [Tile(decoded[i], data.classes[s.guess], "" if s.label == s.guess else f"is: {data.classes[s.label]}")
                for i, s in enumerate(some) if i in decoded]

    right, wrong = ([s for s in shown if (s.label == s.guess) is same] for same in (True, False))
    rows = {f"Right: {len(right):,} of {len(shown):,} pictures": tiles(right), f"Wrong: {len(wrong):,}": tiles(wrong)}
    files = {"predictions.png": sheet(f"{data.name}: the nearest class", rows)}
    if wrong:
        pairs = Counter((s.label, s.guess) for s in shown)
        files["confusions.png"] = confusions(f"{data.name}: which class is taken for which", pairs, data.classes)
    for name, figure in files.items():
        (folder / name).write_bytes(png(figure, dpi=110))
    return tuple(files)
