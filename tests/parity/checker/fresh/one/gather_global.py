import torch
import torch.nn.functional as F


def gather(x):
    """torch.distributed.all_gather on one process."""
    out = [torch.empty_like(x)]
    out[0].copy_(x.detach())
    return torch.cat(out)


def global_loss(image_features, text_features, logit_scale):
    """image_features, text_features (B,D) of this rank, logit_scale log(1/tau)"""
    i = F.normalize(image_features, dim=-1)
    t = F.normalize(text_features, dim=-1)
    all_i, all_t = gather(i), gather(t)
    y = torch.arange(len(i), device=i.device)
    k = logit_scale.exp()
    return (F.cross_entropy(k * i @ all_t.T, y) + F.cross_entropy(k * t @ all_i.T, y)) / 2
