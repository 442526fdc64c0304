import math

import torch
from torch import nn
import torch.nn.functional as F


class ImpressionAlignment(nn.Module):
    """Aligns the tokens of the impression section with patches of the radiograph."""

    def __init__(self, init_temperature: float = 0.07):
        super().__init__()
        self.log_temp = nn.Parameter(torch.tensor(math.log(init_temperature)))

    def sparse_attention(self, sim):
        p = sim.size(-1)
        sim = F.layer_norm(sim, (p,))               # keeps fp16 ranges small
        lo = sim.amin(-1, keepdim=True)
        hi = sim.amax(-1, keepdim=True)
        sim = (sim - lo) / (hi - lo)
        sim = torch.where(sim < 1 / p, torch.zeros_like(sim), sim)
        return sim / sim.sum(-1, keepdim=True)

    def forward(self, batch):
        patches, tokens, mask = batch["patch_emb"], batch["token_emb"], batch["attention_mask"].bool()
        sim = torch.einsum("bld,bpd->blp", tokens, patches)
        grouped = torch.einsum("blp,bpd->bld", self.sparse_attention(sim), patches)

        logits = torch.einsum("bld,bmd->blm", F.normalize(grouped, dim=-1), F.normalize(tokens, dim=-1))
        logits = logits / self.log_temp.exp()
        fill = torch.finfo(logits.dtype).min
        v2t = logits.masked_fill(~mask[:, None, :], fill).log_softmax(dim=2)
        t2v = logits.masked_fill(~mask[:, :, None], fill).log_softmax(dim=1)
        nll = -0.5 * (torch.diagonal(v2t, dim1=1, dim2=2) + torch.diagonal(t2v, dim1=1, dim2=2))
        nll = nll.masked_fill(~mask, 0.0)
        per_report = nll.sum(1) / mask.sum(1).clamp(min=1)
        return {"loss": per_report.mean(), "per_report": per_report.detach()}
