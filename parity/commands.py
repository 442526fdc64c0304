"""The commands' options: frozen dataclasses, from which the command lines are generated.  Importing this is cheap."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclass(frozen=True)
class Ladder:
    """Climb from single operations to whole training runs, reference against trainer, up to the first tensor off its budget."""

    preset: Literal["quick", "full"] = "quick"  # quick: under 2 minutes on 2 cores; full: about 6
    device: Literal["cpu", "cuda"] = "cpu"  # cuda adds CuPy against NumPy against torch CUDA, TF32 on and off, vit_b_16
    rungs: tuple[str, ...] = ()     # only these, such as: losses gradients ranks; default: all that the device has
    out: Path = Path("runs/ladder")  # results.json, report.md, report.html, junit.xml
    seed: int = 0                   # of parameters, batches and scenes
    keep_going: bool = False        # do not stop at the first tensor off its budget
    minutes: float = 0              # a rung that would not end within so many is not run, and said so; 0: no limit
    threads: int = 1                # of torch and BLAS: sums in one order, and small products are faster alone; 0: as it is

    def run(self) -> int:
        from parity.ladder.climb import main

        return main(self)


@dataclass(frozen=True)
class Vectors:
    """The frozen reference outputs: check them against what the code computes now, or add cases that are not there yet."""

    check: bool = False             # regenerate in memory, compare by name and value; the default
    write: bool = False             # write cases that have no file yet; what is there never changes
    folder: Path | None = None      # default: the vectors that come with this package

    def run(self) -> int:
        from parity.vectors.freeze import main

        return main(self)


@dataclass(frozen=True)
class Cost:
    """FLOPs of a real step and of every objective, counted by torch, beside what `sparc-ref cost` predicts by formulas."""

    preset: Literal["tiny", "small", "vit_b_32", "vit_b_16", "vit_l_14"] = "vit_b_16"  # sizes of the model
    batch: int = 8                  # pairs in the step, on one device

    def run(self) -> int:
        from parity.counted import main

        return main(self)


@dataclass(frozen=True)
class Check:
    """What does an implementation of SPARC's loss compute, and where does it leave the paper?

    How it is called is inferred and printed; the options say what inference should not decide.  Exit status: 0 equals eq. 6,
    1 differs or only under conditions, 2 usage or an option is needed, 3 cannot run.
    """

    needs = "parity"                # the extra that brings what this command imports

    target: tyro.conf.Positional[str] = ""  # pkg.module:name, file.py, file.py:name, or a folder of answers
    accept: tuple[Literal["listing1"], ...] = ()  # readings of the paper that are as good as eq. 6
    edges: Literal["loose", "strict"] = "loose"  # strict: what shows on exact ties alone, such as > for >=, is a difference
    call: str | None = None         # words in calling order: v,t,mask,scale or text=t,image=v_bdhw,temperature=tau; or help
    patches: str | None = None      # layout: v (B,P,D), v_cls, v_bdhw, v_bdp, v_pbd ...; the word help lists them
    tokens: str | None = None       # layout of text: t (B,L,D), t_bdl, t_lbd, t_list, t_packed ...
    mask: str | None = None         # mask: true = real token; padding: true = padding; lengths (B,); none ...
    scale: str | None = None        # theta, scale, tau or log_tau: log(1/tau), 1/tau, tau, log tau; fixed: hard-coded
    sigma: str | None = None        # for an argument of that kind: default, 1/P or a number
    returns: str | None = None      # fine, global or total; or of several outputs: loss_a=fine,loss_b=global
    attributes: tuple[str, ...] = ()  # where an instance keeps its temperature: logit_scale=theta
    init: tuple[str, ...] = ()      # arguments of the constructor: dim=16
    set: tuple[str, ...] = ()       # arguments of the call that stay as given: lambda_f=1.0
    method: str | None = None       # what to call on an instance
    isolate: tuple[str, ...] = ()   # parts of a model to set aside: vision=v text=t proj=identity
    framework: Literal["torch", "jax", "numpy", "tensorflow", "cupy"] | None = None  # default: what its code imports
    dtype: Literal["float64", "float32"] | None = None  # default: float64, float32 where that is all it takes
    device: Literal["cpu", "cuda"] = "cpu"  # where its arrays live: torch and CuPy also take cuda
    time_limit: float = 30.0        # seconds for one call
    budget: float = 300.0           # seconds for all calls
    memory_limit: float = 4.0       # GiB beyond what it holds once loaded
    env: tuple[str, ...] = ()       # environment variables that its code may see beside PATH, HOME and their like
    network: bool = False           # leave its code the network
    json: Path | None = None        # write the report here, as parity/checker/check.schema.json says
    html: Path | None = None        # the page with figures [runs/check/NAME.html]; "none" writes none
    export: Path | None = None      # write the batches into this folder, for a program in any language to answer

    def options(self) -> dict:
        """Keyword arguments for parity.check.  Raises ValueError for an option that is not NAME=VALUE."""
        import json

        def pairs(name, plain):
            found = {}
            for text in getattr(self, name):
                key, equals, value = text.partition("=")
                if not equals:
                    raise ValueError(f"--{name} {text}: expected NAME=VALUE")
                try:
                    found[key] = value if plain else json.loads(value)
                except ValueError:
                    found[key] = value
            return found or None

        names = ("call", "patches", "tokens", "mask", "scale", "sigma", "returns", "method", "framework", "dtype")
        given = {name: getattr(self, name) for name in names}
        given |= {"attributes": pairs("attributes", True), "isolate": pairs("isolate", True), "init": pairs("init", False),
                  "set": pairs("set", False)}
        return {
            "accept": self.accept, "edges": self.edges, "device": self.device, "time_limit": self.time_limit,
            "budget": self.budget, "memory_limit": self.memory_limit, "env": self.env, "network": self.network,
            **{name: x for name, x in given.items() if x is not None},
        }

    def run(self) -> int:
        from parity.checker.verdict import main

        return main(self)


COMMANDS: dict[str, Any] = {"ladder": Ladder, "vectors": Vectors, "cost": Cost, "check": Check}
