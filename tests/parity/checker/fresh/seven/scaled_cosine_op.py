import torch
import torch.nn.functional as F


class ScaledCosine(torch.autograd.Function):
    """scale * a b', with the product kept for the backward pass instead of being formed again."""

    @staticmethod
    def forward(ctx, a, b, scale):
        cos = a @ b.transpose(1, 2)
        ctx.save_for_backward(a, b, scale, cos)
        return scale * cos

    @staticmethod
    def backward(ctx, dz):
        a, b, scale, cos = ctx.saved_tensors
        dcos = scale * dz
        return dcos @ b, dcos.transpose(1, 2) @ a, (dz * cos).mean().reshape(scale.shape)


def fg_contrastive(patches, tokens, lens, logit_scale):
    """patches (B,P,D), tokens (B,L,D), lens (B,), logit_scale = 1/tau as a tensor"""
    sim = tokens @ patches.transpose(1, 2)
    sim = sim - sim.amin(dim=2, keepdim=True)
    sim = sim / sim.amax(dim=2, keepdim=True)
    sim = F.relu(sim) * (sim >= 1.0 / patches.shape[1])
    sim = sim / sim.sum(dim=2, keepdim=True)
    groups = F.normalize(sim @ patches, dim=2)
    z = ScaledCosine.apply(groups, F.normalize(tokens, dim=2), logit_scale)

    valid = torch.arange(z.shape[1], device=z.device)[None] < lens[:, None]
    lse_rows = z.masked_fill(~valid[:, None], -float("inf")).logsumexp(dim=2)
    lse_cols = z.masked_fill(~valid[:, :, None], -float("inf")).logsumexp(dim=1)
    nll = 0.5 * (lse_rows + lse_cols) - torch.diagonal(z, dim1=1, dim2=2)
    return (nll.masked_fill(~valid, 0.0).sum(1) / valid.sum(1)).mean()
