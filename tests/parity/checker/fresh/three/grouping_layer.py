import torch
import torch.nn.functional as F


class Grouping(torch.nn.Module):
    def forward(self, queries, values):
        sim = torch.matmul(queries, values.transpose(-2, -1))
        b, n, p = sim.shape
        low = sim.min(dim=2, keepdim=True)[0]
        sim = (sim - low) / (sim.max(dim=2, keepdim=True)[0] - low)
        sim = torch.where(sim >= 1.0 / n, sim, torch.zeros_like(sim))
        return torch.matmul(sim / sim.sum(2, keepdim=True), values)


def local_loss(image, text, text_len, theta, grouping=Grouping()):
    """image (B,P,D), text (B,L,D), text_len (B,), theta log(1/tau)"""
    c = F.normalize(grouping(text, image), dim=-1)
    t = F.normalize(text, dim=-1)
    rows = []
    for b, n in enumerate(text_len):
        z = theta.exp() * c[b, :n] @ t[b, :n].T
        rows.append(torch.stack([z.logsumexp(1), z.logsumexp(0)]).mean(0).mean() - z.diagonal().mean())
    return torch.stack(rows).mean()
