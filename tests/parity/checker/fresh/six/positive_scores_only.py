"""Word conditioned visual vectors; weights are the positive part of the scores."""
import torch
import torch.nn.functional as F


def word_visual_vectors(words: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    scores = torch.relu(words @ patches.mT)
    return scores @ patches / scores.sum(-1, keepdim=True).clamp_min(1e-6)


def finegrained_contrastive(patches, words, caption_lengths, logit_scale):
    ctx = F.normalize(word_visual_vectors(words, patches), dim=-1)
    words = F.normalize(words, dim=-1)
    losses = []
    for i, n in enumerate(caption_lengths):
        sim = logit_scale.exp() * ctx[i, :n] @ words[i, :n].T
        lab = torch.arange(int(n), device=sim.device)
        losses.append(0.5 * F.cross_entropy(sim, lab) + 0.5 * F.cross_entropy(sim.T, lab))
    return sum(losses) / len(losses)
