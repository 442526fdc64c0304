import torch
import torch.nn.functional as F


def sparc_loss(v, t, m, scale, sharp=20.0):
    s = t @ v.transpose(1, 2)
    mn, mx = s.amin(2, keepdim=True), s.amax(2, keepdim=True)
    s = (s - mn) / (mx - mn)
    # differentiable threshold, so that gradients reach the selection
    s = s * torch.sigmoid(sharp * (s - 1.0 / v.size(1)))
    a = s / s.sum(2, keepdim=True)
    c = F.normalize(a @ v, dim=2)
    w = F.normalize(t, dim=2)
    z = scale * (c @ w.transpose(1, 2))
    bias = torch.zeros_like(z).masked_fill(~m[:, None, :], float("-inf"))
    tgt = torch.arange(z.size(1)).repeat(z.size(0), 1)
    def ce(x):
        x = F.cross_entropy((x + bias).transpose(1, 2), tgt, reduction="none")
        return x.masked_fill(~m, 0).sum(1) / m.sum(1).clamp(min=1)
    return (ce(z) + ce(z.transpose(1, 2))).mean() * 0.5
