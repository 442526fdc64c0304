"""A torch.autograd.Function whose backward is written out; the temperature is a module's attribute."""

import torch

EXPECT = {
    "target": "FusedAlignment.loss",
    "verdict": "eq6",
    "call": ["v", "t", "mask_int", "theta"],
}


class FusedAlignment(torch.autograd.Function):
    @staticmethod
    def forward(ctx, words, patches):
        s = words @ patches.mT
        lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
        flat = lo == hi
        width = torch.where(flat, torch.ones_like(hi), hi - lo)
        h = torch.where(flat, torch.ones_like(s), (s - lo) / width)
        keep = (h >= 1 / patches.shape[1]).to(s.dtype)
        total = (h * keep).sum(-1, keepdim=True)
        a = h * keep / total
        ctx.save_for_backward(words, patches, s, lo, hi, width, h, keep, total, a)
        return a @ patches

    @staticmethod
    def backward(ctx, dc):
        words, patches, s, lo, hi, width, h, keep, total, a = ctx.saved_tensors
        da = dc @ patches.mT
        dh = keep * (da - (da * a).sum(-1, keepdim=True)) / total
        dh = torch.where(lo == hi, torch.zeros_like(dh), dh) / width
        at_lo, at_hi = (s == lo).to(s.dtype), (s == hi).to(s.dtype)
        ds = dh + at_lo / at_lo.sum(-1, keepdim=True) * (dh * (h - 1)).sum(-1, keepdim=True)
        ds = ds - at_hi / at_hi.sum(-1, keepdim=True) * (dh * h).sum(-1, keepdim=True)
        return ds @ patches, ds.mT @ words + a.mT @ dc

    @staticmethod
    def loss(patches, words, mask, log_scale):
        grouped = FusedAlignment.apply(words, patches)
        z = torch.nn.functional.cosine_similarity(grouped[:, :, None], words[:, None], dim=-1) * log_scale.exp()
        gone = (mask[:, None] == 0).expand_as(z)
        floor = torch.finfo(z.dtype).min
        nll = -(z.masked_fill(gone, floor).log_softmax(-1) + z.mT.masked_fill(gone, floor).log_softmax(-1))
        nll = nll.diagonal(dim1=1, dim2=2) / 2
        nll = torch.where(mask > 0, nll, torch.zeros_like(nll))
        return (nll.sum(1) / mask.sum(1).clamp(min=1)).mean()
