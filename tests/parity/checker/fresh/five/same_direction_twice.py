import torch
import torch.nn.functional as F


def masked_nce(query, key, keep, scale):
    z = scale * F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(1, 2)
    z = torch.where(keep[:, None, :], z, torch.finfo(z.dtype).min)
    nll = z.logsumexp(-1) - z.diagonal(dim1=1, dim2=2)
    return (nll.masked_fill(~keep, 0).sum(1) / keep.sum(1)).mean()


def sparc(vis, lang, keep, scale):
    s = lang @ vis.transpose(1, 2)
    s = s - s.amin(-1, keepdim=True)
    s = s / s.amax(-1, keepdim=True)
    s = s * (s >= 1 / vis.shape[1])
    grouped = s @ vis / s.sum(-1, keepdim=True)
    loss_vl = masked_nce(grouped, lang, keep, scale)
    loss_lv = masked_nce(grouped, lang, keep, scale)
    return {"local": 0.5 * (loss_vl + loss_lv), "vl": loss_vl, "lv": loss_lv}
