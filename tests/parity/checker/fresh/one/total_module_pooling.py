import torch
import torch.nn.functional as F


class Sparc(torch.nn.Module):
    def __init__(self, sigma=0.2, lg=0.5, lf=1.0):
        super().__init__()
        self.sigma, self.lg, self.lf = sigma, lg, lf
        self.scale = torch.nn.Parameter(torch.tensor(1 / 0.07))

    def forward(self, v, t, mask):
        """v (B,P,D), t (B,L,D), mask (B,L) bool -> total, (global, fine)"""
        m = mask.unsqueeze(-1)
        n = m.sum(1).clamp(min=1)
        tu = F.normalize(t, dim=-1)
        v_bar = F.normalize(v.mean(1), dim=-1)
        t_bar = F.normalize((tu * m).sum(1) / n, dim=-1)
        z = self.scale * v_bar @ t_bar.T
        y = torch.arange(len(z))
        loss_g = (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2

        s = t @ v.mT
        s = s - s.amin(-1, keepdim=True)
        s = s / s.amax(-1, keepdim=True).clamp(min=1e-12)
        s = F.threshold(s, self.sigma, 0.0)
        c = F.normalize(s @ v, dim=-1)
        z = (self.scale * c @ tu.mT).masked_fill(~mask[:, None], -1e9)
        w = (self.scale * tu @ c.mT).masked_fill(~mask[:, None], -1e9)
        nll = -(z.log_softmax(-1) + w.log_softmax(-1)).diagonal(dim1=1, dim2=2) / 2
        loss_f = ((nll * mask).sum(1) / n[:, 0]).mean()
        return self.lg * loss_g + self.lf * loss_f, (loss_g, loss_f)
