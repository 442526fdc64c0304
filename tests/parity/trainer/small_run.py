"""A model and data small enough to train in a test, by the trainer's command line; and what ranks run of it."""

import json
from pathlib import Path

import numpy as np

SMALL = [
    "--image-size", "16", "--patch-size", "8", "--vision-width", "16", "--vision-depth", "1", "--vision-heads", "2",
    "--text-width", "16", "--text-depth", "1", "--text-heads", "2", "--embed-dim", "8", "--max-tokens", "9", "--batch",
    "6", "--steps", "10", "--warmup", "2", "--checkpoint-every", "3", "--log-every", "1", "--workers", "0", "--eval-limit",
    "12", "--device", "cpu",
]  # fmt: skip
TIMING = ("seconds", "examples_per_second", "data_wait", "peak_memory", "mfu")


def arguments(out: Path | str, *more: str, data: str = "drawn?count=20&style=short") -> list[str]:
    return ["--out", str(out), "--data", *data.split(" "), *SMALL, *more]


def rows(out: Path) -> list[dict]:
    """The metrics without what differs from run to run."""
    kept = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in row.items() if name not in TIMING} for row in kept]


def parameters(out: Path, step: int = 10) -> bytes:
    return (out / "checkpoints" / f"step_{step:08d}" / "parameters.safetensors").read_bytes()


def run_all(arrays: dict, options: dict) -> dict:
    """What a rank runs: one command line after the other.      "stop": raise before that update, as a crash would"""
    from parity.trainer import __main__ as command
    from parity.trainer import train

    status = []
    sound = train.Run.update
    for argv, stop in options["commands"]:
        def update(run, stop=stop):
            if run.step == stop:
                if run.checkpoints.pending:               # the thread would go on in this process: wait, but give no name
                    run.checkpoints.pending[0].result()
                raise RuntimeError("crash")
            return sound(run)

        train.Run.update = update
        try:
            status.append(command.main(argv, say=lambda text: None))
        except RuntimeError as error:
            assert str(error) == "crash", error
            status.append(-1)
        finally:
            train.Run.update = sound
    return {"status": np.array(status)}
