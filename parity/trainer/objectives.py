"""What SPARC is compared with, in torch and over ranks: CLIP, FILIP, CLIP+FILIP, PACL, GLoRIA, MGCA, SigLIP, FLAIR; and SPARC.

B samples on all ranks, b on this one, m of a block; L tokens, P patches, D joint width.  Shares no line with sparc_ref; options
and parameters have the names of sparc_ref.objectives.  At least float32 inside.  Each rank compares its own pictures and
captions, (b,B), with gathered ones, some of them at a time and again in backward; what it returns is as loss.py says: the mean
over ranks is the loss of the whole batch, and no gradient is scaled by their number.

What travels    CLIP, MGCA: both pooled embeddings | PACL, SigLIP, FLAIR: pooled captions | GLoRIA: words and both pooled |
                FILIP: words and patches that are kept, and once without a gradient all words, by which they are chosen (select
                "batch")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parity.trainer import distributed
from parity.trainer.loss import global_loss, sparc_loss, unit, wide
from parity.trainer.pairs import BLOCK, How, Pairs, in_blocks, log_sum_over_ranks, of_all, of_one_length

EMBEDDINGS = ("v", "t", "v_bar", "t_bar")
Parts = dict[str, Tensor]



def objective_loss(
    embeddings: Parts, mask: Tensor, params: Mapping[str, Tensor], config: Any, objective: Any = None, *, step: int = 0,
    **how: Any,
) -> tuple[Tensor, Parts]:
    """The loss that a model is trained with.      -> loss (), stages

    embeddings: v (b,P,D), t (b,L,D), v_bar, t_bar (b,D); mask (b,L) bool; params: what the losses use of a model, by name.
    objective: settings with ObjectiveConfig's attributes, None: SPARC by `config`.  step: updates before this one.  how: How's,
    and compiled: SPARC's fine-grained loss by torch.compile.
    """
    name = "sparc" if objective is None else objective.objective
    pair_chunk, compiled = how.pop("pair_chunk", None), how.pop("compiled", False)
    if name == "sparc":
        return sparc_loss(embeddings, mask, params["theta"], params.get("theta_fine"), config, compiled=compiled, **how)
    return compared(name, embeddings, mask, params, How(pair_chunk=pair_chunk, **how), **settings_of(objective, step))


def settings_of(o: Any, step: int = 0) -> dict[str, Any]:
    """An ObjectiveConfig's settings as the keywords of its objective."""
    def of(head: str, *names: str) -> dict[str, Any]:
        return {name: getattr(o, f"{head}_{name}") for name in names}

    dropping = ("keep", "drop_side", "select")
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "clip": dict, "filip": lambda: of("filip", *dropping),
        "clip_filip": lambda: of("filip", *dropping) | {f"weight_{n}": getattr(o, f"weight_{n}") for n in ("clip", "filip")},
        "pacl": lambda: of("pacl", "pairs", "values", "weight_scale"),
        "gloria": lambda: of("gloria", "similarity", "double_softmax", "agg"),
        "mgca": lambda: of("mgca", "attention", "normalize", "lambda_ita", "lambda_cta", "lambda_cpa")
        | {"freeze_prototypes": step < o.mgca_freeze},
        "siglip": dict, "flair": dict,
    }
    return found[o.objective]()


def compared(
    name: str, embeddings: Parts, mask: Tensor, params: Mapping[str, Tensor], how: How, **options: Any
) -> tuple[Tensor, Parts]:
    """One of OBJECTIVES by name, with its own keywords.      -> loss (), stages

    A parameter or pooled embedding that an objective does not use gets a gradient of zeros, as in the reference, so that weight
    decay meets it and DistributedDataParallel, which waits for every parameter, goes on.
    """
    if how.pair_chunk is not None and how.pair_chunk < 1:
        raise ValueError(f"pair_chunk: expected at least 1 sample in a block, got {how.pair_chunk}")
    with torch.autocast(mask.device.type, enabled=False):
        x = {name: wide(embeddings[name]) for name in EMBEDDINGS}
        x["t"] = torch.where(mask[..., None], x["t"], 0)
        loss, stages = OBJECTIVES[name](x, mask, {n: wide(p) for n, p in params.items()}, how, **options)
        loss = Touched.apply(loss, *(embeddings[n] for n in ("v_bar", "t_bar")), *params.values())
    return loss, stages


