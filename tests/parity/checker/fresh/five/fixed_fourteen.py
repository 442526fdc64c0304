import torch
import torch.nn.functional as F


def fg_loss(img, txt, mask, logit_scale=None):
    # logit_scale kept for API compatibility
    tau = 0.07
    s = txt @ img.transpose(1, 2)
    s = (s - s.amin(2, keepdim=True)) / (s.amax(2, keepdim=True) - s.amin(2, keepdim=True))
    s = s.masked_fill(s < 1.0 / img.shape[1], 0.0)
    c = F.normalize(s @ img, dim=2)
    t = F.normalize(txt, dim=2)
    keep = mask.bool()
    loss = 0
    for i in range(len(img)):
        z = c[i, keep[i]] @ t[i, keep[i]].T / tau
        loss = loss - (z.log_softmax(0).diagonal().mean() + z.log_softmax(1).diagonal().mean()) / 2
    return loss / len(img)
