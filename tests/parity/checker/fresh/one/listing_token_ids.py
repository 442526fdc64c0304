import torch
import torch.nn.functional as F


class LocalLoss(torch.nn.Module):
    def __init__(self, pad_token_id=0):
        super().__init__()
        self.pad_token_id = pad_token_id

    def forward(self, patch_feats, token_feats, input_ids, t):
        real = input_ids.ne(self.pad_token_id)
        x = F.normalize(token_feats, dim=-1)                   # only the direction of a token matters
        s = torch.bmm(x, patch_feats.transpose(1, 2))
        s = (s - s.amin(2, True)) / (s.amax(2, True) - s.amin(2, True)).clamp(min=1e-9)
        s = s * s.ge(1.0 / s.size(2))
        c = F.normalize(torch.bmm(s, patch_feats), dim=-1)
        logits = torch.bmm(c, x.transpose(1, 2)) * t.exp()
        b, l = torch.nonzero(real, as_tuple=True)
        z1 = logits[b, l].masked_fill(~real[b], -torch.inf)
        z2 = logits[b, :, l].masked_fill(~real[b], -torch.inf)
        return (F.cross_entropy(z1, l) + F.cross_entropy(z2, l)) / 2
