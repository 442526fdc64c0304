import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F


def world():
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_features(x):
    rank, size = world()
    if size == 1:
        return x
    bucket = [torch.zeros_like(x) for _ in range(size)]
    dist.all_gather(bucket, x)
    bucket[rank] = x
    return torch.cat(bucket)


class SparcLoss(nn.Module):
    def __init__(self, lambda_g=0.5, lambda_f=1.0):
        super().__init__()
        self.lambda_g, self.lambda_f = lambda_g, lambda_f

    def contrastive(self, image_features, text_features, logit_scale):
        rank, _ = world()
        all_image, all_text = gather_features(image_features), gather_features(text_features)
        labels = torch.arange(len(image_features), device=image_features.device) + rank * len(image_features)
        logits_i = logit_scale * image_features @ all_text.t()
        logits_t = logit_scale * text_features @ all_image.t()
        return (F.cross_entropy(logits_i, labels) + F.cross_entropy(logits_t, labels)) / 2

    def local(self, patches, tokens, mask, logit_scale):
        B, L, _ = tokens.shape
        s = tokens @ patches.mT
        mn, mx = s.aminmax(dim=-1, keepdim=True)
        s = (s - mn) / (mx - mn)
        s = F.threshold(s, 1.0 / patches.shape[1], 0.0)
        c = F.normalize(s @ patches, dim=-1)
        t = F.normalize(tokens, dim=-1)
        logits = (logit_scale * c @ t.mT).masked_fill(~mask[:, None], torch.finfo(c.dtype).min)
        logits_t = (logit_scale * t @ c.mT).masked_fill(~mask[:, None], torch.finfo(c.dtype).min)
        labels = torch.arange(L, device=tokens.device).repeat(B)
        each = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none") + F.cross_entropy(logits_t.flatten(0, 1), labels, reduction="none")
        each = each.view(B, L).masked_fill(~mask, 0) / 2
        return (each.sum(1) / mask.sum(1).clamp(min=1)).mean()

    def forward(self, image_features, text_features, patch_features, token_features, text_mask, logit_scale):
        g = self.contrastive(F.normalize(image_features, dim=-1), F.normalize(text_features, dim=-1), logit_scale)
        f = self.local(patch_features, token_features, text_mask, logit_scale)
        return self.lambda_g * g + self.lambda_f * f
