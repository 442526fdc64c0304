import torch


def sparc_local(img, txt, msk, inv_t):
    """img b p d, txt b l d, msk b l (1. = word), inv_t scalar"""
    p = img.shape[1]
    s = torch.einsum("bpd,bld->blp", img, txt)
    s = s - torch.amin(s, -1, keepdim=True)
    s = torch.einsum("blp,bl->blp", s, 1 / torch.amax(s, -1))
    s = s * (s >= 1 / p).type_as(s)
    w = torch.einsum("blp,bl->blp", s, 1 / torch.einsum("blp->bl", s))
    g = torch.einsum("blp,bpd->bld", w, img)
    g = torch.einsum("bld,bl->bld", g, torch.einsum("bld,bld->bl", g, g).rsqrt())
    e = torch.einsum("bld,bl->bld", txt, torch.einsum("bld,bld->bl", txt, txt).rsqrt())
    z = inv_t * torch.einsum("bld,bmd->blm", g, e)
    hit = torch.einsum("bll->bl", z)
    z = z + torch.log(msk)[:, None, :]
    per_v = torch.logsumexp(z, 2) - hit
    z2 = inv_t * torch.einsum("bld,bmd->blm", e, g) + torch.log(msk)[:, None, :]
    per_t = torch.logsumexp(z2, 2) - hit
    return 0.5 * torch.einsum("bl,bl,b->", per_v + per_t, msk, 1 / msk.sum(1)) / img.shape[0]
