import torch


def unit(x):
    return x * (x * x).sum(-1, keepdim=True).pow(-0.5)


def word_region_loss(region_emb, word_emb, attn, scale):
    """attn: (B,L,1) float, 1 for words"""
    attn = attn[..., 0]
    B, L = attn.shape
    R = region_emb.shape[1]
    out = []
    score = word_emb.reshape(B, L, 1, -1).mul(region_emb.reshape(B, 1, R, -1)).sum(-1)
    score = score - score.min(-1).values.unsqueeze(-1)
    score = score / score.max(-1).values.unsqueeze(-1)
    score = torch.where(score.lt(1 / R), 0 * score, score)
    ctx = unit((score.unsqueeze(-1) * region_emb.unsqueeze(1)).sum(2))
    word = unit(word_emb)
    neg = (1 - attn) * -1e12
    for a, b in ((ctx, word), (word, ctx)):
        lp = ((a.unsqueeze(2) * b.unsqueeze(1)).sum(-1) * scale + neg.unsqueeze(1)).log_softmax(2)
        nll = -lp.gather(2, torch.arange(L).view(1, L, 1).expand(B, L, 1)).squeeze(2)
        nll = torch.where(attn > 0, nll, torch.zeros_like(nll))
        out.append((nll.sum(1) / attn.sum(1)).sum() / B)
    return (out[0] + out[1]) / 2
