"""Faithfulness (section 4.4, tables 4 and 6): does the caption that is found first for a picture say what its own say?

For every picture the first of all captions of the set is the prediction, the picture's own captions are the references.
evaluate/faithfulness.py counts; docs/tasks/faithfulness.md measures what each choice of the protocol changes.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref.data import CaptionData, open_captions
from sparc_ref.data.images import load_image
from sparc_ref.evaluate.check import chosen, unit
from sparc_ref.evaluate.faithfulness import content_words, faithfulness, faithfulness_chance, k_precision, words
from sparc_ref.evaluate.retrieval import retrieval, retrieval_chance
from sparc_ref.tasks.embedder import Embedder, batches
from sparc_ref.tasks.result import Result
from sparc_ref.tasks.taggers import SPACY, open_tagger

open_model = Embedder.open


@dataclass(frozen=True)
class Protocol:
    """How K-Precision is counted. The paper leaves all of it open."""

    ref: str = "joined"       # a picture's captions are one text, as instruct-qa joins evidence | "max": the best single one
    count: str = "clipped"    # a word counts as often as the reference has it, as in instruct-qa | "set": every word once
    tagger: str = ""          # for K-P_na: "spacy" | "nltk" | a .jsonl of tags; "": spaCy if it is there, else no K-P_na

    def __post_init__(self):
        chosen("ref", self.ref, ("joined", "max"))
        chosen("count", self.count, ("clipped", "set"))
        if self.tagger not in ("", "spacy", "nltk") and not self.tagger.endswith(".jsonl"):
            raise ValueError(f"tagger: expected spacy, nltk or a .jsonl file of tagged captions, got {self.tagger!r}")


def captions(path: Path, *, images: str | None = None, split: str | None = None, how: str = "squash") -> CaptionData:
    """Pictures with captions in any format of docs/data.md; of a file with splits of its own, "test" if none is named."""
    return open_captions(path, images, size=32, how=how, memory_mb=0, split=split, own_split="test")


KINDS: dict[str, Callable[..., Any]] = {"captions": captions}


def measure(
    model: Embedder, data: CaptionData, protocol: Protocol, *, limit: int | None = None, pictures: Path | None = None,
    say: Callable[[str], Any] = print,
) -> Result:
    """K-P, and K-P_na where there is a tagger, of the first `limit` pictures among the captions of these."""
    from tqdm import tqdm

    count = len(data) if limit is None else min(limit, len(data))
    if count < 1:
        raise ValueError(f"limit: expected at least one picture, got {limit}")
    tagger, notes = tagger_of(protocol, say)
    size = model.config.image_size
    v_bar = []
    for part in batches(tqdm(range(count), "pictures", unit="picture", disable=None, delay=1), model.batch):
        v_bar.append(model.images([load_image(data.paths[i], size, data.how) for i in part])["v_bar"])
    image_emb = np.concatenate(v_bar)
    texts = [text for i in range(count) for text in data.texts[i]]
    owner = np.asarray([i for i in range(count) for _ in data.texts[i]])
    text_emb = model.pooled_texts(texts)
    held = [words(text) for text in texts]
    content = [content_words(text, tags) for text, tags in zip(texts, tagger(texts))] if tagger else None

    ref, count_as = protocol.ref, protocol.count
    numbers = faithfulness(image_emb, text_emb, owner, held, content, ref=ref, count=count_as)
    chance = faithfulness_chance(owner, held, content, ref=ref, count=count_as)
    chance.pop("skipped", None)
    counts: dict[str, float] = {"captions": len(texts), "captions without a word besides articles": sum(not w for w in held)}
    counts["first captions without a noun or adjective"] = numbers.pop("skipped", 0)
    counts |= {reason: n for reason, n in data.report.skipped.items() if n}
    if "kp_na" in numbers and np.isnan(numbers["kp_na"]):
        notes.append("No first caption has a noun or an adjective: there is no K-P_na.")
    numbers |= {"i2t_r1": retrieval(image_emb, text_emb, owner, (1,))["i2t_r1"]}
    chance |= {"i2t_r1": retrieval_chance(owner, count, (1,))["i2t_r1"]}
    numbers, chance = ({k: x for k, x in of.items() if np.isfinite(numbers[k])} for of in (numbers, chance))
    cut = sum(model.tokenizer.encode(text, model.config.max_tokens).dropped > 0 for text in texts)
    counts |= {"captions cut to the model's tokens": cut} if cut else {}
    drawn = draw(pictures, data, texts, owner, held, image_emb, text_emb, protocol) if pictures else ()
    return Result("faithfulness", f"captions:{os.path.abspath(data.report.source)}", data.name, count, numbers, chance,
                  asdict(protocol), {k: n for k, n in counts.items() if n}, tuple(notes), drawn)


def tagger_of(protocol, say):
    """The tagger that the protocol names; where it names none and spaCy is not there, None and a note."""
    try:
        return open_tagger(protocol.tagger or "spacy"), []
    except ValueError:
        if protocol.tagger:
            raise
    note = f"No K-P_na: spaCy and its en_core_web_sm are not here; get them with: {SPACY}"
    say(note)
    return None, [note]


def draw(folder: Path, data, texts, owner, held, image_emb, text_emb, protocol, most: int = 8) -> tuple[str, ...]:
    """Pictures, evenly through the set, with the caption found first; [words] in brackets stand in none of their own."""
    from sparc_ref.run.files import write_whole
    from sparc_ref.show.plots import SMALL, clean, new_figure, png, shortened, show, wrapped

    rows = np.unique(np.linspace(0, len(image_emb) - 1, most).astype(int))
    first = np.argmax(unit(image_emb[rows]) @ unit(text_emb).T, axis=1)
    figure = new_figure((2.4 * 4, 3.6 * -(-len(rows) // 4)), layout="constrained")
    for at, (n, m) in enumerate(zip(rows, first)):
        ax = figure.add_subplot(-(-len(rows) // 4), 4, at + 1)
        show(ax, load_image(data.paths[n], 224, data.how))
        own = [held[j] for j in np.flatnonzero(owner == n)]
        known = {w for text in own for w in text}
        said = " ".join(w if known.issuperset(words(w)) else f"[{w}]" for w in texts[m].split())
        score = k_precision(held[m], own, ref=protocol.ref, count=protocol.count)
        ax.set_title(f"K-P {score:.2f}", fontsize=SMALL + 1)
        ax.set_xlabel(wrapped(clean(shortened(said, 150)), 34), fontsize=SMALL)
    write_whole(folder / "first-captions.png", png(figure, 110))
    return ("first-captions.png",)
