"""Faithfulness (section 4.4, Table 4): does the caption that is found first for a picture say what its own say?

For every picture the first of all captions of the set is the prediction, the picture's own captions are the references.
evaluate/faithfulness.py counts; docs/tasks/faithfulness.md measures what each choice of the protocol changes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref.evaluate.check import chosen, unit
from sparc_ref.evaluate.faithfulness import content_words, faithfulness, faithfulness_chance, k_precision, words
from sparc_ref.evaluate.retrieval import retrieval, retrieval_chance
from sparc_ref.tasks import retrieval as retrieval_task
from sparc_ref.tasks.embedder import Embedder
from sparc_ref.tasks.result import Result
from sparc_ref.tasks.retrieval import KINDS, CaptionSet, Embedded
from sparc_ref.tasks.stream import read, spread
from sparc_ref.tasks.taggers import SPACY, open_tagger

__all__ = ["KINDS", "Protocol", "measure", "open_model"]
open_model = Embedder.open


@dataclass(frozen=True)
class Protocol:
    """How K-Precision is counted. The paper leaves all of it open."""

    ref: str = "joined"       # a picture's captions are one text, as instruct-qa joins evidence | "max": the best single one
    count: str = "clipped"    # a word counts as often as the reference has it, as in instruct-qa | "set": every word once
    tagger: str = ""          # for K-P_na: "spacy" | "nltk" | a .jsonl of tags; "": spaCy if it is there, else no K-P_na
    captions: int = 0         # of a picture at most, the first ones; 0: all, since nothing says fewer (retrieval takes 5)
    eval_resize: str = "squash"  # as in training | "crop": the largest centred square

    def __post_init__(self):
        chosen("ref", self.ref, ("joined", "max"))
        chosen("count", self.count, ("clipped", "set"))
        chosen("eval_resize", self.eval_resize, ("squash", "crop"))
        if self.captions < 0:
            raise ValueError(f"captions: expected at least 1 of each picture, or 0 for all, got {self.captions}")
        if self.tagger not in ("", "spacy", "nltk") and not self.tagger.endswith(".jsonl"):
            raise ValueError(f"tagger: expected spacy, nltk or a .jsonl file of tagged captions, got {self.tagger!r}")


def measure(
    model: Embedder, data: CaptionSet, protocol: Protocol, *, limit: int | None = None, pictures: Path | None = None,
    say: Callable[[str], Any] = print,
) -> Result:
    """K-P, K-P_na where there is a tagger, and R@1, which K-P is never below, of `limit` pictures, evenly spread.

    The captions of these pictures are the candidates.   ValueError: no picture could be read, a tagger that is not there
    """
    tagger, notes = tagger_of(protocol)
    counts: Counter[str] = Counter(data.counts)
    read_as = retrieval_task.Protocol(captions=protocol.captions, eval_resize=protocol.eval_resize)
    got = retrieval_task.embed(model, data, read_as, limit, counts, None)
    held = [words(text) for text in got.texts]
    content = [content_words(text, tags) for text, tags in zip(got.texts, tagger(got.texts))] if tagger else None

    ref, how = protocol.ref, protocol.count
    numbers = faithfulness(got.v_bar, got.t_bar, got.owner, held, content, ref=ref, count=how)
    chance = faithfulness_chance(got.owner, held, content, ref=ref, count=how)
    numbers["i2t_r1"] = retrieval(got.v_bar, got.t_bar, got.owner, (1,))["i2t_r1"]
    chance["i2t_r1"] = retrieval_chance(got.owner, len(got.at), (1,))["i2t_r1"]
    skipped = numbers.pop("skipped", 0)
    if np.isnan(numbers.get("kp_na", 0)):
        notes.append("No first caption has a noun or an adjective: there is no K-P_na.")
    left_out = {"captions": len(got.texts), "captions without a word besides articles": sum(not w for w in held),
                "first captions without a noun or adjective": skipped} | dict(counts)
    known = [k for k, x in numbers.items() if np.isfinite(x)]
    drawn = draw(pictures, model, data, got, held, protocol) if pictures else ()
    return Result("faithfulness", f"{data.kind}:{data.path.resolve()}", data.name, len(got.at), {k: numbers[k] for k in known},
                  {k: chance[k] for k in known}, asdict(protocol), {k: n for k, n in left_out.items() if n},
                  (*data.notes, *notes), drawn)


def tagger_of(protocol):
    """The tagger that the protocol names; where it names none and spaCy is not there, None and a note."""
    try:
        return open_tagger(protocol.tagger or "spacy"), []
    except ValueError:
        if protocol.tagger:
            raise
    return None, [f"No K-P_na: spaCy and its en_core_web_sm are not here; get them with: {SPACY}"]


def draw(
    folder: Path, model: Embedder, data: CaptionSet, got: Embedded, held: list[list[str]], protocol: Protocol, most: int = 8,
) -> tuple[str, ...]:
    """Pictures, evenly through the set, with the caption found first; [words] in brackets stand in none of their own."""
    from sparc_ref.run.files import write_whole
    from sparc_ref.show.plots import SMALL, clean, new_figure, png, shortened, show, wrapped

    rows = spread(len(got.at), most)
    first = np.argmax(unit(got.v_bar[rows]) @ unit(got.t_bar).T, axis=1)
    size = max(224, model.config.image_size)
    images = [p for batch in read([data.pictures[got.at[n]] for n in rows], size, protocol.eval_resize, most, Counter())
              for p in batch.pictures]
    figure = new_figure((2.4 * 4, 3.6 * -(-len(rows) // 4)), layout="constrained")
    for at, (n, m, image) in enumerate(zip(rows, first, images)):
        ax = figure.add_subplot(-(-len(rows) // 4), 4, at + 1)
        show(ax, image)
        own = [held[j] for j in np.flatnonzero(got.owner == n)]
        known = {w for text in own for w in text}
        said = " ".join(w if known.issuperset(words(w)) else f"[{w}]" for w in got.texts[m].split())
        score = k_precision(held[m], own, ref=protocol.ref, count=protocol.count)
        ax.set_title(f"K-P {score:.2f}", fontsize=SMALL + 1)
        ax.set_xlabel(wrapped(clean(shortened(said, 150)), 34), fontsize=SMALL)
    write_whole(folder / "first-captions.png", png(figure, 110))
    return ("first-captions.png",)
