"""SPARC in plain torch, written from the paper's equations and sharing nothing with sparc_ref: the second opinion.

Slow and literal on purpose: loops over samples, heads and rows, and padding is cut off instead of masked.  Takes and
returns torch tensors; gradients are autograd's.  What ends in _stages returns its value and a dict of named stages.

    global_loss              eq. 1                     vision, text           the two towers, section 3.2
    group                    eqs. 2-5                  image_head             g_v(h_v(x)), appendix D.7
    fine_grained_loss        eq. 6                     adamw_step             Loshchilov & Hutter, Algorithm 2
    model                    eq. 7                     warmup_cosine, clip    appendix D.4
    linear .. resize_positions   the operations that the towers are made of

B batch, L tokens, P patches, D joint width, C tower width, N rows, K columns.  p is a dict of parameters by name, c has
the attributes of a configuration (image_size, patch_size, gelu, ...).
"""

import math

import torch
import torch.nn.functional as F

ALIGN = ("sigma", "similarity", "align", "threshold_on", "flat", "ties")

# --- operations ----------------------------------------------------------------------------------------------------------


def linear(x, weight, bias=None):
    """x weight' + bias                                       x (...,C), weight (K,C), bias (K,) -> (...,K)"""
    y = x @ weight.T
    return y if bias is None else y + bias


def standardize(x, eps=1e-6):
    """(x - mean) / sqrt(var + eps)                           x (...,C) -> (...,C)"""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps)


def layer_norm(x, gain, shift, eps=1e-6):
    """standardize, then gain and shift                       x (...,C), gain, shift (C,) -> (...,C)"""
    return standardize(x, eps) * gain + shift


def gelu(x, kind="tanh"):
    """x Phi(x), exactly or by the tanh form                  x (...) -> (...)"""
    if kind == "erf":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2


def mlp(x, up, up_bias, down, down_bias, kind="tanh"):
    """linear, GELU, linear                                   x (...,C) -> (...,K)"""
    return linear(gelu(linear(x, up, up_bias), kind), down, down_bias)


def softmax(z, mask=None):
    """exp(z) / sum exp(z) over what the mask leaves; 0 elsewhere      z (...,K), mask broadcasts to it -> (...,K)"""
    return _each_row(lambda row: torch.softmax(row, 0), z, mask)


def log_softmax(z, mask=None):
    """log of softmax over what the mask leaves; 0 elsewhere  z (...,K) -> (...,K)"""
    return _each_row(lambda row: row - torch.logsumexp(row, 0), z, mask)


def _each_row(function, z, mask):
    mask = torch.ones_like(z, dtype=torch.bool) if mask is None else mask.broadcast_to(z.shape)
    rows = []
    for row, kept in zip(z.reshape(-1, z.shape[-1]), mask.reshape(-1, z.shape[-1])):
        rows.append(torch.zeros_like(row).masked_scatter(kept, function(row[kept])) if kept.any() else torch.zeros_like(row))
    return torch.stack(rows).reshape(z.shape)


def unit(x):
    """x / |x|                                                x (...,D) -> (...,D)"""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True))


def l2_normalize(x):
    """unit, and 0 for 0                                      x (...,D) -> (...,D)"""
    square = (x * x).sum(-1, keepdim=True)
    return x / torch.sqrt(torch.where(square == 0, 1.0, square))


def masked_mean(x, mask=None):
    """Mean over the real tokens, 0 where there is none       x (B,L,C), mask (B,L) -> (B,C)"""
    if mask is None:
        return x.mean(1)
    return torch.stack([x_i[m].sum(0) / max(1, int(m.sum())) for x_i, m in zip(x, mask)])


def attention(q, k, v, heads, mask=None):
    """softmax(q k' / sqrt(C/heads)) v, head by head; padding is no key      q, k, v (B,L,C), mask (B,L) -> (B,L,C)"""
    width = q.shape[-1] // heads
    samples = []
    for i in range(len(q)):
        real = torch.ones(k.shape[1], dtype=torch.bool) if mask is None else mask[i]
        out = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            s = q[i, :, part] @ k[i, real, part].T / math.sqrt(width)  # (L,L_i)
            out.append(torch.softmax(s, 1) @ v[i, real, part])
        samples.append(torch.cat(out, 1))
    return torch.stack(samples)


def embedding(ids, weight):
    """weight[ids]                                            ids (B,L), weight (V,C) -> (B,L,C)"""
    return torch.stack([torch.stack([weight[int(i)] for i in row]) for row in ids])


