"""No threshold, and weights from detached embeddings."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "PatchGrouping",
    "verdict": "explained",
    "deviations": ["similarity.detached", "threshold.absent"],
    "call": ["v_bdhw", "t", "mask_int", "theta"],
}


class PatchGrouping(torch.nn.Module):
    def group(self, q, kv):
        s = torch.einsum("bld,bpd->blp", q.detach(), kv.detach())
        lo, hi = s.aminmax(dim=-1, keepdim=True)
        w = torch.where(hi > lo, (s - lo) / torch.where(hi > lo, hi - lo, 1.0), 1.0)
        return torch.einsum("blp,bpd->bld", w / w.sum(-1, keepdim=True), kv)

    def forward(self, grid, words, mask, log_scale):
        patches = grid.flatten(2).permute(0, 2, 1)
        ctx = self.group(words, patches)
        loss = 0.0
        for c, w, n in zip(ctx, words, mask.sum(1)):
            if n > 0:
                z = log_scale.exp() * F.normalize(c[:n], dim=-1) @ F.normalize(w[:n], dim=-1).T
                y = torch.arange(int(n))
                loss = loss + F.cross_entropy(z, y) + F.cross_entropy(z.T, y)
        return loss / (2 * len(words))
