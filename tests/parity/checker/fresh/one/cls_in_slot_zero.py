import torch
import torch.nn.functional as F


def sparc_token_loss(vit_out, text_out, mask, scale):
    """vit_out (B, 1+P, D) with the class token first; text_out (B,L,D); mask (B,L) bool; scale 1/tau."""
    patches = vit_out[:, 1:]
    sim = text_out @ patches.mT
    ordered = sim.sort(dim=-1).values
    low, high = ordered[..., :1], ordered[..., -1:]
    sim = (sim - low) / (high - low)
    alive = sim.ge(1.0 / patches.size(1))
    weights = torch.where(alive, sim, torch.zeros_like(sim))
    weights = weights / weights.sum(-1, keepdim=True)
    c = F.normalize(torch.matmul(weights, patches), dim=-1)
    t = F.normalize(text_out, dim=-1)
    z = scale * torch.matmul(c, t.mT)
    z_v = z.masked_fill(~mask.unsqueeze(1), -1e9)
    z_t = z.mT.masked_fill(~mask.unsqueeze(1), -1e9)
    nll = -(z_v.log_softmax(-1) + z_t.log_softmax(-1)).diagonal(dim1=-2, dim2=-1)
    counts = mask.sum(-1)
    counts = torch.where(counts > 0, counts, torch.ones_like(counts))
    return 0.5 * torch.mean((nll.masked_fill(~mask, 0)).sum(-1) / counts)
