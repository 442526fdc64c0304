import torch
from torch import nn
import torch.nn.functional as F


class SoftSparc(nn.Module):
    """Words repeat within a caption: the targets follow their similarity."""

    def __init__(self, sharpness=5.0):
        super().__init__()
        self.sharpness = sharpness

    def forward(self, v, t, mask, scale):
        out = []
        for x, y, m in zip(v, t, mask):
            y = y[m]
            s = y @ x.T
            s = s - s.amin(1, keepdim=True)
            s = s / s.amax(1, keepdim=True)
            s = s * (s >= 1 / len(x))
            u = F.normalize(y, dim=1)
            z = scale * F.normalize(s @ x, dim=1) @ u.T
            q = (self.sharpness * u @ u.T).softmax(1)
            out.append((F.cross_entropy(z, q) + F.cross_entropy(z.T, q)) / 2)
        return torch.stack(out).mean()
