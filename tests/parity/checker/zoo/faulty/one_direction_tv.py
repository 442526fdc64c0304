"""Tokens look for their group; groups do not look for their token."""

import torch
import torch.nn as nn

EXPECT = {
    "target": "TextToImageLocalLoss",
    "verdict": "explained",
    "deviations": ["loss.one_direction=tv"],
    "call": ["text_tokens=t", "image_patches=v", "lengths=lengths", "temperature=tau"],
}


class TextToImageLocalLoss(nn.Module):
    def forward(self, text_tokens, image_patches, lengths, temperature):
        values = []
        for words, patches, n in zip(text_tokens, image_patches, lengths):
            n = int(n)
            if n == 0:
                values.append((patches * 0).sum())
                continue
            words = words[:n]
            s = words @ patches.T
            groups = []
            for row in s:
                lo, hi = row.amin(), row.amax()
                if bool(lo == hi):
                    groups.append(patches.mean(0))
                else:
                    row = (row - lo) / (hi - lo)
                    row = torch.where(row >= 1 / len(patches), row, 0.0)
                    groups.append(row @ patches / row.sum())
            groups = nn.functional.normalize(torch.stack(groups), dim=1)
            z = nn.functional.normalize(words, dim=1) @ groups.T / temperature
            values.append(nn.functional.cross_entropy(z, torch.arange(n)))
        return torch.stack(values).mean()
