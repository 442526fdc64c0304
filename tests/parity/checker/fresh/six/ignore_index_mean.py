import torch
from torch import nn

IGNORE = -100


class TokenPatchLoss(nn.Module):
    """Local loss. Mean over every real token of the batch, as the pseudo code does."""

    def __init__(self, init_temperature=0.07):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(float(init_temperature)))
        self.ce = nn.CrossEntropyLoss(ignore_index=IGNORE)

    def forward(self, input_ids_mask, text_states, image_states):
        bsz, seq_len, _ = text_states.shape
        n_patch = image_states.shape[1]
        scores = torch.baddbmm(
            torch.zeros(1, 1, 1, dtype=text_states.dtype), text_states, image_states.transpose(1, 2), beta=0)
        scores = scores - scores.min(-1, keepdim=True).values
        scores = scores / scores.max(-1, keepdim=True).values
        scores = scores.masked_fill(scores < 1 / n_patch, 0)
        scores = scores / scores.sum(-1, keepdim=True)
        image_for_text = torch.bmm(scores, image_states)

        image_for_text = image_for_text / image_for_text.norm(dim=-1, keepdim=True)
        text_states = text_states / text_states.norm(dim=-1, keepdim=True)
        sims = torch.bmm(image_for_text, text_states.transpose(1, 2)) / self.temperature

        drop = input_ids_mask == 0
        labels = torch.arange(seq_len).repeat(bsz, 1)
        labels[drop] = IGNORE
        i2t = sims.masked_fill(drop.unsqueeze(1), float("-inf"))
        t2i = sims.transpose(1, 2).masked_fill(drop.unsqueeze(1), float("-inf"))
        loss_i2t = self.ce(i2t.reshape(-1, seq_len), labels.reshape(-1))
        loss_t2i = self.ce(t2i.reshape(-1, seq_len), labels.reshape(-1))
        return (loss_i2t + loss_t2i) / 2, (loss_i2t, loss_t2i)
