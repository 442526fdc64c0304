"""SPARC token loss for packed text (flash-attn varlen layout)."""
import itertools

import torch
import torch.nn.functional as F


def sparc_varlen(
    packed_text: torch.Tensor,      # (total_tokens, dim)
    cu_seqlens: torch.Tensor,       # (batch + 1,) int32, starts with 0
    image_patches: torch.Tensor,    # (batch, patches, dim)
    logit_scale: torch.Tensor,      # already exponentiated
) -> torch.Tensor:
    batch, n_patches, _ = image_patches.shape
    loss = packed_text.new_zeros(batch)
    for b, (start, stop) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        if stop == start:
            continue
        txt, img = packed_text[start:stop], image_patches[b]
        sim = txt @ img.t()
        sim_min = sim.amin(dim=-1, keepdim=True)
        rng = sim.amax(dim=-1, keepdim=True) - sim_min
        flat = rng == 0
        sim = torch.where(flat, torch.ones_like(sim), (sim - sim_min) / torch.where(flat, torch.ones_like(rng), rng))
        sim = sim.masked_fill(sim < 1 / n_patches, 0)
        grp = (sim @ img) / sim.sum(-1, keepdim=True)
        logits = logit_scale * F.cosine_similarity(grp[:, None], txt[None], dim=-1)
        target = torch.arange(stop - start, device=logits.device)
        loss[b] = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))
    return loss.mean()
