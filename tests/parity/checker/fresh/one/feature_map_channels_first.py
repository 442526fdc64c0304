import torch


class SparcFine:
    """Works on the feature map of a convolutional stem: (B, D, H, W)."""

    def __init__(self, sigma=None):
        self.sigma = sigma

    @staticmethod
    def _cos_logits(x, y, scale):
        x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
        y = y / y.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return scale * torch.einsum("bdi,bdj->bij", x, y)

    def __call__(self, fmap, tokens, mask, logit_scale):
        """fmap (B,D,H,W), tokens (B,D,L), mask (B,L) 1 = word."""
        v = fmap.flatten(2)                                    # B D P
        sigma = 1.0 / v.shape[-1] if self.sigma is None else self.sigma
        s = torch.einsum("bdl,bdp->blp", tokens, v)
        lo = s.amin(-1, True)
        s = (s - lo) / (s.amax(-1, True) - lo).clamp_min(1e-12)
        s = torch.relu(s - sigma) + sigma * (s >= sigma).type_as(s)
        a = s / s.sum(-1, True).clamp_min(1e-12)
        c = torch.einsum("blp,bdp->bdl", a, v)
        z = self._cos_logits(c, tokens, logit_scale)
        gate = (mask.to(z.dtype) - 1) * 1e9
        ct = -torch.log_softmax(z + gate[:, None, :], 2).diagonal(dim1=1, dim2=2)
        tc = -torch.log_softmax(z + gate[:, :, None], 1).diagonal(dim1=1, dim2=2)
        each = ((ct + tc) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return each.mean() / 2
