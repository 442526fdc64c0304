import torch
import torch.nn.functional as F


def sparc_ragged(images, captions, tau):
    assert len(images) == len(captions)
    losses = []
    for img, cap in zip(images, captions):
        if len(cap) == 0:
            losses.append(img.sum() * 0)
            continue
        scores = cap @ img.t()
        span = scores.amax(1, keepdim=True) - scores.amin(1, keepdim=True)
        scores = (scores - scores.amin(1, keepdim=True)) / span
        scores = scores * scores.ge(1 / len(img))
        groups = (scores / scores.sum(1, keepdim=True)) @ img
        z = F.cosine_similarity(groups[:, None, :], cap[None, :, :], dim=-1) / tau
        losses.append((2 * z.trace() - z.logsumexp(0).sum() - z.logsumexp(1).sum()) / (-2 * len(cap)))
    return torch.stack(losses).mean()
