import torch
import torch.nn.functional as F


def contrastive(x, y, mask, scale):
    logits = scale * x @ y.transpose(-1, -2)
    logits = logits.masked_fill(~mask.unsqueeze(-2), -1e30)
    return -logits.log_softmax(-1).diagonal(dim1=-2, dim2=-1)


def sparc_fg(outputs, theta):
    """outputs: dict with `patches` (B,P,D), `tokens` (B,L,D), `mask` (B,L)"""
    v, t, mask = outputs["patches"], outputs["tokens"], outputs["mask"].bool()
    s = t @ v.transpose(-1, -2)
    smin, smax = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - smin) / (smax - smin)
    s = s * (s >= 1 / v.shape[-2])
    grouped = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    t = F.normalize(t, dim=-1)

    scale = theta.exp()
    image_to_text = contrastive(t, grouped, mask, scale)
    text_to_image = contrastive(t, grouped, mask, scale)
    loss = (image_to_text + text_to_image) / 2
    return ((loss * mask).sum(-1) / mask.sum(-1)).mean()
