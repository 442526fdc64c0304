from functools import partial

import torch


def _nll(z, cols):
    z = z.masked_fill(cols, float("-inf"))
    z = z - z.amax(-1, keepdim=True).detach().clamp(min=-1e30)
    return torch.log(z.exp().sum(-1).clamp(min=1e-300)) - z.diagonal(dim1=-2, dim2=-1)


def _loss(text, image, text_pad, inv_tau, sigma, reduction):
    unit = partial(torch.nn.functional.normalize, dim=-1)
    s = text @ image.transpose(-2, -1)
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= (1 / image.shape[-2] if sigma is None else sigma))
    c, t = unit(s @ image), unit(text)
    cols = text_pad.unsqueeze(-2)
    nll = _nll(inv_tau * c @ t.transpose(-2, -1), cols) + _nll(inv_tau * t @ c.transpose(-2, -1), cols)
    per = nll.masked_fill(text_pad, 0).sum(-1) / (~text_pad).sum(-1).clamp(min=1) / 2
    return per.mean() if reduction == "mean" else per


def build(sigma=None, reduction="mean"):
    return partial(_loss, sigma=sigma, reduction=reduction)
