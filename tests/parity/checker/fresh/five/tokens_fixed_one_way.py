import torch
import torch.nn.functional as F


class FineGrainedLoss(torch.nn.Module):
    def direction(self, query, key, pad, scale):
        z = scale * query @ key.transpose(1, 2)
        z = z.masked_fill(pad[:, None], -1e30)
        nll = z.logsumexp(-1) - (scale * query * key).sum(-1)
        return (nll.masked_fill(pad, 0).sum(1) / (~pad).sum(1)).mean()

    def forward(self, image, text, pad, scale):
        s = text @ image.transpose(1, 2)
        s = s - s.amin(-1, keepdim=True)
        s = s / s.amax(-1, keepdim=True)
        s = torch.where(s >= 1 / image.shape[1], s, 0.0)
        g, t = F.normalize(s @ image, dim=-1), F.normalize(text, dim=-1)
        # first the groups move towards the words, then both move
        return (self.direction(g, t.detach(), pad, scale) + self.direction(t, g, pad, scale)) / 2
