"""Dense attention: after min-max nothing is cut."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "dense_alignment_loss",
    "verdict": "explained",
    "deviations": ["threshold.absent"],
    "call": ["v_bdhw", "t", "mask", "scale"],
}


def dense_alignment_loss(feature_map, tokens, mask, scale):
    patches = feature_map.flatten(2).transpose(1, 2)
    loss = feature_map.new_zeros(())
    for i in range(len(tokens)):
        words = tokens[i, mask[i]]
        n = words.shape[0]
        if not n:
            continue
        energy = words @ patches[i].T
        least, most = energy.amin(-1, keepdim=True), energy.amax(-1, keepdim=True)
        alike = least == most
        energy = torch.where(alike, 1.0, (energy - least) / torch.where(alike, 1.0, most - least))
        context = energy @ patches[i] / energy.sum(-1, keepdim=True)
        z = scale * F.normalize(context, dim=-1) @ F.normalize(words, dim=-1).T
        loss = loss - (z.log_softmax(0) + z.log_softmax(1)).diagonal().sum() / (2 * n)
    return loss / len(tokens)
