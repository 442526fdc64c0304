"""What is measured while the trainer runs: figures of the alignment, norms, operations, memory."""

import resource
import sys
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from parity.trainer.distributed import total
from parity.trainer.model import SPARC
from parity.trainer.optim import total_norm
from sparc_ref import cost
from sparc_ref.model import SPARCConfig
from sparc_ref.objectives.chosen import ObjectiveConfig

PEAKS = {                                                 # dense operations a second by the maker's data sheets: bf16, float32
    "H200": (989e12, 67e12), "H100 PCIe": (756e12, 51e12), "H100": (989e12, 67e12), "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12), "L4": (121e12, 30.3e12), "A10G": (70e12, 35e12),
}  # fmt: skip


def peak_operations(device: torch.device, precision: str) -> float | None:
    """Operations a second that the device can do at most; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((peaks for part, peaks in PEAKS.items() if part in name), None)
    return known[precision not in ("bf16", "bf16_stream")] if known else None


def operations(config: SPARCConfig, batch: int, world: int, objective: ObjectiveConfig | None = None) -> float:
    """Operations of one update on one rank that holds batch/world samples, backward counted, recomputation not.

    The towers by FlopCounterMode, for one sample with the longest caption on the meta device, times the samples; the losses by
    hand: global, two products of (b,D) with (D,B); fine-grained, two of L x P x D and one of L x L x D for a sample; each is
    twice that in backward; other objectives' losses by sparc_ref.cost.
    """
    c, own = config, batch / world
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = SPARC(c, attention="plain")
        mask = torch.ones(1, c.max_tokens, dtype=torch.bool)
        out = model(torch.zeros(1, 3, c.image_size, c.image_size), torch.zeros(1, c.max_tokens, dtype=torch.int64), mask)
        sum(out[name].sum() for name in ("v", "t", "v_bar", "t_bar")).backward()
    if objective is not None and objective.objective != "sparc":
        return counter.get_total_flops() * own + cost.step_cost(c, objective, batch, world, form="reference").loss_flops
    patches = c.grid[0] * c.grid[1]
    fine = 2 * c.max_tokens * patches * c.embed_dim + c.max_tokens**2 * c.embed_dim if c.lambda_f else 0
    return counter.get_total_flops() * own + 3 * 2 * own * (2 * batch * c.embed_dim * bool(c.lambda_g) + fine)


def alignment_figures(stages: Mapping[str, Tensor], mask: Tensor) -> dict[str, float]:
    """Over the real tokens of all ranks: zeroed, the share of weights that the threshold set to 0; entropy of eq. 4, in nats.

    All ranks call it.  {} where the stages do not hold the weights (a fine-grained loss in chunks, or none).
    """
    if "weights" not in stages:
        return {}
    a = stages["weights"]                                 # (b,L,P)
    real = total(mask.sum().double())
    out = {}
    if "sparse" in stages:
        zeroed = total(((stages["sparse"] == 0) & mask[..., None]).sum().double())
        out["zeroed"] = float(zeroed / (real * a.shape[-1]).clamp(min=1))
    entropy = -torch.where(a > 0, a * a.clamp(min=1e-38).log(), 0).sum(-1)  # (b,L)
    out["entropy"] = float(total(torch.where(mask, entropy, 0).sum().double()) / real.clamp(min=1))
    return out


@torch.no_grad()
def parameters_norm(model: nn.Module) -> float:
    return float(total_norm([p.detach() for p in model.parameters()]))


@torch.no_grad()
def difference_norm(model: nn.Module, before: list[Tensor]) -> float:
    """How far the parameters moved from their copies `before`."""
    return float(total_norm([p.detach() - b for p, b in zip(model.parameters(), before)]))


def peak_memory(device: torch.device) -> int:
    """Bytes at most so far, of the device, or of this process on a CPU; the largest of all ranks."""
    if device.type == "cuda":
        own = torch.cuda.max_memory_allocated(device)
    else:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    told = torch.tensor([own], dtype=torch.int64)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return int(told)