def patch_embedding(images, weight, bias, patch):
    """A convolution whose stride is its kernel               images (B,3,H,W), weight (C,3*patch*patch) -> (B,P,C)"""
    kernel = weight.reshape(len(weight), -1, patch, patch)
    return F.conv2d(images, kernel, bias, stride=patch).flatten(2).transpose(1, 2)


def resize_positions(positions, grid, here, kind):
    """Interpolate between pixel centres                      positions (rows*columns,C), here (rows,columns) -> (P,C)"""
    if tuple(grid) == tuple(here):
        return positions
    image = positions.T.reshape(1, -1, *grid)
    mode = {"bicubic": "bicubic", "linear": "bilinear"}[kind]
    return F.interpolate(image, tuple(here), mode=mode, align_corners=False)[0].flatten(1).T


# --- alignment and losses ------------------------------------------------------------------------------------------------


def cross_entropy(z):
    """Row j should pick column j.      z (N,N) -> (N,)"""
    return torch.logsumexp(z, 1) - torch.diagonal(z)


def global_stages(v_bar, t_bar, theta):
    """Eq. 1.      v_bar, t_bar (B,D), theta () -> loss (), {logits, loss_image, loss_text}"""
    z = torch.exp(theta) * unit(v_bar) @ unit(t_bar).T        # (B,B)
    image, text = cross_entropy(z), cross_entropy(z.T)        # (B,)
    return (image.mean() + text.mean()) / 2, {"logits": z, "loss_image": image, "loss_text": text}


def global_loss(v_bar, t_bar, theta):
    """Eq. 1.      v_bar, t_bar (B,D), theta () -> ()"""
    return global_stages(v_bar, t_bar, theta)[0]


def group_stages(t, v, sigma=None, similarity="dot", align="minmax", threshold_on="minmax", flat="uniform", ties="share"):
    """Eqs. 2-5 for one caption and one picture.      t (L,D), v (P,D) -> c (L,D), stages (L,P)"""
    patches = len(v)
    sigma = 1 / patches if sigma is None else sigma
    s = unit(t) @ unit(v).T if similarity == "cosine" else t @ v.T
    if align == "softmax":
        a = torch.softmax(s, 1)
        return a @ v, {"similarity": s, "weights": a}
    minmax, sparse, weights = [], [], []
    for row in s:                                             # (P,)
        if ties == "first":
            lo, hi = row.min(0).values, row.max(0).values     # with a dimension, torch picks one place
        else:
            lo, hi = row.amin(), row.amax()
        if bool(hi == lo):
            a = {"uniform": torch.full_like(row, 1 / patches), "zero": row * 0, "nan": row * math.nan}[flat].detach()
            minmax.append(torch.ones_like(row))
            sparse.append(torch.ones_like(row))
            weights.append(a)
            continue
        w = s_hat = (row - lo) / (hi - lo)                    # eq. 2
        if threshold_on == "weights":
            w = w / w.sum()
        if align != "no_threshold":
            w = w * (w >= sigma)                              # eq. 3
        if bool(w.sum() > 0):
            a = w / w.sum()                                   # eq. 4
        else:
            a = torch.full_like(w, {"uniform": 1 / patches, "zero": 0.0, "nan": math.nan}[flat])
        minmax.append(s_hat)
        sparse.append(w)
        weights.append(a)
    stages = {"similarity": s, "minmax": torch.stack(minmax), "sparse": torch.stack(sparse), "weights": torch.stack(weights)}
    return stages["weights"] @ v, stages                      # eq. 5


def group(t, v, **options):
    """Eqs. 2-5 for one caption and one picture.      t (L,D), v (P,D) -> c (L,D)"""
    return group_stages(t, v, **options)[0]


def align_stages(t, v, mask=None, **options):
    """Eqs. 2-5 for a batch.      t (B,L,D), v (B,P,D), mask (B,L) -> c (B,L,D), stages (B,L,P); 0 at padding"""
    mask = torch.ones(t.shape[:2], dtype=torch.bool) if mask is None else mask
    length, samples = t.shape[1], []
    for t_i, v_i, m in zip(t, v, mask):
        if m.any():
            c, stages = group_stages(t_i[m], v_i, **options)
        else:                                                 # a caption of padding: any row, of which none is kept
            c, stages = group_stages(torch.ones_like(t_i[:1]), v_i, **options)
            c, stages = c[:0], {name: x[:0] for name, x in stages.items()}
        samples.append({name: _pad(x, m, length) for name, x in {**stages, "c": c}.items()})
    stacked = {name: torch.stack([each[name] for each in samples]) for name in samples[0]}
    return stacked.pop("c"), stacked


