"""Growth of every objective's loss with the batch, side by side in one run:  python bench/objectives.py [--out FILE.png]

Each loss, forward and back: processor time (the shortest of several, all objectives in turn) and peak memory beyond its inputs
(tracemalloc, which sees NumPy's arrays).  Ratios to CLIP at the same batch are printed: of the loss alone, and with the towers,
whose step is measured once and grows in proportion to the batch.  One BLAS thread; processor time, so that what else runs
counts little.
"""

import argparse
import time
import tracemalloc
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from sparc_ref.cost import step_cost
from sparc_ref.model import PRESETS, forward_with, init_params
from sparc_ref.objectives import sparc
from sparc_ref.objectives.chosen import ObjectiveConfig, init_own, loss_of

NAMES = ("clip", "sparc", "mgca", "pacl", "filip", "clip_filip", "gloria")
CONFIG = PRESETS["tiny"]
L = 16
COLOURS = ("#000000", "#c44e00", "#0072b2", "#009e73", "#cc79a7", "#777777", "#e69f00")


def case(name, batch):
    """-> a function of no argument that computes the loss and every gradient."""
    rng = np.random.default_rng(0)
    P, D = CONFIG.grid[0] * CONFIG.grid[1], CONFIG.embed_dim
    objective = ObjectiveConfig(name)
    params = {"theta": np.asarray(2.65, np.float32), **init_own(objective, D, rng)}
    v, t, v_bar, t_bar = (rng.standard_normal(s).astype(np.float32) for s in (
        (batch, P, D), (batch, L, D), (batch, D), (batch, D)))
    mask = np.arange(L) < rng.integers(4, L + 1, batch)[:, None]
    loss = loss_of(objective) or sparc
    return lambda: loss(params, v, t, mask, v_bar, t_bar)[2]()


def seconds(run, repeats):
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return best


def peak(run):
    """Bytes at the highest, beyond what was there."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def tower_seconds(batch, repeats):
    """A step of the model under CLIP, less CLIP's loss: what every objective has."""
    rng = np.random.default_rng(0)
    params = init_params(CONFIG, rng)
    images = rng.standard_normal((batch, 3, CONFIG.image_size, CONFIG.image_size)).astype(np.float32)
    tokens, mask = rng.integers(0, CONFIG.vocab_size, (batch, L)), np.ones((batch, L), bool)
    loss = loss_of(ObjectiveConfig("clip"))
    return seconds(lambda: forward_with(loss, params, images, tokens, mask, CONFIG)[2](), repeats)


def measure(batches, repeats):
    """-> name -> [(seconds, bytes) for each batch], seconds of the towers a sample"""
    found = {name: [] for name in NAMES}
    for batch in batches:
        runs = {name: case(name, batch) for name in NAMES}
        best = dict.fromkeys(NAMES, float("inf"))
        for _ in range(repeats):                          # in turn, so that a busy moment meets all of them
            for name, run in runs.items():
                best[name] = min(best[name], seconds(run, 1))
        for name, run in runs.items():
            found[name].append((best[name], peak(run)))
            print(f"{batch:6d}  {name:10}  {best[name] * 1e3:10.2f} ms  {found[name][-1][1] / 1e6:10.2f} MB", flush=True)
    return found, tower_seconds(batches[0], max(2, repeats)) / batches[0]


def draw(found, batches, tower, out):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    titles = ("Loss alone: time / CLIP's", "Loss alone: peak memory / CLIP's", "With the towers: time / CLIP's")
    for k, (axis, title) in enumerate(zip(figure.subplots(1, 3), titles)):
        for i, name in enumerate(NAMES):
            pairs = list(zip(found[name], found["clip"], batches))
            y = [a[k] / b[k] if k < 2 else (tower * B + a[0]) / (tower * B + b[0]) for a, b, B in pairs]
            axis.plot(batches, y, color=COLOURS[i], marker="os^Dv*P"[i], linestyle=("-", "--", "-.", ":")[i % 4],
                      label=name, linewidth=1.5, markersize=5)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log" if k < 2 else "linear")
        axis.set_xticks(batches, [str(b) for b in batches])
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("batch")
        axis.grid(True, which="both", linewidth=0.3, color="#cccccc")
        axis.minorticks_off()
        if k == 0:
            axis.legend(fontsize=8, frameon=False)
    figure.savefig(out, dpi=110, facecolor="white", metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with threadpool_limits(1, "blas"):
        found, tower = measure(options.batches, options.repeats)
    print(f"towers: {tower * 1e3:.2f} ms a sample, measured at a batch of {options.batches[0]}")
    print(f"\n{'':10}" + "".join(f"{b:>30}" for b in options.batches))
    print(f"{'x CLIP':10}" + f"{'time':>9}{'memory':>10}{'with towers':>11}" * len(options.batches))
    for name in NAMES:
        cells = ""
        for (s, m), (s0, m0), b in zip(found[name], found["clip"], options.batches):
            cells += f"{s / s0:9.1f}{m / m0:10.1f}{(tower * b + s) / (tower * b + s0):11.2f}"
        print(f"{name:10}{cells}")
    print("\nlast doubling: time, memory, products by the formulas of sparc_ref.cost (reference form)")
    for name in NAMES:
        (s0, m0), (s1, m1) = found[name][-2:]
        f0, f1 = (step_cost(CONFIG, ObjectiveConfig(name), b, form="reference", tokens=L).loss_flops
                  for b in options.batches[-2:])
        print(f"{name:10}{s1 / s0:9.2f}{m1 / m0:9.2f}{f1 / f0:9.2f}")
    if options.out:
        draw(found, options.batches, tower, options.out)
        print(options.out)


if __name__ == "__main__":
    main()
