import torch
import torch.nn as nn
import torch.nn.functional as F


class SPARCLocal(nn.Module):
    """Sparse fine-grained contrastive alignment."""

    def __init__(self, temperature: float = 0.07):
        super(SPARCLocal, self).__init__()
        self.logit_scale = nn.Parameter(torch.log(torch.tensor(1.0 / temperature)))

    def forward(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        # project to the unit sphere
        image_embeds = F.normalize(image_embeds, dim=-1)  # [B, P, D]
        text_embeds = F.normalize(text_embeds, dim=-1)    # [B, T, D]

        sim = torch.einsum('btd,bpd->btp', text_embeds, image_embeds)

        # min-max normalization
        sim_min = sim.min(dim=-1, keepdim=True)[0]
        sim_max = sim.max(dim=-1, keepdim=True)[0]
        sim = (sim - sim_min) / (sim_max - sim_min)

        # sparsify
        threshold = 1.0 / image_embeds.size(1)
        sim = torch.where(sim >= threshold, sim, torch.zeros_like(sim))

        # alignment weights
        weights = sim / sim.sum(dim=-1, keepdim=True)
        grouped = torch.einsum('btp,bpd->btd', weights, image_embeds)
        grouped = F.normalize(grouped, dim=-1)

        logits = self.logit_scale.exp() * torch.einsum('btd,bsd->bts', grouped, text_embeds)
        mask = text_mask.bool()
        logits_v2t = logits.masked_fill(~mask.unsqueeze(1), float('-inf'))
        logits_t2v = logits.transpose(1, 2).masked_fill(~mask.unsqueeze(1), float('-inf'))

        B, T = mask.shape
        target = torch.arange(T, device=logits.device).repeat(B)
        loss_v2t = F.cross_entropy(logits_v2t.reshape(B * T, T), target, reduction='none').view(B, T)
        loss_t2v = F.cross_entropy(logits_t2v.reshape(B * T, T), target, reduction='none').view(B, T)

        loss = (loss_v2t + loss_t2v) / 2
        loss = torch.where(mask, loss, torch.zeros_like(loss))
        return (loss.sum(dim=1) / mask.sum(dim=1)).mean()
