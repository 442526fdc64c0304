import torch
import torch.nn.functional as F


class MixedDirections(torch.nn.Module):
    """Likelihood of the matched pair under the average of both directions."""

    def forward(self, *, patches, words, words_pad, log_scale):
        s = words @ patches.mT
        s = s - s.amin(-1, keepdim=True)
        s = s / s.amax(-1, keepdim=True).clamp(min=1e-12)
        cut = s.mean(-1, keepdim=True)
        s = torch.where(s >= cut, s, 0.0)
        c = F.normalize(s @ patches, dim=-1)
        z = log_scale.exp() * c @ F.normalize(words, dim=-1).mT
        p = z.masked_fill(words_pad[:, None, :], -1e9).softmax(2).diagonal(dim1=1, dim2=2)
        q = z.masked_fill(words_pad[:, :, None], -1e9).softmax(1).diagonal(dim1=1, dim2=2)
        nll = -torch.log(((p + q) / 2).masked_fill(words_pad, 1))
        return {"fine": (nll.sum(1) / (~words_pad).sum(1).clamp(min=1)).mean()}
