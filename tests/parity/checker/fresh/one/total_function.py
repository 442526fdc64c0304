import torch
import torch.nn.functional as F


def sparc_loss(patches, tokens, image_embed, text_embed, mask, logit_scale, lambda_g=0.5, lambda_f=1.0):
    """lambda_g * L_g + lambda_f * L_f.

    patches (B,P,D); tokens (B,L,D); image_embed, text_embed (B,D); mask (B,L) int, 1 real 0 pad; logit_scale = log 1/tau
    """
    scale = torch.exp(logit_scale)
    # global
    gi, gt = F.normalize(image_embed, dim=-1), F.normalize(text_embed, dim=-1)
    g = scale * gi @ gt.T
    y = torch.arange(len(g), device=g.device)
    l_global = (F.cross_entropy(g, y) + F.cross_entropy(g.T, y)) / 2
    # fine-grained
    m = mask == 1
    sim = tokens @ patches.mT
    sim = sim - sim.amin(2, keepdim=True)
    sim = sim / (sim.amax(2, keepdim=True) + 1e-10)
    sim = sim * (sim >= 1 / patches.shape[1])
    w = sim / (sim.sum(2, keepdim=True) + 1e-10)
    c, t = F.normalize(w @ patches, dim=-1), F.normalize(tokens, dim=-1)
    f = scale * c @ t.mT
    f1 = f.masked_fill(~m[:, None], -1e30)
    f2 = f.mT.masked_fill(~m[:, None], -1e30)
    yy = torch.arange(f.shape[1], device=f.device).expand(f.shape[:2]).masked_fill(~m, -100)
    per_token = F.cross_entropy(f1.transpose(1, 2), yy, ignore_index=-100, reduction="none")
    per_token = per_token + F.cross_entropy(f2.transpose(1, 2), yy, ignore_index=-100, reduction="none")
    l_fine = (per_token.sum(1) / (2 * m.sum(1).clamp(min=1))).mean()
    return lambda_g * l_global + lambda_f * l_fine
