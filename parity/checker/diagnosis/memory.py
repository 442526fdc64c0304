"""Peak memory as sizes double, against what eq. 6 needs."""

import math
import time

import numpy as np

from parity.checker.calling.caller import Caller, arrays_of
from parity.checker.calling.worker import Stopped
from parity.checker.diagnosis.findings import Diagnosis
from parity.checker.probes import Probe


def growth(ask: Caller, diagnosis: Diagnosis) -> tuple[dict | None, list[str]]:
    """Peak memory as B, L, P and D double, against B (L P + L D + P D + L L)."""
    base = {"B": 16, "L": 12, "P": 12, "D": 4}

    def peak(sizes):
        probe = sized(**sizes)
        try:
            reply, _ = ask.worker.ask(ask.convention.request(memory=True, losses={}), arrays_of(probe))
        except Stopped:
            return None
        return reply.get("peak")

    start = time.monotonic()
    if ask.convention.framework not in ("torch", "numpy") or (first := peak(base)) is None:
        return None, []
    if time.monotonic() - start > 1.0:
        return None, ["memory: not measured, a call takes too long"]
    measured = {name: peak(base | {name: 2 * base[name]}) for name in base}
    if None in measured.values() or min(first, *measured.values()) <= 0:
        return None, []
    powers = {name: math.log2(value / first) for name, value in measured.items()}
    law = math.log2
    expected = {name: law(cost(**(base | {name: 2 * base[name]})) / cost(**base)) for name in base}
    rows_alone = 8 * base["B"] * (base["L"] + base["P"]) * 2 * base["D"]  # bytes of the embeddings themselves
    notes = []
    if "fine" not in ask.convention.losses:               # eq. 1 takes B x B
        return {"bytes": first, "sizes": base, "powers": powers, "expected": expected}, []
    if powers["B"] > 1.5 and "global" not in ask.convention.losses:
        why = " as negatives from the whole batch need" if any(f.id == "logits.batch_negatives"
                                                               for f in diagnosis.deviations) else ""
        notes.append(f"from B 16 to 32 peak memory grows like B^{powers['B']:.1f}{why}; eq. 6 needs B (LP + LD + LL)")
    elif powers["D"] > expected["D"] + 0.45 and measured["D"] > 5 * rows_alone:
        notes.append(f"from D 4 to 8 peak memory grows like D^{powers['D']:.1f}, more than B (LP + LD + LL)")
    elif powers["L"] > 2.3 or powers["P"] > 1.5:
        notes.append(f"from L and P 12 to 24 peak memory grows like L^{powers['L']:.1f} P^{powers['P']:.1f}, more than "
                     "B (LP + LD + LL)")
    return {"bytes": first, "sizes": base, "powers": powers, "expected": expected}, notes


def cost(B, L, P, D):
    return B * (3 * L * P + 2 * L * D + P * D + 3 * L * L)


def sized(B, L, P, D) -> Probe:
    """A batch of any size.  Where the width is fixed by a module, the call fails and nothing is measured."""
    rng = np.random.default_rng(0)
    v, t, bars = rng.standard_normal((B, P, D)), rng.standard_normal((B, L, D)), rng.standard_normal((2, B, D))
    return Probe("memory", v, t, np.ones((B, L), bool), 1.0, bars[0], bars[1])
