import torch
import torch.nn.functional as F


def packed_loss(patches, words, owner, scale):
    s = (words[:, None, :] * patches[owner]).sum(-1)          # (N, P)
    s = s - s.amin(1, keepdim=True)
    s = s / s.amax(1, keepdim=True)
    s = s * (s >= 1 / patches.shape[1])
    c = torch.einsum("np,npd->nd", s / s.sum(1, keepdim=True), patches[owner])
    z = scale * F.normalize(c, dim=-1) @ F.normalize(words, dim=-1).T
    z = z.masked_fill(owner[:, None] != owner[None, :], float("-inf"))
    nll = z.logsumexp(0) + z.logsumexp(1) - 2 * z.diagonal()
    count = torch.bincount(owner, minlength=len(patches)).clamp(min=1)
    return (nll / count[owner]).sum() / (2 * len(patches))
