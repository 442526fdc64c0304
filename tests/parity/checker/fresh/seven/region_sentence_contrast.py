import torch
import torch.nn as nn
import torch.nn.functional as F


class RegionSentenceContrast(nn.Module):
    """Local term between the regions of a scan and the tokens of its report."""

    def __init__(self, tau: float = 0.2):
        super().__init__()
        self.tau = nn.Parameter(torch.tensor(tau))

    @staticmethod
    def _gather(regions, tokens):
        sim = regions @ tokens.t()                                  # (R, T)
        lo = sim.amin(dim=1, keepdim=True)
        rng = (sim.amax(dim=1, keepdim=True) - lo).clamp(min=1e-8)
        sim = (sim - lo) / rng
        sim = sim * (sim >= 1.0 / tokens.shape[0])
        return (sim / sim.sum(dim=1, keepdim=True).clamp(min=1e-8)) @ tokens

    def forward(self, scan_regions, report_tokens, report_lengths):
        """scan_regions (B, D, H, W), report_tokens (B, T, D), report_lengths list of int"""
        scan_regions = scan_regions.flatten(2).transpose(1, 2)
        losses = []
        for regions, tokens, n in zip(scan_regions, report_tokens, report_lengths):
            gathered = F.normalize(self._gather(regions, tokens[:n]), dim=1)
            logits = gathered @ F.normalize(regions, dim=1).t() / self.tau
            labels = torch.arange(len(regions), device=logits.device)
            losses.append(F.cross_entropy(logits, labels))
            losses.append(F.cross_entropy(logits.t(), labels))
        return torch.stack(losses).mean()
