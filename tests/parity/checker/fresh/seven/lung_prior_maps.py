import torch
import torch.nn.functional as F


def centre_prior(side, width, like):
    x = torch.linspace(-1, 1, side, dtype=like.dtype, device=like.device)
    prior = torch.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * width ** 2))
    return prior / prior.max()


def anatomical_local_loss(patches, tokens, token_mask, tau, width=0.8):
    """Findings lie in the lungs. Square images only."""
    b, p, d = patches.shape
    side = int(p ** 0.5)
    assert side * side == p
    maps = torch.einsum("bld,bpd->blp", tokens, patches)
    lo, hi = maps.amin(-1, keepdim=True), maps.amax(-1, keepdim=True)
    maps = ((maps - lo) / (hi - lo)).view(b, -1, side, side)
    maps = (maps * centre_prior(side, width, maps)).flatten(2)
    maps = maps * (maps >= 1.0 / p)
    maps = maps / maps.sum(-1, keepdim=True)
    c = torch.einsum("blp,bpd->bld", maps, patches)

    mask = token_mask.bool()
    z = F.normalize(c, dim=-1) @ F.normalize(tokens, dim=-1).transpose(1, 2) / tau
    z = z.masked_fill(~(mask[:, :, None] & mask[:, None, :]), -1e9)
    nll = -(z.log_softmax(2) + z.log_softmax(1)).diagonal(dim1=1, dim2=2) / 2
    return (torch.where(mask, nll, 0.0).sum(1) / mask.sum(1)).mean()
