"""Fine-grained alignment loss, straight from the paper."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "sparc_fine_grained_loss",
    "verdict": "eq6",
    "call": ["v", "t", "mask", "scale"],
}


def sparc_fine_grained_loss(v_patch, l_token, language_mask, inverse_temperature):
    num_patches = v_patch.shape[1]
    similarity = torch.einsum("btd,bpd->btp", l_token, v_patch)
    lowest = similarity.amin(dim=-1, keepdim=True)
    highest = similarity.amax(dim=-1, keepdim=True)
    constant = highest == lowest
    spread = torch.where(constant, torch.ones_like(highest), highest - lowest)
    similarity = torch.where(constant, torch.ones_like(similarity), (similarity - lowest) / spread)

    similarity = torch.where(similarity < 1.0 / num_patches, torch.zeros_like(similarity), similarity)
    align_weights = similarity / similarity.sum(dim=-1, keepdim=True)
    grouped = torch.einsum("btp,bpd->btd", align_weights, v_patch)

    grouped = F.normalize(grouped, dim=-1)
    l_token = F.normalize(l_token, dim=-1)
    logits = inverse_temperature * torch.einsum("btd,bkd->btk", grouped, l_token)
    floor = torch.finfo(logits.dtype).min
    columns = language_mask.unsqueeze(1)
    to_text = -torch.diagonal(F.log_softmax(logits.masked_fill(~columns, floor), dim=-1), dim1=1, dim2=2)
    to_vision = -torch.diagonal(F.log_softmax(logits.transpose(1, 2).masked_fill(~columns, floor), dim=-1), dim1=1, dim2=2)
    per_token = torch.where(language_mask, (to_text + to_vision) / 2, torch.zeros_like(to_text))
    per_caption = per_token.sum(dim=1) / language_mask.sum(dim=1).clamp(min=1)
    return per_caption.mean()
