"""Literal triple loop that we keep as the unit test of the fast version."""

import torch

EXPECT = {
    "target": "slow_but_sure",
    "verdict": "eq6",
    "call": ["x=v", "y=t", "m=mask_int", "s=scale"],
}


def cosine(a, b):
    return torch.dot(a, b) / torch.sqrt(torch.dot(a, a) * torch.dot(b, b))


def slow_but_sure(x, y, m, s):
    total = 0.0
    for i in range(x.shape[0]):
        real = [j for j in range(y.shape[1]) if m[i, j] > 0]
        grouped = {}
        for j in real:
            row = torch.stack([torch.dot(y[i, j], x[i, k]) for k in range(x.shape[1])])
            lo, hi = torch.amin(row), torch.amax(row)
            if lo == hi:
                grouped[j] = x[i].mean(0)
                continue
            row = (row - lo) / (hi - lo)
            row = row * (row >= 1.0 / len(row))
            grouped[j] = ((row / row.sum()).unsqueeze(1) * x[i]).sum(0)
        caption = 0.0
        for j in real:
            up = torch.logsumexp(torch.stack([s * cosine(grouped[j], y[i, k]) for k in real]), 0)
            down = torch.logsumexp(torch.stack([s * cosine(grouped[k], y[i, j]) for k in real]), 0)
            caption = caption + up + down - 2 * s * cosine(grouped[j], y[i, j])
        if real:
            total = total + caption / (2 * len(real))
    return total / x.shape[0]
