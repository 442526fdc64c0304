import torch
from torch.func import vmap


def _one(v, t, m, scale):
    s = t @ v.T
    s = s - s.amin(1, keepdim=True)
    s = s / s.amax(1, keepdim=True)
    s = torch.where(s >= 1 / v.shape[0], s, 0.0)
    c = s @ v
    c = c / torch.linalg.norm(c, dim=1, keepdim=True)
    u = t / torch.linalg.norm(t, dim=1, keepdim=True)
    z = scale * c @ u.T
    z = torch.where(m[None, :] & m[:, None], z, -1e30)
    nll = torch.logsumexp(z, 0) + torch.logsumexp(z, 1) - 2 * torch.diagonal(z)
    return torch.where(m, nll, 0.0).sum() / (2 * m.sum().clamp(min=1))


def batch_loss(v, t, mask, theta):
    return vmap(_one, in_dims=(0, 0, 0, None))(v, t, mask, theta.exp()).mean()
