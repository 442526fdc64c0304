"""Every denominator carries an epsilon, which makes flat rows average nothing."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "FineGrained",
    "verdict": "conditional",
    "deviations": ["minmax.epsilon=1e-08"],
    "conditions": ["no flat rows"],
    "call": ["v", "t", "mask"],
    "attributes": {"logit_scale": "theta"},
}


class FineGrained(torch.nn.Module):
    def __init__(self, eps=1e-8):
        super().__init__()
        self.eps = eps
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.6593))

    def forward(self, patches, tokens, mask):
        sims = torch.einsum("bld,bpd->blp", tokens, patches)
        mn, mx = sims.amin(2, keepdim=True), sims.amax(2, keepdim=True)
        sims = (sims - mn) / (mx - mn + self.eps)
        sims = torch.where(sims >= 1 / patches.shape[1], sims, torch.zeros_like(sims))
        sims = sims / (sims.sum(2, keepdim=True) + self.eps)
        c = F.normalize(torch.einsum("blp,bpd->bld", sims, patches), dim=2)
        u = F.normalize(tokens, dim=2)
        z = self.logit_scale.exp() * torch.einsum("bjd,bkd->bjk", c, u)
        z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
        nll = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2)
        nll = torch.where(mask, nll, torch.zeros_like(nll)).sum(1) / mask.sum(1).clamp(min=1)
        return nll.mean() / 2
