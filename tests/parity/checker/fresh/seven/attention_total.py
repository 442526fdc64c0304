from collections import namedtuple

import torch
import torch.nn as nn
import torch.nn.functional as F

Losses = namedtuple("Losses", "loss loss_global loss_local")


class JointLoss(nn.Module):
    def __init__(self, lambda_global=0.5, lambda_local=1.0):
        super().__init__()
        self.lambda_global, self.lambda_local = lambda_global, lambda_local
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def clip(self, a, b, scale):
        logits = scale * F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).t()
        target = torch.arange(len(a), device=a.device)
        return F.cross_entropy(logits, target) / 2 + F.cross_entropy(logits.t(), target) / 2

    def attend(self, tokens, patches):
        return torch.softmax(tokens @ patches.transpose(1, 2), dim=-1) @ patches

    def forward(self, patches, tokens, lengths):
        scale = self.logit_scale.exp()
        loss_global = self.clip(patches.mean(1), tokens.mean(1), scale)

        c = F.normalize(self.attend(tokens, patches), dim=-1)
        t = F.normalize(tokens, dim=-1)
        valid = torch.arange(t.shape[1], device=t.device) < lengths[:, None]
        z = scale * c @ t.transpose(1, 2)
        to_text = z.masked_fill(~valid[:, None], float("-inf")).log_softmax(2).diagonal(dim1=1, dim2=2)
        to_image = z.masked_fill(~valid[..., None], float("-inf")).log_softmax(1).diagonal(dim1=1, dim2=2)
        score = torch.where(valid, to_text + to_image, 0.0).sum(1) / valid.sum(1)
        loss_local = -score.mean() / 2
        return Losses(self.lambda_global * loss_global + self.lambda_local * loss_local, loss_global, loss_local)
