import torch
import torch.nn.functional as F


def sparc_local_loss(v_embed, t_embed, t_mask, temperature):
    """v_embed [B,P,D], t_embed [B,L,D], t_mask [B,L] float, temperature tau"""
    sim = torch.bmm(t_embed, v_embed.transpose(1, 2))
    sim_min = torch.min(sim, dim=-1, keepdim=True).values
    sim_max = torch.max(sim, dim=-1, keepdim=True).values
    sim = (sim - sim_min) / (sim_max - sim_min + 1e-8)
    sim[sim < 1.0 / v_embed.shape[1]] = 0
    weights = sim / (torch.sum(sim, dim=-1, keepdim=True) + 1e-8)
    grouped = F.normalize(torch.bmm(weights, v_embed), dim=-1)
    t_embed = F.normalize(t_embed, dim=-1)
    logits = torch.bmm(grouped, t_embed.transpose(1, 2)) / temperature
    bias = (1.0 - t_mask).unsqueeze(1) * -1e9
    labels = torch.arange(t_embed.size(1), device=t_embed.device).unsqueeze(0).repeat(t_embed.size(0), 1)
    loss_v2t = F.cross_entropy((logits + bias).transpose(1, 2), labels, reduction="none")
    loss_t2v = F.cross_entropy((logits.transpose(1, 2) + bias).transpose(1, 2), labels, reduction="none")
    loss = (loss_v2t + loss_t2v) / 2 * t_mask
    return loss.mean()
