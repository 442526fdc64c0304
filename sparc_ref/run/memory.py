"""Whether a model fits into this machine's memory, asked before anything is made, and which of its sizes is to blame."""

from contextlib import suppress
from dataclasses import asdict
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sparc_ref.model import SPARCConfig, parameter_shapes

SIZES = ("embed_dim", "vision_width", "vision_depth", "text_width", "text_depth", "vocab_size", "max_tokens", "mlp_ratio",
         "image_size", "patch_size")


def check_memory(config: SPARCConfig, copies: int = 4, item: int = 4, free: int | None = None) -> None:
    """ValueError that names the size where so many copies of the parameters cannot be held.

    copies  training keeps four numbers for each: itself, its gradient, two moments.     item  bytes of one
    free    bytes; None: what the system says that it can give, or nothing where it says nothing
    """
    free = available() if free is None else free
    need = copies * item * numbers(config)
    if free is None or need <= free:
        return
    paper = asdict(SPARCConfig())
    large = {name: numbers(config, **{name: paper[name]}) for name in SIZES if getattr(config, name) > paper[name]}
    name = min(large, key=lambda size: large[size]) if large else "preset"
    value = getattr(config, name, "this one")
    raise ValueError(f"{name}: expected a model that fits into memory, got {value}: {numbers(config):.3g} parameters, of which "
                     f"training holds {copies} copies, {need / 2**30:.3g} GiB in all, and {free / 2**30:.3g} GiB are free")


def numbers(config: SPARCConfig, **other: int) -> int:
    """How many parameters there are, whatever the depth, without listing them.      other: sizes instead of the config's"""
    c = SimpleNamespace(**asdict(config) | other)
    c.grid = (c.image_size // c.patch_size,) * 2

    def at(vision, text):
        of: Any = SimpleNamespace(**vars(c) | {"vision_depth": vision, "text_depth": text})
        return sum(prod(shape) for shape in parameter_shapes(of).values())

    none = at(0, 0)
    return none + c.vision_depth * (at(1, 0) - none) + c.text_depth * (at(0, 1) - none)


def available() -> int | None:
    """Bytes that this process could take, swap included, by the kernel's books; None where it does not say (not Linux)."""
    with suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree") if name in lines)
        with suppress(OSError, ValueError):               # a container's own limit
            group = Path("/sys/fs/cgroup")
            most = int((group / "memory.max").read_text())
            free = min(free, max(0, most - int((group / "memory.current").read_text())) + cached(group))
        return free
    return None


def cached(group: Path) -> int:
    """Bytes of a container that are a copy of files and can be given back."""
    with suppress(OSError, ValueError):
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(stat.get("file", 0))
    return 0
