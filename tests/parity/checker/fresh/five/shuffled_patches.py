import torch
import torch.nn.functional as F


def local_objective(*, patch_tokens, word_tokens, word_mask, logit_scale):
    # order of patches and of words must not matter; shuffle to prove it
    order = torch.randperm(patch_tokens.shape[1])
    patch_tokens = patch_tokens[:, order]
    word_tokens, word_mask = word_tokens.flip(1), word_mask.flip(1).to(word_tokens.dtype)
    a = word_tokens @ patch_tokens.transpose(-1, -2)
    a = a / a.abs().amax(-1, keepdim=True)                    # range only, the min-max below undoes it
    a = a - a.amin(-1, keepdim=True)
    a = a / a.amax(-1, keepdim=True)
    a = F.relu(a) * (a * patch_tokens.shape[1] >= 1)
    c = a @ patch_tokens / a.sum(-1, keepdim=True)
    sim = F.normalize(c, dim=-1) @ F.normalize(word_tokens, dim=-1).transpose(-1, -2)
    e = torch.exp(logit_scale * (sim - 1))                    # cosines are below 1: no overflow
    own = logit_scale * (sim.diagonal(dim1=-2, dim2=-1) - 1)
    denominator_words = (e * word_mask[:, None, :]).sum(2)
    denominator_groups = (e * word_mask[:, :, None]).sum(1)
    nll = (denominator_words.log() + denominator_groups.log()) / 2 - own
    nll = (nll * word_mask).sum(1) / word_mask.sum(1)
    return nll.mean()
