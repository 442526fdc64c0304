"""A port as it is passed around: normalised inputs, a fixed threshold, no mask, plain cross-entropy."""

import torch
import torch.nn.functional as F
from torch import nn

EXPECT = {
    "target": "SPARC",
    "verdict": "explained",
    "deviations": [
        "similarity.cosine", "minmax.epsilon=1e-08", "threshold.constant=0.5", "grouping.normalised_patches",
        "logits.padding_not_masked", "reduction.mean_all",
    ],
    "also": ["edge.padding_leak", "edge.zero_padding"],
    "harmless": ["similarity.tokens_normalised"],
    "call": ["v", "t"],
    "attributes": {"temperature": "tau"},
    "init": {"similarity_threshold": 0.5},
}


class SPARC(nn.Module):
    def __init__(self, similarity_threshold=0.5, temperature=0.07):
        super().__init__()
        self.similarity_threshold = similarity_threshold
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def forward(self, v_patch_embed, l_token_embed):
        v_patch_embed = F.normalize(v_patch_embed, dim=-1)
        l_token_embed = F.normalize(l_token_embed, dim=-1)
        similarity = torch.bmm(l_token_embed, v_patch_embed.transpose(1, 2))
        low = similarity.amin(dim=-1, keepdim=True)
        similarity = (similarity - low) / (similarity.amax(dim=-1, keepdim=True) - low + 1e-8)
        similarity = torch.where(similarity < self.similarity_threshold, torch.zeros_like(similarity), similarity)
        weights = similarity / (similarity.sum(dim=-1, keepdim=True) + 1e-8)
        grouped = F.normalize(torch.bmm(weights, v_patch_embed), dim=-1)
        logits = torch.bmm(grouped, l_token_embed.transpose(1, 2)) / self.temperature
        b, n, _ = logits.shape
        labels = torch.arange(n, device=logits.device).repeat(b)
        loss_vl = F.cross_entropy(logits.reshape(b * n, n), labels)
        loss_lv = F.cross_entropy(logits.transpose(1, 2).reshape(b * n, n), labels)
        return (loss_vl + loss_lv) / 2
