"""What a loss does not change with, whatever it computes: evidence of where it leaves the paper, from values alone."""

from dataclasses import replace

import numpy as np

from parity.checker.diagnosis.designs import rotation
from parity.checker.probes import Probe


def left_out(read, probe: Probe) -> int:
    """How many pairs of a token and another's patch have no part in the loss, where others have.

    probe: n patches resemble n tokens (designs.pairs)
    """
    grads, n = read(probe).grads, probe.t.shape[1]
    if "t" not in grads or not np.isfinite(grads["t"]).all():
        return 0
    moved = np.abs(np.reshape(grads["t"], probe.t.shape)[0] @ probe.t[0].T)[~np.eye(n, dtype=bool)]
    return int((moved < 1e-9 * moved.max()).sum()) if moved.max() > 0 else 0


def apart_from_others(read, probe: Probe, tol) -> bool:
    """Whether other logits of one sample that has the same loss change nothing: its space is turned, its tokens are reversed.

    probe: without padding
    """
    y = read(probe).value
    for k in range(len(probe.v)):
        v, t = probe.v.copy(), probe.t.copy()
        v[k], t[k] = v[k] @ rotation(30 + k), t[k, ::-1] @ rotation(30 + k)
        turned = replace(probe, v=v, t=t, name=f"{probe.name}_one_turned_{k}")
        if not abs(read(turned).value - y) < 1e3 * tol * max(1.0, abs(y)):
            return False
    return True
