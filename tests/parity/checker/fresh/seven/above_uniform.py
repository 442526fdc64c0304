import torch
import torch.nn.functional as F


class SparseGrouping(torch.nn.Module):
    """tokens (B,L,D), patches (B,P,D) -> one vision embedding per token"""

    def forward(self, tokens, patches):
        sim = torch.einsum("bld,bpd->blp", tokens, patches)
        low = sim.min(-1, keepdim=True).values
        high = sim.max(-1, keepdim=True).values
        alpha = (sim - low) / (high - low)
        alpha = alpha / alpha.sum(-1, keepdim=True)
        alpha = alpha.masked_fill(alpha < 1.0 / patches.shape[1], 0.0)
        alpha = alpha / alpha.sum(-1, keepdim=True)
        return torch.einsum("blp,bpd->bld", alpha, patches)


def finegrained_loss(patches, tokens, mask, inverse_temperature, grouping=SparseGrouping()):
    grouped = F.normalize(grouping(tokens, patches), dim=-1)
    tokens = F.normalize(tokens, dim=-1)
    scores = torch.einsum("bid,bjd->bij", grouped, tokens) * inverse_temperature
    mask = mask.bool()
    neg = torch.finfo(scores.dtype).min
    l_vt = torch.logsumexp(scores.masked_fill(~mask[:, None, :], neg), dim=2)
    l_tv = torch.logsumexp(scores.masked_fill(~mask[:, :, None], neg), dim=1)
    pos = torch.einsum("bii->bi", scores)
    per_token = 0.5 * (l_vt + l_tv) - pos
    return per_token[mask].mean()
