import torch
import torch.nn.functional as F


def loss(vision_states, text_states, extended_attention_mask, logit_scale):
    bias = extended_attention_mask[:, 0]                      # (B, 1, L)
    real = bias[:, 0] == 0
    s = text_states @ vision_states.transpose(-1, -2)
    lo = s.amin(-1, keepdim=True)
    s = (s - lo) / (s.amax(-1, keepdim=True) - lo)
    s = torch.where(s >= 1 / vision_states.shape[-2], s, torch.zeros_like(s))
    c = (s @ vision_states) / s.sum(-1, keepdim=True)
    c, u = F.normalize(c, dim=-1), F.normalize(text_states, dim=-1)
    z = c @ u.transpose(-1, -2) * logit_scale
    nll = -F.log_softmax(z + bias, -1) - F.log_softmax(z.transpose(-1, -2) + bias, -1)
    nll = nll.diagonal(dim1=-2, dim2=-1).masked_fill(~real, 0)
    return (nll.sum(-1) / real.sum(-1).clamp(min=1)).mean() / 2
