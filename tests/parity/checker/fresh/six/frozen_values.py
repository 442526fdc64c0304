import torch
import torch.nn.functional as F


def language_grouped(words, patches):
    sim = words @ patches.transpose(-2, -1)
    lo = sim.amin(-1, keepdim=True)
    hi = sim.amax(-1, keepdim=True)
    sim = (sim - lo) / (hi - lo)
    sim = torch.where(sim >= 1 / patches.shape[-2], sim, torch.zeros_like(sim))
    align = sim / sim.sum(-1, keepdim=True)
    # the encoder is trained through the alignment only
    return align @ patches.detach()


def sparc_local(patches, words, mask, inv_t):
    c = F.normalize(language_grouped(words, patches), dim=-1)
    w = F.normalize(words, dim=-1)
    z = inv_t * c @ w.transpose(-2, -1)
    z_c = z.masked_fill(~mask[:, None, :], -torch.inf)
    z_w = z.transpose(-2, -1).masked_fill(~mask[:, None, :], -torch.inf)
    ll = (z_c.log_softmax(-1) + z_w.log_softmax(-1)).diagonal(dim1=-2, dim2=-1)
    ll = torch.where(mask, ll, 0.0)
    return -(ll.sum(1) / (2 * mask.sum(1))).mean()
