"""SPARC fine-grained loss, one caption at a time. Slow but easy to check against the paper."""
import torch
import torch.nn.functional as F


def _one_pair(words, patches, inv_tau):
    sims = words @ patches.t()
    n_patches = patches.size(0)
    smallest, largest = sims.min(dim=1, keepdim=True)[0], sims.max(dim=1, keepdim=True)[0]
    scaled = (sims - smallest) / (largest - smallest)
    scaled = scaled * (scaled >= 1 / n_patches).to(scaled.dtype)
    weights = scaled / scaled.sum(dim=1, keepdim=True)
    vis = F.normalize(weights @ patches, dim=1)
    txt = F.normalize(words, dim=1)
    logits = vis @ txt.t() * inv_tau
    target = torch.arange(words.size(0), device=words.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


def fine_loss(words, patches, is_pad, inv_tau):
    """words (B,L,D), patches (B,P,D), is_pad (B,L) True where the caption is padding, inv_tau the logit scale."""
    total = patches.new_zeros(())
    for i in range(words.size(0)):
        real = words[i][~is_pad[i]]
        if real.size(0) == 0:
            continue
        total = total + _one_pair(real, patches[i], inv_tau)
    return total / words.size(0)
