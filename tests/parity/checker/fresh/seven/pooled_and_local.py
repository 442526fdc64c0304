import torch
import torch.nn.functional as F


def _pool_text(tokens, mask):
    tokens = F.normalize(tokens, dim=-1)
    mask = mask.unsqueeze(-1).to(tokens)
    return (tokens * mask).sum(1) / mask.sum(1)


def _ce(logits):
    labels = torch.arange(logits.shape[-1], device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.mT, labels)) / 2


def _local(v, t, scale):
    h = t @ v.mT
    h = (h - h.amin(1, keepdim=True)) / (h.amax(1, keepdim=True) - h.amin(1, keepdim=True))
    h = torch.where(h >= 1 / v.shape[0], h, torch.zeros_like(h))
    c = (h / h.sum(1, keepdim=True)) @ v
    return _ce(scale * F.normalize(c, dim=-1) @ F.normalize(t, dim=-1).mT)


def training_loss(text_tokens, image_tokens, text_mask, temperature, alpha=0.5, beta=1.0):
    """alpha, beta: weights of the pooled and of the local term"""
    scale = 1.0 / temperature
    image = F.normalize(image_tokens.mean(1), dim=-1)
    text = F.normalize(_pool_text(text_tokens, text_mask), dim=-1)
    loss_pooled = _ce(scale * image @ text.mT)
    loss_local = sum(_local(v, t[m > 0], scale) for v, t, m in zip(image_tokens, text_tokens, text_mask))
    loss_local = loss_local / len(image_tokens)
    return {"total": alpha * loss_pooled + beta * loss_local, "pooled": loss_pooled, "local": loss_local}
