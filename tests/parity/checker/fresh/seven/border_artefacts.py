import torch
import torch.nn.functional as F


def inner_mask(side, device):
    inside = torch.zeros(side, side, dtype=torch.bool, device=device)
    inside[1:-1, 1:-1] = True
    return inside.flatten()


def grid_token_loss(fmap_tokens, word_tokens, word_mask, temperature):
    """
    fmap_tokens (B, P, D): square grid of patches.  Zero padding of the stem leaves artefacts on the outer ring.
    word_tokens (B, L, D), word_mask (B, L)
    """
    b, p, d = fmap_tokens.shape
    side = int(p ** 0.5)
    assert side ** 2 == p, "square grid expected"
    inside = inner_mask(side, fmap_tokens.device)[None, :, None]
    fmap_tokens = torch.where(inside, fmap_tokens, fmap_tokens.detach())

    sim = torch.einsum("bld,bpd->blp", word_tokens, fmap_tokens)
    lo, hi = sim.amin(2, keepdim=True), sim.amax(2, keepdim=True)
    sim = (sim - lo) / (hi - lo)
    sim = sim * (sim >= 1.0 / p)
    grouped = torch.einsum("blp,bpd->bld", sim / sim.sum(2, keepdim=True), fmap_tokens)
    logits = torch.einsum("bld,bmd->blm", F.normalize(grouped, dim=2), F.normalize(word_tokens, dim=2)) / temperature

    mask = word_mask > 0
    bias = torch.where(mask, 0.0, float("-inf")).to(logits.dtype)
    row = torch.logsumexp(logits + bias[:, None, :], dim=2)
    col = torch.logsumexp(logits + bias[:, :, None], dim=1)
    nll = torch.where(mask, (row + col) / 2 - logits.diagonal(dim1=1, dim2=2), 0.0)
    return (nll.sum(1) / mask.sum(1)).mean()
