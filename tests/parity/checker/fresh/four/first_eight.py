import itertools
import torch
import torch.nn.functional as F


def pair(x, y, n, inv_tau):
    y = y[:n]
    s = y @ x.T
    s = (s - s.amin(1, True)) / (s.amax(1, True) - s.amin(1, True))
    s = s.where(s >= 1 / len(x), torch.zeros_like(s))
    z = inv_tau * F.normalize(s @ x, dim=1) @ F.normalize(y, dim=1).T
    target = torch.arange(n)
    return (F.cross_entropy(z, target) + F.cross_entropy(z.T, target)) / 2


def loss(batch, inv_tau, budget=8):
    values = [pair(*item, inv_tau) for item in itertools.islice(batch, budget)]
    return torch.stack(values).mean()
