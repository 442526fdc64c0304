import math
import torch
from torch import nn
import torch.nn.functional as F


class TinySparc(nn.Module):
    def __init__(self, dim, lambda_global=0.5, lambda_fine=1.0):
        super().__init__()
        self.g_v = nn.Linear(dim, dim)
        self.g_t = nn.Linear(dim, dim)
        for g in (self.g_v, self.g_t):
            nn.init.eye_(g.weight)
            nn.init.zeros_(g.bias)
        self.scale_log = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.weights = lambda_global, lambda_fine

    def contrast(self, a, b, m):
        """a, b (N,K,D), m (N,K): row k of a belongs to row k of b; mean over the real rows of each item."""
        z = self.scale_log.exp() * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT
        z = z.masked_fill(~(m[:, None] & m[:, :, None]), -1e25)
        nll = z.logsumexp(-1) + z.logsumexp(-2) - 2 * z.diagonal(dim1=-2, dim2=-1)
        return (nll.masked_fill(~m, 0).sum(-1) / m.sum(-1).clamp(min=1)).mean() / 2

    def forward(self, image_tokens, word_tokens, word_mask):
        v, t = self.g_v(image_tokens), self.g_t(word_tokens)
        n = word_mask.sum(1, keepdim=True).clamp(min=1)
        t_bar = self.g_t((word_tokens * word_mask[..., None]).sum(1) / n)
        v_bar = self.g_v(image_tokens.mean(1))
        s = t @ v.mT
        lo, hi = torch.aminmax(s, dim=-1, keepdim=True)
        s = (s - lo) / (hi - lo)
        s = torch.where(s >= 1 / v.shape[1], s, 0)
        c = s @ v / s.sum(-1, keepdim=True)
        lg = self.contrast(v_bar[None], t_bar[None], torch.ones(1, len(v), dtype=torch.bool))
        lf = self.contrast(c, t, word_mask)
        return {"loss": self.weights[0] * lg + self.weights[1] * lf, "loss_global": lg, "loss_fine": lf}
