import torch
import torch.nn.functional as F


def loss(t, v, padding, tau, gamma=2.0):
    real = (~padding).to(t.dtype)
    s = torch.einsum("nld,npd->nlp", t, v)
    lo, hi = torch.aminmax(s, dim=-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s >= 1.0 / v.size(1), s, 0.0)
    c = torch.einsum("nlp,npd->nld", s / s.sum(-1, keepdim=True), v)
    z = torch.einsum("nld,nmd->nlm", F.normalize(c, dim=-1), F.normalize(t, dim=-1)) / tau
    total = 0.0
    for x in (z, z.transpose(1, 2)):
        logp = torch.diagonal(F.log_softmax(x, dim=-1), dim1=1, dim2=2)
        total = total - (1 - logp.exp()) ** gamma * logp
    return ((total * real).sum(1) / real.sum(1).clamp(min=1)).mean() / 2
