"""What a trainer's model computed on the way: what enters and leaves its modules, and the gradients that arrive there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from parity.vectors import budgets

PARTS = ("patch", "embedding", "norm", "norm1", "attn.out", "norm2", "mlp.up", "mlp.down", "h_v")  # ends of module names


@dataclass
class Pass:
    """One way through the model: tensors as they were, by name, in the dtype in which the trainer held them.

    "vision.blocks.0.norm1.in" is what enters a module, "....out" what leaves it; the model's own outputs have their own names.
    """

    params: dict[str, np.ndarray]
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    grads: dict[str, torch.Tensor] = field(default_factory=dict)

    def keep(self, name: str, x: torch.Tensor) -> None:
        """The first time counts: a checkpointed block comes by again in backward."""
        if name in self.values or not x.is_floating_point():
            return
        self.values[name] = x.detach().clone()
        if x.requires_grad:
            x.register_hook(lambda g: self.grads.__setitem__(name, g.detach().clone()))

    def value(self, name: str) -> np.ndarray:
        """float64, exact.      ValueError where the trainer's model has nothing of that name"""
        if name not in self.values:
            raise ValueError(f"{name}: expected the trainer's model to have a module of this name, of those that are replayed")
        return budgets.to_float64(self.values[name])

    def grad(self, name: str) -> np.ndarray:
        """The gradient that arrived, 0 where none did."""
        return budgets.to_float64(self.grads[name]) if name in self.grads else np.zeros_like(self.value(name))


@contextmanager
def recorded(model: Any, passes: list[Pass] | None) -> Iterator[None]:
    """Add to `passes` what goes through a model while the `with` lasts; a call of the model, or of a tower that stands alone
    where there is none yet, begins one.  None: nothing is looked at."""
    if passes is None:
        yield
        return

    def begin() -> None:
        passes.append(Pass({name: budgets.to_float64(p).copy() for name, p in model.state_dict().items()}))

    def came(name):
        def hook(module, inputs, output):
            if not passes:
                begin()
            if torch.is_tensor(inputs[0]):
                passes[-1].keep(f"{name}.in", inputs[0])
            passes[-1].keep(f"{name}.out", output)

        return hook

    def whole(module, inputs, output):
        for name, x in output.items():
            passes[-1].keep(name, x)

    handles = [model.register_forward_pre_hook(lambda module, inputs: begin()), model.register_forward_hook(whole)]
    for name, module in model.named_modules():
        if any(name == part or name.endswith(f".{part}") for part in PARTS):
            handles.append(module.register_forward_hook(came(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
