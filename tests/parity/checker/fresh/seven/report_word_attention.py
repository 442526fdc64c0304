import torch
import torch.nn as nn
import torch.nn.functional as F


def attention_fn(query, context, temp1):
    """query (T, D) words, context (S, D) regions"""
    attn = torch.mm(context, query.t())                 # (S, T)
    attn = F.softmax(attn, dim=-1)
    attn = attn.t()                                     # (T, S)
    attn = F.softmax(attn * temp1, dim=-1)
    return torch.mm(attn, context), attn


class ReportWordLoss(nn.Module):
    def __init__(self, temp1=4.0):
        super().__init__()
        self.temp1 = temp1

    def forward(self, region_emb, word_emb, word_padding_mask, log_scale):
        """region_emb (B, S, D), word_emb (B, T, D), word_padding_mask (B, T) True = [PAD]"""
        temp3 = log_scale.exp()
        loss0, loss1 = 0.0, 0.0
        batch_size = region_emb.size(0)
        for i in range(batch_size):
            words = word_emb[i][~word_padding_mask[i]]
            weighted, _ = attention_fn(words, region_emb[i], self.temp1)
            sim = temp3 * F.normalize(weighted, dim=-1) @ F.normalize(words, dim=-1).t()
            labels = torch.arange(words.size(0), device=sim.device)
            loss0 = loss0 + F.cross_entropy(sim, labels)
            loss1 = loss1 + F.cross_entropy(sim.t(), labels)
        return (loss0 + loss1) / (2 * batch_size)
