import torch
import torch.nn.functional as F
from torch import nn


class Objective(nn.Module):
    """Towers that put their pooled vector in slot 0: image (B,1+P,D), text (B,1+L,D), n_words (B,)."""

    def __init__(self, lambda_global=0.5, lambda_fine=1.0):
        super().__init__()
        self.weights = (lambda_global, lambda_fine)
        self.tau = nn.Parameter(torch.tensor(0.07))

    @staticmethod
    def both_ways(z, keep=None):
        if keep is not None:
            z = z.masked_fill(~keep, -1e9)
        return -0.5 * (z.log_softmax(-1) + z.log_softmax(-2)).diagonal(dim1=-2, dim2=-1)

    def forward(self, image, text, n_words):
        unit_text = F.normalize(text, dim=-1)
        l_global = self.both_ways(F.normalize(image[:, 0], dim=-1) @ unit_text[:, 0].T / self.tau).mean()

        patches, words = image[:, 1:], text[:, 1:]
        real = torch.arange(words.shape[1])[None] < n_words[:, None]
        s = words @ patches.mT
        s = s - s.amin(-1, keepdim=True)
        s = s / s.amax(-1, keepdim=True).clamp(min=1e-12)
        s = torch.where(s >= 1 / patches.shape[1], s, 0)
        c = F.normalize(s @ patches, dim=-1)
        z = c @ unit_text[:, 1:].mT / self.tau
        per_word = self.both_ways(z, real[:, :, None] & real[:, None, :])
        l_fine = ((per_word * real).sum(1) / n_words.clamp(min=1)).mean()
        return self.weights[0] * l_global + self.weights[1] * l_fine
