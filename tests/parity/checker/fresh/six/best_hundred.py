import torch
import torch.nn.functional as F

MAX_KEPT = 100    # patches per word, for memory


def sparse_groups(words, patches):
    s = words @ patches.T
    lo = s.min(1, keepdim=True).values
    hi = s.max(1, keepdim=True).values
    s = (s - lo) / (hi - lo)
    s = torch.where(s < 1 / len(patches), 0.0, s)
    val, idx = s.topk(min(MAX_KEPT, s.shape[1]), dim=1)
    val = val / val.sum(1, keepdim=True)
    return (val.unsqueeze(-1) * patches[idx]).sum(1)


def local_loss(batch):
    """batch: dict of image_tokens (B,P,D), text_tokens (B,L,D), text_lengths (B,), tau"""
    nll = []
    for v, t, n in zip(batch["image_tokens"], batch["text_tokens"], batch["text_lengths"]):
        t = t[:n]
        z = F.normalize(sparse_groups(t, v), dim=1) @ F.normalize(t, dim=1).T / batch["tau"]
        y = torch.arange(len(t))
        nll.append((F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2)
    return sum(nll) / len(nll)
