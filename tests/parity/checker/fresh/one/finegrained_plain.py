import torch


def sparc_local_loss(patch_embed, token_embed, token_mask, log_scale):
    """Fine-grained SPARC loss, eqs. 2-6.

    patch_embed (B,P,D), token_embed (B,L,D), token_mask (B,L) bool, True for a real token, log_scale () = log(1/tau).
    """
    P = patch_embed.shape[1]
    token_embed = torch.where(token_mask[..., None], token_embed, torch.ones_like(token_embed))
    sim = token_embed @ patch_embed.transpose(1, 2)
    lo = sim.amin(-1, keepdim=True)
    hi = sim.amax(-1, keepdim=True)
    flat = hi == lo
    norm = torch.where(flat, torch.ones_like(sim), (sim - lo) / torch.where(flat, torch.ones_like(hi), hi - lo))
    kept = torch.where(norm >= 1.0 / P, norm, torch.zeros_like(norm))
    align = kept / kept.sum(-1, keepdim=True)
    grouped = align @ patch_embed

    c = grouped / grouped.norm(dim=-1, keepdim=True)
    t = token_embed / token_embed.norm(dim=-1, keepdim=True)
    logits = log_scale.exp() * c @ t.transpose(1, 2)
    pair = token_mask[:, None, :] | torch.eye(token_mask.shape[1], dtype=torch.bool, device=logits.device)

    def direction(z):
        logp = z.masked_fill(~pair, -torch.inf).log_softmax(-1)
        return -logp.diagonal(dim1=1, dim2=2)

    ce = 0.5 * (direction(logits) + direction(logits.transpose(1, 2)))
    ce = torch.where(token_mask, ce, torch.zeros_like(ce))
    return (ce.sum(1) / token_mask.sum(1).clamp(min=1)).mean()
