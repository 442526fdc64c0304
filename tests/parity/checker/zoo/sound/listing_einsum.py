"""Port of the pseudo-code in the appendix.  Text goes first here, like everywhere in our code base."""

import torch

EXPECT = {
    "target": "local_loss",
    "verdict": "listing1",
    "call": ["t", "v", "mask_float", "tau"],
}


def l2norm(x):
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-8)


def masked_pairwise_contrastive_loss(a, b, mask, temperature):
    """a, b: B x N x D; mask: B x N with 1.0 for real tokens."""
    n = a.shape[1]
    sim = torch.einsum("bmd,bnd->bmn", l2norm(a), l2norm(b)) / temperature
    sim = sim.masked_fill(mask[:, None, :] == 0, -1e30)
    target = torch.eye(n, dtype=sim.dtype, device=sim.device)
    log_p = sim - torch.logsumexp(sim, dim=-1, keepdim=True)
    loss = -(target * torch.where(mask[:, None, :] == 0, torch.zeros_like(log_p), log_p)).sum(-1)
    return (loss * mask).sum() / mask.sum().clamp_min(1)


def local_loss(text, image, text_mask, temperature):
    sim = torch.einsum("bld,bpd->blp", text, image)
    smin = sim.min(-1, keepdim=True)[0]
    smax = sim.max(-1, keepdim=True)[0]
    same = (smax - smin) == 0
    sim = torch.where(same, torch.ones_like(sim), (sim - smin) / torch.where(same, torch.ones_like(smax), smax - smin))
    sim = sim * (sim >= 1 / image.shape[1]).to(sim.dtype)
    weights = sim / sim.sum(-1, keepdim=True)
    grouped = torch.einsum("blp,bpd->bld", weights, image)
    loss_vl = masked_pairwise_contrastive_loss(grouped, text, text_mask, temperature)
    loss_lv = masked_pairwise_contrastive_loss(text, grouped, text_mask, temperature)
    return 0.5 * (loss_vl + loss_lv)
