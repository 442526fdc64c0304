import torch
import torch.nn as nn
import torch.nn.functional as F


class FineGrained(nn.Module):

    def forward(self, v_tokens, t_tokens, pad, tau):
        # pad: bool, True at [PAD]
        keep = (~pad).unsqueeze(-1).type_as(t_tokens)
        n = keep.sum((1, 2))

        S = t_tokens @ v_tokens.transpose(1, 2)
        S = S - S.min(-1, keepdim=True).values
        S = S / S.max(-1, keepdim=True).values
        S = S * (S >= 1.0 / v_tokens.size(1)).type_as(S)
        C = (S / S.sum(-1, keepdim=True)) @ v_tokens

        # padding must not contribute
        C = F.normalize(C, dim=-1) * keep
        T = F.normalize(t_tokens, dim=-1) * keep

        logits = C @ T.transpose(1, 2) / tau
        loss_c = -F.log_softmax(logits, dim=-1).diagonal(dim1=1, dim2=2)
        loss_t = -F.log_softmax(logits, dim=-2).diagonal(dim1=1, dim2=2)
        loss = (loss_c + loss_t) * keep.squeeze(-1)
        return 0.5 * (loss.sum(-1) / n).mean()
