import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn import functional as F

try:
    import torch.distributed.nn
    has_distributed = True
except ImportError:
    has_distributed = False


def gather_features(features):
    if not (has_distributed and dist.is_available() and dist.is_initialized()):
        return features
    return torch.cat(torch.distributed.nn.all_gather(features), dim=0)


class SparcLoss(nn.Module):
    def __init__(self, global_loss_weight=0.5, local_loss_weight=1.0):
        super().__init__()
        self.global_loss_weight = global_loss_weight
        self.local_loss_weight = local_loss_weight

    def global_loss(self, image_features, text_features, logit_scale):
        image_features = gather_features(F.normalize(image_features, dim=-1))
        text_features = gather_features(F.normalize(text_features, dim=-1))
        logits_per_image = logit_scale * image_features @ text_features.T
        labels = torch.arange(logits_per_image.shape[0], device=logits_per_image.device, dtype=torch.long)
        return (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_image.T, labels)) / 2

    def local_loss(self, image_tokens, text_tokens, text_valid, logit_scale):
        sim = torch.einsum("btd,bpd->btp", text_tokens, image_tokens)
        sim = sim - sim.amin(dim=-1, keepdim=True)
        sim = sim / sim.amax(dim=-1, keepdim=True).clamp_min(1e-30)
        sim = sim * (sim >= 1.0 / image_tokens.shape[1]).to(sim.dtype)
        weights = sim / sim.sum(dim=-1, keepdim=True).clamp_min(1e-30)
        grouped = F.normalize(torch.einsum("btp,bpd->btd", weights, image_tokens), dim=-1)
        logits = logit_scale * torch.einsum("btd,bsd->bts", grouped, F.normalize(text_tokens, dim=-1))

        num = text_valid.sum(dim=1).clamp(min=1)
        labels = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[0], -1)
        labels = labels.masked_fill(~text_valid, -100)
        loss = 0.0
        for z in (logits, logits.transpose(1, 2)):
            z = z.masked_fill(~text_valid.unsqueeze(1), float("-inf"))
            ce = F.cross_entropy(z.permute(0, 2, 1), labels, ignore_index=-100, reduction="none")
            loss = loss + (ce.sum(dim=1) / num).mean()
        return loss / 2

    def forward(self, image_features, text_features, image_tokens, text_tokens, text_valid, logit_scale, output_dict=False):
        contrastive_loss = self.global_loss_weight * self.global_loss(image_features, text_features, logit_scale)
        local_loss = self.local_loss_weight * self.local_loss(image_tokens, text_tokens, text_valid, logit_scale)
        if output_dict:
            return {"contrastive_loss": contrastive_loss, "local_loss": local_loss}
        return contrastive_loss + local_loss
