import torch


def loss(*, visual, textual, textual_mask, log_temperature):
    """Local term; keyword arguments only, so that nobody swaps the towers."""
    scores = torch.einsum("b l d, b p d -> b l p", textual, visual)
    scores = scores - scores.amin(-1, keepdim=True)
    scores = scores / scores.amax(-1, keepdim=True)
    scores = scores.masked_fill(scores < 1 / visual.shape[1], 0.0)
    context = torch.einsum("b l p, b p d -> b l d", scores, visual)
    a = context * context.square().sum(-1, keepdim=True).rsqrt()
    b = textual * textual.square().sum(-1, keepdim=True).clamp_min(1e-24).rsqrt()
    logits = torch.einsum("b j d, b k d -> b j k", a, b) * torch.exp(-log_temperature)
    drop = ~textual_mask
    logits = logits.masked_fill(drop[:, None], -1e16).masked_fill(drop[..., None], -1e16)
    nll = -(logits.log_softmax(-1) + logits.log_softmax(-2)).diagonal(dim1=-2, dim2=-1)
    real = textual_mask.to(nll.dtype)
    weight = real / real.sum(-1, keepdim=True).clamp(min=1).sqrt()
    return (nll * weight).sum() / (2 * len(visual))
