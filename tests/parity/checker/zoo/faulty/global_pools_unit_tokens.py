"""Both losses; the global one averages embeddings that were normalised for the local one."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "SparcLosses",
    "verdict": "explained",
    "deviations": ["global.pools_normalised"],
    "call": ["v", "t", "mask"],
    "attributes": {"logit_scale": "theta"},
    "returns": {"global_loss": "global", "local_loss": "fine"},
}


class SparcLosses(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.6593))

    def forward(self, patches, tokens, mask):
        scale = self.logit_scale.exp()
        unit_patches, unit_tokens = F.normalize(patches, dim=-1), F.normalize(tokens, dim=-1)
        m = mask.unsqueeze(-1)
        image = F.normalize(unit_patches.mean(1), dim=-1)
        text = F.normalize((unit_tokens * m).sum(1) / m.sum(1).clamp(min=1), dim=-1)
        z = scale * image @ text.T
        target = torch.arange(len(z), device=z.device)
        global_loss = (F.cross_entropy(z, target) + F.cross_entropy(z.T, target)) / 2

        s = tokens @ patches.mT
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        s = torch.where(hi > lo, (s - lo) / torch.where(hi > lo, hi - lo, 1.0), 1.0)
        s = s.masked_fill(s < 1 / patches.shape[1], 0.0)
        c = F.normalize(s / s.sum(-1, keepdim=True) @ patches, dim=-1)
        z = scale * c @ unit_tokens.mT
        hide = ~mask[:, None, :]
        floor = torch.finfo(z.dtype).min
        nll = -(z.masked_fill(hide, floor).log_softmax(-1) + z.mT.masked_fill(hide, floor).log_softmax(-1))
        nll = nll.diagonal(dim1=1, dim2=2).masked_fill(~mask, 0.0)
        local_loss = (nll.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
        return {"global_loss": global_loss, "local_loss": local_loss}
