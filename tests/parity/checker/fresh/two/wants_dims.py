import torch
from torch import nn
import torch.nn.functional as F


class LocalSparc(nn.Module):
    def __init__(self, embed_dim: int, num_patches: int, max_len: int):
        super().__init__()
        self.embed_dim, self.num_patches = embed_dim, num_patches
        self.register_buffer("positions", torch.arange(max_len), persistent=False)

    def forward(self, image, text, lengths, logit_scale):
        if image.shape[1:] != (self.num_patches, self.embed_dim):
            raise ValueError(f"image is {tuple(image.shape)}")
        mask = self.positions < lengths.unsqueeze(1)
        sim = text @ image.mT
        sim = sim - sim.amin(-1, keepdim=True)
        sim = sim / sim.amax(-1, keepdim=True)
        sim = F.threshold(sim, 1 / self.num_patches, 0.0)     # strict, which no real number notices
        c = F.normalize(sim @ image, dim=-1)
        logits = logit_scale * torch.baddbmm(torch.zeros(()).to(c), c, F.normalize(text, dim=-1).mT)
        target = self.positions.expand(len(text), -1).masked_fill(~mask, -1)
        out = 0
        for z in (logits, logits.mT):
            z = z.masked_fill(~mask.unsqueeze(1), torch.finfo(z.dtype).min)
            out = out + F.cross_entropy(z.mT, target, ignore_index=-1, reduction="none").sum(1)
        return (out / lengths.clamp(min=1)).mean() / 2
