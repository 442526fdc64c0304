"""sigma is 1/196 whatever the picture: right for ViT-B/16 at 224 only."""

import torch
from torch import nn

EXPECT = {
    "target": "TokenPatchLoss",
    "verdict": "explained",
    "deviations": ["threshold.constant=0.00510204"],
    "call": ["v_cls", "t", "mask", "theta"],
}


class TokenPatchLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(1.0 / 196))

    def forward(self, hidden, words, keep, log_scale):
        """hidden (B,1+P,D): [CLS], then the patches."""
        patches = hidden[:, 1:, :]
        s = torch.matmul(words, patches.transpose(1, 2))
        lo = torch.amin(s, -1, True)
        hi = torch.amax(s, -1, True)
        even = hi.eq(lo)
        s = (s - lo) / (hi - lo).masked_fill(even, 1)
        s = s.masked_fill(even, 1.0)
        s = s.masked_fill(s.lt(1.0 / 196), 0.0)
        g = torch.matmul(s / s.sum(-1, True), patches)
        z = log_scale.exp() * torch.matmul(nn.functional.normalize(g, dim=-1), nn.functional.normalize(words, dim=-1).mT)
        pair = keep.unsqueeze(1) & keep.unsqueeze(2)
        p = torch.where(pair, (z - z.amax((1, 2), True).detach()).exp(), 0.0)
        own = torch.where(keep, p.diagonal(dim1=1, dim2=2), 1.0)
        r = torch.where(keep, p.sum(2), 1.0)
        q = torch.where(keep, p.sum(1), 1.0)
        nll = (r.log() + q.log()) / 2 - own.log()
        return (nll.sum(1) / keep.sum(1).clamp(min=1)).mean()
