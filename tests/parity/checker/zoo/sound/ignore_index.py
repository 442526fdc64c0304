"""Cross-entropy's ignore_index does the averaging over real tokens, as in a language model's loss."""

import torch
from torch import nn

EXPECT = {
    "target": "FineGrainedHead",
    "verdict": "listing1",
    "call": ["t", "v", "mask_int"],
    "attributes": {"temperature": "tau"},
}


class FineGrainedHead(nn.Module):
    def __init__(self, temperature=0.07):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.ce = nn.CrossEntropyLoss(ignore_index=-100, reduction="sum")

    def forward(self, tokens, patches, attention_mask):
        length = tokens.size(1)
        scores = torch.matmul(tokens, patches.transpose(1, 2))
        floor, ceiling = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
        no_contrast = ceiling <= floor
        width = (ceiling - floor).masked_fill(no_contrast, 1)
        scores = torch.where(no_contrast, torch.ones_like(scores), (scores - floor) / width)
        scores = nn.functional.relu(scores).masked_fill(scores < 1 / patches.size(1), 0)
        grouped = torch.matmul(scores / scores.sum(-1, keepdim=True), patches)
        grouped = nn.functional.normalize(grouped, dim=-1)
        tokens = nn.functional.normalize(tokens, dim=-1)
        logits = torch.matmul(grouped, tokens.transpose(1, 2)) / self.temperature
        blocked = attention_mask[:, None, :] == 0
        labels = torch.arange(length, device=tokens.device).expand_as(attention_mask)
        labels = labels.masked_fill(attention_mask == 0, -100).reshape(-1)
        smallest = torch.finfo(logits.dtype).min
        forward = self.ce(logits.masked_fill(blocked, smallest).reshape(-1, length), labels)
        backward = self.ce(logits.mT.masked_fill(blocked, smallest).reshape(-1, length), labels)
        return 0.5 * (forward + backward) / attention_mask.sum().clamp(min=1)
