import torch
import torch.nn.functional as F


def text_to_patch_loss(tokens, patches, pad_mask, scale):
    """tokens (B,L,D), patches (B,P,D), pad_mask True = pad, scale 1/tau"""
    attn = torch.softmax(tokens @ patches.mT / tokens.shape[-1] ** 0.5, dim=-1)
    grouped = attn @ patches
    tokens = F.normalize(tokens, dim=-1)
    z = scale * grouped @ tokens.mT
    m = ~pad_mask
    out = z.new_zeros(())
    for zi, mi in zip(z, m):
        zi = zi[mi][:, mi]
        out = out - (zi.log_softmax(0).diagonal().mean() + zi.log_softmax(1).diagonal().mean()) / 2
    return out / len(z)
