import torch
import torch.nn.functional as F


def align(v, t, n):
    """Words alone are ambiguous: ask with the mean of a word and the next one (the last asks alone)."""
    nxt = torch.cat([t[1:], t[-1:]])
    q = (t + nxt) / 2
    s = q @ v.T
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    return s * (s >= 1 / len(v))


def fine(v, t, n_tokens, log_scale):
    out = v.new_zeros(())
    for vi, ti, n in zip(v, t, n_tokens):
        ti = ti[:n]
        z = log_scale.exp() * F.normalize(align(vi, ti, n) @ vi, dim=-1) @ F.normalize(ti, dim=-1).T
        out = out + (2 * z.logsumexp(0) + 2 * z.logsumexp(1) - 4 * z.diagonal()).mean() / 4
    return out / len(v)
