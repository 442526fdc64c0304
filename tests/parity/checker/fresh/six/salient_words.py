import torch
import torch.nn.functional as F


def salience(words, mask):
    """Long word vectors carry more content: weights that sum to one over a caption."""
    norm = words.norm(dim=-1) * mask
    return norm / norm.sum(dim=-1, keepdim=True)


def weighted_local_contrast(word_features, region_features, attention_mask, logit_scale):
    mask = attention_mask.type(word_features.dtype)
    scores = word_features @ region_features.transpose(1, 2)
    mn = scores.min(2, keepdim=True).values
    mx = scores.max(2, keepdim=True).values
    scores = (scores - mn) / (mx - mn)
    scores = scores.masked_fill(scores < 1 / region_features.size(1), 0)
    context = F.normalize((scores / scores.sum(2, keepdim=True)) @ region_features, dim=2)
    words = F.normalize(word_features, dim=2)
    logits = torch.exp(logit_scale) * context @ words.transpose(1, 2)
    logits_c = logits.masked_fill(mask[:, None, :] == 0, -1e9)
    logits_w = logits.masked_fill(mask[:, :, None] == 0, -1e9)
    loss_c = logits_c.logsumexp(2) - logits.diagonal(dim1=1, dim2=2)
    loss_w = logits_w.logsumexp(1) - logits.diagonal(dim1=1, dim2=2)
    loss = (salience(word_features, mask) * (loss_c + loss_w) / 2).sum(1)
    return loss.mean(), logits.detach()
