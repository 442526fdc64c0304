import torch
import torch.nn.functional as F


def sparc_local_loss(text_tokens, text_mask, image_tokens, temperature):
    m = text_mask.unsqueeze(-1)
    mean = (text_tokens * m).sum(1, keepdim=True) / m.sum(1, keepdim=True)
    # what a word adds to its sentence decides which patches it wants
    sim = (text_tokens - mean) @ image_tokens.mT
    one = text_mask.sum(1)[:, None, None] == 1
    sim = torch.where(one, text_tokens @ image_tokens.mT, sim)
    lo, hi = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
    sim = (sim - lo) / (hi - lo)
    sim = torch.where(sim >= 1 / image_tokens.shape[1], sim, 0.0)
    grouped = F.normalize(sim @ image_tokens, dim=-1)
    logits = grouped @ F.normalize(text_tokens, dim=-1).mT / temperature
    cols = ~text_mask[:, None]
    nll = sum(F.cross_entropy(x.masked_fill(cols, -1e9).mT, torch.arange(x.shape[1]).expand(x.shape[:2]), reduction="none")
              for x in (logits, logits.mT)) / 2
    return ((nll * text_mask).sum(1) / text_mask.sum(1)).mean()