class Touched(torch.autograd.Function):
    """The loss, and a gradient of zeros for whatever else is given."""

    @staticmethod
    def forward(ctx, loss, *others):
        ctx.like = [(x.shape, x.dtype, x.device) for x in others]
        return loss.clone()

    @staticmethod
    def backward(ctx, dloss):
        return dloss, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)


# ----------------------------------------------------------------------------------------------------------- the objectives


def clip(x: Parts, mask: Tensor, p: Parts, how: How) -> tuple[Tensor, Parts]:
    """Eq. 1 alone."""
    loss, stages = whole_pairs(x, p, how)
    return loss, {"loss_global": loss, **stages}


def whole_pairs(x: Parts, p: Parts, how: How) -> tuple[Tensor, Parts]:
    return global_loss(x["v_bar"], x["t_bar"], p["theta"], form=how.form, group=how.group, chunk=how.chunk)


def filip(
    x: Parts, mask: Tensor, p: Parts, how: How, *, keep: float = 0.2, drop_side: str = "gathered", select: str = "batch",
    ties: str = "share",
) -> tuple[Tensor, Parts]:
    """Every patch finds its best word, every word its best patch, in every pair.      scores_image, scores_text (b,B)

    s_I(i,j) = 1/P sum_p max_{l real, kept} v_ip . t_jl;  s_T(j,i) = 1/L_j sum_{l real} max_{p kept} t_jl . v_ip, unit vectors
    """
    words, mask = of_one_length(unit(x["t"]), mask, how.group)
    patches = unit(x["v"])
    every = torch.ones_like(patches[..., 0], dtype=torch.bool)
    sizes = distributed.batch_sizes(len(patches), patches.device, how.group)
    kept_v, in_v, kept_t, in_t = patches, every, words, mask
    if keep < 1:
        alike_v, alike_t = most_alike(patches, words, mask, select, sizes, how)
        kept_v, in_v = kept(patches, every, alike_v, keep)
        kept_t, in_t = kept(words, mask, alike_t, keep)
    ask_v, ask_t = (patches, every), (words, mask)
    if drop_side == "both":
        ask_v, ask_t = (kept_v, in_v), (kept_t, in_t)
    s_image = late_interaction(*ask_v, kept_t, in_t, ties, sizes, how)
    s_text = late_interaction(*ask_t, kept_v, in_v, ties, sizes, how)
    scale = (p["theta_filip"] if "theta_filip" in p else p["theta"]).exp()
    pairs = Pairs(mask.any(1), sizes, how.group)
    loss_image, loss_text = pairs.rows(scale * s_image), pairs.rows(scale * s_text)
    stages = {"scores_image": s_image, "scores_text": s_text, "loss_image": loss_image, "loss_text": loss_text}
    return pairs.mean(loss_image + loss_text) / 2, stages


def clip_filip(
    x: Parts, mask: Tensor, p: Parts, how: How, *, weight_clip: float = 0.5, weight_filip: float = 0.5, **options: Any
) -> tuple[Tensor, Parts]:
    """Both, weighted."""
    loss_clip, _ = whole_pairs(x, p, how)
    loss_filip, stages = filip(x, mask, p, how, **options)
    loss = weight_clip * loss_clip + weight_filip * loss_filip
    return loss, {"loss_clip": loss_clip, "loss_filip": loss_filip, **stages}


def pacl(
    x: Parts, mask: Tensor, p: Parts, how: How, *, pairs: str = "all", values: str = "plain", weight_scale: float = 1.0
) -> tuple[Tensor, Parts]:
    """A caption as a whole pools the patches that resemble it, in every pair.      scores (b,B): phi(u_ij, t_bar_j)

    Every rank scores its own pictures with all captions; a caption's sum over the pictures goes over the ranks.
    """
    e, t_hat = embedded(x["v"], p), unit(x["t_bar"])
    if pairs == "matched":
        a = torch.softmax(learned(p, "theta_pool", weight_scale) * (unit(e) @ t_hat[..., None])[..., 0], -1)  # (b,P)
        u = (a[:, None] @ (e if values == "plain" else unit(e)))[:, 0]
        loss, stages = global_loss(u, x["t_bar"], p["theta"], form=how.form, group=how.group, chunk=how.chunk)
        return loss, {"scores": stages.pop("logits") / p["theta"].exp()} | stages if "logits" in stages else stages
    sizes = distributed.batch_sizes(len(e), e.device, how.group)
    phi = pooled_scores(e, distributed.gather(t_hat, sizes, how.group), p, how, values, weight_scale)
    every = Pairs(torch.ones(len(e), dtype=torch.bool, device=e.device), sizes, how.group)
    z = p["theta"].exp() * phi
    loss_image, loss_text = every.rows(z), every.columns(z)
    return every.mean(loss_image + loss_text) / 2, {"scores": phi, "loss_image": loss_image, "loss_text": loss_text}


