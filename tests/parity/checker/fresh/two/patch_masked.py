import torch
import torch.nn.functional as F


def fine_loss(patches, tokens, token_mask, patch_mask, inv_tau):
    pm = patch_mask[:, None, :]
    s = tokens @ patches.mT
    lo = s.masked_fill(~pm, torch.inf).amin(-1, keepdim=True)
    hi = s.masked_fill(~pm, -torch.inf).amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    sigma = 1 / patch_mask.sum(1)[:, None, None]
    s = torch.where(pm & (s >= sigma), s, 0)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ patches, dim=-1)
    u = F.normalize(tokens, dim=-1)
    z = inv_tau * c @ u.mT
    cols = token_mask[:, None, :]
    lp = torch.where(cols, z, -torch.inf).log_softmax(-1) + torch.where(cols, z.mT, -torch.inf).log_softmax(-1)
    lp = lp.diagonal(dim1=-2, dim2=-1).masked_fill(~token_mask, 0.0)
    return -0.5 * (lp.sum(-1) / token_mask.sum(-1).clamp(min=1)).mean()
