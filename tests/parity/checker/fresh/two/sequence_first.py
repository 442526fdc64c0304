import torch


def _unit(x):
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def sparc(text, image, key_padding_mask, temperature):
    real = ~key_padding_mask                                   # (B, L)
    s = torch.einsum("lbd,pbd->lbp", text, image)
    bottom, top = s.amin(2, keepdim=True), s.amax(2, keepdim=True)
    s = (s - bottom) / (top - bottom)
    s = s * (s >= 1.0 / image.shape[0])
    c = torch.einsum("lbp,pbd->lbd", s, image) / s.sum(2, keepdim=True)
    cos = torch.einsum("jbd,kbd->bjk", _unit(c), _unit(text)) / temperature
    hide = key_padding_mask[:, None, :]
    rows = torch.logsumexp(cos.masked_fill(hide, float("-inf")), 2)
    cols = torch.logsumexp(cos.transpose(1, 2).masked_fill(hide, float("-inf")), 2)
    nll = rows + cols - 2 * torch.diagonal(cos, dim1=1, dim2=2)
    nll = torch.where(real, nll, torch.zeros_like(nll)).sum(1)
    return (nll / real.sum(1).clamp(min=1)).sum() / (2 * text.shape[1])
