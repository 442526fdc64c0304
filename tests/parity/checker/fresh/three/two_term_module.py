import torch
import torch.nn.functional as F
from torch import nn


class LockedImageSparc(nn.Module):
    """The global loss tunes the text tower to the image tower; the fine loss tunes both."""

    def __init__(self, lambda_g=0.5, lambda_f=1.0):
        super().__init__()
        self.lambda_g, self.lambda_f = lambda_g, lambda_f

    def contrast(self, a, b, k):
        z = k * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
        return -0.5 * (z.log_softmax(0) + z.log_softmax(1)).diagonal().mean()

    def forward(self, image_global, image_local, text_global, text_local, text_mask, inv_tau):
        with torch.no_grad():
            anchor = image_global.clone()
        loss = self.lambda_g * self.contrast(anchor, text_global, inv_tau)
        fine = []
        for v, t, m in zip(image_local, text_local, text_mask > 0):
            t = t[m]
            s = t @ v.T
            s = s - s.amin(1, keepdim=True)
            s = s / s.amax(1, keepdim=True)
            s = s.masked_fill(s < 1 / len(v), 0)
            fine.append(self.contrast(s @ v / s.sum(1, keepdim=True), t, inv_tau))
        return loss + self.lambda_f * torch.stack(fine).mean()
