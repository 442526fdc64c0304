import math

import torch
from torch import nn
import torch.nn.functional as F


class SPARCHead(nn.Module):
    """Adapters and both losses of the pseudo-code, on tower features of width C."""

    def __init__(self, width, dim, global_weight=0.5, local_weight=1.0):
        super().__init__()
        self.vision_adapter = nn.Linear(width, dim)
        self.language_adapter = nn.Linear(width, dim)
        self.theta = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.global_weight, self.local_weight = global_weight, local_weight

    def forward(self, vision_features, language_features, language_mask):
        mask = language_mask.to(vision_features.dtype)
        v_patch = self.vision_adapter(vision_features)
        l_token = self.language_adapter(language_features)
        v_global = F.normalize(self.vision_adapter(vision_features.mean(1)), dim=-1)
        l_global = F.normalize(self.language_adapter(language_features.mean(1)), dim=-1)
        k = self.theta.exp()

        z = k * v_global @ l_global.T
        logp = z.log_softmax(1).diagonal() + z.log_softmax(0).diagonal()
        loss_global = -0.5 * logp.mean()

        s = torch.einsum("btd,bpd->btp", l_token, v_patch)
        s_min, s_max = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        s = (s - s_min) / (s_max - s_min)
        s = torch.where(s < 1 / v_patch.shape[1], torch.zeros_like(s), s)
        w = s / s.sum(-1, keepdim=True)
        grouped = F.normalize(torch.einsum("btp,bpd->btd", w, v_patch), dim=-1)
        l_unit = F.normalize(l_token, dim=-1)
        local = 0
        for x, y in ((grouped, l_unit), (l_unit, grouped)):
            z = k * torch.einsum("bmd,bnd->bmn", x, y)
            z = torch.where(mask[:, None, :] > 0, z, torch.full_like(z, -1e9))
            loss = -torch.log_softmax(z, -1).diagonal(dim1=1, dim2=2)
            local = local + 0.5 * (loss * mask).sum() / mask.sum()
        total = self.global_weight * loss_global + self.local_weight * local
        return total, {"global": loss_global.detach(), "local": local.detach()}
