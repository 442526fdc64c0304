"""The similarity carries the temperature already, since another loss of ours wants it so; min-max undoes it."""

import torch
from torch.nn.functional import normalize

EXPECT = {
    "target": "forward_loss",
    "verdict": "eq6",
    "harmless": ["similarity.scaled"],
    "call": ["v", "t", "mask", "scale"],
}


def forward_loss(img, txt, txt_mask, logit_scale):
    sim = logit_scale * torch.bmm(txt, img.permute(0, 2, 1))
    sim_min, sim_max = sim.amin(-1, keepdim=True), sim.amax(-1, keepdim=True)
    ok = sim_max > sim_min
    sim_norm = torch.where(ok, (sim - sim_min) / torch.where(ok, sim_max - sim_min, 1.0), 1.0)
    sim_sparse = sim_norm * (sim_norm >= 1.0 / img.size(1))
    alignment = sim_sparse / sim_sparse.sum(-1, keepdim=True)
    grouped = torch.bmm(alignment, img)
    scores = logit_scale * torch.bmm(normalize(grouped, dim=-1), normalize(txt, dim=-1).permute(0, 2, 1))
    exp = torch.exp(scores - scores.amax((1, 2), keepdim=True).detach())
    exp = exp * txt_mask.unsqueeze(1) * txt_mask.unsqueeze(2)
    hit = torch.diagonal(exp, dim1=1, dim2=2)
    hit = torch.where(txt_mask, hit, 1.0)
    rows = torch.where(txt_mask, exp.sum(2), 1.0)
    cols = torch.where(txt_mask, exp.sum(1), 1.0)
    per_token = 0.5 * (rows.log() + cols.log()) - hit.log()
    n = txt_mask.sum(1)
    return (per_token.sum(1) / torch.where(n > 0, n, 1)).mean()