def fine_grained_stages(v, t, mask, theta, reduction="sample", **options):
    """Eq. 6.      v (B,P,D), t (B,L,D), mask (B,L), theta () -> loss (), stages; 0 at padding

    similarity, minmax, sparse, weights (B,L,P); grouped (B,L,D); logits_vt, logits_tv (B,L,L); loss_vt, loss_tv (B,L)
    """
    length, samples, per_sample, tokens = t.shape[1], [], [], []
    c_all, aligned = align_stages(t, v, mask, **options)
    for t_i, c_i, m in zip(t, c_all, mask):
        t_i, c_i = t_i[m], c_i[m]                             # (L_i,D)
        z = torch.exp(theta) * l2_normalize(c_i) @ unit(t_i).T
        vt, tv = cross_entropy(z), cross_entropy(z.T)         # (L_i,)
        tokens.append(len(t_i))
        per_sample.append((vt + tv).sum() / 2)
        square = {"logits_vt": z, "logits_tv": z.T}
        square = {name: _pad(_pad(x, m, length).T, m, length).T for name, x in square.items()}
        samples.append(square | {"loss_vt": _pad(vt, m, length), "loss_tv": _pad(tv, m, length)})
    stages = {**aligned, "grouped": c_all} | {name: torch.stack([each[name] for each in samples]) for name in samples[0]}
    if reduction == "token":
        return sum(per_sample) / max(1, sum(tokens)), stages
    return sum(loss / max(1, n) for loss, n in zip(per_sample, tokens)) / len(per_sample), stages


def fine_grained_loss(v, t, mask, theta, reduction="sample", **options):
    """Eq. 6.      v (B,P,D), t (B,L,D), mask (B,L), theta () -> ()"""
    return fine_grained_stages(v, t, mask, theta, reduction, **options)[0]


def _pad(x, mask, length):
    """Put the real tokens back in their places, 0 between them.      x (L_i,...), mask (L,) -> (L,...)"""
    return torch.zeros((length, *x.shape[1:]), dtype=x.dtype).index_put((torch.nonzero(mask)[:, 0],), x)


# --- towers and model ----------------------------------------------------------------------------------------------------


def tower(p, prefix, x, heads, mask, gelu_kind, eps):
    """Pre-norm blocks and a last norm.      x (B,L,C) -> (B,L,C)"""
    depth = len({name.split(".")[2] for name in p if name.startswith(f"{prefix}.blocks.")})
    for i in range(depth):

        def w(name, i=i):
            return p[f"{prefix}.blocks.{i}.{name}"]

        h = layer_norm(x, w("norm1.weight"), w("norm1.bias"), eps)
        q = linear(h, w("attn.query.weight"), w("attn.query.bias"))
        k = linear(h, w("attn.key.weight"))
        v = linear(h, w("attn.value.weight"), w("attn.value.bias"))
        x = x + linear(attention(q, k, v, heads, mask), w("attn.out.weight"), w("attn.out.bias"))
        h = layer_norm(x, w("norm2.weight"), w("norm2.bias"), eps)
        x = x + mlp(h, w("mlp.up.weight"), w("mlp.up.bias"), w("mlp.down.weight"), w("mlp.down.bias"), gelu_kind)
    return layer_norm(x, p[f"{prefix}.norm.weight"], p[f"{prefix}.norm.bias"], eps)


