import torch
import torch.nn.functional as F


def loss_fine(V, T, M, theta):
    """V (B,P,D) patches, T (B,L,D) tokens, M (B,L) bool, theta log inverse temperature"""
    S = T @ V.mT
    lo, hi = S.amin(-1, keepdim=True), S.amax(-1, keepdim=True)
    gate = (S - lo) / (hi - lo) >= 1 / V.shape[1]
    W = torch.where(gate, S, 0.0)
    W = W / W.abs().sum(-1, keepdim=True)
    C = F.normalize(W @ V, dim=-1)
    U = F.normalize(T, dim=-1)
    Z = theta.exp() * C @ U.mT
    K = M[:, None, :].expand_as(Z)
    Y = torch.stack((Z, Z.mT), 1).masked_fill(~K[:, None], -torch.inf)
    N = -Y.log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(1)
    return (N.masked_fill(~M, 0).sum(-1) / M.sum(-1)).mean()
