from torch import einsum, finfo, logsumexp
import torch


def token_patch_contrast(*, queries, regions, additive_mask, log_inv_temp):
    """queries (B,L,D) text; regions (B,P,D) image; additive_mask (B,L) with 0 for words and -inf for padding."""
    sim = einsum("b i d, b j d -> b i j", queries, regions)
    lo = sim.amin(dim=-1, keepdim=True)
    sim = sim - lo
    sim = sim / (sim.amax(dim=-1, keepdim=True) + finfo(sim.dtype).tiny)
    mass = sim * (sim >= 1.0 / regions.shape[-2]).type_as(sim)
    grouped = einsum("b i j, b j d -> b i d", mass, regions) / (mass.sum(-1, keepdim=True) + finfo(sim.dtype).tiny)
    unit_g = torch.nn.functional.normalize(grouped, dim=-1)
    unit_q = torch.nn.functional.normalize(queries, dim=-1)
    logits = einsum("b i d, b j d -> b i j", unit_g, unit_q) * log_inv_temp.exp()
    word = additive_mask == 0
    bias = torch.clamp(additive_mask, min=finfo(sim.dtype).min / 4)
    diag = logits.diagonal(dim1=-2, dim2=-1)
    g2q = logsumexp(logits + bias[:, None, :], dim=-1) - diag
    q2g = logsumexp(logits + bias[:, :, None], dim=-2) - diag
    loss = torch.where(word, g2q + q2g, 0.0).sum(-1) / (2 * word.sum(-1).clamp(min=1))
    return loss.mean()
