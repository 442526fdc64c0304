import torch
import torch.nn as nn
import torch.nn.functional as F


class CaptionPatchLoss(nn.Module):
    max_words = 32

    def forward(self, patches, words, word_mask, logit_scale):
        words, word_mask = words[:, : self.max_words], word_mask[:, : self.max_words]
        att = words @ patches.transpose(1, 2)
        att = att - att.min(dim=2, keepdim=True)[0]
        att = att / att.max(dim=2, keepdim=True)[0]
        att = torch.where(att < 1 / patches.shape[1], torch.zeros_like(att), att)
        ctx = F.normalize(att @ patches / att.sum(dim=2, keepdim=True), dim=2)
        words = F.normalize(words, dim=2)
        logits = logit_scale * ctx @ words.transpose(1, 2)
        bias = torch.zeros_like(word_mask, dtype=logits.dtype).masked_fill(word_mask == 0, float("-inf"))
        lp = (logits + bias[:, None]).log_softmax(2) + (logits + bias[:, :, None]).log_softmax(1)
        lp = lp.diagonal(dim1=1, dim2=2).masked_fill(word_mask == 0, 0.0)
        return -(lp.sum(1) / (2 * word_mask.sum(1))).mean()
