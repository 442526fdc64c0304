"""How a convention is measured: each output as one number on a batch of ours, and how far two answers lie apart."""

import json
import math
from dataclasses import replace
from typing import Any

from parity.checker.calling.caller import Convention
from parity.checker.calling.trial import probe_of
from parity.checker.calling.worker import Stopped
from parity.checker.probes import Probe


def values(trial, convention: Convention, probe: Probe, paths: list[str]) -> list[float]:
    """Each output as one number; NaN where the call raised.  The same call of the same batch is put once."""
    asked = replace(convention, losses={str(i): ((p,), (1.0,)) for i, p in enumerate(paths)})
    request, arrays = asked.request(grads=False), trial.arrays(probe)
    key = json.dumps(request, sort_keys=True), *((x.shape, x.tobytes()) for x in arrays.values())
    if key not in trial.known:
        try:
            said = trial.worker.ask(request, arrays)[0].get("losses", {})
        except Stopped:
            said = {}
        trial.known[key] = [math.nan if said.get(str(i)) is None else float(said[str(i)]) for i in range(len(paths))]
    return list(trial.known[key])


def close(a: float, b: float, dtype: str = "float64") -> bool:
    tolerance = 1e-8 if dtype == "float64" else 2e-4
    return math.isfinite(a) and math.isfinite(b) and abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))


def same(a: list[float], b: list[float]) -> bool:
    return all(close(x, y) or (not math.isfinite(x) and not math.isfinite(y)) for x, y in zip(a, b))


def distance(a: list[float], b: list[float]) -> float:
    """0 where nothing moved beyond rounding; a value that becomes NaN has moved."""
    moved = [0.0 if close(x, y) else abs(x - y) if math.isfinite(x - y) else 1.0 for x, y in zip(a, b) if math.isfinite(x)]
    return max(moved, default=0.0)


def full(seed: int, batch=3, tokens=6, **more: Any) -> Probe:
    """A batch without padding."""
    return probe_of(seed, lengths=(tokens,) * batch, tokens=tokens, **more)


def uneven(seed: int, lengths=(5, 2, 4), **more: Any) -> Probe:
    """A batch of captions of different length: what a reading that was found on `full` is tried on again."""
    return probe_of(seed, lengths=lengths, **more)


def amount(x: float) -> str:
    """A number in a sentence."""
    return "0" if x == 0 else f"{x:.0e}" if x < 1e-4 else f"{x:.2g}" if x < 100 else f"{x:.0f}"


def either(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
