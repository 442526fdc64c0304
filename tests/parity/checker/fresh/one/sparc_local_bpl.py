import torch


def l2(x):
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def sparc_local(img, txt, valid, inv_tau):
    """img (B,P,D), txt (B,L,D), valid (B,L) float {0,1}, inv_tau scalar."""
    P = img.shape[1]
    keep = valid.bool()
    s = torch.einsum("bpd,bld->bpl", img, txt)
    # scale similarities to [0, 1]
    lo = s.masked_fill(~keep[:, None], torch.finfo(s.dtype).max).amin(-1, keepdim=True)
    hi = s.masked_fill(~keep[:, None], torch.finfo(s.dtype).min).amax(-1, keepdim=True)
    s = ((s - lo) / (hi - lo + 1e-8)).clamp(0, 1)
    s = torch.where(s < 1 / P, torch.zeros_like(s), s)
    # weights of the patches of each word
    w = s / (s.sum(1, keepdim=True) + 1e-8)
    c = torch.einsum("bpl,bpd->bld", w, img)
    z = inv_tau * l2(c) @ l2(txt).mT
    far = ~keep[:, None, :]
    a = z.masked_fill(far, -1e9).log_softmax(-1).diagonal(dim1=1, dim2=2)
    b = z.mT.masked_fill(far, -1e9).log_softmax(-1).diagonal(dim1=1, dim2=2)
    per = -((a + b) * valid).sum(-1) / (2 * valid.sum(-1).clamp(min=1))
    return per.mean()
