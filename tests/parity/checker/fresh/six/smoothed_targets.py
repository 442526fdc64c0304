import torch
import torch.nn as nn


class SmoothedLocalLoss(nn.Module):
    def __init__(self, label_smoothing=0.1):
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, patch_embeddings, token_embeddings, num_tokens, temperature):
        num_patches = patch_embeddings.size(1)
        loss = 0
        for v, t, n in zip(patch_embeddings, token_embeddings, num_tokens):
            t = t[:n]
            s = t @ v.t()
            s = (s - s.min(1, True)[0]) / (s.max(1, True)[0] - s.min(1, True)[0])
            s = s * (s >= 1 / num_patches)
            c = nn.functional.normalize(s @ v, dim=1)
            t = nn.functional.normalize(t, dim=1)
            logits = c @ t.t() / temperature
            labels = torch.arange(int(n))
            loss = loss + 0.5 * self.criterion(logits, labels) + 0.5 * self.criterion(logits.t(), labels)
        return loss / len(num_tokens)
