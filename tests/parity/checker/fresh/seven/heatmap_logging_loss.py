import torch
import torch.nn.functional as F


def phrase_grounding_loss(image_patches, phrase_tokens, phrase_mask, logit_scale):
    """
    image_patches: (B, P, D), phrase_tokens: (B, L, D), phrase_mask: (B, L) with 1 for real tokens
    returns the loss and the maps (B, L, h, h) that go to tensorboard
    """
    B, P, D = image_patches.shape
    h = int(P ** 0.5)
    assert h * h == P, f"expected a square grid, got {P} patches"
    grid = image_patches.view(B, h, h, D)

    maps = torch.einsum("bld,bhwd->blhw", phrase_tokens, grid)
    lo = maps.flatten(2).min(dim=-1).values[..., None, None]
    hi = maps.flatten(2).max(dim=-1).values[..., None, None]
    maps = (maps - lo) / (hi - lo)
    maps = torch.where(maps < 1 / (h * h), torch.zeros_like(maps), maps)
    maps = maps / maps.sum(dim=(2, 3), keepdim=True)
    regions = torch.einsum("blhw,bhwd->bld", maps, grid)

    total = image_patches.new_zeros(())
    for r, t, m in zip(regions, phrase_tokens, phrase_mask.bool()):
        r, t = F.normalize(r[m], dim=-1), F.normalize(t[m], dim=-1)
        logits = logit_scale * r @ t.T
        target = torch.arange(len(t), device=t.device)
        total = total + 0.5 * F.cross_entropy(logits, target) + 0.5 * F.cross_entropy(logits.T, target)
    return total / B, maps.detach()
