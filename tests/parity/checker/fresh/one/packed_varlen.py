import torch
import torch.nn.functional as F


def sparc_varlen(packed_tokens, cu_seqlens, patches, log_scale):
    """packed_tokens (N,D): the captions one after the other; cu_seqlens (B+1,) int; patches (B,P,D)."""
    b, p, _ = patches.shape
    lens = cu_seqlens[1:] - cu_seqlens[:-1]
    owner = torch.repeat_interleave(torch.arange(b, device=patches.device), lens)
    own = patches[owner]                                       # (N,P,D)
    s = torch.einsum("nd,npd->np", packed_tokens, own)
    lo, hi = s.amin(1, keepdim=True), s.amax(1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(torch.isnan(s), torch.ones_like(s), s)
    s = torch.where(s >= 1 / p, s, torch.zeros_like(s))
    c = F.normalize(torch.einsum("np,npd->nd", s / s.sum(1, keepdim=True), own), dim=1)
    t = F.normalize(packed_tokens, dim=1)
    same = owner[:, None] == owner[None, :]
    z = (log_scale.exp() * c @ t.T).masked_fill(~same, float("-inf"))
    nll = -(z.log_softmax(1).diagonal() + z.log_softmax(0).diagonal()) / 2
    return (nll / lens[owner]).sum() / b
