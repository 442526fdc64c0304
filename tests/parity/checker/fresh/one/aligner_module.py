import torch
import torch.nn.functional as F


class Aligner(torch.nn.Module):
    def __init__(self, num_patches=None):
        super().__init__()
        self.num_patches = num_patches

    def forward(self, text, image, text_mask, tau):
        n = self.num_patches or image.shape[-2]
        sim = F.cosine_similarity(text[:, :, None], image[:, None], dim=-1)
        mn = sim.min(dim=-1, keepdim=True)[0]
        mx = sim.max(dim=-1, keepdim=True)[0]
        sim = torch.nan_to_num((sim - mn) / (mx - mn))
        sim = sim.where(sim >= 1 / n, torch.zeros_like(sim))
        weights = torch.nan_to_num(sim / sim.sum(dim=-1, keepdim=True))
        c = weights @ image
        logits = F.cosine_similarity(c[:, :, None], text[:, None], dim=-1) / tau
        key = text_mask[:, None, :].logical_not()
        l1 = logits.masked_fill(key, -1e5).log_softmax(-1)
        l2 = logits.mT.masked_fill(key, -1e5).log_softmax(-1)
        nll = -(torch.diagonal(l1, dim1=1, dim2=2) + torch.diagonal(l2, dim1=1, dim2=2)) / 2
        return torch.where(text_mask, nll, 0).mean()
