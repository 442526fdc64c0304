"""The trainer's speed on one device, side by side:  python bench/device.py steps|losses|growth|towers [--out F]

    steps    whole updates in bf16: SPARC and the same model with the global loss alone take turns, eager and compiled, at the
             largest batch that fits; model FLOPs utilisation; a breakdown; which kernels the time goes to; then compiled again
             with a bf16 stream, beside autocast in turns
    losses   the global loss plain, gathered, chunked as the batch grows
    growth   every objective's loss against CLIP's as the batch doubles: time and peak memory
    towers   the vision tower against timm's ViT, transformers' CLIP and torch's own encoder, of one size, where installed

A row is printed as it comes, and written as a line of JSON where --out names a file.  Data is drawn on the device.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from parity.trainer import meters, objectives, optim
from parity.trainer.loss import global_loss
from parity.trainer.model import SPARC, init_weights
from sparc_ref.model import PRESETS
from sparc_ref.objectives.chosen import ObjectiveConfig, own_shapes

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
NAMES = ("clip", "sparc", "mgca", "pacl", "filip", "clip_filip", "gloria")
OUT: list[Path] = []


def tell(kind: str, **row: Any) -> None:
    """One row, on paper and in the file."""
    shown = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
    print(f"{kind}: {shown}", flush=True)
    for file in OUT:
        with file.open("a") as lines:
            lines.write(json.dumps({"kind": kind, **row}) + "\n")


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any]) -> float:
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def peak_of(run: Callable[[], Any]) -> int:
    """The most bytes at once; on a CPU 0, for there it is not counted."""
    if not CUDA:
        run()
        return 0
    torch.cuda.reset_peak_memory_stats()
    run()
    wait()
    return torch.cuda.max_memory_allocated()


def fits(run: Callable[[], Any]) -> bool:
    try:
        run()
        wait()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        if CUDA:
            torch.cuda.empty_cache()


def in_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """What else the machine does meets all alike."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(seconds_of(run))
    return found


def ratio(found: dict[str, list[float]], name: str, to: str) -> float:
    return statistics.median(a / b for a, b in zip(found[name], found[to]))


# ----------------------------------------------------------------------------------------------------------------- updates


