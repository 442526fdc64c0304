"""One number comes out: global loss of pooled tokens and local loss, weighted."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "SparcCriterion",
    "verdict": "eq6",
    "call": ["image_tokens=v", "text_tokens=t", "text_mask=mask_float", "temperature=tau"],
    "returns": "0.5*global+2.0*fine",
}


class SparcCriterion(torch.nn.Module):
    def __init__(self, w_global=0.5, w_local=2.0):
        super().__init__()
        self.w_global, self.w_local = w_global, w_local

    @staticmethod
    def info_nce(a, b, temperature):
        z = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature
        y = torch.arange(len(z))
        return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2

    @staticmethod
    def attend(words, regions):
        e = torch.einsum("lc,pc->lp", words, regions)
        lo, hi = e.amin(1, keepdim=True), e.amax(1, keepdim=True)
        e = torch.where(lo == hi, 1.0, (e - lo) / torch.where(lo == hi, 1.0, hi - lo))
        e = e * (e >= 1 / e.shape[1])
        return (e / e.sum(1, keepdim=True)) @ regions

    def forward(self, image_tokens, text_tokens, text_mask, temperature):
        count = text_mask.sum(1, keepdim=True).clamp(min=1)
        text_global = (text_tokens * text_mask[..., None]).sum(1) / count
        total = self.w_global * self.info_nce(image_tokens.mean(1), text_global, temperature)
        for words, regions, keep in zip(text_tokens, image_tokens, text_mask.bool()):
            if keep.any():
                words = words[keep]
                total = total + self.w_local / len(text_mask) * self.info_nce(self.attend(words, regions), words, temperature)
        return total
