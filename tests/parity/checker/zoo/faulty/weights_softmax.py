"""Ordinary attention: softmax over patches."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "attention_pool_loss",
    "verdict": "explained",
    "deviations": ["weights.softmax"],
    "call": ["v", "t", "mask", "scale"],
}


def attention_pool_loss(patches, tokens, mask, scale):
    attn = torch.softmax(torch.bmm(tokens, patches.transpose(1, 2)), dim=-1)
    grouped = F.normalize(torch.bmm(attn, patches), dim=-1)
    tokens = F.normalize(tokens, dim=-1)
    logits = scale * torch.bmm(grouped, tokens.transpose(1, 2))
    losses = []
    for z, m in zip(logits, mask):
        z = z[m][:, m]
        if z.numel() == 0:
            losses.append(z.sum())
            continue
        y = torch.arange(len(z), device=z.device)
        losses.append(0.5 * (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)))
    return torch.stack(losses).mean()
