import torch
import torch.nn.functional as F


def make_criterion(threshold=None):
    def criterion(v, t, mask, scale):
        sigma = threshold if threshold is not None else v.shape[1] ** -1
        s = t @ v.mT
        lo, hi = torch.aminmax(s, dim=-1, keepdim=True)
        s = (s - lo) / (hi - lo)
        s = torch.where(s >= sigma, s, 0.0)
        c, w = F.normalize(s @ v, dim=-1), F.normalize(t, dim=-1)
        cols = mask[:, None, :]
        z = (scale * c @ w.mT).masked_fill(~cols, -torch.inf)
        own = (scale * w @ w.mT).masked_fill(~cols | torch.eye(t.shape[1], dtype=torch.bool), -torch.inf)
        y = (scale * w @ c.mT).masked_fill(~cols, -torch.inf)
        to_text = -z.log_softmax(-1).diagonal(dim1=1, dim2=2)
        to_image = -torch.cat([y, own], dim=-1).log_softmax(-1).diagonal(dim1=1, dim2=2)
        both = torch.where(mask, to_text + to_image, 0.0).sum(1)
        return (both / mask.sum(1).clamp(min=1)).mean() / 2

    return criterion
