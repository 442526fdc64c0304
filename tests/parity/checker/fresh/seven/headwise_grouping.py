import torch
import torch.nn as nn
import torch.nn.functional as F


class HeadwiseGrouping(nn.Module):
    def __init__(self, num_heads: int = 4):
        super().__init__()
        self.num_heads = num_heads

    def split(self, x):
        b, n, d = x.shape
        return x.view(b, n, self.num_heads, d // self.num_heads).transpose(1, 2)

    def forward(self, text, image):
        q, k = self.split(text), self.split(image)
        attn = q @ k.transpose(-2, -1)                                  # (B, H, L, P)
        attn = attn - attn.amin(-1, keepdim=True)
        attn = attn / attn.amax(-1, keepdim=True)
        attn = attn.masked_fill(attn < 1.0 / image.shape[1], 0.0)
        attn = attn / attn.sum(-1, keepdim=True)
        return (attn @ k).transpose(1, 2).flatten(2)


def token_grouping_loss(text, image, attention_mask, log_tau, grouping=HeadwiseGrouping()):
    """text (B,L,D), image (B,P,D), attention_mask (B,L) int64, log_tau ()"""
    grouped = F.normalize(grouping(text, image), dim=-1)
    text = F.normalize(text, dim=-1)
    logits = grouped @ text.transpose(1, 2) * torch.exp(-log_tau)
    pad = attention_mask == 0
    labels = torch.arange(text.shape[1], device=text.device).expand_as(attention_mask).masked_fill(pad, -100)
    a = F.cross_entropy(logits.masked_fill(pad[:, None, :], -1e9).transpose(1, 2), labels, reduction="none")
    b = F.cross_entropy(logits.masked_fill(pad[:, :, None], -1e9), labels, reduction="none")
    return ((a + b).sum(1) / (2 * (~pad).sum(1))).mean()