def gloria(
    x: Parts, mask: Tensor, p: Parts, how: How, *, temp1: float = 4.0, temp2: float = 5.0, temp3: float = 10.0,
    similarity: str = "scaled", double_softmax: bool = False, agg: str = "sum",
) -> tuple[Tensor, Parts]:
    """Words attend to the patches and vote for a picture, in every pair; plus twice eq. 1.      scores (b,B)"""
    words, mask = of_one_length(x["t"], mask, how.group)
    sizes = distributed.batch_sizes(len(words), words.device, how.group)
    captions, real = distributed.gather(words, sizes, how.group), of_all(mask, sizes, how.group)
    scores = voted_scores(x["v"], captions, real, p, how, temp1, temp2, similarity, double_softmax, agg)
    pairs = Pairs(mask.any(1), sizes, how.group)
    z = learned(p, "theta_local", temp3) * scores
    loss_image, loss_text = pairs.rows(z), pairs.columns(z)
    local, both = pairs.mean(loss_image + loss_text), 2 * whole_pairs(x, p, how)[0]
    return local + both, {"scores": scores, "loss_local": local, "loss_global": both}


def mgca(
    x: Parts, mask: Tensor, p: Parts, how: How, *, lambda_ita: float = 1.0, lambda_cta: float = 1.0, lambda_cpa: float = 1.0,
    attention: str = "mha", normalize: str = "word", attention_tau: float = 0.1, prototype_tau: float = 0.2,
    epsilon: float = 0.05, iterations: int = 3, freeze_prototypes: bool = False,
) -> tuple[Tensor, Parts]:
    """Eq. 1 twice, a token alignment both ways inside each pair, and prototypes whose codes are balanced over all ranks."""
    whole = sum(distributed.batch_sizes(len(mask), mask.device, how.group))
    share = distributed.place(how.group)[1] / whole       # of one sample
    ita = 2 * whole_pairs(x, p, how)[0]
    cta = cpa = torch.zeros_like(ita)
    if lambda_cta:
        def tokens(v, t, mask):
            return token_alignment(v, t, mask, p, attention, normalize, attention_tau)

        given = x["v"], x["t"], mask
        if how.fine_chunk is None:
            each = tokens(*given)
        else:
            parts = zip(*(y.split(how.fine_chunk) for y in given))
            each = torch.cat([checkpoint(tokens, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
        cta = each.sum() * share
    if lambda_cpa:
        prototypes = p["mgca.prototypes"].detach() if freeze_prototypes else p["mgca.prototypes"]
        o_v, o_t = (unit(x[name]) @ prototypes.T for name in ("v_bar", "t_bar"))  # (b,K)
        q_v, q_t = (sinkhorn(o.detach(), epsilon, iterations, how.group) for o in (o_v, o_t))
        log_v, log_t = (torch.log_softmax(o / prototype_tau, -1) for o in (o_v, o_t))
        cpa = -(q_v * log_t + q_t * log_v).sum() * share / 2
    loss = lambda_ita * ita + lambda_cta * cta + lambda_cpa * cpa
    return loss, {"loss_ita": ita, "loss_cta": cta, "loss_cpa": cpa}


def siglip(x: Parts, mask: Tensor, p: Parts, how: How) -> tuple[Tensor, Parts]:
    """Every pair by itself.      scores (b,B): phi(v_bar_i, t_bar_j)"""
    sizes = distributed.batch_sizes(len(mask), mask.device, how.group)
    phi = unit(x["v_bar"]) @ distributed.gather(unit(x["t_bar"]), sizes, how.group).T
    return signed_pairs(phi, p, sizes, how), {"scores": phi}


def flair(x: Parts, mask: Tensor, p: Parts, how: How) -> tuple[Tensor, Parts]:
    """A caption as a whole attends to the patches and an empty token, in every pair.      scores (b,B): phi(u_ij, t_bar_j)"""
    sizes = distributed.batch_sizes(len(mask), mask.device, how.group)
    captions = distributed.gather(x["t_bar"], sizes, how.group)
    phi = attended_scores(x["v"], captions, p, how)
    local = signed_pairs(phi, p, sizes, how)
    whole = signed_pairs(unit(x["v_bar"]) @ unit(captions).T, p, sizes, how)
    return (local + whole) / 2, {"scores": phi, "loss_local": local, "loss_global": whole}


def signed_pairs(phi: Tensor, p: Parts, sizes: list[int], how: How) -> Tensor:
    """-1/B sum log sigmoid(+-z), plus for the own caption.      phi (b,B), own against all captions -> (), as loss.py says"""
    rank, world = distributed.place(how.group)
    sign = -torch.ones_like(phi)
    sign.diagonal(sum(sizes[:rank])).fill_(1)
    z = p["theta"].exp() * phi + p["logit_bias"]
    return torch.nn.functional.softplus(-sign * z).sum() * world / sum(sizes)


OBJECTIVES: dict[str, Callable[..., tuple[Tensor, Parts]]] = {
    "clip": clip, "filip": filip, "clip_filip": clip_filip, "pacl": pacl, "gloria": gloria, "mgca": mgca,
    "siglip": siglip, "flair": flair}


# ------------------------------------------------------------------------------------------------- what they are made of


def late_interaction(
    q: Tensor, q_real: Tensor, k: Tensor, k_real: Tensor, ties: str, sizes: list[int], how: How
) -> Tensor:
    """score(i,j) = mean over i's real tokens of the largest product with a real token of j.      own i, all j -> (b,B)

    q (b,Q,D), q_real (b,Q); k (b,K,D), k_real (b,K) of this rank, gathered here
    """
    weight = q_real.to(q.dtype)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    seen, real = distributed.gather(k, sizes, how.group), of_all(k_real, sizes, how.group)

    def block(q, weight, k, real):
        a = (q.flatten(0, 1) @ k.flatten(0, 1).T).view(*q.shape[:2], *k.shape[:2])  # (b,Q,m,K)
        a = torch.where(real | ~real.any(1, keepdim=True), a, -torch.inf)
        best = a.max(-1).values if ties == "first" else a.amax(-1)
        return (weight[..., None] * best).sum(1)

    return in_blocks(block, (q, weight), (seen, real), 3 * q[..., 0].numel() * k.shape[1], how.pair_chunk)


def kept(x: Tensor, real: Tensor, alike: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """The `keep` most alike of each sample's real tokens, at least one.      x (b,N,D), real, alike (b,N) -> (b,K,D), (b,K)"""
    most = max(1, math.ceil(keep * x.shape[1] - 1e-4))    # 0.2 is no whole number of bits
    order = torch.sort(torch.where(real, alike, -torch.inf), dim=1, descending=True, stable=True).indices[:, :most]
    count = real.sum(1, keepdim=True)
    number = torch.minimum((keep * count.double() - 1e-4).ceil().clamp(min=1), count)
    y = x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
    return y, torch.arange(most, device=x.device) < number


@torch.no_grad()
def most_alike(
    patches: Tensor, words: Tensor, mask: Tensor, select: str, sizes: list[int], how: How
) -> tuple[Tensor, Tensor]:
    """Each own token's largest product with a token of the other kind, of its pair or of the whole batch.   -> (b,P), (b,L)

    Every rank multiplies its own patches with all words; a word's largest is then sought over the ranks.
    """
    if select == "pair":
        s = patches @ words.mT                            # (b,P,L)
        some = mask | ~mask.any(1, keepdim=True)
        return torch.where(some[:, None], s, -torch.inf).amax(2), s.amax(1)
    b, P, _ = patches.shape
    L, rank = mask.shape[1], distributed.place(how.group)[0]
    every, real = distributed.gather(words, sizes, how.group), of_all(mask, sizes, how.group)
    pairs = mask.any(1).repeat_interleave(P)[:, None]     # patches of a pair that is left out choose nothing
    best_v, best_t = torch.full_like(patches[..., 0], -torch.inf).flatten(), []
    size = max(1, BLOCK // (2 * b * P * L)) if how.pair_chunk is None else how.pair_chunk
    for t, own in zip(every.split(size), real.split(size)):
        s = patches.flatten(0, 1) @ t.flatten(0, 1).T     # (bP,mL)
        best_t.append(torch.where(pairs, s, -torch.inf).amax(0))
        best_v = torch.maximum(best_v, torch.where(own.flatten(), s, -torch.inf).amax(1))
    start = sum(sizes[:rank])
    alike = distributed.largest(torch.cat(best_t), how.group).view(-1, L)[start : start + b]
    return best_v.view(b, P), alike


def embedded(v: Tensor, p: Parts) -> Tensor:
    """v + down relu(up v), or v itself where there is no embedder."""
    if "pacl.up.weight" not in p:
        return v
    hidden = torch.relu(v @ p["pacl.up.weight"].T + p["pacl.up.bias"])
    return v + hidden @ p["pacl.down.weight"].T + p["pacl.down.bias"]


def learned(p: Mapping[str, Tensor], name: str, value: float) -> Tensor:
    """A temperature that may be learned, as 1/tau."""
    return p[name].exp() if name in p else torch.full_like(p["theta"], value)


def pooled_scores(e: Tensor, t_hat: Tensor, p: Parts, how: How, values: str, weight_scale: float) -> Tensor:
    """PACL's phi(u_ij, t_j) of pictures and captions.      e (b,P,D) embedded patches, t_hat (B,D) -> (b,B)"""
    e_hat = unit(e)
    base, length = (e, (e * e_hat).sum(-1)) if values == "plain" else (e_hat, torch.ones_like(e[..., 0]))
    own = e_hat, length, base @ base.mT, learned(p, "theta_pool", weight_scale)
    return in_blocks(pooled_cosine, own, (t_hat,), 4 * e_hat[..., 0].numel(), how.pair_chunk)


def voted_scores(
    v: Tensor, t: Tensor, real: Tensor, p: Parts, how: How, temp1: float, temp2: float, similarity: str, double_softmax: bool,
    agg: str,
) -> Tensor:
    """GLoRIA's word_scores of pictures and captions.      v (b,P,D), t (B,L,D), real (B,L) -> (b,B)"""
    scale = 1 / math.sqrt(v.shape[2]) if similarity == "scaled" else 1.0

    def block(v, gram, temp1, temp2, t, own):
        return word_scores(v, gram, temp1, temp2, t, own, scale, double_softmax, agg)

    own = v, v @ v.mT, learned(p, "theta_attention", temp1), learned(p, "theta_words", temp2)
    return in_blocks(block, own, (t, real), 4 * v[..., 0].numel() * t.shape[1], how.pair_chunk)


def attended_scores(v: Tensor, t_bar: Tensor, p: Parts, how: How) -> Tensor:
    """FLAIR's phi(u_ij, t_j): each caption's own attention over the patches and an empty token.      v (b,P,D), t_bar (B,D)"""
    k, u = (torch.nn.functional.pad(v @ p[f"flair.{part}.weight"].T, (0, 0, 0, 1)) for part in ("key", "value"))
    y = u @ p["flair.out.weight"].T + p["flair.out.bias"]  # (b,P+1,D)

    def block(k, y, gram, t):
        q = t @ p["flair.query.weight"].T + p["flair.query.bias"]
        a = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        square = ((a @ gram) * a).sum(-1)
        none = square <= 0
        return torch.where(none, 0, (a * (unit(t) @ y.mT)).sum(-1) / torch.where(none, 1, square).sqrt())

    return in_blocks(block, (k, y, y @ y.mT), (t_bar,), 4 * k[..., 0].numel(), how.pair_chunk)


def pooled_cosine(e_hat: Tensor, length: Tensor, gram: Tensor, k: Tensor, t_hat: Tensor) -> Tensor:
    """phi(u_ij, t_j), u_ij = sum_p a_p e_p; |u|^2 = a' gram a.      e_hat (b,P,D), length (b,P), gram (b,P,P), t_hat (m,D)"""
    s = t_hat @ e_hat.mT                                  # (b,m,P)
    a = torch.softmax(k * s, -1)
    square = ((a @ gram) * a).sum(-1)
    none = square <= 0                                    # u has no direction
    return torch.where(none, 0, (a * s * length[:, None]).sum(-1) / torch.where(none, 1, square).sqrt())


def word_scores(
    v: Tensor, gram: Tensor, temp1: Tensor, temp2: Tensor, t: Tensor, own: Tensor, scale: float, double_softmax: bool, agg: str
) -> Tensor:
    """log sum_l exp(temp2 phi(c_l, t_l)), c_l = sum_p a_lp v_p; |c|^2 = a' gram a.      v (b,P,D), t (m,L,D), own (m,L)
    -> (b,m)"""
    (b, P, D), (m, L) = v.shape, own.shape
    some = own.any(1)
    r = (t.reshape(m * L, D) @ v.mT).view(b, m, L, P)
    s = scale * r
    if double_softmax:
        s = torch.softmax(torch.where((own | ~some[:, None])[..., None], s, -torch.inf), 2)
    a = torch.softmax(temp1 * s, -1)
    square = ((a.view(b, m * L, P) @ gram).view(b, m, L, P) * a).sum(-1)  # (b,m,L)
    none = square <= 0
    length = (t * unit(t)).sum(-1)                        # (m,L)
    size = torch.where(length == 0, 1, length) * torch.where(none, 1, square).sqrt()
    q = temp2 * torch.where(none, 0, (a * r).sum(-1) / size)
    votes = torch.where(own | ~some[:, None], q, -torch.inf).logsumexp(-1)
    if agg == "mean":
        votes = votes - own.sum(1).clamp(min=1).to(votes.dtype).log()
    return torch.where(some, votes, 0)


def token_alignment(
    v: Tensor, t: Tensor, mask: Tensor, p: Parts, attention: str, normalize: str, tau: float
) -> Tensor:
    """MGCA's CTA of each sample: words and their attended patches, patches and their attended words.      -> (b,)"""
    some = mask.any(1)
    columns = (mask | ~some[:, None])[:, None]            # an empty caption's rows are finite, then thrown away
    v_hat, t_hat = unit(v), unit(t)
    o = unit(attend(p, "word", t_hat, v_hat, None, attention, tau))
    q = attend(p, "patch", v_hat, t_hat, columns, attention, tau)
    q = unit(q) if normalize == "both" else q

    def pick(x, y, columns):
        z = p["theta_cross"].exp() * (x @ y.mT)           # (b,N,N)
        found = (z, z.mT) if columns is None else (torch.where(columns, each, -torch.inf) for each in (z, z.mT))
        return -sum(torch.log_softmax(each, -1).diagonal(dim1=1, dim2=2) for each in found) / 2  # (b,N)

    word = torch.where(mask, pick(t_hat, o, columns), 0).sum(1) / mask.sum(1).clamp(min=1)
    return word + torch.where(some, pick(v_hat, q, None).mean(1), 0)


def attend(p: Parts, side: str, asking: Tensor, seen: Tensor, columns: Tensor | None, attention: str, tau: float) -> Tensor:
    """One head of cross-attention, or its form without parameters.      asking (b,N,D), seen (b,M,D) -> (b,N,D)"""
    if attention == "paramfree":
        scores, values = asking @ seen.mT / tau, seen
    else:
        w = {name.removeprefix(f"mgca.{side}."): x for name, x in p.items() if name.startswith(f"mgca.{side}.")}
        query = asking @ w["query.weight"].T + w["query.bias"]
        scores = query @ (seen @ w["key.weight"].T).mT / math.sqrt(query.shape[-1])
        values = seen @ w["value.weight"].T + w["value.bias"]
    y = torch.softmax(scores if columns is None else torch.where(columns, scores, -torch.inf), -1) @ values
    return y if attention == "paramfree" else y @ w["out.weight"].T + w["out.bias"]


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, group: Any) -> Tensor:
    """Codes: prototypes balanced over the samples of all ranks, then every sample's brought to sum 1, in turn.      (b,K)"""
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = log_q - log_sum_over_ranks(log_q, group)
        log_q = torch.log_softmax(log_q, -1)
    return torch.softmax(log_q, -1)
