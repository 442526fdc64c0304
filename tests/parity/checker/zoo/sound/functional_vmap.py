"""torch.func.vmap over samples; the caption's mask multiplies probabilities."""

import torch
from torch.func import vmap

EXPECT = {
    "target": "batched_loss",
    "verdict": "eq6",
    "call": ["t", "v", "mask_float", "theta"],
    "returns": {"local": "fine"},
}


def sphere(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True).clamp(min=1e-24))


def single(words, patches, keep, log_scale):
    e = words @ patches.T
    low, high = e.amin(1, keepdim=True), e.amax(1, keepdim=True)
    flat = low == high
    e = torch.where(flat, 1.0, (e - low) / torch.where(flat, 1.0, high - low))
    e = torch.where(e >= 1 / patches.shape[0], e, 0.0)
    c = sphere((e / e.sum(1, keepdim=True)) @ patches)
    z = torch.exp(log_scale) * c @ sphere(words).T
    weight = torch.exp(z - z.amax().detach())
    rows = (weight * keep[None, :]).sum(1)
    cols = (weight * keep[:, None]).sum(0)
    rows, cols = (torch.where(keep > 0, x, 1.0) for x in (rows, cols))
    nll = 0.5 * (rows.log() + cols.log()) - torch.where(keep > 0, (z - z.amax().detach()).diagonal(), 0.0)
    return nll.sum() / keep.sum().clamp(min=1)


def batched_loss(words, patches, keep, log_scale):
    return {"local": vmap(single, in_dims=(0, 0, 0, None))(words, patches, keep, log_scale).mean()}
