import math

import torch
import torch.nn.functional as F


def token_to_region_loss(queries, regions, lengths, log_scale):
    B, L, D = queries.shape
    real = torch.arange(L)[None] < lengths[:, None]
    attn = torch.softmax(queries @ regions.transpose(1, 2) / math.sqrt(D), dim=-1)
    context = F.normalize(attn @ regions, dim=-1)
    queries = F.normalize(queries, dim=-1)
    z = log_scale.exp() * context @ queries.transpose(1, 2)
    z = z.masked_fill(~real[:, None, :] & ~torch.eye(L, dtype=torch.bool), -torch.inf)
    zt = (log_scale.exp() * queries @ context.transpose(1, 2)).masked_fill(~real[:, None, :] & ~torch.eye(L, dtype=torch.bool), -torch.inf)
    nll = -(z.log_softmax(-1) + zt.log_softmax(-1)).diagonal(dim1=1, dim2=2)
    return (torch.where(real, nll, 0).sum(1) / lengths / 2).mean()
