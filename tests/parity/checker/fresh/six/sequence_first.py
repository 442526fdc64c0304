import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize


def local_contrast(memory: Tensor, tgt: Tensor, tgt_key_padding_mask: Tensor, logit_scale: Tensor) -> Tensor:
    """
    Shapes follow nn.Transformer with batch_first=False.

        memory: (P, N, E) image patches
        tgt: (L, N, E) text tokens
        tgt_key_padding_mask: (N, L), True is ignored
        logit_scale: (), log of 1/temperature
    """
    num_patches = memory.size(0)
    sim = torch.einsum("lne,pne->nlp", tgt, memory)
    smallest = sim.amin(-1, keepdim=True)
    sim = (sim - smallest) / (sim.amax(-1, keepdim=True) - smallest)
    sim = sim * (sim >= 1 / num_patches)
    weights = sim / sim.sum(-1, keepdim=True)
    groups = torch.einsum("nlp,pne->nle", weights, memory)

    groups, words = normalize(groups, dim=-1), normalize(tgt.transpose(0, 1), dim=-1)
    logits = logit_scale.exp() * groups @ words.mT
    logits_gw = logits.masked_fill(tgt_key_padding_mask.unsqueeze(1), -torch.inf)
    logits_wg = logits.mT.masked_fill(tgt_key_padding_mask.unsqueeze(1), -torch.inf)
    positive = (log_softmax(logits_gw, -1) + log_softmax(logits_wg, -1)).diagonal(dim1=1, dim2=2)
    positive = positive.masked_fill(tgt_key_padding_mask, 0.0)
    words_per_caption = tgt_key_padding_mask.logical_not().sum(1)
    return -(positive.sum(1) / words_per_caption).mean() / 2
