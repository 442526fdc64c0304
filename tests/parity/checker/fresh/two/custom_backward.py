import torch
import torch.nn.functional as F


class DiagonalCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, mask):
        x = z.masked_fill(~mask[:, None, :], -torch.inf)
        p = x.softmax(-1).nan_to_num(0.0)
        ctx.save_for_backward(p, mask)
        nll = x.logsumexp(-1) - z.diagonal(dim1=1, dim2=2)
        return nll.masked_fill(~mask, 0)

    @staticmethod
    def backward(ctx, g):
        p, mask = ctx.saved_tensors
        g = (g * mask).unsqueeze(-1)
        return g * (p - torch.eye(p.shape[-1], dtype=p.dtype)), None


def loss(v, t, mask, scale):
    s = t @ v.mT
    lo = s.amin(-1, keepdim=True)
    s = (s - lo) / (s.amax(-1, keepdim=True) - lo)
    s = s.where(s >= 1 / v.shape[1], torch.zeros_like(s))
    c = F.normalize(s @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    tok = DiagonalCE.apply(z, mask) + DiagonalCE.apply(z.mT, mask)
    return (tok.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
