import torch
import torch.masked
import torch.nn.functional as F


def word_region_loss(regions, words, word_mask, theta):
    """
    regions    (B, D, P)
    words      (B, D, L)
    word_mask  (B, L) bool, True for words
    theta      log of the inverse temperature
    """
    sim = words.transpose(1, 2).bmm(regions)
    lo, hi = sim.aminmax(dim=-1, keepdim=True)
    sim = sim.sub(lo).div(hi - lo)
    gate = sim.ge(1 / regions.size(2))
    w = sim.mul(gate)
    w = w.div(w.sum(-1, keepdim=True))
    c = regions.bmm(w.transpose(1, 2))                           # (B, D, L)

    z = F.normalize(c, dim=1).transpose(1, 2).bmm(F.normalize(words, dim=1)).mul(theta.exp())
    both = word_mask.unsqueeze(1) & word_mask.unsqueeze(2)
    r = torch.masked.log_softmax(z, 2, mask=both).diagonal(dim1=1, dim2=2)
    k = torch.masked.log_softmax(z, 1, mask=both).diagonal(dim1=1, dim2=2)
    score = torch.where(word_mask, r + k, 0.0).sum(1) / word_mask.sum(1)
    return score.mean().div(-2)
