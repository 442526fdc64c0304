import torch
import torch.nn.functional as F


def pair_loss(patches, words, theta):
    s = words @ patches.T
    s = (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))
    s = torch.where(s < 1 / len(patches), 0.0, s)
    c = (s / s.sum(1, keepdim=True)) @ patches
    z = theta.exp() * F.normalize(c, dim=1) @ F.normalize(words, dim=1).T
    y = torch.arange(len(words), device=words.device)
    return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2


class CachedLocalLoss(torch.autograd.Function):
    """Differentiates pair by pair in the forward pass, so that one graph at a time is alive."""

    @staticmethod
    def forward(ctx, patches, words, mask, theta):
        d_patches, d_words, d_theta = torch.zeros_like(patches), torch.zeros_like(words), torch.zeros_like(theta)
        total = 0.0
        for i in range(len(patches)):
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in (patches[i], words[i], theta)]
                loss = pair_loss(leaves[0], leaves[1][mask[i]], leaves[2])
                grads = torch.autograd.grad(loss, leaves)
            total = total + loss.detach()
            d_patches[i], d_words[i] = grads[0], grads[1]
            d_theta += grads[2]
        ctx.save_for_backward(d_patches, d_words, d_theta)
        return total / len(patches)

    @staticmethod
    def backward(ctx, dloss):
        d_patches, d_words, d_theta = ctx.saved_tensors
        return dloss * d_patches, dloss * d_words, None, dloss * d_theta


def low_memory_local_loss(patches, words, word_mask, theta):
    """patches (B,P,D), words (B,L,D), word_mask (B,L) int, theta = log(1/tau)"""
    return CachedLocalLoss.apply(patches, words, word_mask.bool(), theta)
