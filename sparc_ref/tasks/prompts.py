"""Prompts for class names: the published lists (prompts.json names the source of each), and a class' vector made of them."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref.evaluate.check import chosen
from sparc_ref.evaluate.classification import combine
from sparc_ref.tasks.embedder import Embedder

PROMPTS = ("bare", "clip80", "clip7", "filip", "ensemble", "ensemble7", "data")


@cache
def zoo() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))


def templates_of(which: str, own: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Prompts in which {c} stands for the name.      which: see Protocol.prompt; own: the data set's"""
    chosen("prompt", which, PROMPTS)
    found = zoo()
    suffixes = found["filip"]["suffixes"]
    if which == "bare":
        return ("{c}",)
    if which in ("clip80", "clip7"):
        return tuple(found[which]["templates"])
    if which == "filip":
        return tuple(f"{prefix} {{c}}, {suffix}" for prefix in found["filip"]["prefixes"] for suffix in suffixes)
    if which in ("ensemble", "ensemble7"):                # eq. 9: "[prefix]{label}, [suffix]"
        heads = found["clip80" if which == "ensemble" else "clip7"]["templates"]
        return tuple(f"{head.removesuffix('.')}, {suffix}" for head in heads for suffix in suffixes)
    if not own:
        raise ValueError("prompt=data: expected templates of the data set's own (zeroshot_classification_templates.txt), it "
                         f"has none; choose {', '.join(PROMPTS[:-1])}")
    return own


def class_vectors(model: Embedder, names: tuple[str, ...], templates: tuple[str, ...], how: str) -> np.ndarray:
    """One vector for each class, a few classes at a time.      -> (C,D)"""
    from tqdm import tqdm

    step, parts = max(1, model.batch // len(templates)), []
    with tqdm(total=len(names), desc="prompts", unit="class", disable=None, delay=1) as bar:
        for at in range(0, len(names), step):
            some = names[at:at + step]
            texts = [template.replace("{c}", name) for name in some for template in templates]
            parts.append(combine(model.pooled_texts(texts).reshape(len(some), len(templates), -1), how))
            bar.update(len(some))
    return np.concatenate(parts)


def canonical(name: str) -> str:
    """Lower case, no punctuation, single spaces."""
    return " ".join(re.sub(r"[^\w\s]", "", name.replace("_", " ").lower()).split())
