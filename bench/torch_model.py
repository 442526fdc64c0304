"""The same model in torch eager, as a torch user would write it: fused attention, built-in norms and GELU.

parity/trainer/model.py is the other one in torch: modules that compile, checkpoint and run over ranks. This one is the
yardstick of speed and stays a straight line: no module, no option, nothing that a user of eager torch would not pay for.
Shares no line with sparc_ref; takes its flat dict of parameters by name.
"""

import torch
import torch.nn.functional as F


def tower(p, prefix, x, heads, keys, approximate):
    depth = len({name.split(".")[2] for name in p if name.startswith(f"{prefix}.blocks.")})
    batch, length, width = x.shape

    def split(y):
        return y.view(batch, length, heads, width // heads).transpose(1, 2)

    for i in range(depth):
        b = {name.removeprefix(f"{prefix}.blocks.{i}."): w for name, w in p.items() if name.startswith(f"{prefix}.blocks.{i}.")}
        h = F.layer_norm(x, (width,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        q = F.linear(h, b["attn.query.weight"], b["attn.query.bias"])
        k = F.linear(h, b["attn.key.weight"])
        v = F.linear(h, b["attn.value.weight"], b["attn.value.bias"])
        o = F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=keys)
        x = x + F.linear(o.transpose(1, 2).reshape(batch, length, width), b["attn.out.weight"], b["attn.out.bias"])
        h = F.layer_norm(x, (width,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        h = F.gelu(F.linear(h, b["mlp.up.weight"], b["mlp.up.bias"]), approximate=approximate)
        x = x + F.linear(h, b["mlp.down.weight"], b["mlp.down.bias"])
    return F.layer_norm(x, (width,), p[f"{prefix}.norm.weight"], p[f"{prefix}.norm.bias"], 1e-6)


def loss(p, images, tokens, mask, config, approximate="tanh"):
    """Eq. 7 with the defaults of the decisions table."""
    patches = F.unfold(images, config.patch_size, stride=config.patch_size).transpose(1, 2)
    x = F.linear(patches, p["vision.patch.weight"], p["vision.patch.bias"]) + p["vision.positions"]
    f_v = tower(p, "vision", x, config.vision_heads, None, approximate)
    x = F.embedding(tokens, p["text.embedding.weight"]) + p["text.positions"][: tokens.shape[1]]
    f_t = tower(p, "text", x, config.text_heads, mask[:, None, None, :], approximate)
    real = mask.to(f_t.dtype)
    v, t = F.linear(f_v, p["g_v.weight"], p["g_v.bias"]), F.linear(f_t, p["g_t.weight"], p["g_t.bias"])
    h = F.gelu(F.linear(f_v.mean(1), p["h_v.weight"], p["h_v.bias"]), approximate=approximate)
    v_bar = F.normalize(F.linear(h, p["g_v.weight"], p["g_v.bias"]), dim=-1)
    pooled = (f_t * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    t_bar = F.normalize(F.linear(pooled, p["g_t.weight"], p["g_t.bias"]), dim=-1)
    scale = p["theta"].exp()
    logits, own = scale * v_bar @ t_bar.T, torch.arange(len(v))
    loss_global = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    s = t @ v.transpose(1, 2)
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s = (s - lo) / (hi - lo)
    s = torch.where(s >= 1 / s.shape[-1], s, 0)
    c = F.normalize(s / s.sum(-1, keepdim=True) @ v, dim=-1)
    z = scale * c @ F.normalize(t, dim=-1).transpose(1, 2)
    own = torch.arange(t.shape[1]).expand(mask.shape)
    each = sum(F.cross_entropy(d.masked_fill(~mask[:, None, :], -torch.inf).transpose(1, 2), own, reduction="none")
               for d in (z, z.transpose(1, 2)))  # fmt: skip
    loss_fine = (torch.where(mask, each, 0) / real.sum(1, keepdim=True)).sum() / (2 * len(v))
    return config.lambda_g * loss_global + config.lambda_f * loss_fine
