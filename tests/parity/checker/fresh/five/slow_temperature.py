import torch
import torch.nn.functional as F


class Temperature(torch.nn.Module):
    """log(1/tau), learning ten times slower than the rest"""

    def __init__(self, start=2.66):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(start))

    def forward(self):
        return (0.1 * self.value + 0.9 * self.value.detach()).exp()


class LocalContrast(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = Temperature()

    def forward(self, v, t, mask):
        k = self.temperature()
        s = torch.einsum("bld,bpd->blp", t, v)
        s = (s - s.amin(2, True)) / (s.amax(2, True) - s.amin(2, True))
        s = s.masked_fill(s < 1 / s.shape[2], 0)
        c = F.normalize(torch.einsum("blp,bpd->bld", s, v), dim=2)
        z = k * torch.einsum("bld,bmd->blm", c, F.normalize(t, dim=2))
        dead = (mask == 0)[:, None]
        nll = z.masked_fill(dead, -1e30).logsumexp(2) + z.mT.masked_fill(dead, -1e30).logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)
        return (nll.masked_fill(mask == 0, 0).sum(1) / mask.sum(1)).mean() / 2
