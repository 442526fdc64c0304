"""The objectives that SPARC is compared with, in plain torch from their equations: the second opinion of sparc_ref.objectives.

Slow and literal on purpose: loops over pairs, whole tensors, padding cut off instead of masked.  Gradients are autograd's.
p is a dict of parameters by name; v (B,P,D), t (B,L,D), mask (B,L), v_bar, t_bar (B,D) as there.  -> loss (), parts
"""

import math

import torch

from parity.oracle import cross_entropy, fine_grained_loss, global_loss, linear, unit


def clip(p, v, t, mask, v_bar, t_bar):
    """1/2 [CE(z) + CE(z')], z the scaled cosines."""
    return global_loss(v_bar, t_bar, p["theta"]), {}


def filip(p, v, t, mask, v_bar, t_bar, keep=0.2, drop_side="gathered", select="batch", ties="share"):
    """Late interaction, pair by pair."""
    pairs = [i for i in range(len(v)) if bool(mask[i].any())]
    patches, words = [unit(v[i]) for i in pairs], [unit(t[i][mask[i]]) for i in pairs]
    most_v, most_t = [], []
    for i in range(len(pairs)):
        others = range(len(pairs)) if select == "batch" else [i]
        most_v.append(torch.stack([(patches[i] @ words[j].T).max(1).values for j in others]).max(0).values)
        most_t.append(torch.stack([(words[i] @ patches[j].T).max(1).values for j in others]).max(0).values)

    def kept(x, most):
        return x[torch.topk(most, max(1, math.ceil(keep * len(x) - 1e-4))).indices]

    kept_v = [kept(x, m) for x, m in zip(patches, most_v)]
    kept_t = [kept(x, m) for x, m in zip(words, most_t)]
    if drop_side == "both":
        patches, words = kept_v, kept_t

    def largest(a):
        return a.max(1).values if ties == "first" else a.amax(1)

    image = torch.stack([torch.stack([largest(x @ y.T).mean() for y in kept_t]) for x in patches])
    text = torch.stack([torch.stack([largest(y @ x.T).mean() for x in kept_v]) for y in words])
    scale = torch.exp(p["theta_filip"] if "theta_filip" in p else p["theta"])
    loss = (cross_entropy(scale * image).mean() + cross_entropy(scale * text).mean()) / 2
    return loss, {"scores_image": image, "scores_text": text}


def clip_filip(p, v, t, mask, v_bar, t_bar, weight_clip=0.5, weight_filip=0.5, **options):
    """Both, weighted."""
    a, b = clip(p, v, t, mask, v_bar, t_bar)[0], filip(p, v, t, mask, v_bar, t_bar, **options)[0]
    return weight_clip * a + weight_filip * b, {"loss_clip": a, "loss_filip": b}


def pacl(p, v, t, mask, v_bar, t_bar, pairs="all", values="plain", weight_scale=1.0):
    """Every caption pools every picture, pair by pair."""
    if "pacl.up.weight" in p:
        hidden = torch.clamp(linear(v, p["pacl.up.weight"], p["pacl.up.bias"]), min=0)
        v = v + linear(hidden, p["pacl.down.weight"], p["pacl.down.bias"])
    k = torch.exp(p["theta_pool"]) if "theta_pool" in p else weight_scale
    rows = []
    for i in range(len(v)):
        row = []
        for j in range(len(t_bar)):
            asking = unit(t_bar[i if pairs == "matched" else j])
            a = torch.softmax(k * unit(v[i]) @ asking, 0)
            u = a @ (v[i] if values == "plain" else unit(v[i]))
            row.append(unit(u) @ unit(t_bar[j]))
        rows.append(torch.stack(row))
    phi = torch.stack(rows)
    z = torch.exp(p["theta"]) * phi
    return (cross_entropy(z).mean() + cross_entropy(z.T).mean()) / 2, {"scores": phi}


def gloria(p, v, t, mask, v_bar, t_bar, temp1=4.0, temp2=5.0, temp3=10.0, similarity="scaled", double_softmax=False, agg="sum"):
    """Every word's context vector, pair by pair."""
    temp1, temp2, temp3 = (torch.exp(p[name]) if name in p else temp for name, temp in (
        ("theta_attention", temp1), ("theta_words", temp2), ("theta_local", temp3)))
    pairs = [i for i in range(len(v)) if bool(mask[i].any())]
    rows = []
    for i in pairs:
        row = []
        for j in pairs:
            words = t[j][mask[j]]
            s = words @ v[i].T / (math.sqrt(v.shape[2]) if similarity == "scaled" else 1)   # (L_j,P)
            if double_softmax:
                s = torch.softmax(s, 0)
            c = torch.softmax(temp1 * s, 1) @ v[i]
            votes = torch.exp(temp2 * (unit(c) * unit(words)).sum(1))
            row.append(torch.log(votes.mean() if agg == "mean" else votes.sum()))
        rows.append(torch.stack(row))
    z = torch.stack(rows)
    local = cross_entropy(temp3 * z).mean() + cross_entropy(temp3 * z.T).mean()
    both = 2 * global_loss(v_bar, t_bar, p["theta"])
    return local + both, {"scores": z, "loss_local": local, "loss_global": both}


