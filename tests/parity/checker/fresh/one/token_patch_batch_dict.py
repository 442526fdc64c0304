import torch
from torch import nn
import torch.nn.functional as F


class TokenPatchLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(2.659))

    def forward(self, batch):
        """batch: dict with patches (B,P,D), tokens (B,L,D), mask (B,L) bool."""
        v, t, m = batch["patches"], batch["tokens"], batch["mask"]
        attention = (t @ v.mT).softmax(-1)
        attention = attention * (attention >= 1 / v.size(1))
        attention = attention / attention.sum(-1, keepdim=True)
        c, u = F.normalize(attention @ v, dim=-1), F.normalize(t, dim=-1)
        z = self.log_scale.exp() * c @ u.mT
        z = torch.where(m[:, None, :], z, -1e9), torch.where(m[:, None, :], z.mT, -1e9)
        nll = [-y.log_softmax(-1).diagonal(dim1=1, dim2=2).where(m, 0.0) for y in z]
        return {"loss_f": (sum(nll).sum(1) / m.sum(1).clamp(min=1)).mean() / 2}
