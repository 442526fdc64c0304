"""Faithfulness (section 4.4): how many words of the caption that is found first do the picture's own captions hold?

    K-P      K-Precision of all words; K-P_na of nouns and adjectives alone, each looked for among all words of the references
Words are instruct-qa's: lower case, punctuation deleted, the articles a, an, the dropped, split at white space.

Ties: captions that are first together are equally likely, so a picture counts as their mean. A picture's own caption scores 1,
so that K-P is at least R@1 from pictures to captions (joined references, captions that hold a word besides articles).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sparc_ref.evaluate.check import chosen, finite, unit
from sparc_ref.evaluate.retrieval import owners

CONTENT = frozenset({"NOUN", "PROPN", "ADJ", "NN", "NNS", "NNP", "NNPS", "JJ", "JJR", "JJS"})  # universal tags, Penn's
DELETE = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """The words of a text as instruct-qa counts them.      "The black-and-white cat's toy." -> blackandwhite cats toy"""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(DELETE)).split()


def content_words(text: str, tagged: Sequence[tuple[str, str]]) -> list[str]:
    """Those of words(text) that are nouns or adjectives; tagged: the tokens of text in order, each with its tag.

    A tagger cuts finer than white space ("cat", "'s"): a word counts if one of the tokens in it does.
    ValueError: a noun or adjective that the text does not hold.
    """
    spans, at = [], 0
    for token, tag in tagged:
        found = text.find(token, at)
        if found < 0 and tag in CONTENT:
            raise ValueError(f"tags: expected the tokens of {text!r} in their order, got {token!r}, which does not follow")
        if found >= 0:                                            # a tagger may rewrite quotes: no word is lost with them
            at = found + len(token)
            spans += [(found, at)] * (tag in CONTENT)
    return [w for m in re.finditer(r"\S+", text) if any(a < m.end() and m.start() < b for a, b in spans) for w in words(m[0])]


def k_precision(
    prediction: Sequence[str], references: Sequence[Sequence[str]], *, ref: str = "joined", count: str = "clipped"
) -> float:
    """The share of a prediction's words that its references hold; 0 of a prediction without words.

    ref: "joined": all references are one text (instruct-qa) | "max": the best of the single ones
    count: "clipped": a word counts as often as the reference holds it (instruct-qa) | "set": every word once
    """
    chosen("ref", ref, ("joined", "max"))
    chosen("count", count, ("clipped", "set"))
    bag = Counter if count == "clipped" else lambda of: Counter(set(of))
    p, texts = bag(prediction), [[w for r in references for w in r]] if ref == "joined" else references
    return max((sum((p & bag(text)).values()) for text in texts), default=0) / max(sum(p.values()), 1)


def faithfulness(
    image_emb: np.ndarray, text_emb: np.ndarray, image_of_text: np.ndarray, captions: Sequence[Sequence[str]],
    content: Sequence[Sequence[str]] | None = None, *, ref: str = "joined", count: str = "clipped", tie: float = 1e-6,
    chunk: int = 256,
) -> dict[str, float]:
    """K-Precision of the first caption of every picture that has captions.  image_emb (N,D), text_emb (M,D), image_of_text (M,)

    captions: words(text) of the M captions, content: content_words of each, for K-P_na.  tie: as in retrieval().
    -> kp; with content also kp_na and skipped, the pictures whose first caption has no noun or adjective (NaN if all are).
    """
    image_emb = finite("image_emb", image_emb, ("N", "D"))
    text_emb = finite("text_emb", text_emb, (len(captions), image_emb.shape[1]))
    owner, tie = owners(image_of_text, len(image_emb), len(captions)), max(tie, 1e-12)
    x, y = unit(image_emb), unit(text_emb)
    best = np.full(len(x), -np.inf)                               # (N,)   each picture with its best own caption
    np.maximum.at(best, owner, np.sum(x[owner] * y, axis=1))

    def first(n, s):
        top = np.max(s)
        return np.flatnonzero(s >= (best[n] if best[n] >= top - tie else top) - tie)      # level, as retrieval() has it

    asked = np.flatnonzero(np.isfinite(best))
    rows = (first(n, s) for a in range(0, len(asked), chunk)
            for n, s in zip(asked[a:a + chunk], x[asked[a:a + chunk]] @ y.T))
    return means(rows, asked, owner, captions, content, ref, count)


def faithfulness_chance(
    image_of_text: np.ndarray, captions: Sequence[Sequence[str]], content: Sequence[Sequence[str]] | None = None, *,
    ref: str = "joined", count: str = "clipped",
) -> dict[str, float]:
    """What a constant embedding scores: the mean over all captions for every picture that has some."""
    owner = np.asarray(image_of_text)
    asked = np.unique(owner)
    every = np.arange(len(captions))
    return means((every for _ in asked), asked, owner, captions, content, ref, count)


def means(rows, asked, owner, captions, content, ref, count):
    """K-P over pictures; rows: the captions that are first for each of `asked`, as indices."""
    chosen("ref", ref, ("joined", "max"))
    chosen("count", count, ("clipped", "set"))
    index: dict = {}
    held = Held(captions, index, count)
    asking = {"kp": held} | ({} if content is None else {"kp_na": Held(content, index, count)})
    sums, weights = dict.fromkeys(asking, 0.0), dict.fromkeys(asking, 0.0)
    order = np.argsort(owner, kind="stable")
    start = np.searchsorted(owner[order], asked)
    own = {n: order[a:b] for n, a, b in zip(asked, start, [*start[1:], len(order)])}
    for n, found in zip(asked, rows):
        texts = [own[n]] if ref == "joined" else [[m] for m in own[n]]
        marks = [held.together(text, len(index)) for text in texts]
        for name, predicted in asking.items():
            length = predicted.length[found]
            share = np.max([predicted.common(found, mark) for mark in marks], axis=0) / np.maximum(length, 1)
            counted = length > 0 if name == "kp_na" else np.ones(len(found), bool)
            sums[name] += np.sum(share[counted]) / len(found)
            weights[name] += np.count_nonzero(counted) / len(found)
    out = {name: float(sums[name] / weights[name]) if weights[name] else float("nan") for name in asking}
    return out | ({"skipped": float(len(asked) - weights["kp_na"])} if content is not None else {})


class Held:
    """The words of many texts as numbers, so that one text is compared with thousands at once.

    The k-th time that a text holds a word is a thing of its own: what two texts share is then the clipped count.
    """

    def __init__(self, texts, index, count):
        rows = []
        for text in texts:
            seen: Counter = Counter()
            for word in text:
                seen[word] += 1
            times = dict.fromkeys(seen, 1) if count == "set" else seen
            rows.append([index.setdefault((word, k), len(index)) for word, n in times.items() for k in range(n)])
        self.counts = [Counter(text) for text in texts]
        self.index, self.count = index, count
        self.length = np.asarray([len(row) for row in rows])
        self.start = np.concatenate([[0], np.cumsum(self.length)])
        self.flat = np.asarray([i for row in rows for i in row], np.int64)

    def together(self, these, size):
        """These texts as one.      -> (size,) bool: what it holds"""
        total: Counter = Counter()
        for m in these:
            total.update(self.counts[m])
        mark = np.zeros(size, bool)
        for word, n in total.items():
            for k in range(1 if self.count == "set" else n):
                i = self.index.get((word, k))
                if i is not None:                                 # no text alone holds it so often
                    mark[i] = True
        return mark

    def common(self, these, mark):
        """How much of each of these texts is marked.      -> (len(these),)"""
        if len(these) == len(self.length):
            hits = np.concatenate([[0], np.cumsum(mark[self.flat])])
            return np.diff(hits[self.start])
        return np.asarray([np.count_nonzero(mark[self.flat[self.start[m]:self.start[m + 1]]]) for m in these])
