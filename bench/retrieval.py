"""Time and peak memory of recall at K for random embeddings of COCO's size:  python bench/retrieval.py [pictures] [width]"""

import resource
import sys
import time

import numpy as np

from sparc_ref.evaluate.retrieval import retrieval, retrieval_chance

N, D = (int(x) for x in (sys.argv[1:] + ["5000", "512"][len(sys.argv) - 1:]))
rng = np.random.default_rng(0)
owner = np.repeat(np.arange(N), 5)
x, y = (rng.standard_normal((n, D), np.float32) for n in (N, 5 * N))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
got = retrieval(x, y, owner)
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
chance = retrieval_chance(owner, N)
print(f"{N:,} pictures, {5 * N:,} captions, D={D}: {seconds:.1f} s, peak {peak / 1024:.0f} MiB, "
      f"{before / 1024:.0f} of it before")
print(", ".join(f"{name} {value:.4f} (chance {chance[name]:.4f})" for name, value in got.items()))
