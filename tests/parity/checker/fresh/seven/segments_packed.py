import torch
import torch.nn.functional as F


def packed_sparc_loss(text_packed, cu_seqlens, image, scale):
    """
    text_packed: (T, D), the captions of the batch without padding
    cu_seqlens:  (B + 1,) as for flash_attn_varlen_func
    image:       (B, P, D)
    scale:       inverse temperature
    """
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    batch = lengths.shape[0]
    owner = torch.repeat_interleave(torch.arange(batch, device=image.device), lengths.long())

    sim = torch.einsum("td,tpd->tp", text_packed, image[owner])
    floor = sim.amin(1, keepdim=True)
    spread = sim.amax(1, keepdim=True) - floor
    level = spread == 0
    sim = (sim - floor) / spread.masked_fill(level, 1.0)
    sim = torch.where(sim < 1.0 / image.shape[1], torch.zeros_like(sim), sim)
    sim = torch.where(level, torch.ones_like(sim), sim)
    grouped = torch.einsum("tp,tpd->td", sim / sim.sum(1, keepdim=True), image[owner])

    logits = scale * F.normalize(grouped, dim=1) @ F.normalize(text_packed, dim=1).T
    logits = logits.masked_fill(owner[:, None] != owner[None, :], float("-inf"))
    target = torch.arange(len(owner), device=image.device)
    nll = F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(logits.T, target, reduction="none")
    per_caption = torch.zeros(batch, dtype=nll.dtype, device=nll.device).index_add(0, owner, nll)
    return (per_caption / lengths.clamp(min=1)).mean() / 2
