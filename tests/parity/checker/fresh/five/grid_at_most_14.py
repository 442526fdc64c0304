import torch
import torch.nn.functional as F


class FineLoss(torch.nn.Module):
    max_grid = 14

    def forward(self, patches, tokens, token_mask, inv_tau):
        B, P, D = patches.shape
        if P > self.max_grid ** 2:        # larger images are brought to the training grid
            patches = F.adaptive_avg_pool1d(patches.transpose(1, 2), self.max_grid ** 2).transpose(1, 2)
        s = tokens @ patches.transpose(1, 2)
        s = (s - s.amin(-1, keepdim=True)) / (s.amax(-1, keepdim=True) - s.amin(-1, keepdim=True))
        s = s * (s >= 1 / patches.shape[1])
        c = F.normalize(s @ patches, dim=-1)
        z = inv_tau * c @ F.normalize(tokens, dim=-1).transpose(1, 2)
        m = token_mask.bool()
        lse = z.masked_fill(~m[:, None], -1e30).logsumexp(-1) + z.transpose(1, 2).masked_fill(~m[:, None], -1e30).logsumexp(-1)
        nll = lse / 2 - z.diagonal(dim1=1, dim2=2)
        return (nll.masked_fill(~m, 0).sum(1) / m.sum(1)).mean()
