import torch
import torch.nn.functional as F


class WindowedContrast(torch.nn.Module):
    """Only the words nearby are negatives: the far end of a long caption is about something else."""

    def __init__(self, reach=2):
        super().__init__()
        self.reach = reach

    def forward(self, patches, words, mask, inv_tau):
        s = words @ patches.transpose(1, 2)
        s = (s - s.amin(-1, keepdim=True)) / (s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True))
        s = s * (s >= 1 / patches.shape[1])
        c = F.normalize(s @ patches, dim=-1)
        z = inv_tau * c @ F.normalize(words, dim=-1).transpose(1, 2)
        place = torch.arange(words.shape[1])
        near = (place[:, None] - place[None]).abs() <= self.reach
        allowed = near[None] & mask[:, None, :] | torch.eye(len(place), dtype=torch.bool)
        a = z.masked_fill(~allowed, float("-inf")).log_softmax(-1)
        b = z.transpose(1, 2).masked_fill(~allowed, float("-inf")).log_softmax(-1)
        nll = -(a + b).diagonal(dim1=1, dim2=2) / 2
        return ((nll * mask).sum(1) / mask.sum(1)).mean()
