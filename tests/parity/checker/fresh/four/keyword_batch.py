import torch
import torch.nn.functional as F


def training_loss(**batch):
    v = batch["image_grid"].flatten(2)                       # (B, D, P)
    t, real = batch["words"], 1 - batch["ignore"]
    s = t @ v
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= 1 / v.shape[-1])
    c = F.normalize(s @ v.mT, dim=-1)
    z = (c @ F.normalize(t, dim=-1).mT) / batch["tau"]
    bias = (1 - real[:, None, :]) * -1e10
    nll = torch.logsumexp(z + bias, 2) + torch.logsumexp(z.mT + bias, 2) - 2 * z.diagonal(dim1=1, dim2=2)
    fine = ((nll * real).sum(1) / real.sum(1).clamp(min=1)).mean() / 2
    return {"fine": fine, "tokens": real.sum().detach()}
