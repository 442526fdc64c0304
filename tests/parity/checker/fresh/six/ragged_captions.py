import torch


def info_nce_diag(sim):
    return torch.logsumexp(sim, dim=-1) - torch.diagonal(sim)


def sparc_ragged(captions: list[torch.Tensor], images: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """Captions come as a list of (n_i, d) tensors, no padding anywhere."""
    losses = []
    for words, patches in zip(captions, images):
        scores = words @ patches.T
        low = scores.min(dim=1, keepdim=True).values
        high = scores.max(dim=1, keepdim=True).values
        scores = (scores - low) / (high - low)
        scores = torch.where(scores >= 1 / patches.shape[0], scores, torch.zeros_like(scores))
        scores = scores / scores.sum(dim=1, keepdim=True)
        visual = scores @ patches
        visual = visual / visual.norm(dim=1, keepdim=True)
        textual = words / words.norm(dim=1, keepdim=True)
        logits = visual @ textual.T / temperature
        losses.append((info_nce_diag(logits) + info_nce_diag(logits.T)).mean() / 2)
    return torch.stack(losses).mean()
