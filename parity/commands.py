"""The commands' options: frozen dataclasses, from which the command lines are generated.  Importing this is cheap."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Ladder:
    """Climb from single operations to whole training runs, reference against trainer, up to the first tensor off its budget."""

    preset: Literal["quick", "full"] = "quick"  # quick: under 2 minutes on 2 cores; full: about 6
    device: Literal["cpu", "cuda"] = "cpu"  # cuda adds CuPy against NumPy against torch CUDA, TF32 on and off, vit_b_16
    rungs: tuple[str, ...] = ()     # only these, such as: losses gradients ranks; default: all that the device has
    out: Path = Path("runs/ladder")  # results.json, report.md, report.html, junit.xml
    seed: int = 0                   # of parameters, batches and scenes
    threads: int = 1                # of torch and BLAS: sums in one order, and small products are faster alone; 0: as it is

    def run(self) -> int:
        from parity.ladder import main

        return main(self)


@dataclass(frozen=True)
class Vectors:
    """The frozen reference outputs: check them against what the code computes now, or add cases that are not there yet."""

    check: bool = False             # regenerate in memory, compare by name and value; the default
    write: bool = False             # write cases that have no file yet; what is there never changes
    folder: Path | None = None      # default: the vectors that come with this package

    def run(self) -> int:
        from parity.vectors import main

        return main(self)


@dataclass(frozen=True)
class Check:
    """What does an implementation of SPARC's loss compute, and where does it leave the paper?"""

    target: tyro.conf.Positional[str]  # pkg.module:function, file.py:function, or a folder of answers

    def run(self) -> int:
        from parity.verdict import main

        return main(self)


COMMANDS = {"ladder": Ladder, "vectors": Vectors, "check": Check}
