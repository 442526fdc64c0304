import torch
import torch.nn as nn
import torch.nn.functional as F


class TemperedSelection(nn.Module):
    def __init__(self, sharpness: float = 10.0):
        super().__init__()
        self.sharpness = sharpness

    def weights(self, sim):
        """sim (..., P)"""
        sim = sim - sim.amin(-1, keepdim=True)
        sim = sim / sim.amax(-1, keepdim=True)
        drop = sim < 1.0 / sim.shape[-1]
        return torch.softmax((self.sharpness * sim).masked_fill(drop, float("-inf")), dim=-1)

    def forward(self, image_embeddings, text_embeddings, text_lengths, inverse_temperature):
        # both channels first: (B, D, P) and (B, D, L)
        sim = text_embeddings.transpose(1, 2) @ image_embeddings
        context = image_embeddings @ self.weights(sim).transpose(1, 2)          # (B, D, L)
        context = F.normalize(context, dim=1)
        words = F.normalize(text_embeddings, dim=1)
        logits = inverse_temperature * context.transpose(1, 2) @ words

        losses = []
        for z, n in zip(logits, text_lengths.tolist()):
            z = z[:n, :n]
            y = torch.arange(n, device=z.device)
            losses.append(F.cross_entropy(torch.stack([z, z.T]).reshape(2 * n, n), y.repeat(2)))
        return torch.stack(losses).mean()
