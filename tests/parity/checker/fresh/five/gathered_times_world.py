import torch
import torch.nn.functional as F


class AllGather(torch.autograd.Function):
    """gather with gradient: every rank's gradient is summed. (stand-in: each sample is a rank)"""

    @staticmethod
    def forward(ctx, x):
        ctx.world = x.shape[0]
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.world


def fine_grained_loss(vision, language, language_mask, logit_scale):
    language = AllGather.apply(language)
    s = torch.matmul(language, vision.transpose(-2, -1))
    s = (s - s.min(-1, keepdim=True).values) / (s.max(-1, keepdim=True).values - s.min(-1, keepdim=True).values)
    s = torch.where(s < 1 / vision.shape[1], torch.zeros_like(s), s)
    c = F.normalize(torch.matmul(s, vision), dim=-1)
    t = F.normalize(language, dim=-1)
    z = logit_scale.exp() * torch.matmul(c, t.transpose(-2, -1))
    m = language_mask.bool()
    z1 = z.masked_fill(~m[:, None, :], -1e30)
    z2 = z.transpose(-2, -1).masked_fill(~m[:, None, :], -1e30)
    y = torch.arange(z.shape[1]).expand(z.shape[0], -1)
    ce = F.cross_entropy(z1.transpose(1, 2), y, reduction="none") + F.cross_entropy(z2.transpose(1, 2), y, reduction="none")
    return (torch.where(m, ce, 0.0).sum(1) / m.sum(1) / 2).mean()
