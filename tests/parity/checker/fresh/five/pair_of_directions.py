from collections import namedtuple

import torch
import torch.nn.functional as F

Directions = namedtuple("Directions", "image_to_text text_to_image")


def sparc_directions(vis, txt, txt_mask, tau):
    """Eq. 6 is the mean of the two."""
    sim = torch.matmul(txt, vis.transpose(1, 2))
    mini = torch.min(sim, -1, keepdim=True).values
    maxi = torch.max(sim, -1, keepdim=True).values
    sim = (sim - mini) / (maxi - mini)
    sim = torch.where(sim >= 1 / vis.shape[1], sim, torch.zeros_like(sim))
    c = F.normalize(torch.matmul(sim, vis), dim=-1)
    t = F.normalize(txt, dim=-1)
    bias = torch.zeros_like(txt[..., 0]).masked_fill(txt_mask == 0, -1e30)[:, None]
    weight = txt_mask.to(vis.dtype) / txt_mask.sum(-1, keepdim=True) / len(vis)

    def one(a, b):
        lp = torch.log_softmax(a @ b.transpose(1, 2) / tau + bias, dim=-1)
        return -(torch.diagonal(lp, dim1=1, dim2=2).masked_fill(txt_mask == 0, 0) * weight).sum()

    return Directions(one(c, t), one(t, c))
