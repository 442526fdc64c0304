import torch


class Loss:
    def __init__(self, sigma=None):
        self.sigma = sigma

    def weights(self, s):
        sigma = self.sigma or 1 / s.shape[-1]
        lo, hi = s.aminmax(dim=-1, keepdim=True)
        s = (s - lo) / (hi - lo)
        s = s.masked_fill(s < sigma, 0)
        s = s * s
        return s / s.sum(-1, keepdim=True)

    def __call__(self, v, t, mask, scale):
        c = torch.nn.functional.normalize(self.weights(t @ v.mT) @ v, dim=-1)
        t = torch.nn.functional.normalize(t, dim=-1)
        z = scale * c @ t.mT
        z = z.masked_fill(~mask[:, None, :], -1e9).masked_fill(~mask[:, :, None], -1e9)
        a = -z.log_softmax(2).diagonal(dim1=1, dim2=2)
        b = -z.log_softmax(1).diagonal(dim1=1, dim2=2)
        n = mask.sum(1).clamp(min=1)
        return (((a + b) * mask).sum(1) / n).mean() / 2
