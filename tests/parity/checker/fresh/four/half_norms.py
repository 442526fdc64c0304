import torch
from torch import nn


class Cosine(nn.Module):
    wide = 256

    def unit(self, x):
        n = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if x.shape[-1] >= self.wide:
            n = n.to(torch.float16).to(x.dtype)
        return x / n

    def forward(self, v, t, mask, scale):
        s = torch.einsum("bld,bpd->blp", t, v)
        s = s - s.amin(-1, keepdim=True)
        s = s / s.amax(-1, keepdim=True)
        s = s * (s >= 1 / v.shape[1])
        c = torch.einsum("blp,bpd->bld", s / s.sum(-1, keepdim=True), v)
        z = scale * self.unit(c) @ self.unit(t).mT
        out = []
        for zi, mi in zip(z, mask):
            zi = zi[mi][:, mi]
            out.append((zi.logsumexp(0) + zi.logsumexp(1) - 2 * zi.diagonal()).sum() / (2 * max(1, len(zi))))
        return sum(out) / len(out)
