import torch
import torch.nn.functional as F


def sparc_fgl(v, t, attention_mask, log_tau_inv):
    """v (B,P,D), t (B,L,D), attention_mask (B,L) 1/0, log_tau_inv log(1/tau). Matching against fixed patches."""
    bank = v.clone().detach()
    match = t @ bank.mT
    match = match - match.min(-1, keepdim=True).values
    match = match / match.max(-1, keepdim=True).values
    match = match * (match >= 1 / v.shape[1])
    c = F.normalize(match @ v, dim=-1)
    u = F.normalize(t, dim=-1)
    logits = log_tau_inv.exp() * c @ u.mT
    valid = attention_mask == 1
    logits = torch.stack([logits, logits.mT], 1)
    logits = logits.masked_fill(~valid[:, None, None, :], -1e30)
    lp = F.log_softmax(logits, -1).diagonal(dim1=-2, dim2=-1).mean(1)
    return -(torch.where(valid, lp, 0.0).sum(1) / valid.sum(1).clamp(min=1)).mean()
