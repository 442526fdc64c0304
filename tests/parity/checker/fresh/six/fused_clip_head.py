import torch
import torch.nn as nn
import torch.nn.functional as F


class FusedInfoNCE(torch.autograd.Function):
    """Symmetric InfoNCE on unit vectors; gradients are computed in the forward pass, logits are freed at once."""

    @staticmethod
    def forward(ctx, a, b, scale):
        n = a.shape[0]
        cos = a @ b.T
        z = scale * cos
        p, q = z.softmax(1), z.softmax(0)
        eye = torch.eye(n, dtype=z.dtype, device=z.device)
        g = (p + q - 2 * eye) / (2 * n)
        ctx.save_for_backward(scale * g @ b, scale * g.T @ a, (g * cos).sum())
        d = z.diagonal()
        return (z.logsumexp(1) + z.logsumexp(0) - 2 * d).mean() / 2

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.saved_tensors


class SparcLoss(nn.Module):
    def __init__(self, global_weight=0.5, fine_weight=1.0):
        super().__init__()
        self.global_weight = global_weight
        self.fine_weight = fine_weight

    def fine(self, patches, tokens, mask, scale):
        s = tokens @ patches.mT
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        s = (s - lo) / (hi - lo)
        s = torch.where(s >= 1 / patches.shape[1], s, 0.0)
        c = F.normalize(s / s.sum(-1, keepdim=True) @ patches, dim=-1)
        z = scale * c @ F.normalize(tokens, dim=-1).mT
        nll = -z.masked_fill(~mask[:, None, :], -torch.inf).log_softmax(2).diagonal(dim1=1, dim2=2)
        nll = nll - z.masked_fill(~mask[:, :, None], -torch.inf).log_softmax(1).diagonal(dim1=1, dim2=2)
        return (nll.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)).mean() / 2

    def forward(self, image_pooled, text_pooled, patches, tokens, mask, logit_scale):
        scale = logit_scale.exp()
        g = FusedInfoNCE.apply(F.normalize(image_pooled, dim=-1), F.normalize(text_pooled, dim=-1), scale)
        f = self.fine(patches, tokens, mask, scale)
        return {"loss": self.global_weight * g + self.fine_weight * f, "global": g.detach(), "fine": f.detach()}
