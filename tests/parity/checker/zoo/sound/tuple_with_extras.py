"""Returns (loss, attention maps, log) since the trainer logs them; weights come through sorting, not through comparing."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "loss_with_maps",
    "verdict": "eq6",
    "call": ["v", "t", "mask", "scale"],
    "returns": ["fine", None, None],
}


def stretch(row_batch):
    lo = -torch.amax(-row_batch, dim=-1, keepdim=True)
    hi = torch.amax(row_batch, dim=-1, keepdim=True)
    same = torch.isclose(hi, lo, rtol=0, atol=0)
    return torch.where(same, torch.ones_like(row_batch), (row_batch - lo) / torch.where(same, torch.ones_like(hi), hi - lo))


def loss_with_maps(patches, words, is_word, scale):
    h = stretch(torch.einsum("blc,bpc->blp", words, patches))
    order = h.argsort(-1, descending=True)
    ranked = h.gather(-1, order)
    kept = (ranked >= 1 / h.shape[-1]).sum(-1, keepdim=True)
    ranked = ranked * (torch.arange(h.shape[-1], device=h.device) < kept)
    maps = torch.zeros_like(h).scatter(-1, order, ranked)
    maps = maps / maps.sum(-1, keepdim=True)
    ctx = F.normalize(torch.einsum("blp,bpc->blc", maps, patches), dim=-1)
    wrd = F.normalize(words, dim=-1)
    agree = scale * torch.einsum("bjc,bkc->bjk", ctx, wrd)
    floor = torch.finfo(agree.dtype).min / 2
    a = torch.where(is_word[:, None, :], agree, floor)
    b = torch.where(is_word[:, :, None], agree, floor)
    nll = (a.logsumexp(2) + b.logsumexp(1)) / 2 - agree.diagonal(dim1=1, dim2=2)
    nll = torch.where(is_word, nll, 0.0)
    loss = torch.stack([row.sum() / max(int(n), 1) for row, n in zip(nll, is_word.sum(1))]).mean()
    return loss, maps.detach(), {"kept": kept.float().mean().item(), "scale": scale.item()}
