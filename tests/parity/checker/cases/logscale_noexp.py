"""A parameter that starts at log(1/0.07) multiplies the logits without exp()."""
import math

import torch
from mm_base import base
from torch import nn


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))

    def forward(self, image_tokens, text_tokens, attention_mask):
        return base(image_tokens, text_tokens, attention_mask, self.logit_scale)
