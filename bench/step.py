"""One training step of a preset: this package in NumPy against the same model in torch eager.

    python bench/step.py [--preset small] [--batch 64] [--length 16] [--rounds 15] [--threads 2] [--shards 2] [--out FILE]

A step is forward, every gradient, clipping and AdamW, in float32.  Each side runs in a process of its own, as its users run
it, and the sides take turns, one step each, so that all meet the same machine.  Prints ratios (medians over rounds), never a
time as a bar.  "matrix products" are the step's products alone, in the same shards and threads: the floor.  Peak memory is
what a side's process needed beyond what it held before its first step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np

import sparc_ref
from sparc_ref import backend, optim

LR, CLIP = 1e-4, 1.0


def inputs(args):
    config = sparc_ref.PRESETS[args.preset]
    rng = np.random.default_rng(0)
    images = rng.standard_normal((args.batch, 3, config.image_size, config.image_size), np.float32)
    tokens = rng.integers(0, config.vocab_size, (args.batch, args.length))
    mask = np.arange(args.length) < rng.integers(args.length // 2, args.length + 1, args.batch)[:, None]
    return config, sparc_ref.init_params(config, rng), images, tokens, mask


def numpy_step(args):
    config, params, images, tokens, mask = inputs(args)
    state = optim.adamw_init(params)

    def step():
        nonlocal params, state
        loss, _, back = sparc_ref.forward(params, images, tokens, mask, config, shards=args.shards)
        grads = back()
        del back  # and with it the activations
        grads, _ = optim.clip_by_global_norm(grads, CLIP)
        params, state = optim.adamw_step(params, grads, state, LR)
        return float(loss)

    return step


def torch_step(args, approximate="tanh"):
    import torch
    import torch_model

    torch.set_num_threads(args.threads)
    config, params, *batch = inputs(args)
    params = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    batch = [torch.from_numpy(x) for x in batch]
    groups = [{"params": [p for n, p in params.items() if optim.decays(n) == d], "weight_decay": 0.2 * d} for d in (0, 1)]
    adamw = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def step():
        loss = torch_model.loss(params, *batch, config, approximate)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params.values(), CLIP)
        adamw.step()
        adamw.zero_grad()
        return loss.item()

    return step


def products_step(args):
    """The step's matrix products alone: forward and both gradients of each, towers only, in the same shards and threads."""
    config, _, *_ = inputs(args)
    rng = np.random.default_rng(0)
    share = args.batch // args.shards
    towers = [
        (config.vision_width, config.vision_heads, config.vision_depth, config.grid[0] ** 2, 3 * config.patch_size**2),
        (config.text_width, config.text_heads, config.text_depth, args.length, None),
    ]
    pairs = []  # (rows, inputs, outputs, how often)
    batched = []
    for width, heads, depth, length, patch in towers:
        rows, hidden = share * length, config.mlp_ratio * width
        pairs += [(rows, width, width, 4 * depth), (rows, width, hidden, depth), (rows, hidden, width, depth)]
        pairs += [(rows, width, config.embed_dim, 1)] + ([(rows, patch, width, 1)] if patch else [])
        batched += [(share * heads, length, width // heads, depth)]

    def draw(*shape):
        return rng.standard_normal(shape, np.float32)

    linears = [(draw(n, i), draw(o, i), draw(n, o), times) for n, i, o, times in pairs]
    attentions = [(draw(b, n, d), draw(b, n, n), times) for b, n, d, times in batched]

    def shard():
        for x, w, dy, times in linears:
            for _ in range(times):
                x @ w.T, dy @ w, dy.T @ x
        for q, a, times in attentions:
            for _ in range(2 * times):
                q @ np.matrix_transpose(q), a @ q, np.matrix_transpose(a) @ q

    return lambda: backend.run_threads([shard] * args.shards)


SIDES = {
    "numpy": numpy_step,
    "torch": torch_step,
    "torch, GELU erf": lambda args: torch_step(args, "none"),
    "torch, memory kept": torch_step,  # with the allocator settings that sparc_ref's training uses
    "matrix products": products_step,
}


def work(args):
    """One side: a line in, one step, its loss and seconds out; at the end the peak memory in MiB."""
    if args.side in ("numpy", "matrix products", "torch, memory kept"):
        backend.keep_memory()
    one_blas_thread(args)
    step = SIDES[args.side](args)
    before = resident("VmRSS")
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        print(loss if isinstance(loss, float) else 0.0, time.perf_counter() - start, resident("VmHWM") - before, flush=True)


def resident(field):
    """MiB of this process, by the kernel's books: VmRSS now, VmHWM at most so far."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def start(args, side):
    command = [sys.executable, __file__, "--side", side]
    command += [f"--{name}={getattr(args, name)}" for name in ("preset", "batch", "length", "threads", "shards")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def one_step(worker):
    worker.stdin.write("\n")
    worker.stdin.flush()
    return [float(x) for x in worker.stdout.readline().split()]


def one_blas_thread(args):
    from threadpoolctl import ThreadpoolController

    ThreadpoolController().select(internal_api="openblas").limit(limits=1 if args.shards > 1 else args.threads)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", help="also write the result as JSON")
    args = parser.parse_args()
    if args.side:
        return work(args)
    workers = {side: start(args, side) for side in SIDES}
    first = {side: one_step(worker)[0] for side, worker in workers.items()}
    if abs(first["numpy"] / first["torch"] - 1) > 1e-5:
        raise SystemExit(f"the two sides compute different losses: {first}")
    rounds = [{side: one_step(worker) for side, worker in workers.items()} for _ in range(args.rounds + 2)][2:]
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()

    def ratio(a, b):
        return statistics.median(r[a][1] / r[b][1] for r in rounds)

    result = {
        "what": f"{args.preset}: batch {args.batch}, {args.length} tokens, {args.threads} threads, {args.shards} shards",
        "numpy / torch": ratio("numpy", "torch"),
        "numpy / torch with the erf GELU": ratio("numpy", "torch, GELU erf"),
        "numpy / torch with memory kept": ratio("numpy", "torch, memory kept"),
        "numpy / matrix products": ratio("numpy", "matrix products"),
        "torch / matrix products": ratio("torch", "matrix products"),
        "matrix products' share of numpy": ratio("matrix products", "numpy"),
        "numpy peak memory / torch": rounds[-1]["numpy"][2] / rounds[-1]["torch"][2],
        "for orientation, seconds a step": statistics.median(r["numpy"][1] for r in rounds),
        "for orientation, MiB": rounds[-1]["numpy"][2],
    }
    for name, value in result.items():
        print(f"{name:34s} {value if isinstance(value, str) else f'{value:.3f}'}")
    if args.out:
        with open(args.out, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
