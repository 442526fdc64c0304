import torch
import torch.nn.functional as F


def contrast(q, k, mask, inverse_temperature):
    logits = inverse_temperature * torch.matmul(q, k.permute(0, 2, 1))
    logits = logits.masked_fill(mask.unsqueeze(1) == 0, -1e9)
    target = torch.arange(q.shape[1]).expand(q.shape[0], -1)
    loss = F.cross_entropy(logits.permute(0, 2, 1), target, reduction="none")
    return (loss * mask).sum() / mask.sum()


def sparc_local_loss(v_patch_embed, l_token_embed, language_mask, inverse_temperature):
    sim = l_token_embed @ v_patch_embed.permute(0, 2, 1)
    sim = sim - sim.min(dim=2, keepdim=True).values
    sim = sim / sim.max(dim=2, keepdim=True).values
    sim[sim < 1 / v_patch_embed.shape[1]] = 0.
    sim = sim / sim.sum(dim=2, keepdim=True)
    grouped = F.normalize(sim @ v_patch_embed, dim=-1)
    tok = F.normalize(l_token_embed, dim=-1)
    return (contrast(grouped, tok, language_mask, inverse_temperature) + contrast(tok, grouped, language_mask, inverse_temperature)) / 2
