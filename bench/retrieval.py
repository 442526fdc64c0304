"""Time and peak memory of recall at K on random embeddings of COCO's size, and of the objectives' own scores.

    python bench/retrieval.py             5,000 pictures, 25,000 captions, D=512
    python bench/retrieval.py native      pairs a second of FILIP, PACL, GLoRIA and FLAIR at B/16's sizes
"""

import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from sparc_ref.evaluate.retrieval import retrieval, retrieval_chance
from sparc_ref.objectives.chosen import ObjectiveConfig, init_own, scores_of
from sparc_ref.tasks.retrieval import Embedded, Store, native


def peak() -> float:
    """MiB, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cosines(N: int = 5000, D: int = 512) -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(N), 5)
    x, y = (rng.standard_normal((n, D), np.float32) for n in (N, 5 * N))
    before, began = peak(), time.perf_counter()
    got = retrieval(x, y, owner)
    seconds, chance = time.perf_counter() - began, retrieval_chance(owner, N)
    print(f"{N:,} pictures, {5 * N:,} captions, D={D}: {seconds:.1f} s, peak {peak():.0f} MiB, {before:.0f} of it before")
    print(", ".join(f"{name} {value:.4f} (chance {chance[name]:.4f})" for name, value in got.items()))


def own_scores(N: int = 128, M: int = 512, P: int = 196, D: int = 512) -> None:
    rng = np.random.default_rng(0)
    draw = partial(rng.standard_normal, dtype=np.float32)
    for name in ("filip", "pacl", "gloria", "flair"):
        objective = ObjectiveConfig(objective=name)
        scores = partial(scores_of(objective), init_own(objective, D, rng))
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            for _ in range(N):
                store.add("v", draw((1, P, D)))
            store.add("t", *(draw((length, D)) for length in rng.integers(8, 20, M)))
            got = Embedded(np.arange(N), draw((N, D)), [""] * M, np.arange(M) % N, draw((M, D)))
            began = time.perf_counter()
            native(scores, store, got, Path(folder))
            seconds = time.perf_counter() - began
        print(f"{name}: {N * M / seconds:,.0f} pairs a second, peak {peak():.0f} MiB", flush=True)


if __name__ == "__main__":
    own_scores() if sys.argv[1:] == ["native"] else cosines()
