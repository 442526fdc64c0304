import torch
import torch.nn.functional as F

LIMIT = 16.0        # activations of the adapters; larger ones overflow the fp16 kernel


def region_word_loss(batch, log_scale):
    """batch: (regions (B,P,D), words (B,L,D), word_mask (B,L) uint8)"""
    regions, words, word_mask = batch
    regions = regions.clamp(-LIMIT, LIMIT)
    words = words.clamp(-LIMIT, LIMIT)
    sim = torch.einsum("bld,bpd->blp", words, regions)
    sim = sim - sim.amin(-1, keepdim=True)
    sim = sim / sim.amax(-1, keepdim=True)
    sim = torch.where(sim >= 1.0 / regions.shape[1], sim, torch.zeros_like(sim))
    sim = sim / sim.sum(-1, keepdim=True)
    grouped = torch.einsum("blp,bpd->bld", sim, regions)
    logits = log_scale.exp() * F.normalize(grouped, dim=-1) @ F.normalize(words, dim=-1).mT

    mask = word_mask.bool()
    pair = mask[:, :, None] & mask[:, None, :]
    logits = logits.masked_fill(~pair, torch.finfo(logits.dtype).min)
    log_p = logits.log_softmax(-1) + logits.log_softmax(-2)
    score = (log_p.diagonal(dim1=-2, dim2=-1).masked_fill(~mask, 0)).sum(-1) / (2 * mask.sum(-1))
    return -score.mean()
