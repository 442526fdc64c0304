"""What one measurement says: one model, one data set, one protocol."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparc_ref.run.checkpoint import from_json
from sparc_ref.run.files import write_whole


@dataclass(frozen=True)
class Result:
    """Fractions are of 0..1; scores that are none (CIDEr) say so in `protocol`."""

    task: str
    data: str                       # the spec as it was named, its path absolute
    name: str                       # what a table calls the data: "ImageNet-A", "VOC 2012", the folder's name
    examples: int                   # pictures measured
    numbers: dict                   # "top1": .72; what could not be measured has no key
    chance: dict = field(default_factory=dict)  # what a model that knows nothing scores, by the same keys
    protocol: dict = field(default_factory=dict)  # every choice that was in force
    counts: dict = field(default_factory=dict)    # what was left out, by cause, and what else was counted
    notes: tuple = ()     # sentences that a reader of the numbers has to know
    pictures: tuple = ()  # files in the folder that measure() was given

    def __post_init__(self):
        for name, x in [*self.numbers.items(), *self.chance.items()]:
            if type(x) not in (int, float) or not math.isfinite(x):
                raise ValueError(f"{self.task} on {self.data}: {name}: expected a finite number, got {x}")


def write(path: Path, result: Result, about: Mapping[str, Any]) -> None:
    """Keep a result with what it was measured with (`about`), whole or not at all."""
    write_whole(path, json.dumps({"about": dict(about), "result": asdict(result)}, indent=1))


def read(path: Path) -> tuple[Result, dict[str, Any]]:
    """A kept result and what it was measured with.   ValueError for a file that write() did not make"""
    try:
        kept = json.loads(path.read_bytes())
        if not isinstance(kept, dict) or not isinstance(kept.get("about"), dict):
            raise ValueError("it has no record of what was measured")
        return from_json(Result, kept.get("result"), path), kept["about"]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a result of sparc-ref evaluate: {error}; delete it to measure again") from error
