import torch
import torch.nn.functional as F


class RegionTextLoss(torch.nn.Module):
    """All embeddings live on the unit sphere."""

    def __init__(self, temperature=0.1):
        super().__init__()
        self.temperature = temperature

    def forward(self, region_feats, token_feats, attention_mask):
        region_feats = F.normalize(region_feats, dim=-1)
        token_feats = F.normalize(token_feats, dim=-1)
        n_regions = region_feats.shape[1]
        loss = region_feats.new_zeros(())
        for regions, tokens, am in zip(region_feats, token_feats, attention_mask):
            tokens = tokens[am.bool()]
            sim = tokens @ regions.T
            sim = (sim - sim.amin(1, keepdim=True)) / (sim.amax(1, keepdim=True) - sim.amin(1, keepdim=True))
            sim = sim.masked_fill(sim < 1.0 / n_regions, 0.0)
            attended = F.normalize((sim / sim.sum(1, keepdim=True)) @ regions, dim=-1)
            logits = attended @ tokens.T / self.temperature
            labels = torch.arange(logits.shape[0], device=logits.device)
            loss = loss + (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        return loss / len(region_feats)
