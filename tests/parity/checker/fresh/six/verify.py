"""Checks every label of this folder against parity.oracle:      python verify.py [loss ...]"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fresh_calls import *  # noqa: F403


# --- sound
CALL["region_word_contrast"] = lambda m, x: m.RegionWordContrast()(x.t, x.v, temperature=x.tau, text_mask=x.mask)
CALL["fused_minmax_function"] = lambda m, x: m.fine_grained_loss(x.t, x.v, x.n, -x.theta)


def _f(m, x):
    loss, g = m.sparc_local(*numpied(x.v, x.t), x.n.tolist(), float(x.k.detach()))
    return loss, {"v": g["patches"], "t": g["tokens"], "theta": g["logit_scale"] * float(x.k.detach())}


CALL["manual_numpy_grad"] = _f
CALL["score_checkpoint"] = lambda m, x: m.val_local_loss(
    *numpied(grid(x.v), x.t), x.mask.long().numpy(), temperature=float(x.tau.detach()))
NOGRAD.add("score_checkpoint")
CALL["jax_state_losses"] = lambda m, x: jaxed(
    lambda v, t, theta, vb, tb: m.sparc_losses(vb, tb, v, t, keep(x), theta).total, x, "v", "t", "theta", "vb", "tb")
CALL["jax_local_lengths"] = lambda m, x: jaxed(
    lambda v, t, theta: m.local_loss(v, t, jnp.asarray(x.n.numpy()), jnp.exp(-theta)), x, "v", "t", "theta")
CALL["ragged_captions"] = lambda m, x: m.sparc_ragged([t[k] for t, k in zip(x.t, x.mask)], x.v, x.tau)
CALL["hf_model_output"] = lambda m, x: with_theta(
    m.SparcHead(), "logit_scale", x, x.vb, x.tb, x.v, x.t, x.mask.long()).loss
CALL["appendix_pseudocode"] = lambda m, x: m.sparc_finegrained(x.v, x.t, x.mask, x.k)
CALL["conv_feature_head"] = lambda m, x: with_theta(
    m.LocalAlignmentHead(), "log_tau", x, grid(x.v), x.t.transpose(1, 2), (~x.mask).long(), value=-x.theta)["loss"]
CALL["clip_ground_truth_cache"] = lambda m, x: m.ContrastiveLoss()(x.vb, x.tb, x.k)["contrastive_loss"]
CALL["numpy_clip"] = lambda m, x: m.clip_loss(*numpied(x.vb, x.tb), float(x.theta.detach()))
NOGRAD.add("numpy_clip")
CALL["skip_cls"] = lambda m, x: m.patch_token_loss(torch.cat([3 + x.v[:, :1] ** 2, x.v], 1), x.t, x.mask, x.tau)
CALL["sequence_first"] = lambda m, x: m.local_contrast(x.v.transpose(0, 1), x.t.transpose(0, 1), ~x.mask, x.theta)
CALL["vmap_single"] = lambda m, x: m.batch_loss(x.v, x.t, x.mask, x.theta)
CALL["varlen_packed"] = lambda m, x: m.sparc_varlen(
    x.t[x.mask], torch.cat([torch.zeros(1, dtype=torch.int32), x.n.cumsum(0).int()]), x.v, x.k)
CALL["unnormalised_groups"] = lambda m, x: m.sparc_fast(x.v, x.t, x.mask.double(), x.k)
CALL["criterion_namedtuple"] = lambda m, x: m.SparcCriterion()(x.vb, x.tb, x.v, x.t, x.n.tolist(), x.tau).loss
CALL["ignore_index_mean"] = lambda m, x: with_theta(
    m.TokenPatchLoss(), "temperature", x, x.mask.long(), x.t, x.v, value=x.tau)[0]
CALL["mixed_precision"] = lambda m, x: m.fine_grained_loss(x.v, x.t, x.mask.to(torch.uint8), x.k)
FLOAT32.add("mixed_precision")

# --- faulty
CALL["shared_embedding_space"] = lambda m, x: with_theta(m.SPARCLocal(), "logit_scale", x, x.v, x.t, x.mask.long())
MODEL["shared_embedding_space"] = lambda x: r(x, sim=cos, grp=lambda a, v, t: a @ unit(v))
CALL["half_threshold"] = lambda m, x: m.sparc_loss(x.v, x.t, x.mask, x.tau)
MODEL["half_threshold"] = lambda x: fine(x, keys=("all", "all"), sparse=const(0.5))
CALL["positive_scores_only"] = lambda m, x: m.finegrained_contrastive(x.v, x.t, x.n.tolist(), x.theta)
MODEL["positive_scores_only"] = lambda x: r(
    x, mm=lambda s: s * (s > 0), sp=same, wt=lambda w: w / torch.where(w.sum(1, keepdim=True) > 1e-6, w.sum(1, keepdim=True), 1e-6),
    nc=n_)
CALL["gloria_like_attention"] = lambda m, x: m.LocalLoss()(x.v, x.t, x.n.tolist(), x.k)[0]
MODEL["gloria_like_attention"] = lambda x: r(x, sim=cos, mm=lambda s: 4 * s, sp=torch.exp)
CALL["flattened_token_contrast"] = lambda m, x: m.local_loss(x.v, x.t, x.mask.long(), x.k)


def _m(x):
    groups = torch.cat([align(t, v) for t, v in zip(x.t, x.v)])
    a, b = CE(x.k_() * unit(groups) @ unit(x.t.flatten(0, 1)).T)
    return (a + b)[x.mask.flatten()].mean() / 2


MODEL["flattened_token_contrast"] = lambda x: _m(swap(x, k_=x.theta.exp))
CALL["zeroed_padding"] = lambda m, x: m.FineGrained()(x.v, x.t, ~x.mask, x.tau)
MODEL["zeroed_padding"] = lambda x: fine(x, keys=("zero", "zero"))
CALL["symmetric_by_transpose"] = lambda m, x: m.sparc_fg({"patches": x.v, "tokens": x.t, "mask": x.mask}, x.theta)
MODEL["symmetric_by_transpose"] = lambda x: r(x, ce=lambda z: (CE(z)[1],) * 2)
CALL["toy_notebook"] = lambda m, x: m.local_alignment_loss(x.v, x.t, x.k)
MODEL["toy_notebook"] = lambda x: fine(x, keys=("all", "all"), rows="all")
CALL["tenth_everywhere"] = lambda m, x: m.PatchWordNCE()(x.v, x.t, x.n.tolist())
MODEL["tenth_everywhere"] = lambda x: R(
    x.v, x.t, x.mask, torch.tensor(math.log(10.0), dtype=torch.float64), sp=const(0.1))
CALL["total_mean_pooling"] = lambda m, x: with_theta(m.SparcTotalLoss(), "t", x, x.v, x.t, x.mask)[0]
REF["total_mean_pooling"] = lambda x: ref_fine(x) + 0.5 * oracle.global_loss(
    x.v.mean(1), oracle.masked_mean(x.t, x.mask), x.theta)
MODEL["total_mean_pooling"] = lambda x: r(x) + 0.5 * nce(x.v.mean(1), x.t.mean(1), x.theta.exp())
CALL["dense_alignment_tokens"] = lambda m, x: m.fine_grained_alignment_loss(x.v, x.t, x.mask.long(), -x.theta)
MODEL["dense_alignment_tokens"] = lambda x: r(x, sp=same, red=TOKEN)
CALL["teacher_weights_flat_mean"] = lambda m, x: m.LocalLoss()(x.v, x.t, x.mask, x.k)
MODEL["teacher_weights_flat_mean"] = lambda x: fine(x, rows="zeroed", weigh=lambda k: wsum(k).detach())
CALL["numpy_cosine_map"] = lambda m, x: m.localContrastiveLoss(*numpied(x.v, x.t), x.n.tolist(), float(x.k.detach()))
MODEL["numpy_cosine_map"] = lambda x: r(x, sim=cos)
NOGRAD.add("numpy_cosine_map")
CALL["jax_unit_patches"] = lambda m, x: jaxed(lambda v, t, theta: m.sparc_local(
    {"temperature": jnp.exp(-theta)}, v, t, keep(x).astype(float)), x, "v", "t", "theta")
MODEL["jax_unit_patches"] = lambda x: fine(x, keys=("real", "all"), values=unit)

# --- unlisted
CALL["distance_affinity"] = lambda m, x: m.local_loss(x.v, x.t, x.mask.long(), x.tau)
MODEL["distance_affinity"] = lambda x: r(x, sim=lambda t, v: -((t[:, None] - v[None]) ** 2).sum(2))
CALL["topk_selection"] = lambda m, x: m.TopKAlignmentLoss()(x.v, x.t, x.k, x.mask)
MODEL["topk_selection"] = lambda x: r(
    x, sp=lambda h: h * (h >= h.sort(1, descending=True).values[:, max(1, h.shape[1] // 4) - 1, None]))
CALL["squared_weights"] = lambda m, x: jaxed(lambda v, t, theta: m.loss_fn(v, t, keep(x), theta), x, "v", "t", "theta")
MODEL["squared_weights"] = lambda x: r(x, wt=lambda w: wsum(w * w))
CALL["smoothed_targets"] = lambda m, x: m.SmoothedLocalLoss()(x.v, x.t, x.n, x.tau)
MODEL["smoothed_targets"] = lambda x: r(x, ce=lambda z: tuple(
    0.9 * c + 0.1 * (torch.logsumexp(y, 1) - y.mean(1)) for c, y in zip(CE(z), (z, z.T))))
CALL["cosface_validation"] = lambda m, x: m.margin_local_loss(*numpied(x.v, x.t), x.mask.numpy(), float(x.k.detach()))
MODEL["cosface_validation"] = lambda x: r(x, lg=lambda c, t, e: e * (c @ t.T - 0.2 * torch.eye(len(t), dtype=torch.float64)))
NOGRAD.add("cosface_validation")
CALL["salient_words"] = lambda m, x: m.weighted_local_contrast(x.t, x.v, x.mask.long(), x.theta)[0]


def _salient(x):
    norms = [t[k].norm(dim=1) for t, k in zip(x.t, x.mask)]
    return r(x, red=lambda o: sum((w * (a + b)).sum() / w.sum() for w, (a, b) in zip(norms, o)) / (2 * len(o)))


MODEL["salient_words"] = _salient
CALL["scene_context"] = lambda m, x: m.ContextualGroups()(
    {"patches": x.v, "words": x.t, "word_mask": x.mask.long()}, x.k)["loss_local"]
MODEL["scene_context"] = lambda x: r(x, grp=lambda a, v, t: (a @ v + v.mean(0)) / 2)
CALL["caption_wide_minmax"] = lambda m, x: m.finegrained(x.v, x.t, x.n.tolist(), x.tau)
MODEL["caption_wide_minmax"] = lambda x: r(
    x, mm=lambda s: (s - s.amin()) / (s.amax() - s.amin()), wt=lambda w: w / (w.sum(1, keepdim=True) + 1e-300), nc=n_)
CALL["blurred_heatmaps"] = lambda m, x: m.HeatmapAlign()(x.v, x.t, ~x.mask, x.k)


def _blur(t, v):
    side = math.isqrt(len(v))
    at = torch.arange(len(v))
    near = ((at[:, None] // side - at // side).abs() <= 1) & ((at[:, None] % side - at % side).abs() <= 1)
    return t @ v.T @ near.double() / near.sum(1)


MODEL["blurred_heatmaps"] = lambda x: r(x, sim=_blur)
CALL["entropy_invariant_scale"] = lambda m, x: m.sparc_loss(x.t, x.v, x.mask, x.theta)
MODEL["entropy_invariant_scale"] = lambda x: r(x, lg=lambda c, t, e: e * math.log(len(t) + 1) / 2 * c @ t.T)

# --- gradient
CALL["frozen_values"] = lambda m, x: m.sparc_local(x.v, x.t, x.mask, x.k)
MODEL["frozen_values"] = lambda x: r(x, grp=lambda a, v, t: a @ v.detach())
CALL["minmax_kernel"] = lambda m, x: m.FineGrainedLoss()(x.v, x.t, x.n, x.theta)
MODEL["minmax_kernel"] = lambda x: r(x, mm=lambda s: (s - s.amin(1, keepdim=True).detach()) / (
    s.amax(1, keepdim=True) - s.amin(1, keepdim=True).detach()))


def _f(m, x):
    loss, (dv, dt, dtheta) = m.loss_and_grad(*numpied(x.v, x.t), x.mask.long().numpy(), float(x.theta.detach()))
    return loss, {"v": dv, "t": dt, "theta": dtheta}


CALL["numpy_trainer"] = _f
MODEL["numpy_trainer"] = lambda x: r(swap(x, theta=grad_scaled(x.theta, float(torch.exp(-x.theta)))))
CALL["no_grad_alignment"] = lambda m, x: m.Criterion(x.tau)(x.v, x.t, x.mask)
MODEL["no_grad_alignment"] = lambda x: r(x, wt=lambda w: wsum(w).detach())
CALL["scale_learns_from_images"] = lambda m, x: m.token_loss(x.v, x.t, x.mask.long(), x.theta)
MODEL["scale_learns_from_images"] = lambda x: fine(x, k2=x.theta.exp().detach())
CALL["jax_text_side_alignment"] = lambda m, x: jaxed(
    lambda v, t, theta: m.fg_loss(v, t, keep(x), jnp.exp(-theta)), x, "v", "t", "theta")
MODEL["jax_text_side_alignment"] = lambda x: r(x, sim=lambda t, v: t @ v.detach().T)
CALL["fused_clip_head"] = lambda m, x: m.SparcLoss()(x.vb, x.tb, x.v, x.t, x.mask, x.theta)["loss"]
MODEL["fused_clip_head"] = lambda x: r(x) + 0.5 * grad_scaled(nce(x.vb, x.tb, x.theta.exp()), 2.0)
CALL["pairwise_xent_function"] = lambda m, x: m.compute_local(x.t, x.v, x.n.tolist(), x.k)


def _rows_only(z):
    a, b = CE(z)
    return a, a + (b - a).detach()


MODEL["pairwise_xent_function"] = lambda x: r(x, ce=_rows_only)

# --- size: right at the limit too
AT = {"first_32_words": (2, 32, 16, 16, 5.0), "scale_at_most_50": (3, 6, 16, 16, 49.99), "threshold_floor": (2, 5, 66, 16, 5.0),
      "negatives_in_chunks": (16, 3, 4, 32, 14.0), "best_hundred": (2, 5, 100, 16, 5.0), "tiled_normaliser": (2, 5, 128, 16, 5.0)}
SIZES.update({name: [*ORDINARY, *SMALL, at] for name, at in AT.items()})
CALL["first_32_words"] = lambda m, x: m.CaptionPatchLoss()(x.v, x.t, x.mask.long(), x.k)
MODEL["first_32_words"], LARGE["first_32_words"] = lambda x: r(swap(x, t=x.t[:, :32], mask=x.mask[:, :32])), IN_USE
CALL["scale_at_most_50"] = lambda m, x: m.local_clip(x.v, x.t, x.n.tolist(), x.theta)
MODEL["scale_at_most_50"] = lambda x: r(swap(x, theta=torch.clamp(x.theta, max=math.log(50.0))))
LARGE["scale_at_most_50"] = (6, 20, 196, 64, 99.0)
CALL["bounded_scores"] = lambda m, x: m.alignment_loss(x.t, x.v, ~x.mask, x.tau)
MODEL["bounded_scores"] = lambda x: r(x, sim=lambda t, v: torch.where((t @ v.T).abs() > 1000, 1000 * (t @ v.T).sign(), t @ v.T))
LARGE["bounded_scores"] = (6, 20, 196, 64, 14.0, 10.0)
CALL["threshold_floor"] = lambda m, x: m.FineGrainedLoss()(x.v, x.t, x.mask.long(), x.k).loss
MODEL["threshold_floor"] = lambda x: r(x, sp=lambda h: h * (h >= max(1 / h.shape[1], 0.015)))
LARGE["threshold_floor"] = (6, 20, 196, 64, 14.0)
CALL["negatives_in_chunks"] = lambda m, x: m.chunked_clip_loss(x.vb, x.tb, x.k)


def _chunks(x):
    parts = [range(i, min(i + 16, len(x.vb))) for i in range(0, len(x.vb), 16)]
    return sum(len(p) * nce(x.vb[list(p)], x.tb[list(p)], x.theta.exp()) for p in parts) / len(x.vb)


MODEL["negatives_in_chunks"], LARGE["negatives_in_chunks"] = _chunks, (40, 3, 4, 32, 14.0)
CALL["best_hundred"] = lambda m, x: m.local_loss({"image_tokens": x.v, "text_tokens": x.t, "text_lengths": x.n, "tau": x.tau})


def _best(h):
    h = h * (h >= 1 / h.shape[1])
    return h if h.shape[1] <= 100 else h * (h >= h.sort(1, descending=True).values[:, 99:100])


MODEL["best_hundred"], LARGE["best_hundred"] = lambda x: r(x, sp=_best), (6, 20, 196, 64, 14.0)
CALL["careful_norm"] = lambda m, x: m.patch_text_contrastive(x.v, x.t, x.mask.int(), x.k)["local"]


def _careful(y):
    n = y.norm(dim=1, keepdim=True)
    return torch.where(n > 1e-2, y / n, 100 * y)


MODEL["careful_norm"], LARGE["careful_norm"] = lambda x: r(x, nc=_careful, nt=_careful), (6, 20, 196, 64, 14.0, 1e-4)
CALL["tiled_normaliser"] = lambda m, x: m.sparc_loss_tiled(x.t, x.v, x.mask.long(), x.theta)
MODEL["tiled_normaliser"] = lambda x: r(x, mm=lambda s: torch.cat([mm(y) for y in s.split(128, 1)], 1))
LARGE["tiled_normaliser"] = (6, 20, 196, 64, 14.0)

for name in [n for n in CALL if n.startswith("jax_") or n == "squared_weights"]:
    SIZES[name] = ORDINARY[:3]
SIZES["blurred_heatmaps"] = ORDINARY[1:]   # 3 x 3 neighbours are all of 4 patches: 0/0
SIZES["mixed_precision"] = ORDINARY        # float32: the gradients of a loss that is 0 are its noise

if __name__ == "__main__":
    prove(in_use=True)
