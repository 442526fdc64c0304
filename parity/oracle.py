"""SPARC in plain torch, written from the equations and sharing nothing with sparc_ref: the second opinion of the tests.

Slow and literal on purpose: loops over samples and padding cut off instead of masked.  Takes and returns torch tensors;
gradients are autograd's.
"""

import math

import torch


def cross_entropy(z):
    """Row j should pick column j.      z (N,N) -> (N,)"""
    return torch.logsumexp(z, 1) - torch.diagonal(z)


def unit(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True))


def global_loss(v_bar, t_bar, theta):
    z = torch.exp(theta) * unit(v_bar) @ unit(t_bar).T
    return (cross_entropy(z).mean() + cross_entropy(z.T).mean()) / 2


def group(t, v, sigma=None, similarity="dot", align="minmax", threshold_on="minmax", flat="uniform", ties="share"):
    """One caption's tokens and one picture's patches.      t (L,D), v (P,D) -> c (L,D)"""
    patches = len(v)
    sigma = 1 / patches if sigma is None else sigma
    s = unit(t) @ unit(v).T if similarity == "cosine" else t @ v.T
    if align == "softmax":
        return torch.softmax(s, 1) @ v
    rows = []
    for row in s:
        if ties == "first":
            lo, hi = row.min(0).values, row.max(0).values  # with a dimension, torch picks one place
        else:
            lo, hi = row.amin(), row.amax()
        if bool(hi == lo):
            rows.append({"uniform": torch.full_like(row, 1 / patches), "zero": row * 0, "nan": row * math.nan}[flat].detach())
            continue
        w = (row - lo) / (hi - lo)
        if threshold_on == "weights":
            w = w / w.sum()
        if align != "no_threshold":
            w = w * (w >= sigma)
        rows.append(w / w.sum() if bool(w.sum() > 0) else torch.full_like(w, 1 / patches).detach())
    return torch.stack(rows) @ v


def fine_grained_loss(v, t, mask, theta, reduction="sample", **options):
    per_sample, tokens = [], []
    for v_i, t_i, m in zip(v, t, mask):
        t_i = t_i[m]
        tokens.append(len(t_i))
        if not len(t_i):
            per_sample.append(torch.zeros((), dtype=v.dtype))
            continue
        c = group(t_i, v_i, **options)
        square = (c * c).sum(-1, keepdim=True)
        z = torch.exp(theta) * (c / torch.sqrt(torch.where(square == 0, 1.0, square))) @ unit(t_i).T
        per_sample.append((cross_entropy(z) + cross_entropy(z.T)).sum() / 2)
    if reduction == "token":
        return sum(per_sample) / max(1, sum(tokens))
    return sum(loss / max(1, n) for loss, n in zip(per_sample, tokens)) / len(per_sample)


def layer_norm(x, gain, shift, eps=1e-6):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps) * gain + shift


def gelu(x, kind="tanh"):
    if kind == "erf":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2


def attention(q, k, v, heads, mask=None):
    width = q.shape[-1] // heads
    out = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        s = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
        if mask is None:
            a = torch.softmax(s, -1)
        else:
            e = torch.exp(s) * mask[:, None, :]
            a = e / e.sum(-1, keepdim=True).clamp_min(1e-300)
        out.append(a @ v[..., part])
    return torch.cat(out, -1)


def tower(p, prefix, x, heads, mask, gelu_kind, eps):
    depth = len({name.split(".")[2] for name in p if name.startswith(f"{prefix}.blocks.")})
    for i in range(depth):

        def w(name, i=i):
            return p[f"{prefix}.blocks.{i}.{name}"]

        h = layer_norm(x, w("norm1.weight"), w("norm1.bias"), eps)
        q = h @ w("attn.query.weight").T + w("attn.query.bias")
        k = h @ w("attn.key.weight").T
        v = h @ w("attn.value.weight").T + w("attn.value.bias")
        x = x + attention(q, k, v, heads, mask) @ w("attn.out.weight").T + w("attn.out.bias")
        h = layer_norm(x, w("norm2.weight"), w("norm2.bias"), eps)
        h = gelu(h @ w("mlp.up.weight").T + w("mlp.up.bias"), gelu_kind)
        x = x + h @ w("mlp.down.weight").T + w("mlp.down.bias")
    return layer_norm(x, p[f"{prefix}.norm.weight"], p[f"{prefix}.norm.bias"], eps)


def model(p, images, tokens, mask, c):
    """Eq. 7 under a configuration `c`."""
    size = c.patch_size
    kernel = p["vision.patch.weight"].reshape(-1, 3, size, size)
    x = torch.nn.functional.conv2d(images, kernel, p["vision.patch.bias"], stride=size)
    positions = p["vision.positions"].T.reshape(1, -1, *c.grid)
    if x.shape[2:] != positions.shape[2:]:
        mode = {"bicubic": "bicubic", "linear": "bilinear"}[c.position_resize]
        positions = torch.nn.functional.interpolate(positions, x.shape[2:], mode=mode, align_corners=False)
    f_v = tower(p, "vision", (x + positions).flatten(2).transpose(1, 2), c.vision_heads, None, c.gelu, c.layer_norm_eps)
    x = p["text.embedding.weight"][torch.where(mask, tokens, 0)]
    if c.text_positions == "learned":
        x = x + p["text.positions"][: tokens.shape[1]]
    f_t = tower(p, "text", x, c.text_heads, mask, c.gelu, c.layer_norm_eps)

    def g_v(y):
        return y @ p["g_v.weight"].T + p["g_v.bias"]

    def g_t(y):
        return y @ p["g_t.weight"].T + p["g_t.bias"]

    pooled = f_v.mean(1)
    if c.h_v == "dense_gelu":
        pooled = gelu(pooled @ p["h_v.weight"].T + p["h_v.bias"], c.gelu)
    if c.text_pool == "all":
        text = f_t.mean(1)
    else:
        text = torch.stack([f[m].sum(0) / max(1, int(m.sum())) for f, m in zip(f_t, mask)])
    loss = c.lambda_g * global_loss(g_v(pooled), g_t(text), p["theta"])
    if c.lambda_f:
        loss = loss + c.lambda_f * fine_grained_loss(
            g_v(f_v), g_t(f_t), mask, p.get("theta_fine", p["theta"]), c.reduction, **c.align_options
        )
    return loss
