import torch
import torch.nn.functional as F


def safe_scores(q, k, limit=1000.0):
    """dot products, kept in a range that bf16 resolves"""
    return torch.clamp(q @ k.transpose(-1, -2), -limit, limit)


def alignment_loss(q, k, q_pad, tau):
    # q: text (B, T, C), k: image (B, S, C), q_pad True = padding
    s = safe_scores(q, k)
    mn, mx = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - mn) / (mx - mn)
    s = torch.where(s >= 1.0 / k.shape[1], s, 0.0)
    s = s / s.sum(-1, keepdim=True)
    o = F.normalize(s @ k, dim=-1)
    q = F.normalize(q, dim=-1)
    logits = torch.einsum("bic,bjc->bij", o, q) / tau
    lens = (~q_pad).sum(-1)
    loss = 0.0
    for x in (logits, logits.transpose(1, 2)):
        x = x.masked_fill(q_pad[:, None, :], -torch.inf)
        nll = x.logsumexp(-1) - logits.diagonal(dim1=1, dim2=2)
        loss = loss + nll.masked_fill(q_pad, 0.0).sum(-1) / lens
    return loss.mean() / 2
