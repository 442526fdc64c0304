import torch
import torch.nn.functional as F


def patch_affinity(tokens, patches):
    """How close is each patch to each token: minus the squared distance."""
    t2 = tokens.square().sum(-1, keepdim=True)
    p2 = patches.square().sum(-1).unsqueeze(-2)
    return 2 * tokens @ patches.mT - t2 - p2


def local_loss(patches, tokens, token_mask, temperature):
    aff = patch_affinity(tokens, patches)
    lo, hi = aff.amin(-1, keepdim=True), aff.amax(-1, keepdim=True)
    aff = (aff - lo) / (hi - lo)
    aff = torch.where(aff >= 1 / patches.shape[1], aff, 0.0)
    aff = aff / aff.sum(-1, keepdim=True)

    grouped = F.normalize(aff @ patches, dim=-1)
    tokens = F.normalize(tokens, dim=-1)
    logits = grouped @ tokens.mT / temperature

    ignore = ~token_mask.bool()
    p_col = logits.masked_fill(ignore[:, None, :], -torch.inf).log_softmax(2).diagonal(dim1=1, dim2=2)
    p_row = logits.masked_fill(ignore[:, :, None], -torch.inf).log_softmax(1).diagonal(dim1=1, dim2=2)
    nll = -(p_col + p_row).masked_fill(ignore, 0.0) / 2
    return (nll.sum(1) / token_mask.sum(1)).mean()
