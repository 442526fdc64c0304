import torch
import torch.nn.functional as F


def sparc_fine_grained(patches, tokens, mask, inverse_temperature):
    aff = tokens @ patches.transpose(-1, -2)
    aff = aff - aff.min(-1, keepdim=True)[0]
    aff = aff / aff.max(-1, keepdim=True)[0]
    aff = aff * (aff >= 1 / patches.shape[-2])
    aff = aff / aff.sum(-1, keepdim=True)
    grouped = F.normalize(aff @ F.normalize(patches, dim=-1), dim=-1)
    tokens = F.normalize(tokens, dim=-1)
    logits = inverse_temperature * grouped @ tokens.transpose(-1, -2)
    cols = ~mask[:, None, :]
    ce1 = -logits.masked_fill(cols, -1e9).log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    ce2 = -logits.transpose(-1, -2).masked_fill(cols, -1e9).log_softmax(-1).diagonal(dim1=-2, dim2=-1)
    return 0.5 * (ce1[mask].mean() + ce2[mask].mean())
