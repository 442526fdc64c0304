import torch
import torch.nn.functional as F


def local_contrast(img, txt, is_pad, tau):
    keep = ~is_pad
    att = torch.matmul(txt, img.permute(0, 2, 1))
    att = att - att.amin(-1, keepdim=True)
    att = att / att.amax(-1, keepdim=True)
    att = torch.where(att < 1 / img.shape[1], 0.0, att)
    att = att / att.sum(-1, keepdim=True)
    pooled = (att.unsqueeze(-1) * img.unsqueeze(1)).amax(dim=2)
    q, r = F.normalize(pooled, dim=-1), F.normalize(txt, dim=-1)
    z = q @ r.permute(0, 2, 1) / tau
    out = z.new_zeros(())
    for zi, ki in zip(z, keep):
        zi = zi[ki][:, ki]
        if zi.numel():
            out = out - (zi.log_softmax(0) + zi.log_softmax(1)).diagonal().mean() / 2
    return out / len(z)
