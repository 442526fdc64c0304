import torch
import torch.nn.functional as F


def sparc(tokens, patches, real, inv_tau):
    """tokens (B,L,D), patches (B,P,D), real (B,L) bool, inv_tau"""
    s = tokens @ patches.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo).clamp(min=1e-12)
    s = F.relu(s - 1 / patches.shape[1])
    c = F.normalize(s @ patches, dim=-1)
    z = inv_tau * torch.einsum("bid,bjd->bij", c, F.normalize(tokens, dim=-1))
    m = real.to(z.dtype)
    e1, e2 = (torch.exp(z - inv_tau) * m[:, None, :]).sum(2), (torch.exp(z - inv_tau) * m[:, :, None]).sum(1)
    nll = 0.5 * (torch.log(e1) + torch.log(e2)) + inv_tau - z.diagonal(dim1=1, dim2=2)
    return torch.stack([n[r].mean() for n, r in zip(nll, real)]).mean()
