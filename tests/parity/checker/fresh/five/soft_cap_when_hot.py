import torch
import torch.nn.functional as F


def capped(z, scale, cap=50.0):
    """Logits beyond the cap upset fp16."""
    return cap * torch.tanh(z / cap) if float(scale) > cap else z


def loss(text, image, text_mask, scale):
    s = torch.einsum("bld,bpd->blp", text, image)
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = torch.where(s < 1 / image.shape[1], 0.0, s)
    c, t = F.normalize(s @ image, dim=-1), F.normalize(text, dim=-1)
    z = capped(scale * torch.einsum("bld,bmd->blm", c, t), scale)
    fill = torch.zeros_like(text_mask, dtype=z.dtype).masked_fill(~text_mask, -1e30)[:, None]
    nll = -((z + fill).log_softmax(-1) + (z.mT + fill).log_softmax(-1)).diagonal(dim1=1, dim2=2) / 2
    return (torch.where(text_mask, nll, 0.0).sum(1) / text_mask.sum(1)).mean()
