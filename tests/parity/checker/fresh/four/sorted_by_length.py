import torch
import torch.nn.functional as F


def loss(v, t, mask, theta):
    n = mask.sum(1)
    order = n.argsort(descending=True)
    v, t, n = v[order], t[order], n[order]
    total = v.new_zeros(())
    for size in n.unique():
        if size == 0:
            continue
        pick = n == size
        x, y = v[pick], t[pick, : int(size)]
        s = torch.einsum("bld,bpd->blp", y, x)
        s = s - s.amin(-1, keepdim=True)
        s = s / s.amax(-1, keepdim=True)
        s = s * (s >= 1 / x.shape[1])
        z = theta.exp() * F.normalize(s @ x, dim=-1) @ F.normalize(y, dim=-1).mT
        nll = z.logsumexp(1) + z.logsumexp(2) - 2 * z.diagonal(dim1=1, dim2=2)
        total = total + nll.mean(1).sum() / 2
    return total / len(v)
