"""Captions against those that people wrote: CIDEr-D, BLEU and ROUGE-L as pycocoevalcap counts them, to the last bits.

A caption here is a string of words separated by single spaces, lower-cased and without punctuation: whoever calls has cut it
into words, and must say how (plain_words below, or the Penn Treebank tokenizer of the published numbers).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

N, SIGMA, BETA = 4, 6.0, 1.2                              # longest n-gram; CIDEr-D's length penalty; ROUGE-L's recall weight
WORD = re.compile(r"\w+(?:[-'’.,/]\w+)*")
SMALL, TINY = 1e-9, 1e-15                                 # pycocoevalcap's, so that nothing is divided by 0


def captioning(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """All measures of one caption a picture.      candidates (N,), references: N lists of at least one -> dict

    "cider" is CIDEr-D times 100, as tables print it: 1000 at most; "bleu1".."bleu4" and "rouge_l" are fractions.
    """
    blue = bleu(candidates, references)
    return {"cider": float(np.mean(cider(candidates, references))) * 100,
            **{f"bleu{n}": float(x) for n, x in enumerate(blue, 1)}, "rouge_l": float(np.mean(rouge_l(candidates, references)))}


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each picture, in 0..10 (arXiv 1411.5726, section 8).      -> (N,) float64

    For n = 1..4 the n-grams of a caption are a vector of count times idf, idf = log(pictures / pictures whose references hold
    it).  Similarity is the cosine with the candidate's entries clipped at the reference's, times exp(-(difference of length)^2
    / 72); mean over n and references, times 10.  The idf is of these very references: numbers of different pictures, or of a
    part of them, do not compare, and a single picture scores 0.  A caption of three words has no 4-gram: 7.5 at most.
    """
    check(candidates, references)
    counts = [[grams(text) for text in texts] for texts in references]
    having = Counter(gram for texts in counts for gram in set().union(*texts))
    whole = math.log(len(counts))

    def vector(text: Counter) -> tuple[dict, np.ndarray, int]:
        x = {gram: n * (whole - math.log(max(1, having[gram]))) for gram, n in text.items()}
        squares = np.zeros(N)
        for gram, value in x.items():
            squares[len(gram) - 1] += value * value
        return x, np.sqrt(squares), sum(n for gram, n in text.items() if len(gram) == 2)  # theirs: a length in bigrams

    out = np.zeros(len(counts))
    for i, (candidate, texts) in enumerate(zip(candidates, counts)):
        c, c_norm, c_length = vector(grams(candidate))
        for text in texts:
            r, r_norm, r_length = vector(text)
            dot = np.zeros(N)
            for gram, value in c.items():
                dot[len(gram) - 1] += min(value, r.get(gram, 0.0)) * r.get(gram, 0.0)
            norm = c_norm * r_norm
            cosine = dot / np.where(norm == 0, 1, norm)
            out[i] += 10 * np.mean(cosine) * math.exp(-((c_length - r_length) ** 2) / (2 * SIGMA**2)) / len(texts)
    return out


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """BLEU-1..4 of the corpus, each length against the closest reference's.      -> (4,) float64"""
    check(candidates, references)
    right, said, length, wanted = np.zeros(N), np.zeros(N), 0, 0
    for candidate, texts in zip(candidates, references):
        most: Counter = Counter()
        for text in texts:
            most |= grams(text)
        words = len(candidate.split())
        for gram, n in grams(candidate).items():
            right[len(gram) - 1] += min(n, most[gram])
        said += np.maximum(0, words - np.arange(N))
        length += words
        wanted += min((abs(len(text.split()) - words), len(text.split())) for text in texts)[1]
    precision = np.cumprod((right + TINY) / (said + SMALL)) ** (1 / np.arange(1, N + 1))
    ratio = (length + TINY) / (wanted + SMALL)
    return precision * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L of each picture: F of the longest common subsequence, best precision with best recall.      -> (N,) float64"""
    check(candidates, references)
    out = np.zeros(len(candidates))
    for i, (candidate, texts) in enumerate(zip(candidates, references)):
        said = candidate.split(" ")                       # as they do: an empty caption is one empty word
        common = [(subsequence(said, text.split(" ")), len(text.split(" "))) for text in texts]
        precision, recall = max(n for n, _ in common) / len(said), max(n / length for n, length in common)
        if precision and recall:
            out[i] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return out


def plain_words(text: str) -> str:
    """Words without punctuation, lower-cased: near the Penn Treebank's, without Java.      "A dog's bed." -> "a dog 's bed" """
    found = " ".join(WORD.findall(text.lower().replace("’", "'")))
    return re.sub(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b", r" \1", found)


def grams(text: str) -> Counter:
    """How often each n-gram of 1 to 4 words is there."""
    words = text.split()
    return Counter(tuple(words[i:i + n]) for n in range(1, N + 1) for i in range(len(words) - n + 1))


def subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b, 1):
            row.append(before[j - 1] + 1 if x == y else max(before[j], row[-1]))
    return row[-1]


def check(candidates, references):
    if isinstance(candidates, str) or len(candidates) != len(references) or not len(candidates):
        raise ValueError(f"candidates: expected one string for each of {len(references)} pictures, at least one, "
                         f"got {'a string' if isinstance(candidates, str) else len(candidates)}")
    for i, (candidate, texts) in enumerate(zip(candidates, references)):
        if not isinstance(candidate, str) or isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"picture {i}: expected a string and a list of strings, got {candidate!r} and {texts!r}")
        if not len(texts):
            raise ValueError(f"references: expected at least one caption for every picture, got none for number {i}")
