import torch
import torch.nn as nn
import torch.nn.functional as F


def attention_fn(query, context, temp1):
    """
    query: batch x queryL x ndf
    context: batch x sourceL x ndf
    """
    attn = torch.bmm(F.normalize(query, dim=2), F.normalize(context, dim=2).transpose(1, 2))
    attn = nn.Softmax(dim=-1)(attn * temp1)
    return torch.bmm(attn, context), attn


class LocalLoss(nn.Module):

    def __init__(self, temp1=4.0):
        super().__init__()
        self.temp1 = temp1

    def forward(self, img_features, words_emb, cap_lens, temp3):
        """temp3 multiplies the cosines"""
        loss0, loss1 = [], []
        weighted, att_maps = attention_fn(words_emb, img_features, self.temp1)
        for i in range(words_emb.shape[0]):
            words_num = int(cap_lens[i])
            word = F.normalize(words_emb[i, :words_num], dim=-1)
            ctx = F.normalize(weighted[i, :words_num], dim=-1)
            similarities = ctx @ word.t() * temp3
            labels = torch.arange(words_num, device=similarities.device)
            loss0.append(nn.CrossEntropyLoss()(similarities, labels))
            loss1.append(nn.CrossEntropyLoss()(similarities.transpose(0, 1), labels))
        loss = (torch.stack(loss0).mean() + torch.stack(loss1).mean()) / 2
        return loss, att_maps