def mgca(p, v, t, mask, v_bar, t_bar, lambda_ita=1.0, lambda_cta=1.0, lambda_cpa=1.0, attention="mha", normalize="word",
         attention_tau=0.1, prototype_tau=0.2, epsilon=0.05, iterations=3, freeze_prototypes=False):
    """Instance, token and prototype alignment."""
    ita = 2 * global_loss(v_bar, t_bar, p["theta"])
    cta = cpa = torch.zeros_like(ita)

    def attend(side, asking, seen):
        if attention == "paramfree":
            return torch.softmax(asking @ seen.T / attention_tau, 1) @ seen
        w = {part: p[f"mgca.{side}.{part}.weight"] for part in ("query", "key", "value", "out")}
        b = {part: p[f"mgca.{side}.{part}.bias"] for part in ("query", "value", "out")}
        q, k, u = asking @ w["query"].T + b["query"], seen @ w["key"].T, seen @ w["value"].T + b["value"]
        return torch.softmax(q @ k.T / math.sqrt(q.shape[1]), 1) @ u @ w["out"].T + b["out"]

    if lambda_cta:
        for i in range(len(v)):
            if not bool(mask[i].any()):
                continue
            patches, words = unit(v[i]), unit(t[i][mask[i]])
            o = unit(attend("word", words, patches))
            q = attend("patch", patches, words)
            q = unit(q) if normalize == "both" else q
            for x, y in ((words, o), (patches, q)):
                z = torch.exp(p["theta_cross"]) * x @ y.T
                cta = cta + (cross_entropy(z).mean() + cross_entropy(z.T).mean()) / 2 / len(v)
    if lambda_cpa:
        prototypes = p["mgca.prototypes"].detach() if freeze_prototypes else p["mgca.prototypes"]
        o_v, o_t = unit(v_bar) @ prototypes.T, unit(t_bar) @ prototypes.T
        q_v, q_t = sinkhorn(o_v.detach(), epsilon, iterations), sinkhorn(o_t.detach(), epsilon, iterations)
        p_v, p_t = torch.softmax(o_v / prototype_tau, 1), torch.softmax(o_t / prototype_tau, 1)
        cpa = -((q_v * torch.log(p_t)).sum(1).mean() + (q_t * torch.log(p_v)).sum(1).mean()) / 2
    loss = lambda_ita * ita + lambda_cta * cta + lambda_cpa * cpa
    return loss, {"loss_ita": ita, "loss_cta": cta, "loss_cpa": cpa}


def siglip(p, v, t, mask, v_bar, t_bar):
    """Every pair by itself."""
    loss = 0.0
    for i in range(len(v_bar)):
        for j in range(len(t_bar)):
            z = torch.exp(p["theta"]) * (unit(v_bar[i]) @ unit(t_bar[j])) + p["logit_bias"]
            loss = loss - torch.nn.functional.logsigmoid(z if i == j else -z) / len(v_bar)
    return loss, {}


def flair(p, v, t, mask, v_bar, t_bar):
    """Every caption attends to every picture, pair by pair; then every pair by itself, twice."""
    empty = torch.zeros_like(v[0, :1] @ p["flair.key.weight"].T)
    rows = []
    for i in range(len(v)):
        k, u = (torch.cat([v[i] @ p[f"flair.{part}.weight"].T, empty]) for part in ("key", "value"))
        row = []
        for j in range(len(t_bar)):
            q = p["flair.query.weight"] @ t_bar[j] + p["flair.query.bias"]
            a = torch.softmax(k @ q / math.sqrt(len(q)), 0)
            row.append(unit(p["flair.out.weight"] @ (a @ u) + p["flair.out.bias"]) @ unit(t_bar[j]))
        rows.append(torch.stack(row))
    phi = torch.stack(rows)
    z = torch.exp(p["theta"]) * phi + p["logit_bias"]
    local = sum(-torch.nn.functional.logsigmoid(z[i, j] if i == j else -z[i, j]) for i in range(len(z)) for j in range(len(z)))
    local, whole = local / len(z), siglip(p, v, t, mask, v_bar, t_bar)[0]
    return (local + whole) / 2, {"scores": phi, "loss_local": local, "loss_global": whole}


def sinkhorn(scores, epsilon=0.05, iterations=3):
    """As the code has it: a matrix of prototypes x samples, its rows and its columns divided in turn.   (B,K) -> (B,K)"""
    q = torch.exp(scores / epsilon).T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q / q.sum(0, keepdim=True)).T


def sparc(p, v, t, mask, v_bar, t_bar, lambda_g=0.5, lambda_f=1.0, **options):
    """Eq. 7."""
    a = global_loss(v_bar, t_bar, p["theta"])
    b = fine_grained_loss(v, t, mask, p["theta_fine"] if "theta_fine" in p else p["theta"], **options)
    return lambda_g * a + lambda_f * b, {"loss_global": a, "loss_fine": b}
