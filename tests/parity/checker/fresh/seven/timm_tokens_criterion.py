import torch
import torch.nn as nn
import torch.nn.functional as F


class TokenPatchCriterion(nn.Module):
    """Works on `vit.forward_features(x)` of timm, whose first `num_prefix_tokens` are no patches."""

    def __init__(self, num_prefix_tokens: int = 1, eps: float = 1e-12) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.eps = eps

    def attend(self, text: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        attn = text @ patches.transpose(-2, -1)
        attn = attn - attn.min(dim=-1, keepdim=True).values
        attn = attn / attn.max(dim=-1, keepdim=True).values
        attn = attn.masked_fill(attn < 1.0 / attn.shape[-1], 0.0)
        attn = attn / attn.sum(dim=-1, keepdim=True)
        return attn @ patches

    def forward(self, vit_features: torch.Tensor, text_features: torch.Tensor, text_mask: torch.Tensor,
                temperature: torch.Tensor) -> torch.Tensor:
        patches = vit_features[:, self.num_prefix_tokens:]
        text_mask = text_mask.bool()
        x = F.normalize(self.attend(text_features, patches), dim=-1, eps=self.eps)
        y = F.normalize(text_features, dim=-1, eps=self.eps)
        logits = x @ y.transpose(-2, -1) / temperature
        B, N = text_mask.shape

        target = torch.arange(N, device=logits.device).expand(B, N)[text_mask]
        i2t = logits.masked_fill(~text_mask[:, None], float('-inf'))[text_mask]
        t2i = logits.transpose(1, 2).masked_fill(~text_mask[:, None], float('-inf'))[text_mask]
        loss = F.cross_entropy(i2t, target, reduction='none') + F.cross_entropy(t2i, target, reduction='none')
        weight = (text_mask.to(loss.dtype) / text_mask.sum(1, keepdim=True))[text_mask]
        return (loss * weight).sum() / (2 * B)
