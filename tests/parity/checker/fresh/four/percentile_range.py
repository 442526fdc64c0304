import torch
import torch.nn.functional as F


def robust_minmax(s):
    q = torch.quantile(s, torch.tensor([0.1, 0.9], dtype=s.dtype), dim=-1, keepdim=True)
    return ((s - q[0]) / (q[1] - q[0])).clamp(0, 1)


def loss_fn(params, v, t, lens):
    mask = torch.arange(t.shape[1])[None] < lens[:, None]
    w = robust_minmax(torch.bmm(t, v.mT))
    w = w * (w >= 1 / v.shape[1])
    c = F.normalize(torch.bmm(F.normalize(w, p=1, dim=-1), v), dim=-1)
    z = params["theta"].exp() * torch.bmm(c, F.normalize(t, dim=-1).mT)
    ids = torch.where(mask, torch.arange(t.shape[1])[None], -100)
    total = 0
    for y in (z, z.mT):
        y = F.cross_entropy(y.masked_fill(~mask[:, None], -1e18).flatten(0, 1), ids.flatten(), reduction="none")
        total = total + (y.view_as(mask).sum(1) / lens.clamp(min=1)).mean()
    return total / 2
