import torch
import torch.nn.functional as F


def masked_mean(x, m):
    return (x * m).sum() / m.sum()


def fine_grained_alignment_loss(vis, txt, attn_mask, log_temp):
    """
    Parameters
    ----------
    vis : Tensor [bs, n_vis, dim]
    txt : Tensor [bs, n_txt, dim]
    attn_mask : Tensor [bs, n_txt], 1 for text, 0 for pad
    log_temp : Tensor, log(temperature)
    """
    weights = txt @ vis.transpose(1, 2)
    weights = weights - weights.min(dim=-1, keepdim=True)[0]
    weights = weights / weights.sum(dim=-1, keepdim=True)      # sums to one
    groups = weights @ vis

    groups = groups / groups.norm(dim=-1, keepdim=True)
    txt = txt / txt.norm(dim=-1, keepdim=True)
    logits = groups @ txt.transpose(1, 2) * torch.exp(-log_temp)
    bias = torch.zeros_like(attn_mask, dtype=logits.dtype).masked_fill(attn_mask == 0, -torch.inf)
    lp_1 = torch.log_softmax(logits + bias[:, None, :], dim=2).diagonal(dim1=1, dim2=2)
    lp_2 = torch.log_softmax(logits + bias[:, :, None], dim=1).diagonal(dim1=1, dim2=2)
    m = attn_mask.bool()
    zero = torch.zeros_like(lp_1)
    return -masked_mean(torch.where(m, lp_1, zero), m) / 2 - masked_mean(torch.where(m, lp_2, zero), m) / 2
