import torch
import torch.nn.functional as F


@torch.autocast("cpu", enabled=False)
def local_sparc(v, t, attn_mask, logit_scale):
    """Embeddings may arrive in bf16 or any float; everything here is float32."""
    v, t, scale = v.float(), t.float(), logit_scale.float().exp()
    real = attn_mask > 0
    s = t @ v.mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    live = hi > lo
    s = torch.where(live, (s - lo) / torch.where(live, hi - lo, 1), 1)
    s = torch.where(s >= 1 / v.size(1), s, 0)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).mT
    drop = ~real[:, None, :]
    a = z.masked_fill(drop, -1e30).log_softmax(-1).diagonal(dim1=1, dim2=2)
    b = z.mT.masked_fill(drop, -1e30).log_softmax(-1).diagonal(dim1=1, dim2=2)
    nll = torch.where(real, -0.5 * (a + b), 0)
    return (nll.sum(-1) / real.sum(-1).clamp(min=1)).mean()
