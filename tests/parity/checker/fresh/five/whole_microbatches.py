import torch
import torch.nn.functional as F


def _sample(v, t, scale):
    s = t @ v.T
    s = (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))
    s = s * (s >= 1 / len(v))
    z = scale * F.normalize(s @ v, dim=-1) @ F.normalize(t, dim=-1).T
    y = torch.arange(len(t))
    return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2


class GradAccumTrainer:
    micro = 8

    def compute_loss(self, images, texts, masks, log_scale):
        steps = max(1, len(images) // self.micro)
        size = min(self.micro, len(images))
        total = 0.0
        for i in range(steps):
            at = slice(i * size, (i + 1) * size)
            part = [_sample(v, t[m], log_scale.exp()) for v, t, m in zip(images[at], texts[at], masks[at])]
            total = total + sum(part) / len(part)
        return total / steps
