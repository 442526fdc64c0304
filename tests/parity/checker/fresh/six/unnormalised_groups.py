import torch
import torch.nn.functional as F


def sparc_fast(img, txt, txt_mask, inv_temp):
    """
    Everything that only changes the length of a group is left out: the groups end up on the unit sphere anyway,
    so neither the range of the min-max step nor the sum of the weights is needed (only for the cut).

    img (b p d), txt (b l d), txt_mask (b l) float with ones for tokens
    """
    s = txt @ img.transpose(-2, -1)
    lo = s.amin(-1, True)
    s = s - lo
    cut = s.detach().amax(-1, True) / img.shape[-2]
    g = F.relu(s) * (s >= cut)
    g = F.normalize(g @ img, dim=-1)
    t = F.normalize(txt, dim=-1)

    sim = inv_temp * (g @ t.transpose(-2, -1))
    e = sim.exp()
    row = (e * txt_mask[:, None, :]).sum(-1)
    col = (e * txt_mask[:, :, None]).sum(-2)
    pos = sim.diagonal(dim1=-2, dim2=-1)
    loss = 0.5 * (row.log() + col.log()) - pos
    w = txt_mask / txt_mask.sum(-1, keepdim=True) / txt_mask.shape[0]
    return (loss * w).sum()
