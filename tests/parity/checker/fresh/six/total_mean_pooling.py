import torch
import torch.nn as nn
import torch.nn.functional as F


def info_nce(a, b, scale):
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    logits = scale * a @ b.t()
    labels = torch.arange(a.size(0), device=a.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) * 0.5


class SparcTotalLoss(nn.Module):
    def __init__(self, w_global=0.5, w_local=1.0):
        super().__init__()
        self.w_global, self.w_local = w_global, w_local
        self.t = nn.Parameter(torch.tensor(2.6593))

    def forward(self, x_img, x_txt, mask):
        scale = self.t.exp()
        # pooled embeddings
        g = info_nce(x_img.mean(dim=1), x_txt.mean(dim=1), scale)
        # fine-grained
        s = x_txt @ x_img.transpose(1, 2)
        s = (s - s.amin(-1, keepdim=True)) / (s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True))
        s = torch.where(s < 1.0 / x_img.size(1), torch.zeros_like(s), s)
        s = s / s.sum(-1, keepdim=True)
        grp, txt = F.normalize(s @ x_img, dim=-1), F.normalize(x_txt, dim=-1)
        per_pair = []
        for i in range(x_img.size(0)):
            z = scale * grp[i, mask[i]] @ txt[i, mask[i]].t()
            y = torch.arange(z.size(0), device=z.device)
            per_pair.append((F.cross_entropy(z, y) + F.cross_entropy(z.t(), y)) / 2)
        l = torch.stack(per_pair).mean()
        loss = self.w_global * g + self.w_local * l
        return loss, {"global": g.item(), "local": l.item()}
