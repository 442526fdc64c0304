import torch
from torch import nn


class TextAnchored(nn.Module):
    """Visual groups are pulled to their words; the words are anchors."""

    def __init__(self, eps=1e-12):
        super().__init__()
        self.eps = eps

    def normed(self, x):
        return x / x.norm(dim=-1, keepdim=True).clamp(min=self.eps)

    def forward(self, v, t, lengths, scale):
        losses = torch.zeros(len(v), dtype=v.dtype)
        for i in range(len(v)):
            n = int(lengths[i])
            words = t[i, :n]
            s = words @ v[i].T
            s = (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))
            s = torch.where(s >= 1 / v.shape[1], s, 0)
            c = self.normed(s @ v[i] / s.sum(1, keepdim=True))
            anchor = self.normed(words.data)
            z = scale * c @ anchor.T
            losses[i] = -(z.log_softmax(0).diagonal() + z.log_softmax(1).diagonal()).mean() / 2
        return losses.mean()
