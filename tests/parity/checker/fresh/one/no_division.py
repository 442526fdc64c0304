import torch
import torch.nn.functional as F


def phi(x, y):
    return F.cosine_similarity(x[:, :, None], y[:, None], dim=-1, eps=1e-12)


def sparc_fine_no_div(image, text, real, theta):
    """Eqs. 2-6. The range of eq. 2 and the sum of eq. 4 are positive factors per row and phi is scale free: skip both."""
    s = text @ image.transpose(-2, -1)
    lo = s.amin(-1, keepdim=True)
    hi = s.amax(-1, keepdim=True)
    above = s - lo
    keep = above * image.shape[1] >= hi - lo
    c = (above * keep) @ image
    z = phi(c, text) * torch.exp(theta)
    neg = torch.tensor(float("-inf"), dtype=z.dtype, device=z.device)
    visible = real[:, None, :] | ~real[:, :, None]
    lp = torch.where(visible, z, neg).log_softmax(-1)
    lq = torch.where(visible, z.transpose(1, 2), neg).log_softmax(-1)
    d = torch.diagonal(lp, 0, 1, 2) + torch.diagonal(lq, 0, 1, 2)
    n = real.sum(-1)
    per_sample = -(d * real).sum(-1) / (2 * n.clamp(min=1))
    return per_sample.mean()