class Bench:
    """A model, its optimiser and batches.  One model serves SPARC and the global loss alone: the weight lambda_f is changed.

    stream: "bfloat16", --precision bf16_stream; None: --precision bf16, autocast
    """

    def __init__(self, preset: str, stream: str | None = None):
        self.preset, self.config = preset, PRESETS[preset]
        self.alone = replace(self.config, lambda_f=0.0)
        self.autocast = torch.bfloat16 if stream is None else None
        self.model = init_weights(SPARC(self.config, stream=stream), 0).to(DEVICE)
        self.optimizer = optim.make_adamw(self.model, 1e-4)
        self.compiled = False

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        c, rng = self.config, torch.Generator(DEVICE).manual_seed(0)
        images = torch.randn(size, 3, c.image_size, c.image_size, device=DEVICE, generator=rng)
        tokens = torch.randint(0, c.vocab_size, (size, c.max_tokens), device=DEVICE, generator=rng)
        lengths = torch.randint(max(1, c.max_tokens // 4), c.max_tokens + 1, (size, 1), device=DEVICE, generator=rng)
        return images, tokens, torch.arange(c.max_tokens, device=DEVICE) < lengths

    def step(self, batch: Any, sparc: bool = True, **options: Any) -> Callable[[], Any]:
        def run():
            self.model.config = self.config if sparc else self.alone
            optim.train_step(self.model, batch, self.optimizer, 1e-4, autocast=self.autocast,
                             compiled=self.compiled and sparc, **options)

        return run

    def compile(self) -> None:
        for block in [*self.model.vision.blocks, *self.model.text.blocks]:
            block.compile()
        self.compiled = True


def steps(preset: str, rounds: int, largest: int, small: int, limit: float, compiled: bool) -> None:
    began = time.monotonic()
    bench = Bench(preset)
    peak = meters.peak_operations(DEVICE, "bf16") or 0.0
    here = torch.cuda.get_device_properties(0) if CUDA else None
    tell("device", name=here.name if here else "cpu", torch=torch.__version__, peak_tflops=peak / 1e12,
         memory_GiB=here.total_memory / 2**30 if here else 0.0, preset=preset, flash=flash(bench))

    def measured(how: str, size: int) -> None:
        batch = bench.batch(size)
        runs = {"SPARC": bench.step(batch), "global loss alone": bench.step(batch, sparc=False)}
        first = {name: seconds_of(run) for name, run in runs.items()}
        for run in runs.values():
            run()
        found = in_turns(runs, rounds)
        peaks = {name: peak_of(run) for name, run in runs.items()}
        for name, config in (("SPARC", bench.config), ("global loss alone", bench.alone)):
            second = statistics.median(found[name])
            done = meters.operations(config, size, 1)
            tell("step", how=how, what=name, batch=size, seconds=second, pairs_per_second=size / second,
                 tflops=done / second / 1e12, mfu=done / second / peak if peak else 0.0, GiB=peaks[name] / 2**30,
                 first_seconds=first[name])
        tell("ratio", how=how, batch=size, time=ratio(found, "SPARC", "global loss alone"),
             memory=peaks["SPARC"] / max(1, peaks["global loss alone"]))
        try:
            parts(bench, batch, how, rounds)
            if CUDA:
                kernels(runs["SPARC"], how, size)
        except torch.OutOfMemoryError:                    # where both towers' graphs and the losses' inputs are held at once
            tell("breakdown", how=how, batch=size, note="out of memory")

    size = small
    if not fits(bench.step(bench.batch(size))):
        raise SystemExit(f"not even a batch of {size} fits")
    measured("eager", size)
    if not compiled:
        streams(bench, size, rounds, peak)
        return
    bench.compile()
    bench.step(bench.batch(size))()                       # compiles
    measured("compiled", size)
    while size < largest and time.monotonic() - began < limit and CUDA:
        now, before = peak_of(bench.step(bench.batch(size))), size
        total = torch.cuda.get_device_properties(0).total_memory
        if now * 2 > 0.95 * total:
            tell("largest", batch=before, GiB=now / 2**30, note="twice as many would need more memory than there is")
            break
        torch._dynamo.reset()                             # sizes are compiled in, as a run has one batch
        size *= 2
        if not fits(bench.step(bench.batch(size))):
            tell("largest", batch=before, GiB=now / 2**30, note="twice as many ran out of memory")
            break
        measured("compiled", size)
    streams(bench, size, rounds, peak)


def streams(bench: Bench, size: int, rounds: int, peak: float) -> None:
    """SPARC's update with a bf16 stream beside autocast's, in turns; half the batch where both do not fit at once."""
    torch._dynamo.reset()
    other = Bench(bench.preset, stream="bfloat16")
    if bench.compiled:
        other.compile()
    while True:
        batch = bench.batch(size)
        runs = {"autocast": bench.step(batch), "bf16 stream": other.step(batch)}
        if all(fits(run) for run in runs.values()) or size == 1:
            break
        torch._dynamo.reset()
        size //= 2
    for run in runs.values():
        run()
    found = in_turns(runs, rounds)
    for name, run in runs.items():
        second = statistics.median(found[name])
        done = meters.operations(bench.config, size, 1)
        tell("stream", how=name, compiled="yes" if bench.compiled else "no", batch=size, seconds=second,
             to_autocast=ratio(found, name, "autocast"), mfu=done / second / peak if peak else 0.0, GiB=peak_of(run) / 2**30)
        if CUDA:
            kernels(run, name, size)


def flash(bench: Bench) -> str:
    """Whether the vision tower's attention goes by the flash kernel."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    c = bench.config
    shape = (2, c.vision_heads, c.grid[0] * c.grid[1], c.vision_width // c.vision_heads)
    q = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
    try:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            nn.functional.scaled_dot_product_attention(q, q, q)
        return "yes"
    except RuntimeError as error:
        return f"no ({str(error)[:60]})"


def parts(bench: Bench, batch: Any, how: str, rounds: int) -> None:
    """Where an update's time goes: each part alone, waited for."""
    model, images, tokens, mask = bench.model, *batch
    model.config = bench.config
    found: dict[str, list[float]] = {}

    def clock(name: str, run: Callable[[], Any]) -> Any:
        wait()
        began = time.perf_counter()
        out = run()
        wait()
        found.setdefault(name, []).append(time.perf_counter() - began)
        return out

    def embed(tower: Callable[..., Any], *given: Any) -> Any:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return tower(*given)

    params = optim.loss_params(model)

    def loss_of(config: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
        return objectives.objective_loss(given, mask, params, config, compiled=bench.compiled and config is bench.config)[0]

    for _ in range(max(2, rounds // 2)):
        bench.optimizer.zero_grad()
        seen = clock("vision forward", lambda: embed(model.encode_images, images))
        read = clock("text forward", lambda: embed(model.encode_texts, tokens, mask))
        leaves = {name: x.detach().requires_grad_() for name, x in (seen | read).items() if name in optim.USED}
        wide = {name: x.detach().requires_grad_() for name, x in leaves.items()}
        loss = clock("losses forward", lambda wide=wide: loss_of(bench.config, wide))
        clock("losses backward", lambda loss=loss: loss.backward())
        clock("global loss alone, both ways", lambda leaves=leaves: loss_of(bench.alone, leaves).backward())
        for side, out in (("vision", seen), ("text", read)):
            names = [name for name in out if name in wide]
            clock(f"{side} backward", lambda out=out, names=names, wide=wide: torch.autograd.backward(
                [out[n] for n in names], [wide[n].grad for n in names]))
        clock("clip", lambda: optim.clip(model, 1.0))
        clock("optimiser", lambda: (bench.optimizer.step(), optim.after_update(model)))
    tell("breakdown", how=how, batch=len(images), **{f"{name} ms": 1e3 * statistics.median(times[1:] or times)
                                                      for name, times in found.items()})


GROUPS = (("flash|fmha|attention", "attention"), ("gemm|cutlass|nvjet|sm90_|sm80_|matmul|mm_", "products"),
          ("adam|multi_tensor", "optimiser, foreach"), ("layer_norm|LayerNorm", "norms"), ("memcpy|memset|copy", "copies"),
          ("triton", "compiled, other"))


def kernels(run: Callable[[], Any], how: str, size: int) -> None:
    """The device's time of one update by kind of kernel, and the longest kernels."""
    import re

    from torch.profiler import ProfilerActivity, profile

    with suppress(RuntimeError):
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            run()
            wait()
        groups: dict[str, float] = {}
        longest = []
        for event in seen.key_averages():
            spent = getattr(event, "self_device_time_total", 0) / 1e3
            kind = next((name for pattern, name in GROUPS if re.search(pattern, event.key, re.I)), "elementwise, other")
            groups[kind] = groups.get(kind, 0.0) + spent
            longest.append((spent, event.count, event.key))
        ordered = sorted(groups.items(), key=lambda group: -group[1])
        tell("kernels", how=how, batch=size, **{f"{name} ms": round(x, 2) for name, x in ordered})
        for spent, count, key in sorted(longest, reverse=True)[:10]:
            tell("kernel", how=how, batch=size, ms=round(spent, 2), calls=count, name=key[:90])


# ---------------------------------------------------------------------------------------------------------- losses, growth


def losses(sizes: list[int], width: int, rounds: int) -> None:
    """The global loss with its gradient, this rank's rows being all."""
    for size in sizes:
        v, t = (torch.randn(size, width, device=DEVICE, requires_grad=True) for _ in range(2))
        theta = torch.tensor(2.66, device=DEVICE, requires_grad=True)

        def run(form: str, v=v, t=t, theta=theta) -> None:
            global_loss(v, t, theta, form=form)[0].backward()

        runs = {form: each for form in ("plain", "chunked") if fits(each := partial(run, form))}
        found = in_turns(runs, rounds)
        for form, run in runs.items():
            tell("global loss", batch=size, form=form, seconds=statistics.median(found[form]), GiB=peak_of(run) / 2**30)


def growth(sizes: list[int], shape: tuple[int, int, int], rounds: int, patience: float) -> None:
    """Each objective's loss, forward and back, in float32.      shape: P, L, D; patience: seconds of a step that are enough"""
    P, L, D = shape
    slow: set[str] = set()
    for size in sizes:
        rng = torch.Generator(DEVICE).manual_seed(0)
        shapes = {"v": (size, P, D), "t": (size, L, D), "v_bar": (size, D), "t_bar": (size, D)}
        x = {n: torch.randn(s, device=DEVICE, generator=rng).requires_grad_() for n, s in shapes.items()}
        mask = torch.arange(L, device=DEVICE) < torch.randint(max(1, L // 4), L + 1, (size, 1), device=DEVICE, generator=rng)
        config, runs = replace(PRESETS["vit_b_16"], embed_dim=D), {}
        for name in NAMES:
            objective = ObjectiveConfig(name)
            params = {"theta": torch.tensor(2.66, device=DEVICE)} | {
                n: torch.randn(s, device=DEVICE, generator=rng) / 8 + (1.5 if n.startswith("theta") else 0)
                for n, s in own_shapes(objective, D).items()}
            for p in params.values():
                p.requires_grad_()

            def run(given=(x, mask, params, config, objective)):
                objectives.objective_loss(*given)[0].backward()

            if name not in slow and fits(run):
                runs[name] = run
        began = {name: seconds_of(run) for name, run in runs.items()}
        slow |= {name for name, second in began.items() if second > patience}
        found = in_turns({n: r for n, r in runs.items() if n not in slow}, rounds)
        found |= {name: [began[name]] for name in slow & runs.keys()}
        base = peak_of(runs["clip"])
        for name, run in runs.items():
            second = statistics.median(found[name])
            tell("growth", objective=name, batch=size, seconds=second, to_clip=second / statistics.median(found["clip"]),
                 GiB=(peak := peak_of(run)) / 2**30, memory_to_clip=peak / max(1, base))


# ------------------------------------------------------------------------------------------------------------------ towers


class TorchEncoder(nn.Module):
    """The same ViT of torch's own parts."""

    def __init__(self, c: Any):
        super().__init__()
        self.patch = nn.Conv2d(3, c.vision_width, c.patch_size, c.patch_size)
        self.positions = nn.Parameter(torch.zeros(c.grid[0] * c.grid[1], c.vision_width))
        layer = nn.TransformerEncoderLayer(c.vision_width, c.vision_heads, c.mlp_ratio * c.vision_width, 0.0, "gelu",
                                           batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, c.vision_depth, nn.LayerNorm(c.vision_width), enable_nested_tensor=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.patch(images).flatten(2).mT + self.positions)


def towers(preset: str, size: int, rounds: int, compiled: bool) -> None:
    """Forward and backward of the vision tower alone, bf16 autocast; all eager, then all compiled."""
    c = PRESETS[preset]
    made: dict[str, Callable[[], nn.Module]] = {"ours": lambda: SPARC(c).vision, "torch.nn": lambda: TorchEncoder(c)}

    def timm_tower() -> nn.Module:
        from timm.models.vision_transformer import VisionTransformer

        return VisionTransformer(c.image_size, c.patch_size, embed_dim=c.vision_width, depth=c.vision_depth,
                                 num_heads=c.vision_heads, num_classes=0, class_token=False, global_pool="")

    def clip_tower() -> nn.Module:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        return CLIPVisionModel(CLIPVisionConfig(
            hidden_size=c.vision_width, intermediate_size=c.mlp_ratio * c.vision_width, num_hidden_layers=c.vision_depth,
            num_attention_heads=c.vision_heads, image_size=c.image_size, patch_size=c.patch_size, attn_implementation="sdpa"))

    made |= {"timm": timm_tower, "transformers CLIP": clip_tower}
    images = torch.randn(size, 3, c.image_size, c.image_size, device=DEVICE)
    built, runs = {}, {}
    for name, make in made.items():
        try:
            tower = make().to(DEVICE)
        except ImportError as error:
            tell("tower", name=name, note=f"not installed ({error.name})")
            continue

        def run(tower=tower):
            with torch.autocast(DEVICE.type, torch.bfloat16):
                out = tower(images)
            out = getattr(out, "last_hidden_state", out)
            out.float().square().mean().backward()

        if fits(run):
            built[name], runs[name] = tower, run

    def measured(how: str) -> None:
        found = in_turns(runs, rounds + 1)
        for name, times in found.items():
            tell("tower", name=name, batch=size, how=how, seconds=statistics.median(times[1:]),
                 to_ours=statistics.median(times[1:]) / statistics.median(found["ours"][1:]), GiB=peak_of(runs[name]) / 2**30)

    measured("eager")
    if compiled:
        for tower in built.values():                      # block by block, as the trainer: one is compiled, not twelve
            for block in max((m for m in tower.modules() if isinstance(m, nn.ModuleList | nn.Sequential)), key=len):
                block.compile()
        measured("compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("steps", "losses", "growth", "towers"))
    parser.add_argument("--preset", default="vit_b_16" if CUDA else "tiny", choices=PRESETS)
    parser.add_argument("--rounds", type=int, default=7 if CUDA else 2)
    parser.add_argument("--batch", type=int, default=256 if CUDA else 4, help="the first that is tried")
    parser.add_argument("--largest", type=int, default=1024 if CUDA else 8)
    parser.add_argument("--seconds", type=float, default=100, help="after so many no larger batch is begun")
    parser.add_argument("--no-compile", action="store_true", help="leave out what is compiled")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    OUT.extend([given.out] if given.out else [])
    if CUDA:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for part in given.parts:
        if part == "steps":
            steps(given.preset, given.rounds, given.largest, given.batch, given.seconds, not given.no_compile)
        elif part == "losses":
            losses([4096, 16384, 32768] if CUDA else [16, 32], 512 if CUDA else 8, min(3, given.rounds))
        elif part == "growth":
            shape = (196, 55, 512) if CUDA else (6, 4, 8)
            growth([32, 64, 128, 256, 512] if CUDA else [4, 8], shape, min(3, given.rounds), 2.0)
        else:
            towers(given.preset, given.batch, given.rounds, CUDA and not given.no_compile)


if __name__ == "__main__":
    main()
