import torch
import torch.nn.functional as F

TAU = 0.07


def compute_local_loss(v_tokens, l_tokens, l_mask):
    bs, seq, _ = l_tokens.shape
    sim = torch.matmul(l_tokens, v_tokens.permute(0, 2, 1))
    flat_sim = sim.reshape(bs * seq, -1)
    mins, maxs = flat_sim.min(1, keepdim=True)[0], flat_sim.max(1, keepdim=True)[0]
    flat_sim = (flat_sim - mins) / (maxs - mins + 1e-12)
    flat_sim = torch.where(flat_sim >= 1.0 / v_tokens.shape[1], flat_sim, torch.zeros_like(flat_sim))
    weights = (flat_sim / (flat_sim.sum(1, keepdim=True) + 1e-12)).reshape(bs, seq, -1)
    grouped = torch.matmul(weights, v_tokens)
    grouped, l_tokens = F.normalize(grouped, dim=-1), F.normalize(l_tokens, dim=-1)
    logits = torch.matmul(grouped, l_tokens.permute(0, 2, 1)) / TAU
    l_mask = l_mask.float()
    mask2d = l_mask.unsqueeze(1).expand(-1, seq, -1)
    logits_v = logits.masked_fill(mask2d == 0, -1e9)
    logits_l = logits.permute(0, 2, 1).masked_fill(mask2d == 0, -1e9)
    labels = torch.arange(seq, device=sim.device).repeat(bs)
    loss_v = F.cross_entropy(logits_v.reshape(-1, seq), labels, reduction="none").reshape(bs, seq)
    loss_l = F.cross_entropy(logits_l.reshape(-1, seq), labels, reduction="none").reshape(bs, seq)
    loss = (loss_v + loss_l) / 2
    return torch.where(l_mask > 0, loss, 0.0).sum(1).div(l_mask.sum(1).clamp(min=1)).mean()
