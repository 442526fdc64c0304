import torch
import torch.nn.functional as F
from torch import nn


class AlignCriterion(nn.Module):
    """Loss between encoder memory of image and of text, both sequence first as in the transformer."""

    def __init__(self, temperature=0.07):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def loss_contrastive_align(self, img_memory, text_memory, text_attention_mask):
        src = img_memory.transpose(0, 1)
        txt = text_memory.transpose(0, 1)
        is_text = text_attention_mask.ne(True)

        score = torch.matmul(txt, src.transpose(-1, -2))
        score = score - score.min(-1, keepdim=True)[0]
        score = score / score.max(-1, keepdim=True)[0]
        score[score < 1.0 / src.shape[1]] = 0
        pooled = torch.matmul(score / score.sum(-1, keepdim=True), src)

        pooled = F.normalize(pooled, p=2, dim=-1)
        txt = F.normalize(txt, p=2, dim=-1)
        logits = torch.matmul(pooled, txt.transpose(-1, -2)) / self.temperature
        positive = torch.diagonal(logits, dim1=1, dim2=2)
        # group -> token
        box_to_token = -positive + logits.masked_fill(~is_text[:, None, :], -1e13).logsumexp(2)
        # token -> group
        token_to_box = -positive + logits.masked_fill(~is_text[:, :, None], -1e13).logsumexp(1)
        tot = (box_to_token + token_to_box).masked_fill(~is_text, 0).sum(1) / is_text.sum(1)
        return {"loss_contrastive_align": tot.mean() / 2}

    def forward(self, img_memory, text_memory, text_attention_mask):
        return self.loss_contrastive_align(img_memory, text_memory, text_attention_mask)
