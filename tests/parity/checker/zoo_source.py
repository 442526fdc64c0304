"""Writes a stranger's loss with a chosen set of deviations: source text in six styles, with a label as zoo_cases reads it."""

from zoo_combine import expectation

TORCH = {
    "unit": "F.normalize({x}, dim=-1)", "lo": "{x}.amin(-1, keepdim=True)", "hi": "{x}.amax(-1, keepdim=True)",
    "sum": "{x}.sum(-1, keepdim=True)", "where": "torch.where", "softmax": "torch.softmax({x}, dim=-1)",
    "stop": "{x}.detach()",
    "lse": "torch.logsumexp({x}, -1)", "diag": "torch.diagonal({x}, dim1=-2, dim2=-1)", "exp": "torch.exp({x})",
    "low": "torch.finfo({x}.dtype).min", "max0": "{x}.clamp(min={y})", "eye": "torch.eye({x}, dtype=torch.bool)",
    "count": "{x}.sum(1)", "rows": "{x}.reshape(-1, {x}.shape[-1])",
}
JAX = TORCH | {
    "unit": "unit({x})", "lo": "{x}.min(-1, keepdims=True)", "hi": "{x}.max(-1, keepdims=True)",
    "sum": "{x}.sum(-1, keepdims=True)", "where": "jnp.where", "softmax": "jax.nn.softmax({x}, axis=-1)",
    "stop": "jax.lax.stop_gradient({x})",
    "lse": "jax.nn.logsumexp({x}, axis=-1)", "diag": "jnp.diagonal({x}, axis1=-2, axis2=-1)", "exp": "jnp.exp({x})",
    "low": "jnp.finfo({x}.dtype).min", "max0": "jnp.maximum({x}, {y})", "eye": "jnp.eye({x}, dtype=bool)",
}


def source(p):
    """The text of a file."""
    n, jax = p.names, p.style == "jax"
    d = JAX if jax else TORCH

    def w(op, x="", y=""):
        return d[op].format(x=x, y=y)

    loop = p.style == "loop"
    head = [n["v"], n["t"]]
    if p.text_first:
        head.reverse()
    head += [n["m"]] if p.mask != "none" else []
    head += [n["k"]] if p.scale not in ("none", "attribute") else []
    body = [*unpack(p), *mask_code(p), *scale_code(p, w)]
    align = alignment(p, w)
    if loop:
        inner = [*align, *contrast_one(p, w)]
        start = [
            "n = int(n)", "if n == 0:", f"    losses.append({n['v']}_i.sum() * 0)", "    counts.append(0)", "    continue",
            f"{n['t']}_i = {n['t']}_i[:n]",
        ]
        body += [
            "losses, counts = [], []", f"for {n['v']}_i, {n['t']}_i, n in zip({n['v']}, {n['t']}, lengths):",
            *("    " + line for line in start + inner), *reduce_loop(p),
        ]
    else:
        body += [*align, *contrast(p, w), *reduce_all(p, w)]
    if p.returns == "both":
        body += whole(p, w)
    body += result(p)
    return "\n".join(wrap(p, head, body)) + "\n"


def unpack(p):
    v = p.names["v"]
    if p.layout == "v_bdhw":
        return [f"{v} = {v}.flatten(2).transpose(1, 2)"]
    return [f"{v} = {v}[:, 1:]  # without [CLS]"] if p.layout == "v_cls" else []


def mask_code(p):
    m, t = p.names["m"], p.names["t"]
    if p.style == "loop":
        return [f"lengths = {m}.tolist()" if p.mask == "lengths" else f"lengths = {m}.sum(1).tolist()"]
    everything = f"jnp.ones({t}.shape[:2], bool)" if p.style == "jax" else f"torch.ones({t}.shape[:2], dtype=torch.bool)"
    real = {"none": everything, "mask": m, "mask_int": f"{m} > 0", "mask_float": f"{m} > 0.5", "padding": f"~{m}"}
    return [f"real = {real[p.mask]}"]


def scale_code(p, w):
    k = p.names["k"]
    learned = {"attribute": "self.logit_scale.exp()", "scale": k, "tau": f"1 / {k}", "theta": w("exp", k), "none": ""}[p.scale]
    lines = [f"inverse = {learned}"] if learned else []
    constant = p.value("logits.temperature_constant")
    return [*lines, f"local_inverse = 1 / {constant}"] if constant else lines


def inverse(p):
    return "local_inverse" if p.has("logits.temperature_constant") else "inverse"


