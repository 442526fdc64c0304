import torch
import torch.nn as nn
import torch.nn.functional as F


class ResidualContrast(nn.Module):
    """Words of one caption share its topic."""

    def __init__(self):
        super().__init__()
        self.inv_tau = nn.Parameter(torch.tensor(14.3))

    @staticmethod
    def residual(x):
        return F.normalize(x - x.mean(0, keepdim=True), dim=-1)

    def pair_loss(self, patches, words):
        sim = torch.einsum("ld,pd->lp", words, patches)
        lo, hi = torch.aminmax(sim, dim=1, keepdim=True)
        sim = (sim - lo) / (hi - lo)
        sim = torch.where(sim < 1.0 / len(patches), 0.0, sim)
        grouped = torch.einsum("lp,pd->ld", sim / sim.sum(1, keepdim=True), patches)
        logits = self.inv_tau * self.residual(grouped) @ self.residual(words).T
        labels = torch.arange(len(words), device=words.device)
        return 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))

    def forward(self, image_tokens, text_tokens, text_mask):
        samples = zip(image_tokens, text_tokens, text_mask)
        return torch.stack([self.pair_loss(v, t[m.bool()]) for v, t, m in samples]).mean()
