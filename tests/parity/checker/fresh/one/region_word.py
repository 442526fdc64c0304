import torch
import torch.nn.functional as F


def region_word_loss(regions, words, mask, scale):
    """Each region gathers its words, then regions are contrasted with their word groups inside an image.

    regions (B,P,D), words (B,L,D), mask (B,L) bool real words, scale 1/tau
    """
    sim = regions @ words.mT                                    # (B,P,L)
    lo = sim.masked_fill(~mask[:, None], torch.inf).amin(-1, keepdim=True)
    hi = sim.masked_fill(~mask[:, None], -torch.inf).amax(-1, keepdim=True)
    flat = hi == lo
    sim = torch.where(flat, 1.0, (sim - lo) / torch.where(flat, 1.0, hi - lo))
    n = mask.sum(1)[:, None, None]
    sim = torch.where((sim * n >= 1) & mask[:, None], sim, 0.0)
    group = sim @ words / sim.sum(-1, keepdim=True)
    z = scale * F.normalize(group, dim=-1) @ F.normalize(regions, dim=-1).mT
    y = torch.arange(z.shape[1], device=z.device).expand(z.shape[:2])
    return (F.cross_entropy(z.mT, y) + F.cross_entropy(z, y)) / 2
