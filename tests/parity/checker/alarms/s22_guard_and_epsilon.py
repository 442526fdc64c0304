"""eq. 6 with a guard for flat rows and, beside it, an epsilon of 1e-8 in the denominator; what equals sigma is kept."""
import torch
import torch.nn.functional as F


def guarded_loss(image_tokens, text_tokens, mask, logit_scale, eps=1e-8):
    s = text_tokens @ image_tokens.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = torch.where(hi == lo, 1.0, (s - lo) / (hi - lo + eps))
    s = torch.where(s < 1 / image_tokens.shape[1], 0.0, s)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ image_tokens, dim=-1)
    z = logit_scale * c @ F.normalize(text_tokens, dim=-1).mT
    z = z.masked_fill(~(mask[:, :, None] & mask[:, None, :]), torch.finfo(z.dtype).min)
    nll = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    return (torch.where(mask, nll, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()
