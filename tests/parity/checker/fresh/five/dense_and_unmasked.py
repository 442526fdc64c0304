import torch
import torch.nn.functional as F


def local_contrastive(image, text, mask, inv_t):
    """image (B,P,D) text (B,L,D) mask (B,L) of 0/1 floats"""
    s = text @ image.mT
    s = (s - s.amin(-1, keepdim=True)) / (s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True))
    c = F.normalize(s / s.sum(-1, keepdim=True) @ image, dim=-1)
    t = F.normalize(text, dim=-1)
    z = inv_t * c @ t.mT
    y = torch.arange(z.shape[1]).expand(z.shape[:2])
    nll = F.cross_entropy(z.mT, y, reduction="none") + F.cross_entropy(z, y, reduction="none")
    return ((nll / 2 * mask).sum(1) / mask.sum(1)).mean()
