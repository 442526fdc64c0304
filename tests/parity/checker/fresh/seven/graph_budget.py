import torch
import torch.nn.functional as F


def sample_loss(v, t, scale):
    a = t @ v.T
    a = (a - a.amin(1, keepdim=True)) / (a.amax(1, keepdim=True) - a.amin(1, keepdim=True))
    a = torch.where(a >= 1.0 / v.shape[0], a, torch.zeros_like(a))
    c = (a / a.sum(1, keepdim=True)) @ v
    logits = scale * F.normalize(c, dim=1) @ F.normalize(t, dim=1).T
    labels = torch.arange(t.shape[0], device=t.device)
    return 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))


def local_loss(image_patches, text_tokens, text_mask, inverse_temperature, max_graphs=32):
    """One sample at a time; keeps the memory of large batches in bounds."""
    losses = []
    for i in range(image_patches.shape[0]):
        words = text_tokens[i, text_mask[i]]
        with torch.set_grad_enabled(torch.is_grad_enabled() and i < max_graphs):
            losses.append(sample_loss(image_patches[i], words, inverse_temperature))
    return torch.stack(losses).mean()
