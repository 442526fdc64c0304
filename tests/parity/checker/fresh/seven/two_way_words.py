import torch
import torch.nn.functional as F


def info_nce(query, key, lengths, scale):
    """mean over captions of the mean over words"""
    out = []
    for q, k, n in zip(query, key, lengths):
        logits = scale * q[:n] @ k[:n].t()
        out.append(F.cross_entropy(logits, torch.arange(n, device=q.device)))
    return sum(out) / len(out)


def word_patch_loss(words, patches, lengths, log_scale):
    sim = torch.einsum('bwd,bpd->bwp', words, patches)
    sim = sim - sim.amin(2, keepdim=True)
    sim = sim / sim.amax(2, keepdim=True)
    sim = sim * (sim >= 1.0 / patches.shape[1])
    attended = torch.einsum('bwp,bpd->bwd', sim / sim.sum(2, keepdim=True), patches)

    attended, words = F.normalize(attended, dim=2), F.normalize(words, dim=2)
    scale = log_scale.exp()
    image_to_text = info_nce(attended, words, lengths, scale)
    text_to_image = info_nce(attended, words, lengths, scale)
    return (image_to_text + text_to_image) / 2
