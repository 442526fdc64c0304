import torch
import torch.nn.functional as F


def fine_grained_alignment(patches, words, word_mask, logit_scale):
    """patches (B,P,D), words (B,L,D), word_mask (B,L) bool, logit_scale = log(1/tau)"""
    words_n = F.normalize(words, dim=-1)
    affinity = torch.einsum("bld,bpd->blp", words_n, F.normalize(patches, dim=-1))
    lo = affinity.amin(-1, keepdim=True)
    hi = affinity.amax(-1, keepdim=True)
    affinity = (affinity - lo) / (hi - lo).clamp(min=1e-12)
    affinity = affinity.masked_fill(affinity < 1.0 / patches.size(1), 0.0)
    affinity = affinity / affinity.sum(-1, keepdim=True).clamp(min=1e-12)
    grouped = F.normalize(torch.einsum("blp,bpd->bld", affinity, patches), dim=-1)
    logits = logit_scale.exp() * grouped @ words_n.mT
    both = torch.stack([logits, logits.mT]).masked_fill(~word_mask[None, :, None], -torch.inf)
    nll = -both.log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(0)
    nll = torch.where(word_mask, nll, 0.0)
    return (nll.sum(1) / word_mask.sum(1).clamp(min=1)).mean()
