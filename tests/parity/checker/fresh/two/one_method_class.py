import torch
from torch.nn.functional import cross_entropy, normalize


class FineGrained:
    @staticmethod
    def compute(text_emb, text_mask, img_emb, scale):
        total = img_emb.new_zeros(())
        for txt, keep, img in zip(text_emb, text_mask, img_emb):
            txt = txt[keep == 1]
            n, p = txt.shape[0], img.shape[0]
            if n == 0:
                continue
            s = txt @ img.T
            lo, hi = torch.aminmax(s, dim=1, keepdim=True)
            s = (s - lo) / (hi - lo)
            s = torch.where(s < 1 / p, torch.zeros_like(s), s)
            c = normalize(s @ img, dim=1)
            z = scale * c @ normalize(txt, dim=1).T
            y = torch.arange(n)
            total = total + cross_entropy(z, y) / 2 + cross_entropy(z.T, y) / 2
        return total / len(text_emb)
