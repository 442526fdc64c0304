"""How a gradient is shown to be right: three independent witnesses must agree in float64.

1. our formula, on random inputs and a random upstream gradient;
2. central differences along random directions, one input at a time, extrapolated once (Richardson): within 1e-7;
3. torch autograd through an independent implementation (oracle.py or torch's own): within 1e-12 of the largest entry.
docs/tolerances.md gives the errors that were measured and how: the worst was 1.0e-9 for 2 and 8.3e-14 for 3.
"""

import numpy as np
import torch

DIFFERENCES, AUTOGRAD = 1e-7, 1e-12


def agree(ours, inputs, rng, oracle=None, fixed=None, step=1e-4):
    """Raise AssertionError unless all witnesses agree.

    ours(**inputs, **fixed) -> y, back; back(dy) -> one gradient per input, in order (a bare array if there is one input, or
    a dict by name).  inputs: dict of float64 arrays.  oracle(**inputs, **fixed) -> y on torch tensors.
    """
    fixed = fixed or {}
    inputs = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
    y, back = ours(**inputs, **fixed)
    dy = rng.standard_normal(np.shape(y))
    grads = back(dy if np.ndim(y) else float(dy))
    if not isinstance(grads, dict):
        grads = dict(zip(inputs, grads if isinstance(grads, tuple) else (grads,), strict=True))
    assert grads.keys() == inputs.keys()
    for name, x in inputs.items():
        assert np.shape(grads[name]) == x.shape, f"d{name}: shape {np.shape(grads[name])}, not {x.shape}"

        direction = rng.standard_normal(x.shape)

        def along(h, name=name, x=x, direction=direction):
            up, down = (ours(**inputs | {name: x + s * h * direction}, **fixed)[0] for s in (1, -1))
            return np.sum(dy * (up - down)) / (2 * h)

        measured = (4 * along(step / 2) - along(step)) / 3
        claimed = np.sum(grads[name] * direction)
        scale = max(np.linalg.norm(grads[name]), abs(measured))
        assert abs(measured - claimed) <= DIFFERENCES * scale + 1e-10, (
            f"d{name}: differences say {measured:.10g}, the formula {claimed:.10g}"
        )
    if oracle is None:
        return
    leaves = {name: torch.tensor(x, requires_grad=True) for name, x in inputs.items()}
    tensors = {name: torch.as_tensor(x) if isinstance(x, np.ndarray) else x for name, x in fixed.items()}
    theirs = oracle(**leaves, **tensors)
    close(y, theirs.detach().numpy(), "y")
    theirs.backward(torch.as_tensor(dy))
    for name, leaf in leaves.items():
        close(grads[name], np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy(), f"d{name}")


def close(ours, theirs, name, tolerance=AUTOGRAD):
    """Within `tolerance` of the tensor's largest entry."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, f"{name}: shape {ours.shape}, not {theirs.shape}"
    assert np.all(np.isfinite(ours)), f"{name}: not finite"
    error, largest = np.max(np.abs(ours - theirs), initial=0), np.max(np.abs(theirs), initial=0)
    assert error <= tolerance * max(largest, 1e-3), f"{name}: off by {error:.3g}, the largest entry is {largest:.3g}"
