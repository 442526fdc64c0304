import torch
import torch.nn.functional as F


def fine_grained(text_tokens, image_patches, attention_mask, log_scale):
    keep = attention_mask > 0
    sim = text_tokens @ image_patches.transpose(-1, -2)
    lo = sim.masked_fill(~keep.unsqueeze(-1), torch.inf).amin(dim=1, keepdim=True)
    hi = sim.masked_fill(~keep.unsqueeze(-1), -torch.inf).amax(dim=1, keepdim=True)
    sim = (sim - lo) / (hi - lo + 1e-10)
    sim = sim * (sim >= 1.0 / image_patches.size(1)) * keep.unsqueeze(-1)
    alpha = sim / sim.sum(dim=-1, keepdim=True).clamp(min=1e-10)
    grouped = F.normalize(torch.bmm(alpha, image_patches), dim=-1)
    words = F.normalize(text_tokens, dim=-1)
    logits = log_scale.exp() * torch.bmm(grouped, words.transpose(1, 2))
    col = keep.unsqueeze(1)
    nll_a = torch.logsumexp(logits.masked_fill(~col, -torch.inf), 2)
    nll_b = torch.logsumexp(logits.transpose(1, 2).masked_fill(~col, -torch.inf), 2)
    diag = logits.diagonal(dim1=1, dim2=2)
    tok = (nll_a + nll_b - 2 * diag) * attention_mask
    return 0.5 * (tok.sum(1) / attention_mask.sum(1).clamp(min=1)).mean()
