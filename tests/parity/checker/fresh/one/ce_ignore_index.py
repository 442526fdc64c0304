import torch
import torch.nn.functional as F

IGNORE = -100


def local_alignment_loss(img_tok, txt_tok, txt_pad_mask, temperature):
    """img_tok [B, P, D]; txt_tok [B, L, D]; txt_pad_mask [B, L] (True = pad, as in nn.MultiheadAttention)."""
    b, n, _ = txt_tok.shape
    affinity = torch.baddbmm(img_tok.new_zeros(1, 1, 1), txt_tok, img_tok.transpose(-1, -2), beta=0)
    mn, mx = torch.aminmax(affinity, dim=-1, keepdim=True)
    affinity = (affinity - mn).div((mx - mn).clamp_min(torch.finfo(affinity.dtype).tiny))
    affinity = affinity.masked_fill(affinity < img_tok.shape[1] ** -1, 0)
    attn = F.normalize(affinity, p=1, dim=-1)
    pooled = F.normalize(attn @ img_tok, dim=-1)
    lang = F.normalize(txt_tok, dim=-1)

    targets = torch.arange(n, device=txt_tok.device).repeat(b, 1)
    targets[txt_pad_mask] = IGNORE
    weight = (~txt_pad_mask).sum(dim=1, keepdim=True).clamp(min=1).to(txt_tok.dtype).reciprocal() / b

    def nll(x, y):
        z = (x @ y.transpose(-1, -2)).div(temperature)
        z = z.masked_fill(txt_pad_mask.unsqueeze(1), float("-1e4"))
        ce = F.cross_entropy(z.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
        return (ce.view(b, n) * weight).sum()

    return (nll(pooled, lang) + nll(lang, pooled)) / 2
