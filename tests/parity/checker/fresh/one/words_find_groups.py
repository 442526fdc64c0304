import torch


def grouped_visual(t, v):
    s = t @ v.transpose(-1, -2)
    s = s - s.amin(-1, keepdim=True)
    return torch.nn.functional.normalize(s, p=1, dim=-1) @ v


def fine(v, t, real, theta):
    """v (B,P,D); t (B,L,D); real (B,L) bool; theta log scale. Tokens look for their visual group."""
    c = torch.nn.functional.normalize(grouped_visual(t, v), dim=-1)
    u = torch.nn.functional.normalize(t, dim=-1)
    z = theta.exp() * torch.einsum("bjd,bkd->bjk", u, c)
    z = z.masked_fill(~real[:, None, :], -1e20)
    log_p = torch.log_softmax(z, dim=-1)
    picked = torch.diagonal(log_p, dim1=-2, dim2=-1).masked_fill(~real, 0)
    return -(picked.sum(-1) / real.sum(-1).clamp(min=1)).mean()
