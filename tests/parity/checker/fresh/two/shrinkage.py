import torch
import torch.nn.functional as F


def sparsify(x, sigma):
    return F.relu(x - sigma)


def loss_fn(txt, img, n_tok, theta):
    B, L, _ = txt.shape
    P = img.shape[1]
    mask = torch.arange(L)[None, :] < n_tok[:, None]
    s = torch.einsum("bld,bpd->blp", txt, img)
    s = s - s.amin(-1, keepdim=True)
    s = sparsify(s / s.amax(-1, keepdim=True), 1 / P)
    c = torch.einsum("blp,bpd->bld", s / s.sum(-1, keepdim=True), img)
    z = theta.exp() * F.cosine_similarity(c[:, :, None], txt[:, None], dim=-1)
    z = z.masked_fill(~mask[:, None, :], -torch.inf)
    zt = (theta.exp() * F.cosine_similarity(txt[:, :, None], c[:, None], dim=-1)).masked_fill(~mask[:, None, :], -torch.inf)
    d = torch.diagonal(z.log_softmax(-1) , dim1=1, dim2=2).masked_fill(~mask, 0) + torch.diagonal(zt.log_softmax(-1), dim1=1, dim2=2).masked_fill(~mask, 0)
    return -(d.sum(1) / n_tok.clamp(min=1)).sum() / (2 * B)
