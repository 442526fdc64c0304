from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F


class ClipLoss(nn.Module):

    def __init__(self, cache_labels: bool = True, rank: int = 0, world_size: int = 1):
        super().__init__()
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.prev_num_logits = 0
        self.labels = {}

    def get_ground_truth(self, device, num_logits) -> torch.Tensor:
        if self.prev_num_logits != num_logits or device not in self.labels:
            labels = torch.arange(num_logits, device=device, dtype=torch.long)
            if self.cache_labels:
                self.labels[device] = labels
                self.prev_num_logits = num_logits
            return labels
        return self.labels[device]

    def get_logits(self, image_features, text_features, logit_scale, logit_bias: Optional[torch.Tensor] = None):
        image_features = F.normalize(image_features, dim=-1)
        text_features = F.normalize(text_features, dim=-1)
        logits_per_image = logit_scale * image_features @ text_features.T
        if logit_bias is not None:
            logits_per_image = logits_per_image + logit_bias
        return logits_per_image, logits_per_image.T

    def forward(self, text_features, image_features, logit_scale, logit_bias=None):
        logits_per_image, logits_per_text = self.get_logits(image_features, text_features, logit_scale.exp(), logit_bias)
        labels = self.get_ground_truth(logits_per_image.device, logits_per_image.shape[0])
        return (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_text, labels)) / 2
