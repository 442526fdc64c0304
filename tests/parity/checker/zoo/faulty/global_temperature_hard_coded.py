"""The local loss learns its temperature, the global one has 0.1 written in."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "Losses",
    "verdict": "explained",
    "deviations": ["global.temperature_constant=0.1"],
    "call": ["v", "t", "mask", "v_bar", "t_bar", "scale"],
    "returns": ["fine", "global"],
}


class Losses(torch.nn.Module):
    def forward(self, patches, tokens, mask, image, text, scale):
        return self.local(patches, tokens, mask, scale), self.whole(image, text)

    def whole(self, image, text):
        z = F.cosine_similarity(image[:, None], text[None], dim=-1) / 0.1
        y = torch.arange(len(z))
        return F.cross_entropy(z, y) / 2 + F.cross_entropy(z.T, y) / 2

    def local(self, v, t, m, scale):
        s = t @ v.mT
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        s = torch.where(hi > lo, (s - lo) / torch.where(hi > lo, hi - lo, 1.0), 1.0)
        s = s.masked_fill(s < 1 / v.shape[1], 0.0)
        c = s / s.sum(-1, keepdim=True) @ v
        total = 0
        for ci, ti, mi in zip(c, t, m):
            if mi.any():
                z = scale * F.cosine_similarity(ci[mi][:, None], ti[mi][None], dim=-1)
                y = torch.arange(len(z))
                total = total + F.cross_entropy(z, y) / 2 + F.cross_entropy(z.T, y) / 2
        return total / len(v)
