import torch


def loss_fn(v, t, t_pad, temperature):
    """v (B,P,D); t (B,L,D); t_pad (B,L) True at padding"""
    s = torch.einsum("bld,bpd->blp", t, v)
    s = (s - s.min(-1, keepdim=True).values) / (s.max(-1, keepdim=True).values - s.min(-1, keepdim=True).values)
    s = s * (s >= 1 / s.shape[-1])
    g = torch.einsum("blp,bpd->bld", s / s.sum(-1, keepdim=True), v)
    z = torch.einsum("bld,bmd->blm", g, t) / temperature
    minus = t_pad[:, None, :].to(z.dtype) * -1e9
    a = torch.log_softmax(z + minus, -1)
    b = torch.log_softmax(z.transpose(1, 2) + minus, -1)
    nll = -(a + b).diagonal(dim1=1, dim2=2) / 2
    n = (~t_pad).sum(-1)
    return (nll.masked_fill(t_pad, 0).sum(-1) / n).mean()
