import torch
import torch.nn as nn
import torch.nn.functional as F

EPS = 1e-14


class LocalAlign(nn.Module):
    """returns (loss, weights, groups)"""

    def forward(self, v, t, m, s):
        sim = torch.einsum("btd,bpd->btp", t, v)
        rng = sim.max(-1, keepdim=True)[0] - sim.min(-1, keepdim=True)[0]
        sim = (sim - sim.min(-1, keepdim=True)[0]) / (rng + EPS)
        sim = torch.where(sim < 1.0 / v.size(1), torch.zeros((), dtype=sim.dtype), sim)
        w = sim / (sim.sum(-1, keepdim=True) + EPS)
        g = torch.einsum("btp,bpd->btd", w, v)
        gn, tn = F.normalize(g, p=2, dim=-1, eps=EPS), F.normalize(t, p=2, dim=-1, eps=EPS)
        fill = torch.where(m.bool(), 0.0, -torch.inf)[:, None, :]
        l1 = -(F.log_softmax(s * gn @ tn.mT + fill, -1) * torch.eye(t.size(1))).nan_to_num(0.0, neginf=0.0).sum(-1)
        l2 = -(F.log_softmax(s * tn @ gn.mT + fill, -1) * torch.eye(t.size(1))).nan_to_num(0.0, neginf=0.0).sum(-1)
        loss = ((l1 + l2) * m / 2).sum(-1) / (m.sum(-1) + EPS)
        return loss.mean(), w, g
