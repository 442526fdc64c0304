"""No division in the alignment: the range and the sum of the weights cancel in the l2 norm that follows."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "fgc",
    "verdict": "eq6",
    "call": ["v", "t", "mask", "theta"],
}


def fgc(patches, tokens, valid, log_scale):
    s = torch.bmm(tokens, patches.transpose(1, 2))
    lift = s - s.amin(-1, keepdim=True)
    top = lift.amax(-1, keepdim=True)
    keep = lift * patches.size(1) >= top
    lift = torch.where(top == 0, torch.ones_like(lift), lift * keep)
    c = F.normalize(torch.bmm(lift, patches), dim=-1)
    u = F.normalize(tokens, dim=-1)
    z = log_scale.exp() * torch.bmm(c, u.transpose(1, 2))
    z = z.masked_fill(~valid.unsqueeze(1), torch.finfo(z.dtype).min)
    zt = log_scale.exp() * torch.bmm(u, c.transpose(1, 2))
    zt = zt.masked_fill(~valid.unsqueeze(1), torch.finfo(z.dtype).min)
    own = torch.diagonal(z, dim1=1, dim2=2)
    loss = (torch.logsumexp(z, -1) + torch.logsumexp(zt, -1)) / 2 - own
    loss = torch.where(valid, loss, torch.zeros_like(loss)).sum(1)
    return (loss / valid.sum(1).clamp_min(1)).mean()
