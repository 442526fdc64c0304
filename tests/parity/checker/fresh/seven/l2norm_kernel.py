import torch
import torch.nn.functional as F


class L2Norm(torch.autograd.Function):
    """One pass over memory; the triton version has the same signature."""

    @staticmethod
    def forward(ctx, x):
        inv = x.pow(2).sum(-1, keepdim=True).rsqrt()
        ctx.save_for_backward(x, inv)
        return x * inv

    @staticmethod
    def backward(ctx, dy):
        x, inv = ctx.saved_tensors
        return inv * (dy - x * (dy * x).sum(-1, keepdim=True) * inv)


l2norm = L2Norm.apply


def local_sparc(image_tokens, text_tokens, text_mask, logit_scale):
    """logit_scale: 1 / temperature"""
    sim = text_tokens @ image_tokens.transpose(-1, -2)
    sim = sim - sim.amin(-1, keepdim=True)
    sim = sim / sim.amax(-1, keepdim=True)
    sim = torch.where(sim >= 1 / sim.shape[-1], sim, sim.new_zeros(()))
    grouped = (sim / sim.sum(-1, keepdim=True)) @ image_tokens
    z = logit_scale * l2norm(grouped) @ l2norm(text_tokens).transpose(-1, -2)

    off = ~text_mask
    target = torch.arange(z.shape[-1], device=z.device).expand(z.shape[:2]).masked_fill(off, -100)
    ce = F.cross_entropy(z.masked_fill(off[:, :, None], -1e9), target, reduction="none")
    ce = ce + F.cross_entropy(z.transpose(1, 2).masked_fill(off[:, :, None], -1e9), target, reduction="none")
    return 0.5 * (ce.sum(1) / text_mask.sum(1)).mean()
