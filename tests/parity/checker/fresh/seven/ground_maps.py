import torch
import torch.nn as nn
import torch.nn.functional as F


class GroundMaps(nn.Module):
    """Word heat maps on the patch grid, and the contrast of what they pool."""

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.ones([]) * 2.6592)

    @staticmethod
    def heat(words, fmap):
        # (B, L, 1, 1, D) against (B, 1, s, s, D)
        return F.cosine_similarity(words[:, :, None, None], fmap[:, None], dim=-1)

    def forward(self, patch_embeds, word_embeds, word_mask):
        b, p, d = patch_embeds.shape
        s = int(p ** .5)
        fmap = patch_embeds.view(b, s, s, d)
        heat = self.heat(word_embeds, fmap).flatten(2)
        heat = heat - heat.amin(-1, keepdim=True)
        heat = heat / heat.amax(-1, keepdim=True)
        heat = torch.where(heat < 1 / (s * s), torch.zeros_like(heat), heat)
        heat = heat / heat.sum(-1, keepdim=True)
        pooled = torch.einsum('blp,bpd->bld', heat, fmap.flatten(1, 2))

        logits = F.normalize(pooled, dim=-1) @ F.normalize(word_embeds, dim=-1).mT * self.logit_scale.exp()
        keep = word_mask.bool()
        n = keep.sum(1)
        loss = 0
        for z in (logits, logits.mT):
            logp = z.masked_fill(~keep[:, None, :], -1e9).log_softmax(-1)
            nll = -logp.diagonal(dim1=-2, dim2=-1)
            loss = loss + ((nll * keep).sum(1) / n).mean()
        return loss * 0.5
