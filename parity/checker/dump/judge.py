"""What gives these numbers?  One batch of anybody's training run, with its loss, against every known reading and deviation.

    sparc-ref check batch.npz           (or batch.safetensors)

The file holds  v (B,P,D) patches, t (B,L,D) tokens, mask (B,L) 1 = real token (none: all are), one of theta = log(1/tau),
scale = 1/tau, tau, and loss; and what is known of its gradients: grad_v, grad_t, and grad_theta, grad_scale or grad_tau.
float32 or float64.  For whoever cannot hand over code: no line of it is run here, so nothing is said beyond this batch.
The loss is the fine-grained one, eq. 1's of mean-pooled embeddings, or a weighted sum of both.
"""

import math
import time
from pathlib import Path

import numpy as np

from parity.checker.calling.packing import visible
from parity.checker.diagnosis.asking import PRECISION
from parity.checker.diagnosis.deviations import Found
from parity.checker.diagnosis.switches import Variant, found_in, variant_of
from parity.checker.dump.compare import (
    Numbers,
    constant_temperatures,
    digits_of,
    gradients_off,
    in_bfloat16,
    known_singles,
    multiples,
    other_losses,
    other_readings,
    pairs,
)
from parity.checker.dump.file import batch_of, read
from parity.checker.dump.report import DumpReport


def judge(path: Path, accept: tuple[str, ...] = ()) -> DumpReport:
    """The report on one file.  Raises ValueError that names the file and what is wrong with it."""
    start = time.monotonic()
    arrays = read(path)
    probe, loss, grads, read_as = batch_of(path, arrays)
    exact = {np.asarray(x).dtype for name, x in arrays.items() if name != "mask" and np.asarray(x).dtype.kind == "f"}
    tolerance = PRECISION["float64" if exact == {np.dtype(np.float64)} else "float32"]
    tried = {"readings": 0, "single deviations": 0, "pairs": 0}
    notes = []
    if (digits := digits_of(arrays["loss"])) <= 6 and math.isfinite(loss):
        tolerance = max(tolerance[0], 0.5 * 10.0 ** (1 - digits)), tolerance[1]
        notes.append(f"the loss has {digits} digit{'s' * (digits > 1)}, and is compared to as many")
    numbers = Numbers(probe, loss, grads, tolerance)
    singles = known_singles(probe)
    clock = time.monotonic()
    values = {}
    for fine, found in singles.items():
        values[fine] = numbers.made(fine)
        numbers.compare(*values[fine], found)
    tried["readings"], tried["single deviations"] = 2, len(singles) - 2
    if not math.isfinite(loss) and not any(np.isfinite(g).all() for g in grads.values()):
        notes.append("the loss is not finite and no gradient is finite throughout: many things make such numbers")
        numbers.every.clear()
        singles, values = {}, {}
    if not numbers.matches and singles:
        for how, other in other_readings(probe, read_as, "mask" in arrays):
            for found in ((), (Found("reduction.token"),)):
                numbers.compare(*numbers.made(variant_of(found)[0], other), found, how)
                tried["readings"] += 1
    if not numbers.matches and singles:
        tried["readings"] += other_losses(numbers, values[Variant()])
    if not numbers.matches and grads and not np.any(grads.get("theta", 0.0)):
        for tau in constant_temperatures(numbers) if singles else ():
            fine = Variant(tau=tau)
            values[fine], singles[fine] = numbers.made(fine), found_in(fine)
            numbers.compare(*values[fine], singles[fine])
    if not numbers.matches and grads:
        multiples(numbers, singles, values)
    if not numbers.matches and singles:
        tried["pairs"] = pairs(numbers, singles, time.monotonic() - clock, notes)
    matches = list({m.name: m for m in reversed(numbers.matches)}.values())[::-1]
    first = numbers.every[0] if numbers.every else None
    if not matches and first is not None and grads and first.loss < tolerance[0]:
        each = {k: gradients_off({k: grads[k]}, {k: values[Variant()][1][k]}) for k in grads}
        notes.append("the loss is eq. 6's, its gradients are not: " + ", ".join(
            f"that of {k} is right" if x < tolerance[1] else f"that of {k} is off by {x:.0e}" if math.isfinite(x) else
            f"that of {k} is not finite" for k, x in each.items()))
    if not matches and first is not None and math.isfinite(first.off):
        notes.append(in_bfloat16(numbers, values[Variant()], first))
    if any("all gradients times" in m.how for m in matches):
        notes.append("one number times all gradients: loss scaling, gradient accumulation and clipping make such")
    if not grads:
        notes.append("the file holds no gradients: what changes them alone, or fits the loss by chance, is not told apart")
    if probe.mask.sum(1).max() <= 1:
        notes.append("no caption has two tokens: eq. 6 is 0 whatever the embeddings are, and such a batch tells nothing of it")
    order = {m: i for i, m in enumerate(numbers.every)}
    matches.sort(key=lambda m: (len(m.found) > 0, m.name != "Listing 1", len(m.found), order[m]))
    nearest = sorted((m for m in numbers.every if math.isfinite(m.off) and (m.gradient is not None or not grads)),
                     key=lambda m: (m.loss > tolerance[0], float(f"{m.off:.1e}"), len(m.found)))  # simpler ones among equals
    return DumpReport(visible(path), described(probe, arrays, loss, grads, exact), tuple(matches), tuple(nearest[:5]), tried,
                      tolerance, probe.holds, tuple(notes), accept, time.monotonic() - start, tuple(sorted(grads)),
                      len(probe.v), probe.v.shape[1])


def described(probe, arrays, loss, grads, exact) -> str:
    real, all_ = int(probe.mask.sum()), probe.mask.size
    padding = "no padding" if real == all_ else f"{all_ - real} of {all_} tokens are padding"
    kinds = " and ".join(sorted(map(str, exact)))
    given = f"gradients of {', '.join(sorted(grads))}" if grads else "no gradients"
    sizes = f"v {probe.v.shape}, t {probe.t.shape}"
    return f"{sizes}, {padding}, 1/tau {math.exp(probe.theta):.4g}, loss {loss:.6g}, {given}, {kinds}"