def alignment(p, w):
    """Eqs. 2-5."""
    n = p.names
    v, t, s, a, c = n["v"], n["t"], n["s"], n["a"], n["c"]
    if p.style == "loop":
        v, t = f"{v}_i", f"{t}_i"
    lines = []
    query, key = t, v
    if p.harmless:
        lines.append(f"query = {w('unit', t)}")
        query = "query"
    if p.has("similarity.cosine"):
        lines.append(f"key = {w('unit', v)}")
        key = "key"
    product = {
        "einsum": f'torch.einsum("bld,bpd->blp", {query}, {key})', "bmm": f"torch.bmm({query}, {key}.transpose(1, 2))",
    }.get(p.style, f"{query} @ {key}.mT")
    lines.append(f"{s} = {w('stop', f'({product})') if p.has('similarity.detached') else product}")
    raw = p.has("weights.softmax") or p.has("weights.raw")
    if not raw:
        lines += stretch(p, w, s) + threshold(p, w, s, v)
    lines += weights(p, w, s, a)
    if p.has("weights.detached"):
        lines.append(f"{a} = {w('stop', a)}")
    values = v
    if p.has("grouping.normalised_patches"):
        lines.append(f"values = {w('unit', v)}")
        values = "values"
    mix = f'torch.einsum("blp,bpd->bld", {a}, {values})' if p.style == "einsum" else f"{a} @ {values}"
    return [*lines, f"{c} = {mix}"]


def stretch(p, w, s):
    if p.has("minmax.missing"):
        return []
    lines = [f"low, high = {w('lo', s)}, {w('hi', s)}"]
    if p.has("minmax.nan_on_flat"):
        return [*lines, f"{s} = ({s} - low) / (high - low)"]
    if p.has("minmax.epsilon"):
        return [*lines, f"{s} = ({s} - low) / (high - low + {p.value('minmax.epsilon')})"]
    return [
        *lines, "flat = high == low",
        f"{s} = {w('where')}(flat, 1.0, ({s} - low) / {w('where')}(flat, 1.0, high - low))",
    ]


def threshold(p, w, s, v):
    if p.has("threshold.absent") or p.value("weights.softmax_minmax") == "s_hat":
        return []
    patches = f"1 / {v}.shape[-2]"
    sigma = p.value("threshold.constant", patches)
    first = [f"{s} = {s} / {w('sum', s)}"] if p.has("threshold.on_weights") else []
    if p.has("threshold.on_weights") and p.has("minmax.epsilon"):
        first = [f"{s} = {s} / {w('max0', w('sum', s), '1e-12')}"]
    return [*first, f"{s} = {w('where')}({s} < {sigma}, 0.0, {s})"]


def weights(p, w, s, a):
    if p.has("weights.softmax") or p.has("weights.softmax_minmax"):
        lines = [f"{a} = {w('softmax', s)}"]
        if p.value("weights.softmax_minmax") and not p.has("minmax.nan_on_flat"):
            lines.append(f"{a} = {w('where')}(flat, 1 / {s}.shape[-1], {a})")
        return lines
    if p.has("weights.raw"):
        return [f"{a} = {s}" if p.value("weights.raw") == "s" else f"{a} = {s} / {w('sum', s)}"]
    if p.has("minmax.epsilon"):
        return [f"{a} = {s} / {w('max0', w('sum', s), p.value('minmax.epsilon'))}"]
    if p.has("minmax.nan_on_flat"):
        return [f"{a} = {s} / {w('sum', s)}"]
    return [
        f"total = {w('sum', s)}",
        f"{a} = {w('where')}(total == 0, 1 / {s}.shape[-1], {s} / {w('where')}(total == 0, 1.0, total))",
    ]


def normed(p, w, c, t):
    one = c if p.has("norm.missing") or p.has("norm.missing_c") else w("unit", c)
    two = t if p.has("norm.missing") or p.has("norm.missing_t") else w("unit", t)
    return one, two


def contrast(p, w):
    """Logits and cross-entropies of both directions, (B,L) each."""
    c, t = p.names["c"], p.names["t"]
    one, two = normed(p, w, c, t)
    lines = [f"c_hat, t_hat = {one}, {two}"]
    if p.has("logits.batch_negatives"):
        return [
            *lines, f"c_hat, t_hat = {w('rows', 'c_hat')}, {w('rows', 't_hat')}", f"logits = {inverse(p)} * c_hat @ t_hat.T",
            f"own = {w('diag', 'logits')}", "open_ = real.reshape(1, -1)", f"vt = {w('lse', masked('logits', w))} - own",
            f"tv = {w('lse', masked('logits.T', w))} - own", "vt, tv = vt.reshape(real.shape), tv.reshape(real.shape)",
        ]
    lines.append(f"logits = {inverse(p)} * c_hat @ t_hat.mT")
    if p.has("logits.padding_filled_zero"):
        lines.append(f"logits = {w('where')}(real[:, :, None] & real[:, None, :], logits, 0.0)")
    if p.has("logits.padding_not_masked") or p.has("logits.padding_filled_zero"):
        own = f"own = {w('diag', 'logits')}"
        return [*lines, own, f"vt = {w('lse', 'logits')} - own", f"tv = {w('lse', 'logits.mT')} - own"]
    return [
        *lines, f"own = {w('diag', 'logits')}", "open_ = real[:, None, :]", f"vt = {w('lse', masked('logits', w))} - own",
        f"tv = {w('lse', masked('logits.mT', w))} - own",
    ]


def masked(z, w):
    return f"{w('where')}(open_, {z}, {w('low', 'logits')})"


