import torch
import torch.nn.functional as F


def fine_loss(patch_features, token_features, token_mask, logit_scale):
    """Contrast every word with the groups of all the words of the batch."""
    sim = token_features @ patch_features.mT
    mn, mx = sim.aminmax(dim=-1, keepdim=True)
    sim = (sim - mn) / (mx - mn)
    sim = torch.where(sim < 1 / patch_features.shape[1], 0.0, sim)
    grouped = sim @ patch_features
    grouped, words = grouped[token_mask], token_features[token_mask]          # (N,D) both
    logits = logit_scale * F.normalize(grouped, dim=-1) @ F.normalize(words, dim=-1).T
    labels = torch.arange(len(logits))
    per = F.cross_entropy(logits, labels, reduction="none") + F.cross_entropy(logits.T, labels, reduction="none")
    weight = (token_mask / token_mask.sum(1, keepdim=True))[token_mask] / len(token_mask)
    return (per * weight).sum() / 2