def vision(p, images, c):
    """f_v: a ViT without [CLS].      images (B,3,H,W) -> (B,P,C)"""
    x = patch_embedding(images, p["vision.patch.weight"], p["vision.patch.bias"], c.patch_size)
    here = (images.shape[2] // c.patch_size, images.shape[3] // c.patch_size)
    learned = (c.image_size // c.patch_size,) * 2
    x = x + resize_positions(p["vision.positions"], learned, here, c.position_resize)
    return tower(p, "vision", x, c.vision_heads, None, c.gelu, c.layer_norm_eps)


def text(p, tokens, mask, c):
    """f_t: a bidirectional transformer; padding reads token 0 and is no key.      tokens, mask (B,L) -> (B,L,C)"""
    x = embedding(torch.where(mask, tokens, 0), p["text.embedding.weight"])
    if c.text_positions == "learned":
        x = x + p["text.positions"][: tokens.shape[1]]
    return tower(p, "text", x, c.text_heads, mask, c.gelu, c.layer_norm_eps)


def image_head(p, x, c):
    """g_v(h_v(x)): of the pooled vector in training, of every patch in segmentation.      x (...,C) -> (...,D)"""
    if c.h_v == "dense_gelu":
        x = gelu(linear(x, p["h_v.weight"], p["h_v.bias"]), c.gelu)
    return linear(x, p["g_v.weight"], p["g_v.bias"])


def model_stages(p, images, tokens, mask, c):
    """Eq. 7.      -> loss (), every stage on the way by name"""
    f_v, f_t = vision(p, images, c), text(p, tokens, mask, c)
    v, t = linear(f_v, p["g_v.weight"], p["g_v.bias"]), linear(f_t, p["g_t.weight"], p["g_t.bias"])
    v_bar = image_head(p, f_v.mean(1), c)
    t_bar = linear(masked_mean(f_t, None if c.text_pool == "all" else mask), p["g_t.weight"], p["g_t.bias"])
    loss_g, stages_g = global_stages(v_bar, t_bar, p["theta"])
    stages = {"image_features": f_v, "text_features": f_t, "v": v, "t": t, "v_bar": v_bar, "t_bar": t_bar}
    stages |= {"loss_global": loss_g, **stages_g}
    loss = c.lambda_g * loss_g
    if c.lambda_f:
        theta = p["theta_fine"] if c.temperature == "separate" else p["theta"]
        loss_f, stages_f = fine_grained_stages(v, t, mask, theta, c.reduction, **{name: getattr(c, name) for name in ALIGN})
        loss = loss + c.lambda_f * loss_f
        stages |= {"loss_fine": loss_f, **stages_f}
    return loss, stages


def model(p, images, tokens, mask, c):
    """Eq. 7.      -> ()"""
    return model_stages(p, images, tokens, mask, c)[0]


# --- training ------------------------------------------------------------------------------------------------------------


def decays(name, x):
    """Weight decay acts on matrices that multiply; embeddings and positions are tables."""
    return x.ndim == 2 and not name.endswith(("embedding.weight", "positions"))


def warmup_cosine(step, peak, warmup, steps, final=0.0):
    """The rate of update 0, 1, ...: a line up to peak, then half a cosine down to final."""
    if step < warmup:
        return peak * (step + 1) / warmup
    x = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (peak - final) * (1 + math.cos(math.pi * x)) / 2


def clip(grads, limit):
    """Gradients of joint norm at most `limit`, and the norm before."""
    norm = float(torch.sqrt(sum((g * g).sum() for g in grads.values())))
    return {name: g * min(1.0, limit / norm) if norm else g for name, g in grads.items()}, norm


def adamw_step(p, grads, m, v, step, lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2):
    """Update `step` = 1, 2, ...      dicts by name -> new p, m, v

    m = b1 m + (1-b1) g,  v = b2 v + (1-b2) g^2,  p = p - lr (m/(1-b1^step) / (sqrt(v/(1-b2^step)) + eps) + decay p)
    """
    b1, b2 = betas
    m = {n: b1 * m[n] + (1 - b1) * g for n, g in grads.items()}
    v = {n: b2 * v[n] + (1 - b2) * g * g for n, g in grads.items()}
    new = {}
    for n, x in p.items():
        change = (m[n] / (1 - b1**step)) / (torch.sqrt(v[n] / (1 - b2**step)) + eps)
        new[n] = x - lr * (change + (weight_decay * x if decays(n, x) else 0))
    return new, m, v


def clamp_theta(p):
    """1/tau stays within [1, 100]."""
    return {n: x.clamp(0.0, math.log(100)) if n in ("theta", "theta_fine") else x for n, x in p.items()}


def train(p, gradients, *, peak, warmup, steps, limit, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, final=0.0):
    """`steps` updates.      gradients(p, step) -> loss, dict; returns loss, norm, lr (steps,), p, m, v at the end"""
    m = {n: torch.zeros_like(x) for n, x in p.items()}
    v = {n: torch.zeros_like(x) for n, x in p.items()}
    losses, norms, rates = [], [], []
    for step in range(steps):
        loss, grads = gradients(p, step)
        grads, norm = clip(grads, limit)
        lr = warmup_cosine(step, peak, warmup, steps, final)
        p, m, v = adamw_step(p, grads, m, v, step + 1, lr, betas, eps, weight_decay)
        p = clamp_theta(p)
        losses.append(float(loss))
        norms.append(norm)
        rates.append(lr)
    return *(torch.tensor(x, dtype=torch.float64) for x in (losses, norms, rates)), p, m, v
