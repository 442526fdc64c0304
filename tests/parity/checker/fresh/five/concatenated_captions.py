import torch
import torch.nn.functional as F


def fine_loss(tokens, caption_index, patches, log_inv_tau):
    """All captions in one row: tokens (N,D), caption_index (N,) says whose, patches (B,P,D)."""
    n_patches, n_captions = patches.size(1), patches.size(0)
    mine = patches.index_select(0, caption_index)             # (N,P,D)
    s = (mine * tokens[:, None]).sum(-1)
    floor = s.min(-1, keepdim=True).values
    s = (s - floor) / (s.max(-1, keepdim=True).values - floor)
    s = s * (s >= 1.0 / n_patches)
    groups = (s[..., None] * mine).sum(1) / s.sum(-1, keepdim=True)
    logits = F.cosine_similarity(groups[:, None], tokens[None], dim=-1) * log_inv_tau.exp()
    logits = logits.masked_fill(caption_index[:, None] != caption_index[None], float("-inf"))
    labels = torch.arange(len(tokens))
    nll = F.cross_entropy(logits, labels, reduction="none") + F.cross_entropy(logits.T, labels, reduction="none")
    per_caption = torch.zeros(n_captions, dtype=nll.dtype).index_add(0, caption_index, nll)
    return (per_caption / torch.bincount(caption_index, minlength=n_captions)).mean() / 2
