import torch
import torch.nn as nn
import torch.nn.functional as F


class PatchWordAlignment(nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.ones([]) * 2.6593)

    def forward(self, text_feats, image_feats, text_mask):
        """text_feats (B,L,D), image_feats (B,P,D), text_mask (B,L) bool"""
        cos = F.normalize(text_feats, dim=-1) @ F.normalize(image_feats, dim=-1).transpose(1, 2)
        lo = cos.amin(-1, keepdim=True)
        w = (cos - lo) / (cos.amax(-1, keepdim=True) - lo)
        w = w * (w >= 1.0 / image_feats.shape[1])
        w = w / w.sum(-1, keepdim=True)
        ctx = F.normalize(w @ image_feats, dim=-1)
        txt = F.normalize(text_feats, dim=-1)
        logits = self.logit_scale.exp() * ctx @ txt.transpose(1, 2)
        drop = ~text_mask.unsqueeze(1)
        i2t = logits.masked_fill(drop, -1e9).log_softmax(-1)
        t2i = logits.transpose(1, 2).masked_fill(drop, -1e9).log_softmax(-1)
        nll = -(i2t + t2i).diagonal(dim1=1, dim2=2) / 2
        return ((nll * text_mask).sum(-1) / text_mask.sum(-1)).mean()
