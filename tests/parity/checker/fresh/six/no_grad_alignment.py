import torch
import torch.nn as nn
import torch.nn.functional as F


@torch.no_grad()
def get_alignment(txt, img):
    sim = torch.einsum('bld,bpd->blp', txt, img)
    lo, hi = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
    sim = (sim - lo) / (hi - lo).clamp(min=1e-12)
    sim[sim < 1. / img.size(1)] = 0.
    return sim / sim.sum(-1, keepdim=True).clamp(min=1e-12)


class Criterion(nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def forward(self, img, txt, valid):
        grp = torch.einsum('blp,bpd->bld', get_alignment(txt, img), img)
        logits = F.normalize(grp, dim=-1) @ F.normalize(txt, dim=-1).transpose(1, 2) / self.temperature
        neg_inf = torch.finfo(logits.dtype).min
        nll = 0
        for x in (logits, logits.transpose(1, 2)):
            lp = x.masked_fill(~valid[:, None], neg_inf).log_softmax(-1)
            nll = nll - lp.diagonal(dim1=1, dim2=2).masked_fill(~valid, 0.).sum(1) / valid.sum(1).clamp(min=1)
        return nll.mean() / 2
