"""Several ranks on one machine: start gloo processes, give each its arrays, collect what each computed.

    python -m parity.trainer.ranks FOLDER RANK                    what a child runs; the parent is run_ranks

Arrays travel as safetensors, options as JSON, and processes meet at a file, so that no port is named and nothing unpickled.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from sparc_ref import SPARCConfig

Arrays = dict[str, np.ndarray]


def run_ranks(world_size: int, function_name: str, arrays: Arrays, options: dict, *, timeout: float = 300) -> list[Arrays]:
    """Run a function in `world_size` processes that form torch.distributed's default group; what each returned, by rank.

    function_name: "package.module:function"; it is called with arrays and options (JSON types) and returns a dict of arrays.
    The children import what this process can import.  Raises RuntimeError with the child's own words if one fails, after
    ending the others, and if `timeout` seconds do not suffice.
    """
    with tempfile.TemporaryDirectory(prefix="parity-ranks-") as name:
        folder = Path(name)
        save_file({key: np.ascontiguousarray(x).reshape(np.shape(x)) for key, x in arrays.items()}, folder / "in.safetensors")
        task = {"function": function_name, "world_size": world_size, "timeout": timeout, "options": options}
        (folder / "task.json").write_text(json.dumps(task))
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        if sys.platform.startswith("linux"):
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine need not be able to resolve its own name
        children = []
        try:
            for rank in range(world_size):
                with open(folder / f"err.{rank}", "w") as err:
                    command = [sys.executable, "-m", "parity.trainer.ranks", name, str(rank)]
                    children.append(subprocess.Popen(command, stdout=err, stderr=err, env=environment))
            _wait(children, folder, timeout)
        finally:
            for child in children:
                child.kill()
                child.wait()
        return [load_file(folder / f"out.{rank}.safetensors") for rank in range(world_size)]


def _wait(children, folder, timeout):
    """Until all have ended well."""
    deadline = time.monotonic() + timeout
    while True:
        codes = [child.poll() for child in children]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            time.sleep(0.2)                               # the first to end need not be the first to fail
            words = {rank: (folder / f"err.{rank}").read_text().strip() for rank in failed}
            told = max(failed, key=lambda rank: "Error" in words[rank] and "gloo" not in words[rank])
            raise RuntimeError(f"rank {told} of {len(children)} ended with {codes[told]}: {words[told][-4000:]}")
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline:
            late = [rank for rank, code in enumerate(codes) if code is None]
            raise RuntimeError(f"ranks {late} of {len(children)} were not done in {timeout:g} s")
        time.sleep(0.02)


def losses_over_ranks(
    config: SPARCConfig, params: Arrays, images: np.ndarray, tokens: np.ndarray, mask: np.ndarray, world_size: int,
    form: str = "plain", chunk: int | None = None, **more,
) -> tuple[float, Arrays]:  # fmt: skip
    """The whole batch's loss and the mean over ranks of every gradient, each rank holding its part.      one case of
    cases_over_ranks, which starts the processes once for many; `more`: a case's other options, and its keywords"""
    keywords = {name: more.pop(name) for name in ("target", "timeout") if name in more}
    case = {"form": form} | ({} if chunk is None else {"chunk": chunk}) | more
    return cases_over_ranks(config, params, images, tokens, mask, world_size, {"case": case}, **keywords)["case"]


def cases_over_ranks(
    config: SPARCConfig,
    params: Arrays,
    images: np.ndarray,
    tokens: np.ndarray,
    mask: np.ndarray,
    world_size: int,
    cases: dict[str, dict],
    *,
    target: str = "parity.trainer.ranks:losses",
    timeout: float = 300,
    agree: bool = True,
) -> dict[str, tuple[float, Arrays]]:
    """Many cases in the same processes: label -> (loss, gradients by name), in the parameters' dtype.

    cases: label -> options; any of form, chunk, fine_chunk, accumulate; ddp: average by DistributedDataParallel instead of
    by hand; model: SPARC's keywords; objective: an ObjectiveConfig's fields; any field of the config, such as reduction; and
    sizes: how many samples each rank holds, one after the other, as equal as can be if not given.
    target: what the children run.  Raises RuntimeError if ranks disagree about the loss, unless `agree` is False.
    """
    count = len(images)
    equal = [len(part) for part in np.array_split(np.arange(count), world_size)]
    cases = {label: {"sizes": equal} | case for label, case in cases.items()}
    for label, case in cases.items():
        if len(case["sizes"]) != world_size or sum(case["sizes"]) != count:
            raise ValueError(f"{label}: sizes: expected {world_size} numbers that sum to {count}, got {case['sizes']}")
    arrays = {f"params.{name}": np.asarray(p) for name, p in params.items()}
    arrays |= {"images": images, "tokens": np.asarray(tokens, np.int64), "mask": mask}
    options = {"config": asdict(config), "cases": cases}
    results = run_ranks(world_size, target, arrays, options, timeout=timeout)
    out = {}
    for label in cases:
        losses = [float(result[f"{label}.loss"]) for result in results]
        if agree and len(set(losses)) != 1:
            raise RuntimeError(f"{label}: the ranks report different losses, {losses}")
        start = f"{label}.grad."
        out[label] = losses[0], {name.removeprefix(start): results[0][name] for name in map(start.__add__, params)
                              if name in results[0]}
    return out


def losses(arrays: Arrays, options: dict) -> Arrays:
    """What each rank runs for cases_over_ranks: this rank's part of the batch through model, loss and mean of gradients."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from parity.trainer import distributed, optim
    from parity.trainer.model import SPARC, bare, dump_grads, load_params

    rank, _ = distributed.place()
    params = {name.removeprefix("params."): x for name, x in arrays.items() if name.startswith("params.")}
    dtype = torch.from_numpy(params["theta"].reshape(1)).dtype
    out = {}
    for label, case in options["cases"].items():
        case = dict(case)
        sizes = case.pop("sizes")
        part = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        images, tokens, mask = (torch.from_numpy(arrays[name][part].copy()) for name in ("images", "tokens", "mask"))
        fields = {name: case.pop(name, default) for name, default in options["config"].items()}
        config: Any = SimpleNamespace(**fields)
        objective: Any = SimpleNamespace(**case.pop("objective")) if "objective" in case else None
        model: Any = SPARC(config, objective=objective, **case.pop("model", {})).to(dtype)
        load_params(model, {name: params[name] for name in model.state_dict() if name in params} if objective else params)
        if case.pop("ddp", False):
            model = DistributedDataParallel(model)
        loss = optim.backward(model, (images.to(dtype), tokens, mask), **case)
        out[f"{label}.loss"] = loss.numpy()
        out |= {f"{label}.grad.{name}": g for name, g in dump_grads(bare(model)).items()} if rank == 0 else {}
    return out


def child(folder: Path, rank: int) -> None:
    import torch.distributed as dist

    task = json.loads((folder / "task.json").read_text())
    module, name = task["function"].split(":")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=task["world_size"],
        timeout=timedelta(seconds=task["timeout"]),
    )  # fmt: skip
    try:
        result = getattr(importlib.import_module(module), name)(load_file(folder / "in.safetensors"), task["options"])
        save_file({key: np.array(x) for key, x in result.items()}, folder / f"out.{rank}.safetensors")
        dist.barrier()                                    # who leaves early breaks the others' last message
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    child(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stderr.flush()
    os._exit(0)  # all is on disk; the usual way out can stop a thread of torch's halfway, which aborts the process
