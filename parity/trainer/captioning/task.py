"""Captioning as a task: a trained captioner and pictures with captions -> CIDEr, BLEU, ROUGE-L, with controls.

    sparc-ref evaluate --task captioning --checkpoint CAPTIONER --data "coco:dataset_coco.json?images=val2014&split=test"
"""

import inspect
import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from parity.trainer.captioning import words
from parity.trainer.captioning.generate import captions_of
from parity.trainer.captioning.model import Captioner, open_captioner
from sparc_ref.data.batches import to_images
from sparc_ref.evaluate.captioning import captioning
from sparc_ref.run.files import write_whole
from sparc_ref.run.sources import KINDS as SOURCES
from sparc_ref.run.sources import open_source
from sparc_ref.tasks.embedder import batches, identity_of
from sparc_ref.tasks.result import Result

SHOWN = 12                                                # pictures of a page


@dataclass(frozen=True)
class Protocol:
    """What moves the numbers.  SPARC states none of it."""

    beams: int = 3                  # of the search; open_flamingo's; 1: greedy
    most: int = 20                  # new tokens; open_flamingo's
    penalty: float = 0.0            # length penalty, 0: plain log-probability; open_flamingo's
    prompt: str = ""                # words after <image>; captions were trained without any
    words: str = "auto"             # how captions are cut: ptb (published numbers; needs Java), plain, auto
    shuffles: int = 5               # times that the captions are dealt to other pictures, for chance
    seed: int = 0                   # of that

    def __post_init__(self):
        for name in ("beams", "most", "shuffles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not np.isfinite(self.penalty) or self.seed < 0:
            raise ValueError(f"penalty, seed: expected a finite number and at least 0, got {self.penalty} and {self.seed}")
        if self.words not in ("auto", "ptb", "plain"):
            raise ValueError(f"words: expected auto, ptb or plain, got {self.words!r}")


@dataclass(frozen=True)
class Pictures:
    """Pictures with captions, opened when their size is known."""

    kind: str                       # as sparc_ref.run.sources knows it
    path: Path
    options: dict
    name: str                       # what a table calls them

    def open(self, size: int) -> Any:
        """ValueError: what the data itself refuses"""
        return open_source(self.spec, size, split="test")

    @property
    def spec(self) -> str:
        options = "&".join(f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in self.options.items())
        return f"{self.kind}:{self.path.absolute()}{'?' + options if options else ''}"


def layout(kind: str, name: str = "") -> Callable[..., Pictures]:
    """The opener of a kind of source, with that source's options."""
    def opener(path: Path, **options: Any) -> Pictures:
        if not path.exists():
            raise ValueError(f"{path}: expected a file or a folder, found none")
        return Pictures(kind, path, options, name or path.stem)

    known = [p.replace(kind=p.KEYWORD_ONLY) for k, p in inspect.signature(SOURCES[kind]).parameters.items()
             if k not in ("source", "path", "size", "progress")]
    first = inspect.Parameter("path", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    opener.__signature__ = inspect.Signature([first, *known])  # type: ignore[attr-defined]
    return opener


KINDS = {"coco": layout("captions", "COCO"), "flickr30k": layout("captions", "Flickr30k"), "captions": layout("captions"),
         "pictures": layout("pictures"), "wallpaper": layout("wallpaper")}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """What measure needs of a captioner."""

    captioner: Captioner
    name: str                       # the checkpoint's path
    identity: str                   # a hash of the checkpoint
    trained_on: tuple[str, ...]
    batch: int = 64                 # pictures at a time

    @property
    def size(self) -> int:
        return self.captioner.about.config.image_size

    def captions(self, pictures: Sequence[np.ndarray], protocol: Protocol) -> list[tuple[str, bool]]:
        """(H,W,3) uint8 of the tower's size -> a caption of each, and whether it came to its end"""
        return captions_of(self.captioner, torch.from_numpy(to_images(pictures)), beams=protocol.beams, most=protocol.most,
                           penalty=protocol.penalty, prompt=protocol.prompt)


def open_model(checkpoint: str | Path, *, batch: int = 64, shards: int = 1) -> Model:
    """A captioner that python -m parity.trainer.captioning trained.      shards: torch splits a batch itself"""
    captioner, found = open_captioner(checkpoint)
    sources = found.record["config"].get("sources")
    data = sources.get("data") if isinstance(sources, dict) else None
    return Model(captioner, str(found.path), identity_of(found.path), tuple(map(str, data or ())), batch)


def measure(
    model: Model, data: Any, protocol: Protocol = Protocol(), *, limit: int | None = None, pictures: Path | None = None,
    say: Callable[[str], Any] = print,
) -> Result:
    """A caption of each picture against those that people wrote.      data: what a layout opened, or any data set of examples

    Numbers: "cider" (CIDEr-D x 100), "bleu1".."bleu4", "rouge_l", and "blank_" each: of the one caption that a picture of plain
    grey is given, put under every picture, which is what the language model knows without looking.  Chance is the mean of the
    model's own captions dealt to other pictures.
    """
    dataset = data.open(model.size) if isinstance(data, Pictures) else data
    spec, name = (data.spec, data.name) if isinstance(data, Pictures) else (dataset.name, dataset.name)
    if hasattr(dataset, "report"):
        say(str(dataset.report))
    how, count = words.chosen(protocol.words), min(len(dataset), limit or len(dataset))
    said: list[tuple[str, bool]] = []
    references: list[list[str]] = []
    shown: list[np.ndarray] = []
    for part in tqdm(batches(range(count), model.batch), total=-(-count // model.batch), unit="batch", desc="captions",
                     disable=None):
        examples = [dataset[i] for i in part]
        if bare := [e.key or str(i) for i, e in zip(part, examples) if not e.captions]:
            raise ValueError(f"{spec}: expected a caption for every picture, got none for {', '.join(bare[:5])}")
        said += model.captions([resized(e.image, model.size) for e in examples], protocol)
        references += [list(e.captions) for e in examples]
        shown += [e.image for e in examples][:max(0, SHOWN - len(shown))]
    if count < 2:
        raise ValueError(f"{spec}: expected at least 2 pictures, got {count}: CIDEr weighs words by how few pictures have them")
    blank = model.captions([np.full((model.size, model.size, 3), 127, np.uint8)], protocol)[0][0]
    ours, control, true = in_words([text for text, _ in said], blank, references, how)
    numbers = captioning(ours, true)
    numbers |= {f"blank_{k}": x for k, x in captioning([control] * count, true).items()}
    chance = dealt(ours, true, protocol)
    counts = {"captions that most cut": sum(not ended for _, ended in said), "empty captions": sum(not text for text in ours),
              "different captions": len(set(ours)), "references": sum(map(len, true))}
    skipped = getattr(getattr(dataset, "report", None), "skipped", None)
    counts |= {f"left out: {cause}": n for cause, n in (skipped or {}).items()}
    named = page(shown, said, references, pictures) if pictures is not None else ()
    return Result("captioning", spec, name, count, numbers, chance,
                  asdict(protocol) | {"words": f"{how}: {words.HOW[how]}", "cider": "CIDEr-D x 100, idf of these references"},
                  counts, (f"a picture of plain grey is called: {blank or '(nothing)'}",), named)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    from sparc_ref.data.images import resize

    return image if image.shape[:2] == (size, size) else resize(image, size)


def in_words(ours: list[str], blank: str, references: list[list[str]], how: str) -> tuple[list[str], str, list[list[str]]]:
    """All of them cut at once: Java starts slowly."""
    flat = words.cut([*ours, blank, *(text for texts in references for text in texts)], how)
    rest = iter(flat[len(ours) + 1:])
    return flat[:len(ours)], flat[len(ours)], [[next(rest) for _ in texts] for texts in references]


def dealt(ours: list[str], references: list[list[str]], protocol: Protocol) -> dict[str, float]:
    """The mean over deals in which every caption is another picture's: rotations of a random order."""
    rng, found = np.random.default_rng(protocol.seed), []
    for _ in range(protocol.shuffles):
        order = rng.permutation(len(ours))
        other = np.empty_like(order)
        other[order] = np.roll(order, 1)
        found.append(captioning([ours[i] for i in other], references))
    return {k: float(np.mean([f[k] for f in found])) for k in found[0]}


def page(shown: list[np.ndarray], said: list[tuple[str, bool]], references: list[list[str]], folder: Path) -> tuple[str, ...]:
    """The first pictures with their caption and one that a person wrote."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(4, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(2.7 * across, 3.4 * down), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for i, image in enumerate(shown):
        ax = figure.add_subplot(down, across, i + 1)
        ax.imshow(image, interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
        texts = [printed(text) for text in (said[i][0] or "(nothing)", references[i][0])]
        ax.set_title(texts[0], fontsize=8, fontweight="bold", loc="left")
        ax.set_xlabel(f"person: {texts[1]}", fontsize=7, loc="left")
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")                # a box stands for it
        figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    write_whole(folder / "captions.png", out.getvalue())
    lines = [f"{i + 1}\t{text}\t{' | '.join(texts)}" for i, ((text, _), texts) in enumerate(zip(said, references))]
    write_whole(folder / "captions.txt", "\n".join(lines) + "\n")
    return ("captions.png", "captions.txt")


def printed(text: str) -> str:
    """As matplotlib prints it as it is: no dollar mathematics, no control characters, lines of 34."""
    plain = "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")
    return "\n".join(textwrap.wrap(textwrap.shorten(plain, 100, placeholder="…"), 34))
