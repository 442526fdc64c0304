"""The FLOPs of a real step, counted by torch, beside what sparc_ref.cost predicts: `python -m parity cost`.

The trainer's whole step on tensors without content, so that ViT-B/16 needs no memory; and the reference's own objectives on
torch's arrays, which are computed.  torch counts products of matrices, two FLOP a multiply-add, forward and backward.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from parity.trainer.loss import sparc_loss
from parity.trainer.model import SPARC
from sparc_ref import cost
from sparc_ref.model import PRESETS, SPARCConfig
from sparc_ref.objectives.chosen import NAMES, ObjectiveConfig, init_own, loss_of
from sparc_ref.objectives.sparc import sparc


@dataclass(frozen=True)
class Counted:
    """One step or loss: FLOPs as counted and as predicted."""

    what: str
    counted: float
    predicted: float

    @property
    def off(self) -> float:
        return self.counted / self.predicted - 1

    def __str__(self):
        return f"  {self.what:34}  {self.counted / 1e9:11.3f}  {self.predicted / 1e9:11.3f}  {self.off:+8.2%}"


def trainer_step(config: SPARCConfig, batch: int, attention: str = "plain") -> Counted:
    """Forward and backward of the trainer's model and losses: SPARC, or CLIP where lambda_f is 0.

    "plain" attention: the fused kernels make scores once more on the way back and are counted by rules of their own.
    """
    with FakeTensorMode():
        model = SPARC(config, attention=attention)
        images = torch.empty(batch, 3, config.image_size, config.image_size)
        tokens = torch.zeros(batch, config.max_tokens, dtype=torch.long)
        mask = torch.ones(batch, config.max_tokens, dtype=torch.bool)
        with FlopCounterMode(display=False) as counter:
            loss, _ = sparc_loss(model(images, tokens, mask), mask, model.theta, model.theta_fine, config)
            loss.backward()
    name = "sparc" if config.lambda_f else "clip"
    predicted = cost.step_cost(config, ObjectiveConfig(name), batch, form="reference", overhead=1.0)
    return Counted(f"trainer's step, {name}, batch {batch}", counter.get_total_flops(), predicted.flops)


def reference_loss(config: SPARCConfig, objective: ObjectiveConfig, batch: int) -> Counted:
    """An objective of sparc_ref on random embeddings of the model's sizes: forward and manual backward, in one block."""
    rng = np.random.default_rng(0)
    B, P, L, D = batch, config.grid[0] * config.grid[1], config.max_tokens, config.embed_dim

    def draw(*shape: int) -> torch.Tensor:
        return torch.tensor(rng.standard_normal(shape), dtype=torch.float32)

    params: dict[str, Any] = {"theta": torch.tensor(2.65)}
    params |= {name: torch.tensor(x) for name, x in init_own(objective, D, rng).items()}
    loss: Any = loss_of(objective) or sparc
    chunk = {"chunk": batch} if objective.objective in ("filip", "clip_filip", "flair", "gloria", "pacl") else {}
    with FlopCounterMode(display=False) as counter:
        mask = torch.ones(B, L, dtype=torch.bool)
        _, _, back = loss(params, draw(B, P, D), draw(B, L, D), mask, draw(B, D), draw(B, D), **chunk)
        back()
    terms = cost.step_cost(config, objective, batch, form="reference").loss
    predicted = sum(t.flops for t in terms if t.name not in ("g_v on patches", "g_t on tokens"))  # the model's, not the loss's
    return Counted(f"reference's loss, {objective.objective}, batch {batch}", counter.get_total_flops(), predicted)


def main(options: Any) -> int:
    """Print what is counted beside what is predicted; 1 where they differ by more than 5 %."""
    config = PRESETS[options.preset]
    found = [trainer_step(replace(config, lambda_f=weight), options.batch) for weight in (0.0, config.lambda_f)]
    found += [reference_loss(config, ObjectiveConfig(name), options.batch) for name in NAMES
              if name not in ("clip", "siglip")]           # too small: lengths count as much as products
    print(f"GFLOP of products, {options.preset}, one device\n  {'':34}  {'counted':>11}  {'predicted':>11}")
    for each in found:
        print(each)
    return int(any(abs(each.off) > 0.05 for each in found))
