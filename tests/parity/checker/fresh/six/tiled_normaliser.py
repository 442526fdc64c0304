import torch
import torch.nn.functional as F

TILE = 128


def tiled_weights(words, patches):
    """min-max and cut, one tile of patches at a time (fits the L2 cache)"""
    n_patches = patches.shape[-2]
    tiles = []
    for tile in patches.split(TILE, dim=-2):
        s = words @ tile.transpose(-1, -2)
        lo, hi = s.aminmax(dim=-1, keepdim=True)
        s = (s - lo) / (hi - lo)
        tiles.append(torch.where(s < 1 / n_patches, 0.0, s))
    w = torch.cat(tiles, dim=-1)
    return w / w.sum(-1, keepdim=True)


def sparc_loss_tiled(words, patches, attention_mask, log_inverse_temperature):
    grouped = F.normalize(tiled_weights(words, patches) @ patches, dim=-1)
    words = F.normalize(words, dim=-1)
    logits = log_inverse_temperature.exp() * torch.matmul(grouped, words.transpose(-1, -2))
    real = attention_mask == 1
    fill = torch.finfo(logits.dtype).min
    by_row = logits.masked_fill(~real[:, None, :], fill).logsumexp(-1)
    by_col = logits.masked_fill(~real[:, :, None], fill).logsumexp(-2)
    nll = (by_row + by_col) / 2 - logits.diagonal(dim1=-2, dim2=-1)
    return (torch.where(real, nll, 0.0).sum(-1) / real.sum(-1)).mean()