def contrast_one(p, w):
    """The same for one caption without padding: a number."""
    c, t = p.names["c"], f"{p.names['t']}_i"
    one, two = normed(p, w, c, t)
    return [
        f"logits = {inverse(p)} * {one} @ {two}.mT", "label = torch.arange(n)",
        'vt = F.cross_entropy(logits, label, reduction="sum")', 'tv = F.cross_entropy(logits.T, label, reduction="sum")',
        f"losses.append({both(p)})" if p.returns != "pair" else "losses.append(torch.stack([vt, tv]))", "counts.append(n)",
    ]


def both(p):
    only, factor = p.value("loss.one_direction"), p.value("loss.factor")
    if only:
        return only
    return {"2.0": "vt + tv", "0.5": "(vt + tv) / 4", None: "(vt + tv) / 2"}[factor]


def reduce_all(p, w):
    def mean(x):
        if p.has("reduction.mean_all"):
            return f"{x}.mean()"
        kept = f"{w('where')}(real, {x}, 0.0)"
        if p.has("reduction.masked_over_all"):
            return f"{kept}.mean()"
        if p.has("reduction.token"):
            return f"{kept}.sum() / {w('max0', 'real.sum()', 1)}"
        return f"({kept}.sum(1) / {w('max0', w('count', 'real'), 1)}).mean()"

    if p.returns == "pair":
        scale = {"2.0": "2 * ", "0.5": "0.5 * ", None: ""}[p.value("loss.factor")]
        return [f"loss_vt = {scale}{mean('vt')}" if scale else f"loss_vt = {mean('vt')}",
                f"loss_tv = {scale}{mean('tv')}" if scale else f"loss_tv = {mean('tv')}"]
    return [f"each = {both(p)}", f"loss = {mean('each')}"]


def reduce_loop(p):
    if p.has("reduction.token"):
        total = "sum(losses) / max(sum(counts), 1)"
    elif p.has("reduction.masked_over_all"):
        total = f"sum(losses) / ({p.names['t']}.shape[0] * {p.names['t']}.shape[1])"
    else:
        total = "sum(x / max(c, 1) for x, c in zip(losses, counts)) / len(losses)"
    if p.returns == "pair":
        scale = {"2.0": "2 * ", "0.5": "0.5 * ", None: ""}[p.value("loss.factor")]
        zero = "losses = [x if x.ndim else torch.stack([x, x]) for x in losses]"
        return [zero, f"loss_vt, loss_tv = {scale}({total})" if scale else f"loss_vt, loss_tv = {total}"]
    return [f"loss = {total}"]


def whole(p, w):
    """The global loss of pooled embeddings."""
    v, t = p.names["v"], p.names["t"]
    if p.has("global.pools_normalised"):
        v, t = w("unit", v), w("unit", t)
    text = f"{t}.mean(1)" if p.has("global.pools_padding") else (
        f"torch.where(real[:, :, None], {t}, 0.0).sum(1) / real.sum(1, keepdim=True).clamp(min=1)"
    )
    k = f"1 / {p.value('global.temperature_constant')}" if p.has("global.temperature_constant") else "inverse"
    lines = [
        f"image, text = {w('unit', f'{v}.mean(1)')}, F.normalize({text}, dim=-1)", f"pairs = ({k}) * image @ text.T",
        "label = torch.arange(len(pairs))",
    ]
    if p.has("global.one_direction"):
        return [*lines, "whole = F.cross_entropy(pairs, label)"]
    return [*lines, "whole = (F.cross_entropy(pairs, label) + F.cross_entropy(pairs.T, label)) / 2"]


def result(p):
    last = p.names["a"] if p.style != "loop" else "counts"
    return {
        "number": ["return loss"], "dict": [f'return {{"loss": loss, "weights": {last}}}'], "tuple": [f"return loss, {last}"],
        "pair": ["return loss_vt, loss_tv"], "both": ['return {"global": whole, "local": loss}'],
    }[p.returns]


def wrap(p, head, body):
    """The function or class around the body, imports, the label."""
    name = p.names["f"]
    expect = expectation(p)
    text = [f'"""Written by zoo_combine.py, seed {p.seed}, {p.style}."""', ""]
    if p.style == "jax":
        text += ["import jax", "import jax.numpy as jnp", ""]
        helper = ["def unit(x):", "    return x / jnp.sqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))", "", ""]
    else:
        text += ["import torch", "import torch.nn.functional as F", ""]
        helper = []
    label = ["EXPECT = {", *(f"    {key!r}: {value!r}," for key, value in expect.items()), "}", "", ""]
    if p.style == "module":
        learned = ["        self.logit_scale = torch.nn.Parameter(torch.tensor(2.6593))"] if p.scale == "attribute" else []
        code = [
            f"class {expect['target']}(torch.nn.Module):", "    def __init__(self):", "        super().__init__()",
            *learned, "", f"    def forward(self, {', '.join(head)}):", *("        " + line for line in body),
        ]
    else:
        code = [f"def {name}({', '.join(head)}):", *("    " + line for line in body)]
    return [*text, *label, *helper, *code]
