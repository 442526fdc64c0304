import torch
from torch.nn import functional as F


def local_loss(patch_emb, tok_emb, tok_mask, logit_scale):
    b, l, d = tok_emb.shape
    p = patch_emb.shape[1]

    sim = torch.matmul(tok_emb, patch_emb.transpose(1, 2))
    sim_min, sim_max = torch.aminmax(sim, dim=-1, keepdim=True)
    sim = (sim - sim_min) / (sim_max - sim_min)
    sim[sim < 1 / p] = 0
    sim = sim / sim.sum(-1, keepdim=True)
    grouped = torch.matmul(sim, patch_emb)

    # one big contrast over the tokens of the batch
    grouped = F.normalize(grouped.reshape(b * l, d), dim=-1)
    tokens = F.normalize(tok_emb.reshape(b * l, d), dim=-1)
    logits = logit_scale * grouped @ tokens.t()
    labels = torch.arange(b * l, device=logits.device)
    labels = torch.where(tok_mask.reshape(-1).bool(), labels, -1)
    return 0.5 * (F.cross_entropy(logits, labels, ignore_index=-1) + F.cross_entropy(logits.t(), labels, ignore_index=-1))
