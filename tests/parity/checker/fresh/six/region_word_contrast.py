# fine grained contrast from SPARC - https://arxiv.org/abs/2401.09865

import torch
from torch import nn, einsum
import torch.nn.functional as F

# small things

def exists(val):
    return val is not None

def default(val, d):
    return val if exists(val) else d

def l2norm(t):
    return F.normalize(t, dim = -1)

def masked_mean(t, mask):
    t = t.masked_fill(~mask, 0.)
    return t.sum(dim = -1) / mask.sum(dim = -1).clamp(min = 1)

# main class

class RegionWordContrast(nn.Module):
    def __init__(self, similarity_threshold = None):
        super().__init__()
        self.similarity_threshold = similarity_threshold

    def forward(self, text_tokens, image_tokens, *, temperature, text_mask = None):
        b, n, device = *text_tokens.shape[:2], text_tokens.device
        num_patches = image_tokens.shape[1]

        threshold = default(self.similarity_threshold, 1. / num_patches)
        text_mask = default(text_mask, torch.ones((b, n), device = device, dtype = torch.bool))

        sim = einsum('b n d, b p d -> b n p', text_tokens, image_tokens)

        # min max per word

        sim_min, sim_max = sim.amin(dim = -1, keepdim = True), sim.amax(dim = -1, keepdim = True)
        is_flat = sim_min == sim_max
        sim = (sim - sim_min) / (sim_max - sim_min).masked_fill(is_flat, 1.)
        sim = sim.masked_fill(is_flat, 1.)

        sim = sim.masked_fill(sim < threshold, 0.)
        attn = sim / sim.sum(dim = -1, keepdim = True)

        grouped = einsum('b n p, b p d -> b n d', attn, image_tokens)

        # contrast within each caption

        logits = einsum('b i d, b j d -> b i j', l2norm(grouped), l2norm(text_tokens)) / temperature

        mask_value = -torch.finfo(logits.dtype).max
        key_mask = text_mask[:, None, :]

        image_to_text = logits.masked_fill(~key_mask, mask_value).log_softmax(dim = -1)
        text_to_image = logits.transpose(-1, -2).masked_fill(~key_mask, mask_value).log_softmax(dim = -1)

        nll = -(image_to_text + text_to_image).diagonal(dim1 = -2, dim2 = -1) * 0.5
        return masked_mean(nll, text_mask).mean()
