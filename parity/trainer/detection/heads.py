"""The detector: every patch of the picture says one box, and how well each query names what is in it.

B pictures, N patches, Q queries, D the joint width, C the vision tower's.  Boxes are (cx, cy, w, h) in 0..1 of the square.
OWL-ViT (arXiv 2205.06230) and its public code; without a [CLS] token there is nothing to merge into the patches, and the
tower's own last norm is the norm of the tokens.  h_v, the pooling and g_v are dropped.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.trainer.model import SPARC, gelu

EPS = 1e-6                                                # of the normalisation, the published code's
PADDING = -1e6                                            # the logit of a query that is none


class Detector(nn.Module):
    """The towers of a trained model with the two heads."""

    def __init__(self, model: SPARC):
        super().__init__()
        c = self.config = model.config
        self.vision, self.text, self.g_t = model.vision, model.text, model.g_t
        self.class_head = ClassHead(c.vision_width, c.embed_dim)
        self.box_head = BoxHead(c.vision_width, c.gelu)

    def forward(self, images: Tensor, tokens: Tensor, mask: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """images (B,3,S,S), tokens, mask (B,Q,L), real (B,Q) bool -> logits (B,N,Q), boxes (B,N,4)"""
        return self.detect(images, self.embed(tokens, mask), real)

    def detect(self, images: Tensor, queries: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """images (B,3,S,S), queries (B,Q,D) or (Q,D) -> logits (B,N,Q), boxes (B,N,4)"""
        rows, columns = (side // self.config.patch_size for side in images.shape[2:])
        x = self.vision(images)                           # (B,N,C), positions resized to the grid
        return self.class_head(x, queries, real), self.box_head(x, rows, columns)

    def embed(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Queries, one sequence a name, none mixed with the picture.      tokens, mask (...,L) -> (...,D)"""
        flat = SPARC.encode_texts(cast(SPARC, self), tokens.flatten(0, -2), mask.flatten(0, -2))["t_bar"]
        return flat.unflatten(0, tokens.shape[:-1])


class ClassHead(nn.Module):
    """(<e, q> + shift) * (elu(scale) + 1), e and q of length one, shift and scale by patch.  x (B,N,C), q (B,Q,D) -> (B,N,Q)"""

    def __init__(self, width: int, joint: int):
        super().__init__()
        self.embedding, self.shift, self.scale = nn.Linear(width, joint), nn.Linear(width, 1), nn.Linear(width, 1)
        nn.init.normal_(self.embedding.weight, std=1e-6)
        for layer in (self.shift, self.scale):
            nn.init.xavier_normal_(layer.weight)
        for layer in (self.embedding, self.shift, self.scale):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, queries: Tensor, real: Tensor | None = None) -> Tensor:
        e, q = (y / (torch.linalg.vector_norm(y, dim=-1, keepdim=True) + EPS) for y in (self.embedding(x), queries))
        logits = (e @ q.mT + self.shift(x)) * (F.elu(self.scale(x)) + 1)
        return logits if real is None else torch.where(real[..., None, :], logits, PADDING)


class BoxHead(nn.Module):
    """An MLP of three layers, the last one zero at the start, on top of the patch's own prior.       x (B,N,C) -> (B,N,4)"""

    def __init__(self, width: int, kind: str):
        super().__init__()
        self.kind = kind
        self.first, self.second, self.last = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        y = self.last(gelu(self.second(gelu(self.first(x), self.kind)), self.kind))
        y = y.to(torch.promote_types(y.dtype, torch.float32))  # under autocast: a box needs more digits than bfloat16 has
        return torch.sigmoid(y + box_bias(rows, columns).to(y))


def box_bias(rows: int, columns: int) -> Tensor:
    """Logits of the prior: the patch's lower-right corner as the centre, the patch's size.      -> (rows*columns,4)

    The corner and not the middle, as the published code has it.
    """
    y, x = torch.meshgrid(torch.arange(1, rows + 1) / rows, torch.arange(1, columns + 1) / columns, indexing="ij")
    prior = torch.stack([x, y, torch.full_like(x, 1 / columns), torch.full_like(x, 1 / rows)], -1).reshape(-1, 4)
    return torch.log(prior + 1e-4) - torch.log1p(-prior + 1e-4)


def add_droplayer(tower: Any, rate: float) -> None:
    """While training leave out branches of the tower's blocks, by example; block i of n with probability rate * i / (n - 1)."""
    n = len(tower.blocks)
    for i, block in enumerate(tower.blocks):
        p = rate * i / max(n - 1, 1)
        for branch in (block.attn, block.mlp) if p else ():
            def drop(module: nn.Module, args: Any, out: Tensor, p: float = p) -> Tensor:
                return out * (torch.rand(len(out), 1, 1, device=out.device) >= p) if module.training else out
            branch.register_forward_hook(drop)
