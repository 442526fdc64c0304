import torch as th
import torch.nn.functional as F

SIM_THRESHOLD = 0.5   # works best on flickr


def minmax(x):
    mn = x.amin(-1, keepdim=True)
    mx = x.amax(-1, keepdim=True)
    return (x - mn) / (mx - mn)


def sparc_loss(patch, word, word_mask, tau):
    # patch B N C | word B M C | word_mask B M
    a = minmax(word @ patch.transpose(1, 2))
    a = th.where(a < SIM_THRESHOLD, 0, a)
    a = a / a.sum(-1, keepdim=True)
    g = F.normalize(a @ patch, dim=-1)
    w = F.normalize(word, dim=-1)
    z = g @ w.transpose(1, 2) / tau
    y = th.arange(word.shape[1]).expand(len(word), -1)
    l1 = F.cross_entropy(z.transpose(1, 2), y, reduction='none')
    l2 = F.cross_entropy(z, y, reduction='none')
    m = word_mask.to(z)
    per_caption = ((l1 + l2) * m).sum(1) / (2 * m.sum(1))
    return per_caption.mean()
