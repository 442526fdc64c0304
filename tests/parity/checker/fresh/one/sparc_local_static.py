import torch
import torch.nn.functional as F


class SparcLocal:
    @staticmethod
    def weights(scores):
        sigma = 1.0 / scores.shape[-1]
        kept = torch.where(scores >= sigma, scores, torch.zeros_like(scores))
        return kept / kept.sum(-1, keepdim=True).clamp(min=1e-8)

    @classmethod
    def loss(cls, v, t, mask, log_inv_tau):
        c = cls.weights(t @ v.mT) @ v
        z = torch.exp(log_inv_tau) * F.normalize(c, dim=-1) @ F.normalize(t, dim=-1).mT
        m = mask.bool()
        z1, z2 = (y.masked_fill(~m[:, None, :], -1e9) for y in (z, z.mT))
        nll = -(z1.log_softmax(-1) + z2.log_softmax(-1)).diagonal(dim1=1, dim2=2) / 2
        return ((nll * m).sum(1) / m.sum(1).clamp(min=1)).mean()
