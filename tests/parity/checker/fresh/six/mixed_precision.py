import torch
import torch.nn.functional as F


@torch.autocast("cpu", enabled=False)
def fine_grained_loss(patch_embeds, token_embeds, token_mask, scale):
    """Always in fp32: the min-max step is not safe in half precision.

    token_mask: uint8, 1 = keep.  scale: exp(logit_scale)
    """
    v, t = patch_embeds.float(), token_embeds.float()
    mask = token_mask.bool()
    B, P, _ = v.shape

    sim = torch.einsum("bld,bpd->blp", t, v)
    lo = sim.min(dim=-1, keepdim=True).values
    hi = sim.max(dim=-1, keepdim=True).values
    sim = (sim - lo) / (hi - lo).clamp_min(1e-12)
    sim = torch.where(sim < 1.0 / P, torch.zeros_like(sim), sim)
    w = sim / sim.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    c = F.normalize(torch.einsum("blp,bpd->bld", w, v), dim=-1)
    t = F.normalize(t, dim=-1)

    logits = scale.float() * torch.einsum("bld,bmd->blm", c, t)
    both = torch.stack([logits, logits.transpose(1, 2)])                 # 2 B L L
    both = both.masked_fill(~mask[None, :, None, :], float("-inf"))
    logp = both.log_softmax(-1).diagonal(dim1=-2, dim2=-1)                # 2 B L
    logp = logp.masked_fill(~mask, 0.0)
    return -(logp.sum(-1) / mask.sum(-1).clamp(min=1)).mean()
