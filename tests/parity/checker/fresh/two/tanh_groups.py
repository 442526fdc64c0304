import torch
from torch import nn


class SparcHead(nn.Module):
    def __init__(self, sigma: float = 0.3):
        super().__init__()
        self.sigma = sigma
        self.act = nn.Tanh()

    def forward(self, image, text, mask, scale):
        s = torch.einsum("bpd,bld->blp", image, text)
        s = (s - s.amin(2, keepdim=True)) / (s.amax(2, keepdim=True) - s.amin(2, keepdim=True))
        s = torch.where(s >= self.sigma, s, 0.0)
        c = self.act(torch.einsum("blp,bpd->bld", s / s.sum(2, keepdim=True), image))
        c = nn.functional.normalize(c, dim=2)
        t = nn.functional.normalize(text, dim=2)
        z = scale * torch.einsum("bld,bmd->blm", c, t)
        z = z.masked_fill(~mask[:, None, :], -torch.inf)
        rows = torch.diagonal(z.log_softmax(2), dim1=1, dim2=2)
        zt = (scale * torch.einsum("bld,bmd->bml", c, t)).masked_fill(~mask[:, None, :], -torch.inf)
        cols = torch.diagonal(zt.log_softmax(2), dim1=1, dim2=2)
        tok = torch.where(mask, -(rows + cols) / 2, 0.0)
        return (tok.sum(1) / mask.sum(1).clamp(min=1)).mean()
