import torch
import torch.nn.functional as F


def hard_cut(h, sigma):
    """Forward: sparse. Backward: identity, so that pruned patches can come back."""
    return h + (torch.where(h >= sigma, h, 0.0) - h).detach()


def sparc_loss_f(tok, pat, tok_mask, log_scale):
    """tok (B,L,D), pat (B,P,D), tok_mask (B,L) bool, log_scale log(1/tau)"""
    s = torch.einsum("bld,bpd->blp", tok, pat)
    s = s - s.amin(dim=-1, keepdim=True)
    s = s / s.amax(dim=-1, keepdim=True)
    s = hard_cut(s, 1 / pat.shape[1])
    c = torch.einsum("blp,bpd->bld", s / s.sum(-1, keepdim=True), pat)
    z = log_scale.exp() * torch.einsum("bld,bmd->blm", F.normalize(c, dim=-1), F.normalize(tok, dim=-1))
    pair = tok_mask[:, :, None] & tok_mask[:, None, :]
    z = z.masked_fill(~pair, -1e9)
    per = -0.5 * (z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2)
    return (torch.where(tok_mask, per, 0).sum(1) / tok_mask.sum(1)).mean()
