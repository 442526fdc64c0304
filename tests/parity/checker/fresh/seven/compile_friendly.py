import torch
import torch.nn.functional as F

# static shapes, no boolean indexing and no .item(): one graph under torch.compile(fullgraph=True)


def _nll(z, bias, eye):
    z = z + bias
    return torch.logsumexp(z, dim=-1) - (z * eye).sum(dim=-1)


def fine_grained_loss(vision, language, valid, log_tau):
    b, p, d = vision.shape
    l = language.shape[1]
    valid = valid.to(vision.dtype)
    sim = torch.baddbmm(vision.new_zeros(b, l, p), language, vision.transpose(1, 2))
    sim_min = torch.amin(sim, dim=2, keepdim=True)
    sim_range = torch.amax(sim, dim=2, keepdim=True) - sim_min
    sim = (sim - sim_min) / (sim_range + 1e-20)
    sim = torch.where(sim >= 1.0 / p, sim, torch.zeros_like(sim))
    attn = sim / (torch.sum(sim, dim=2, keepdim=True) + 1e-20)
    context = torch.bmm(attn, vision)

    context = F.normalize(context, dim=-1)
    language = F.normalize(language, dim=-1)
    z = torch.bmm(context, language.transpose(1, 2)) * torch.exp(-log_tau)
    bias = (valid - 1.0).unsqueeze(1) * 1e6
    eye = torch.eye(l, dtype=z.dtype, device=z.device)
    nll = 0.5 * (_nll(z, bias, eye) + _nll(z.transpose(1, 2), bias, eye))
    count = torch.clamp(valid.sum(dim=1), min=1.0)
    return torch.mean(torch.sum(nll * valid, dim=1) / count)
