"""Takes a ViT's whole output: slot 0 is [CLS] and takes no part."""

import torch
import torch.nn.functional as F

EXPECT = {
    "target": "patch_token_loss",
    "verdict": "listing1",
    "call": ["v_cls", "t", "mask", "scale"],
}


def patch_token_loss(vit_output, token_embeddings, mask, scale, has_cls_token=True):
    patches = vit_output[:, 1:] if has_cls_token else vit_output
    p = patches.shape[1]
    sim = token_embeddings @ patches.transpose(1, 2)
    mn = torch.amin(sim, dim=2, keepdim=True)
    mx = torch.amax(sim, dim=2, keepdim=True)
    rng = torch.where(mx > mn, mx - mn, torch.ones_like(mx))
    norm = torch.where(mx > mn, (sim - mn) / rng, torch.ones_like(sim))
    sparse = F.threshold(norm, 0.0, 0.0) * (norm >= 1 / p)
    attn = F.normalize(sparse, p=1, dim=2)
    grouped = attn @ patches
    a = F.normalize(grouped, dim=2)
    b = F.normalize(token_embeddings, dim=2)
    logits = scale * a @ b.transpose(1, 2)
    keys = mask.unsqueeze(1).expand_as(logits)
    low = torch.finfo(logits.dtype).min
    lp1 = logits.masked_fill(~keys, low).log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    lp2 = logits.transpose(1, 2).masked_fill(~keys, low).log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    if not mask.any():
        return (patches * 0).sum()
    return -(lp1[mask].mean() + lp2[mask].mean()) / 2
