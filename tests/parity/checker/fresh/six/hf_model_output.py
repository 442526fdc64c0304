# coding=utf-8
"""PyTorch SPARC model head."""

from dataclasses import dataclass
from typing import Optional, Tuple, Union

import torch
from torch import nn


@dataclass
class SparcOutput:
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): Contrastive loss, global + local.
        logits_per_image (`torch.FloatTensor` of shape `(image_batch_size, text_batch_size)`)
        logits_per_text (`torch.FloatTensor` of shape `(text_batch_size, image_batch_size)`)
    """

    loss: Optional[torch.FloatTensor] = None
    logits_per_image: torch.FloatTensor = None
    logits_per_text: torch.FloatTensor = None


def contrastive_loss(logits: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def clip_loss(similarity: torch.Tensor) -> torch.Tensor:
    caption_loss = contrastive_loss(similarity)
    image_loss = contrastive_loss(similarity.t())
    return (caption_loss + image_loss) / 2.0


class SparcHead(nn.Module):
    def __init__(self, logit_scale_init_value: float = 2.6592, global_loss_weight: float = 0.5, local_loss_weight: float = 1.0):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale_init_value))
        self.global_loss_weight = global_loss_weight
        self.local_loss_weight = local_loss_weight

    def _local_loss(self, vision_states, text_states, attention_mask, logit_scale):
        scores = torch.matmul(text_states, vision_states.transpose(1, 2))
        scores_min = scores.min(dim=-1, keepdim=True)[0]
        scores_max = scores.max(dim=-1, keepdim=True)[0]
        scores = (scores - scores_min) / (scores_max - scores_min)
        scores = scores.masked_fill(scores < 1.0 / vision_states.shape[1], 0.0)
        attention = scores / scores.sum(dim=-1, keepdim=True)
        grouped_states = torch.matmul(attention, vision_states)

        grouped_states = grouped_states / grouped_states.norm(p=2, dim=-1, keepdim=True)
        text_states = text_states / text_states.norm(p=2, dim=-1, keepdim=True)
        logits = torch.matmul(grouped_states, text_states.transpose(1, 2)) * logit_scale

        # (batch_size, 1, seq_len) added to the scores, as in attention
        extended_mask = (1.0 - attention_mask[:, None, :].to(logits.dtype)) * torch.finfo(logits.dtype).min
        labels = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[0], -1)
        loss_v = nn.functional.cross_entropy((logits + extended_mask).transpose(1, 2), labels, reduction="none")
        loss_t = nn.functional.cross_entropy((logits.transpose(1, 2) + extended_mask).transpose(1, 2), labels, reduction="none")
        per_token = (loss_v + loss_t) / 2.0
        per_token = per_token.masked_fill(attention_mask == 0, 0.0)
        return (per_token.sum(dim=1) / attention_mask.sum(dim=1)).mean()

    def forward(
        self,
        image_embeds: torch.FloatTensor,
        text_embeds: torch.FloatTensor,
        vision_hidden_states: torch.FloatTensor,
        text_hidden_states: torch.FloatTensor,
        attention_mask: torch.LongTensor,
        return_dict: bool = True,
    ) -> Union[Tuple, SparcOutput]:
        image_embeds = image_embeds / image_embeds.norm(p=2, dim=-1, keepdim=True)
        text_embeds = text_embeds / text_embeds.norm(p=2, dim=-1, keepdim=True)
        logit_scale = self.logit_scale.exp()
        logits_per_text = torch.matmul(text_embeds, image_embeds.t()) * logit_scale
        logits_per_image = logits_per_text.t()

        loss = self.global_loss_weight * clip_loss(logits_per_text)
        loss = loss + self.local_loss_weight * self._local_loss(
            vision_hidden_states, text_hidden_states, attention_mask, logit_scale
        )
        if not return_dict:
            return (loss, logits_per_image, logits_per_text)
        return SparcOutput(loss=loss, logits_per_image=logits_per_image, logits_per_text=logits_per_text)
