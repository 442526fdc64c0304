import torch
from torch import Tensor


def sparc_token_patch(memory: Tensor, tgt: Tensor, tgt_key_padding_mask: Tensor, inv_temperature: Tensor) -> Tensor:
    """Sequence-first like nn.Transformer: memory (P,N,D) patches, tgt (L,N,D) tokens, mask (N,L) True = ignore."""
    n_patch = memory.size(0)
    ignore = tgt_key_padding_mask.T                              # (L,N)
    x = tgt.masked_fill(ignore[..., None], 1.0)
    s = torch.einsum("lnd,pnd->lnp", x, memory)
    bottom = s.amin(2, keepdim=True)
    height = s.amax(2, keepdim=True) - bottom
    level = height == 0
    s = (s - bottom) / height.masked_fill(level, 1.0)
    s = s.masked_fill(level, 1.0)
    s = s.masked_fill(s < 1 / n_patch, 0.0)
    c = torch.einsum("lnp,pnd->lnd", s / s.sum(2, keepdim=True), memory)
    c = c / c.norm(dim=2, keepdim=True)
    x = x / x.norm(dim=2, keepdim=True)
    z = torch.einsum("lnd,mnd->nlm", c, x) * inv_temperature
    dead = tgt_key_padding_mask
    big = torch.finfo(z.dtype).max
    a = torch.logsumexp(z.masked_fill(dead[:, None, :], -big), 2)
    b = torch.logsumexp(z.masked_fill(dead[:, :, None], -big), 1)
    loss = (0.5 * (a + b) - z.diagonal(dim1=1, dim2=2)).masked_fill(dead, 0.0)
    return (loss.sum(1) / (~dead).sum(1).clamp(min=1)).mean()
