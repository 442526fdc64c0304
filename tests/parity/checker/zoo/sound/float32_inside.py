"""Everything is cast to float32 at the door, since training runs under autocast."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "amp_safe_loss",
    "verdict": "eq6",
    "call": ["v", "t", "mask", "theta"],
    "precision": 1e-4,
}


@torch.autocast("cpu", enabled=False)
def amp_safe_loss(patches, tokens, mask, logit_scale):
    patches, tokens, mask = patches.float(), tokens.float(), mask.bool()
    s = tokens @ patches.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1 / patches.shape[1], 0.0, s)
    grouped = F.normalize((s / s.sum(-1, keepdim=True)) @ patches, dim=-1)
    tokens = F.normalize(tokens, dim=-1)
    z = logit_scale.float().exp() * grouped @ tokens.mT
    z = z.masked_fill(~mask[:, None, :] | ~mask[:, :, None], -1e30)
    nll = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2
    nll = nll.masked_fill(~mask, 0.0)
    return (nll.sum(1) / mask.sum(1).clamp(min=1)).mean()
