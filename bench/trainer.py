"""The trainer's costs, side by side in one run:  make bench-trainer, or python bench/trainer.py [--preset tiny] [--batch 64]

    memory   what the global loss keeps at most on a rank that holds 256 samples of 1k, 4k, 16k: every byte of every tensor that
             is alive, counted while forward and backward run on tensors without contents (FakeTensorMode)
    operations  of a step of the paper's sizes, on tensors without contents: SPARC's beyond those of the global loss alone
    steps    whole updates that take turns: the global loss alone, SPARC, SPARC in chunks, activations checkpointed, compiled;
             medians as ratios to the first, and operations by FlopCounterMode
"""

import argparse
import shutil
import statistics
import time
import weakref
from dataclasses import replace
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from parity.trainer import distributed, optim
from parity.trainer.loss import global_loss, sparc_loss
from parity.trainer.model import SPARC, init_weights
from sparc_ref.model import PRESETS

WIDTH, HELD = 512, 256                                    # D; samples on this rank
FORMS = ("plain", "gathered", "chunked")


class Alive(TorchDispatchMode):
    """How many bytes the tensors hold that were made inside and are alive, and the most that there were."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if (key := storage._cdata) not in self.known:
                    self.known.add(key)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.free, key, storage.nbytes())
        return out

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_of_global_loss(form: str, batch: int, chunk: int = 1024) -> int:
    """Bytes at most, the features that are given and their gathered copies not counted twice.      other ranks: simulated"""
    world = batch // HELD
    with FakeTensorMode():
        v, t = (torch.randn(HELD, WIDTH, requires_grad=True) for _ in range(2))
        theta = torch.zeros((), requires_grad=True)
        others = torch.randn(batch - HELD, WIDTH)

        def gather(x, sizes, group=None):
            return torch.cat([x, others])

        with mock.patch.object(distributed, "batch_sizes", lambda *given: [HELD] * world), \
                mock.patch.object(distributed, "gather", gather), \
                mock.patch.object(distributed, "place", lambda group=None: (0, world)), Alive() as alive:
            loss, stages = global_loss(v, t, theta, form=form, chunk=chunk)
            del stages
            loss.backward()
            return alive.peak


def memory() -> None:
    print(f"peak of the global loss on a rank that holds {HELD} samples, D = {WIDTH}, float32, forward and backward, MiB")
    print(f"{'B':>8}" + "".join(f"{form:>12}" for form in FORMS))
    for batch in (1024, 4096, 16384):
        print(f"{batch:>8}" + "".join(f"{peak_of_global_loss(form, batch) / 2**20:12.1f}" for form in FORMS))


def operations(batch: int = 4) -> None:
    """By FlopCounterMode, forward and backward.  The model computes patch and token embeddings whatever the loss; a model that
    has no use for them would not, which is the paper's comparison: +0.5 % at B/16 (Table 11)."""
    print(f"\noperations of a step at batch {batch}, 55 tokens, T; what SPARC adds to the global loss alone")
    print(f"{'':10}{'SPARC':>10}{'alone':>10}{'more':>9}{'more, if unused embeddings were left out':>45}")
    for preset in ("vit_b_32", "vit_b_16", "vit_l_14"):
        found = []
        for weight in (1.0, 0.0):
            c = replace(PRESETS[preset], lambda_f=weight)
            with FakeTensorMode(), FlopCounterMode(display=False) as counter:
                model = SPARC(c, attention="plain")
                images = torch.empty(batch, 3, c.image_size, c.image_size)
                mask = torch.ones(batch, c.max_tokens, dtype=torch.bool)
                out = model(images, torch.zeros(batch, c.max_tokens, dtype=torch.long), mask)
                sparc_loss(out, mask, model.theta, model.theta_fine, c)[0].backward()
            found.append(counter.get_total_flops())
        sparc, alone = found
        bare = alone - 2 * batch * (c.grid[0] * c.grid[1] * c.vision_width + c.max_tokens * c.text_width) * c.embed_dim
        print(f"{preset:10}{sparc / 1e12:10.3f}{alone / 1e12:10.3f}{sparc / alone - 1:9.2%}{sparc / bare - 1:45.2%}")


def steps(preset: str, batch: int, rounds: int, compiled: bool) -> None:
    config = replace(PRESETS[preset], vocab_size=2048)
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, config.image_size, config.image_size, generator=rng)
    length = min(16, config.max_tokens)
    tokens = torch.randint(0, config.vocab_size, (batch, length), generator=rng)
    mask = torch.arange(length) < torch.randint(3, length + 1, (batch, 1), generator=rng)
    ways = {
        "global loss alone": (replace(config, lambda_f=0.0), {}, {}), "SPARC": (config, {}, {}),
        "SPARC, both losses in chunks": (config, {}, {"form": "chunked", "chunk": max(1, batch // 4), "fine_chunk": 16}),
        "SPARC, 2 parts": (config, {}, {"accumulate": 2}), "SPARC, checkpointed": (config, {"checkpoint": True}, {}),
    }  # fmt: skip
    if compiled and shutil.which("g++"):
        ways["SPARC, compiled blocks"] = (config, {"compile": True}, {})
    runs = {}
    for name, (c, how, options) in ways.items():
        model = init_weights(SPARC(c, checkpoint=how.get("checkpoint", False)), 0)
        for block in [*model.vision.blocks, *model.text.blocks] if how.get("compile") else ():
            block.compile()
        optimizer = optim.make_adamw(model, 1e-3)

        def run(model=model, optimizer=optimizer, options=options):
            optim.train_step(model, (images, tokens, mask), optimizer, 1e-3, **options)

        if how.get("compile"):
            run()
            flops = None
        else:
            with FlopCounterMode(display=False) as counter:
                run()
            flops = counter.get_total_flops()
        run()
        runs[name] = run, flops, []
    for _ in range(rounds):                               # turns, so that what else the machine does meets all alike
        for run, _, seconds in runs.values():
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    first = next(iter(runs.values()))
    print(f"\none update, preset {preset}, batch {batch}, {length} tokens, {torch.get_num_threads()} threads, {rounds} turns")
    print(f"{'':32}{'time':>8}{'operations':>14}   (of the first; median of the turns' ratios)")
    for name, (_, flops, seconds) in runs.items():
        ratio = statistics.median(s / f for s, f in zip(seconds, first[2]))
        print(f"{name:32}{ratio:8.2f}" + (f"{flops / first[1]:14.3f}" if flops else f"{'not counted':>14}"))
    print(f"{first[1] / 1e9:.2f} G operations in the first")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled way out")
    given = parser.parse_args()
    memory()
    operations()
    steps(given.preset, given.batch, given.rounds, not given.no_compile)
