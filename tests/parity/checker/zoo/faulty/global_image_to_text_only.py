"""The global term has one direction."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "both_losses",
    "verdict": "explained",
    "deviations": ["global.one_direction=vt"],
    "call": ["v", "t", "mask", "scale", "image_embedding=v_bar", "text_embedding=t_bar"],
    "returns": {"global": "global", "local": "fine", "total": "1.0*global+1.0*fine"},
}


def both_losses(v, t, mask, scale, image_embedding, text_embedding):
    z = scale * F.normalize(image_embedding, dim=-1) @ F.normalize(text_embedding, dim=-1).T
    glob = -torch.log_softmax(z, 1).diagonal().mean()
    s = t @ v.transpose(1, 2)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = hi == lo
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1.0 / v.shape[1], 0.0, s)
    c = F.normalize((s / s.sum(-1, keepdim=True)) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).transpose(1, 2)
    z = z.masked_fill(~(mask[:, None, :] & mask[:, :, None]), torch.finfo(z.dtype).min)
    nll = -(z.log_softmax(1) + z.log_softmax(2)).diagonal(dim1=1, dim2=2)
    local = (nll.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean() / 2
    return {"global": glob, "local": local, "total": glob + local}
