"""Memory-friendly: the (B,L,P) map never exists for more than `chunk` samples."""
import torch
import torch.nn.functional as F


def _part(v, t, pad, inv_tau):
    s = torch.baddbmm(torch.zeros(1, 1, 1, dtype=v.dtype), t, v.transpose(1, 2))
    s = s.sub(s.amin(-1, keepdim=True))
    s = s.div(s.amax(-1, keepdim=True))
    s = s.where(s.ge(1 / v.shape[1]), s.new_zeros(()))
    c = F.normalize(s.bmm(v), dim=-1)
    z = c.bmm(F.normalize(t, dim=-1).transpose(1, 2)).mul(inv_tau)
    no = pad[:, None, :].expand_as(z)
    right = z.diagonal(dim1=1, dim2=2)
    row = z.masked_fill(no, -1e30).logsumexp(2) - right
    col = z.masked_fill(no.transpose(1, 2), -1e30).logsumexp(1) - right
    return (row + col).masked_fill(pad, 0).sum(1).div(2).div((~pad).sum(1))


def sparc_fine(v, t, pad, inv_tau, chunk=3):
    parts = [_part(a, b, p, inv_tau) for a, b, p in zip(v.split(chunk), t.split(chunk), pad.split(chunk))]
    return torch.cat(parts).mean()
