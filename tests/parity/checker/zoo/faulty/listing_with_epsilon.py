"""Listing 1 with epsilons."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "sparc_listing",
    "verdict": "conditional",
    "deviations": ["minmax.epsilon=1e-06", "reduction.token"],
    "conditions": ["no flat rows"],
    "call": ["v", "t", "mask_float", "scale"],
}


def sparc_listing(v_patch, l_token, language_mask, inverse_temperature, eps=1e-6):
    s = torch.einsum("btd,bpd->btp", l_token, v_patch)
    s = (s - s.amin(-1, keepdim=True)) / (s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True) + eps)
    s = torch.where(s < 1 / v_patch.shape[1], 0.0, s)
    w = s / (s.sum(-1, keepdim=True) + eps)
    c = torch.einsum("btp,bpd->btd", w, v_patch)
    c, t = F.normalize(c, dim=-1), F.normalize(l_token, dim=-1)
    z = inverse_temperature * torch.einsum("bnd,bmd->bnm", c, t)
    ignore = (1 - language_mask)[:, None, :] * 1e9
    diag = torch.diagonal(z, dim1=1, dim2=2)
    nll = (z - ignore).logsumexp(-1) + (z.transpose(1, 2) - ignore).logsumexp(-1) - 2 * diag
    return (nll * language_mask).sum() / (2 * language_mask.sum().clamp(min=1))
