"""Checks every label of this folder against parity.oracle:      python verify.py [loss ...]"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fresh_calls import *  # noqa: F403


def lens(x):
    return jnp.asarray(x.n.numpy())


def packed(x):
    """captions end to end, where each begins and ends"""
    return x.t[x.mask], torch.cat([torch.zeros(1, dtype=torch.int32), x.n.cumsum(0).int()])






def pooled(x):
    """0.5 L_g + L_f of the mean patch and the mean real token"""
    return ref_fine(x) + 0.5 * oracle.global_loss(x.v.mean(1), oracle.masked_mean(x.t, x.mask), x.theta)


def sums(pairs, per_caption):
    """eq. 6's mean over captions of another number for each"""
    return sum(per_caption(a, b) for a, b in pairs) / len(pairs)


# --- sound
CALL["cxr_report_local"] = lambda m, x: m.local_loss(grid(x.v), x.t.transpose(1, 2), x.n.tolist(), x.tau)[0]
CALL["impression_alignment"] = lambda m, x: with_theta(
    m.ImpressionAlignment(), "log_temp", x, {"patch_emb": x.v, "token_emb": x.t, "attention_mask": x.mask.long()},
    value=-x.theta)["loss"]
CALL["heatmap_logging_loss"] = lambda m, x: m.phrase_grounding_loss(x.v, x.t, x.mask.long(), x.k)[0]
CALL["resolution_head"] = lambda m, x: m.MultiResolutionLocalLoss()(x.v, x.t, x.n, x.tau)
CALL["jax_grid_attention"] = lambda m, x: jaxed(
    lambda v, t, theta: m.spatial_local_loss(v, t, keep(x), jnp.exp(-theta)), x, "v", "t", "theta")


def _f(m, x):
    loss, g = m.local_loss_and_grads(*numpied(x.v, x.t), x.mask.long().numpy(), float(x.theta.detach()))
    return loss, {"v": g["image_tokens"], "t": g["text_tokens"], "theta": g["log_scale"]}


CALL["numpy_fused_backward"] = _f
CALL["offline_probe"] = lambda m, x: m.probe_loss(*numpied(*packed(x), x.v), float(x.tau.detach()))
NOGRAD.add("offline_probe")
CALL["jax_vmapped_config"] = lambda m, x: jaxed(
    lambda v, t, theta: m.batch_local_loss(v, t, lens(x), jnp.exp(theta)), x, "v", "t", "theta")
CALL["jax_multi_term"] = lambda m, x: jaxed(
    lambda v, t, theta, vb, tb: m.loss_fn(vb, tb, v, t, 1.0 - keep(x), theta)[0], x, "v", "t", "theta", "vb", "tb")
CALL["open_clip_sparc"] = lambda m, x: m.SparcLoss()(x.vb, x.tb, x.v, x.t, x.mask, x.k)
CALL["clip_loss_fork"] = lambda m, x: m.ClipLoss()(x.tb, x.vb, x.theta)
CALL["dense_caption_listing"] = lambda m, x: m.dense_caption_loss(x.v, x.t, x.mask.double(), x.tau)
CALL["sparse_group_function"] = lambda m, x: m.patch_word_loss(x.t, ~x.mask, x.v, x.theta)
CALL["compile_friendly"] = lambda m, x: m.fine_grained_loss(x.v, x.t, x.mask, -x.theta)
CALL["timm_tokens_criterion"] = lambda m, x: m.TokenPatchCriterion()(
    torch.cat([3 + x.v[:, :1] ** 2, x.v], 1), x.t, x.mask.long(), x.tau)
CALL["masked_ops"] = lambda m, x: m.word_region_loss(x.v.transpose(1, 2), x.t.transpose(1, 2), x.mask, x.theta)
CALL["segments_packed"] = lambda m, x: m.packed_sparc_loss(*packed(x), x.v, x.k)
CALL["mdetr_contrastive"] = lambda m, x: with_theta(
    m.AlignCriterion(), "temperature", x, x.v.transpose(0, 1), x.t.transpose(0, 1), ~x.mask,
    value=x.tau)["loss_contrastive_align"]
CALL["autocast_guard"] = lambda m, x: m.sparse_alignment_loss(x.v, x.t, x.n.tolist(), x.tau)
CALL["pretrain_criterion"] = lambda m, x: with_theta(m.PretrainCriterion(), "log_scale", x, x.v, x.t, x.mask.long()).loss
REF["pretrain_criterion"] = pooled

# --- faulty
CALL["ground_maps"] = lambda m, x: with_theta(m.GroundMaps(), "logit_scale", x, x.v, x.t, x.mask.long())
MODEL["ground_maps"] = lambda x: r(x, sim=cos)
CALL["vit_b16_local"] = lambda m, x: m.local_contrastive(x.v, x.t, x.n.tolist(), -x.theta)
MODEL["vit_b16_local"] = lambda x: fine(x, keys=("real", "all"), sparse=const(1 / 196))
CALL["jax_token_infonce"] = lambda m, x: jaxed(lambda v, t, theta: m.token_infonce(
    {"log_temp": -theta}, {"image_tokens": v, "text_tokens": t, "text_mask": keep(x).astype(int)}), x, "v", "t", "theta")


def _batch_negatives(x):
    c = torch.cat([align(t[m], v) for t, v, m in zip(x.t, x.v, x.mask)])
    a, b = CE(x.theta.exp() * unit(c) @ unit(x.t[x.mask]).T)
    return (a + b).mean() / 2


MODEL["jax_token_infonce"] = _batch_negatives
CALL["dot_product_head"] = lambda m, x: m.LocalHead()(x.v, x.t, ~x.mask, x.k)
MODEL["dot_product_head"] = lambda x: r(x, nc=same, nt=same)
CALL["normalized_space_loss"] = lambda m, x: m.RegionTextLoss()(x.v, x.t, x.mask.long())
MODEL["normalized_space_loss"] = lambda x: R(
    x.v, x.t, x.mask, torch.tensor(math.log(10.0), dtype=torch.float64), sim=cos, grp=lambda a, v, t: a @ unit(v))
CALL["two_way_words"] = lambda m, x: m.word_patch_loss(x.t, x.v, x.n.tolist(), x.theta)
MODEL["two_way_words"] = lambda x: r(x, ce=lambda z: (CE(z)[0],) * 2)
CALL["flat_ce_module"] = lambda m, x: with_theta(m.FlatTokenLoss(), "tau", x, x.v, x.t, (~x.mask).long(), value=x.tau)
MODEL["flat_ce_module"] = lambda x: fine(x, rows="zeroed", values=unit)
CALL["np_validation_curve"] = lambda m, x: m.val_loss(*numpied(x.v, x.t), x.mask.long().numpy(), float(x.k.detach()))
MODEL["np_validation_curve"] = lambda x: fine(x, keys=("zero", "zero"), sparse=same)
NOGRAD.add("np_validation_curve")
CALL["pooled_and_local"] = lambda m, x: m.training_loss(x.t, x.v, x.mask.long(), x.tau)["total"]
REF["pooled_and_local"] = pooled
MODEL["pooled_and_local"] = lambda x: r(x) + 0.5 * nce(
    x.v.mean(1), torch.stack([unit(t[m]).mean(0) for t, m in zip(x.t, x.mask)]), x.theta.exp())
CALL["attention_total"] = lambda m, x: with_theta(m.JointLoss(), "logit_scale", x, x.v, x.t, x.n).loss
REF["attention_total"] = pooled
MODEL["attention_total"] = lambda x: r(x, mm=lambda s: torch.softmax(s, 1), sp=same, wt=same) + 0.5 * nce(
    x.v.mean(1), x.t.mean(1), x.theta.exp())


def _f(m, x):
    k = float(x.k.detach())
    loss, (dv, dt, dscale) = m.batch_loss(*numpied(x.v, x.t), x.n.tolist(), k)
    return loss, {"v": dv, "t": dt, "theta": dscale * k}


CALL["np_explicit_grads"] = _f
MODEL["np_explicit_grads"] = lambda x: r(x, sp=const(0.5))
CALL["frozen_alignment_step"] = lambda m, x: m.compute_local_loss(
    {"image_states": x.v, "text_states": x.t, "attention_mask": x.mask.long()}, x.k)
MODEL["frozen_alignment_step"] = lambda x: fine(x, keys=("all", "all"), weigh=lambda k: wsum(k).detach())
CALL["above_uniform"] = lambda m, x: m.finegrained_loss(x.v, x.t, x.mask.long(), x.k)
MODEL["above_uniform"] = lambda x: r(x, sp=lambda h: thr(wsum(h)), red=TOKEN)
CALL["region_sentence_contrast"] = lambda m, x: with_theta(
    m.RegionSentenceContrast(), "tau", x, grid(x.v), x.t, x.n.tolist(), value=x.tau)


def _regions(x):
    out = []
    for v, t, m in zip(x.v, x.t, x.mask):
        s = v @ t[m].T
        h = (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True)).clamp(min=1e-8)
        w = thr(h)
        c = w / w.sum(1, keepdim=True).clamp(min=1e-8) @ t[m]
        a, b = CE(x.theta.exp() * n_(c) @ unit(v).T)
        out.append((a + b).mean() / 2)
    return sum(out) / len(out)


MODEL["region_sentence_contrast"] = _regions

# --- unlisted
CALL["report_word_attention"] = lambda m, x: m.ReportWordLoss()(x.v, x.t, ~x.mask, x.theta)
MODEL["report_word_attention"] = lambda x: r(
    x, mm=lambda s: torch.softmax(4 * torch.softmax(s, 0), 1), sp=same, wt=same)
CALL["lung_prior_maps"] = lambda m, x: m.anatomical_local_loss(x.v, x.t, x.mask.long(), x.tau)


def _damped(s):
    side = math.isqrt(s.shape[1])
    at = 2 * torch.arange(side, dtype=torch.float64) / (side - 1) - 1
    square = (at[:, None] ** 2 + at**2).flatten()
    return mm(s) * torch.exp(-(square - square.min()) / 1.28)


MODEL["lung_prior_maps"] = lambda x: r(x, mm=_damped)
CALL["tempered_selection"] = lambda m, x: m.TemperedSelection()(x.v.transpose(1, 2), x.t.transpose(1, 2), x.n, x.k)
MODEL["tempered_selection"] = lambda x: r(x, sp=lambda h: torch.exp(10 * h) * (h >= 1 / h.shape[1]))
CALL["jax_pair_nt_xent"] = lambda m, x: jaxed(
    lambda v, t, theta: m.local_objective(v, t, keep(x).astype(int), jnp.exp(-theta)), x, "v", "t", "theta")


def _union(z):
    other = z.T - 1e30 * torch.eye(len(z), dtype=z.dtype)
    return (torch.logsumexp(torch.cat([z, other], 1), 1) - z.diagonal(),) * 2


MODEL["jax_pair_nt_xent"] = lambda x: r(x, ce=_union)
CALL["contrast_to_scene"] = lambda m, x: with_theta(m.ForegroundContrast(), "log_scale", x, x.t, x.v, x.mask)[0]
MODEL["contrast_to_scene"] = lambda x: r(x, grp=lambda a, v, t: a @ v - v.mean(0))


def _f(m, x):
    v, t = numpied(x.v.transpose(0, 1), x.t.transpose(0, 1))
    return m.cam_loss(v, t, x.n.tolist(), float(x.theta.detach()))


CALL["np_cam_retrieval"] = _f
MODEL["np_cam_retrieval"] = lambda x: r(
    x, mm=lambda s: s / s.abs().amax(1, keepdim=True), wt=lambda w: w / (w.sum(1, keepdim=True) + 1e-300), nc=n_)
NOGRAD.add("np_cam_retrieval")
CALL["hard_word_mining"] = lambda m, x: m.mined_local_loss(x.v, x.t, x.n.tolist(), x.tau)
MODEL["hard_word_mining"] = lambda x: r(x, red=lambda o: sums(
    o, lambda a, b: (a + b).sort(descending=True).values[:(len(a) + 1) // 2].mean() / 2))
CALL["stable_pretraining"] = lambda m, x: m.local_loss(x.t, x.v, x.n, x.k)
MODEL["stable_pretraining"] = lambda x: r(x, ce=lambda z: tuple(
    torch.logsumexp(y, 1) - y.diagonal() + 1e-3 * torch.logsumexp(y, 1) ** 2 for y in (z, z.T)))
CALL["caption_residuals"] = lambda m, x: with_theta(m.ResidualContrast(), "inv_tau", x, x.v, x.t, x.mask.long(), value=x.k)
MODEL["caption_residuals"] = lambda x: r(x, nc=lambda c: n_(c - c.mean(0)), nt=lambda t: n_(t - t.mean(0)))
CALL["headwise_grouping"] = lambda m, x: m.token_grouping_loss(x.t, x.v, x.mask.long(), -x.theta)
MODEL["headwise_grouping"] = lambda x: r(x, grp=lambda a, v, t: torch.cat(
    [align(p, q) for p, q in zip(t.chunk(4, 1), v.chunk(4, 1))], 1))

# --- gradient


def _f(m, x):
    k = float(x.k.detach())
    loss, dv, dt, dscale = m.fine_loss(*numpied(x.v, x.t), x.mask.long().numpy(), k)
    return loss, {"v": dv, "t": dt, "theta": dscale * k}


CALL["np_sgd_demo"] = _f
MODEL["np_sgd_demo"] = lambda x: r(x, sim=lambda t, v: t.detach() @ v.T)
CALL["l2norm_kernel"] = lambda m, x: m.local_sparc(x.v, x.t, x.mask, x.k)


class Projects(torch.autograd.Function):
    """y / |y|; backwards (I - y y'/|y|) / |y|, where |y|^2 should be"""

    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return unit(y)

    @staticmethod
    def backward(ctx, d):
        (y,) = ctx.saved_tensors
        n = y.norm(dim=-1, keepdim=True)
        return d / n - y * (y * d).sum(-1, keepdim=True) / n**2


MODEL["l2norm_kernel"] = lambda x: r(x, nc=Projects.apply, nt=Projects.apply)
CALL["jax_custom_minmax"] = lambda m, x: jaxed(lambda v, t, theta: m.local_loss(t, v, keep(x), theta), x, "v", "t", "theta")


class Spread(torch.autograd.Function):
    """The identity; backwards multiplied by the range of the row"""

    @staticmethod
    def forward(ctx, s):
        ctx.save_for_backward(s.amax(1, keepdim=True) - s.amin(1, keepdim=True))
        return s.clone()

    @staticmethod
    def backward(ctx, d):
        return d * ctx.saved_tensors[0]


MODEL["jax_custom_minmax"] = lambda x: r(x, mm=lambda s: mm(Spread.apply(s)))
CALL["slow_image_tower"] = lambda m, x: with_theta(m.TokenLevelLoss(), "log_inv_temp", x, x.v, x.t, ~x.mask)
MODEL["slow_image_tower"] = lambda x: r(swap(x, v=grad_scaled(x.v, 0.1)))
CALL["scaled_cosine_op"] = lambda m, x: m.fg_contrastive(x.v, x.t, x.n, x.k)
MODEL["scaled_cosine_op"] = lambda x: r(swap(x, theta=grad_scaled(x.theta, 1 / (x.mask.shape[0] * x.mask.shape[1] ** 2))))
CALL["gradcache_local"] = lambda m, x: m.low_memory_local_loss(x.v, x.t, x.mask.long(), x.theta)
MODEL["gradcache_local"] = lambda x: grad_scaled(r(x), len(x.v))
CALL["border_artefacts"] = lambda m, x: m.grid_token_loss(x.v, x.t, x.mask.long(), x.tau)


def _inside(v):
    side = math.isqrt(v.shape[1])
    at = torch.arange(v.shape[1])
    inner = [(0 < i // side < side - 1) and (0 < i % side < side - 1) for i in at.tolist()]
    return torch.where(torch.tensor(inner)[:, None], v, v.detach())


MODEL["border_artefacts"] = lambda x: r(swap(x, v=_inside(x.v)))
CALL["group_pool_kernel"] = lambda m, x: m.PoolingLocalLoss()(
    x.t, x.v, torch.where(x.mask, 0.0, -1e9).double(), x.theta)


def _undivided(x):
    """sparse weights divided by their sum, but backwards into the patches that are averaged as if they were not"""
    out = []
    for v, t, m in zip(x.v, x.t, x.mask):
        t = t[m]
        w = thr(mm(t @ v.T))
        right, n = wsum(w) @ v.detach(), w.detach()
        c = right + n @ v - (n @ v).detach()
        out.append(CE(x.theta.exp() * unit(c) @ unit(t).T))
    return SAMPLE(out)


MODEL["group_pool_kernel"] = _undivided

# --- size: right at the limit too
AT = {"pooled_high_res": (2, 5, 144, 16, 5.0), "graph_budget": (32, 3, 4, 8, 5.0), "microbatched_mean": (32, 3, 4, 8, 5.0),
      "np_active_regions": (2, 5, 128, 16, 5.0), "jax_safe_logits": (3, 6, 16, 16, 40.0),
      "resolution_threshold": (2, 5, 81, 16, 5.0), "long_report_stride": (2, 64, 16, 16, 5.0)}
SIZES.update({name: [*ORDINARY, *SMALL, at] for name, at in AT.items()})
CALL["pooled_high_res"] = lambda m, x: with_theta(m.HighResLocalLoss(), "logit_scale", x, x.v, x.t, x.n.tolist())["loss"]


def _twelve(v):
    """windows of adaptive pooling from 14 to 12 by hand"""
    side = math.isqrt(v.shape[1])
    if side <= 12:
        return v
    rows = v.unflatten(1, (side, side))
    parts = [slice(i * side // 12, -(-(i + 1) * side // 12)) for i in range(12)]
    return torch.stack([rows[:, a, b].flatten(1, 2).mean(1) for a in parts for b in parts], 1)


MODEL["pooled_high_res"], LARGE["pooled_high_res"] = lambda x: r(swap(x, v=_twelve(x.v))), IN_USE
CALL["graph_budget"] = lambda m, x: m.local_loss(x.v, x.t, x.mask, x.k)


def _first(x):
    v, t = (torch.cat([y[:32], y[32:].detach()]) for y in (x.v, x.t))
    b = len(v)
    a = R(v[:32], t[:32], x.mask[:32], x.theta) * min(b, 32) / b
    return a if b <= 32 else a + R(v[32:], t[32:], x.mask[32:], x.theta.detach()) * (b - 32) / b


MODEL["graph_budget"], LARGE["graph_budget"] = _first, (40, 3, 4, 32, 14.0)
CALL["microbatched_mean"] = lambda m, x: m.MicrobatchedLocalLoss()(x.v, x.t, x.mask.double(), x.tau)


def _slices(x):
    parts = [slice(i, i + 32) for i in range(0, len(x.v), 32)]
    return sum(R(x.v[p], x.t[p], x.mask[p], x.theta) for p in parts) / len(parts)


MODEL["microbatched_mean"], LARGE["microbatched_mean"] = _slices, (40, 3, 4, 32, 14.0)
CALL["clamped_inputs"] = lambda m, x: m.region_word_loss((x.v, x.t, x.mask.to(torch.uint8)), x.theta)


def _bounded(y):
    return torch.where(y.abs() > 16, 16 * y.sign(), y)


MODEL["clamped_inputs"] = lambda x: r(swap(x, v=_bounded(x.v), t=_bounded(x.t)))
LARGE["clamped_inputs"] = (6, 20, 196, 64, 14.0, 10.0)
CALL["np_active_regions"] = lambda m, x: m.evaluate_local_loss(*numpied(x.t, grid(x.v)), x.n.tolist(), float(x.tau.detach()))
MODEL["np_active_regions"] = lambda x: r(swap(x, v=torch.stack(
    [v[v.norm(dim=1).argsort(descending=True)[:128]] for v in x.v])))
LARGE["np_active_regions"] = (6, 20, 196, 64, 14.0)
NOGRAD.add("np_active_regions")
CALL["jax_safe_logits"] = lambda m, x: jaxed(lambda v, t, theta: m.local_loss(
    {"image": v, "text": t, "text_len": lens(x)}, jnp.exp(theta)), x, "v", "t", "theta")
MODEL["jax_safe_logits"] = lambda x: r(x, lg=lambda c, t, e: (e * c @ t.T).clamp(-40, 40))
LARGE["jax_safe_logits"] = (6, 20, 49, 16, 99.0)
CALL["resolution_threshold"] = lambda m, x: with_theta(
    m.SparseTokenLoss(), "tau", x, x.v, x.t, x.mask.long(), value=x.tau).loss
MODEL["resolution_threshold"] = lambda x: r(x, sp=lambda h: h * (h >= (1 if h.shape[1] < 100 else 2) / h.shape[1]))
LARGE["resolution_threshold"] = (6, 20, 196, 64, 14.0)
CALL["long_report_stride"] = lambda m, x: with_theta(m.FindingsLoss(), "log_scale", x, x.t, x.mask, x.v)


def _strided(v, t, mask):
    mask = mask.clone()
    mask[(mask.sum(1) > 64)[:, None] & (torch.arange(t.shape[1]) % 2 == 1)] = False
    return v, t, mask


MODEL["long_report_stride"], LARGE["long_report_stride"] = lambda x: r(x, prep=_strided), (4, 77, 49, 32, 14.0)

for name in [n for n in CALL if n.startswith("jax_")]:
    SIZES[name] = [*ORDINARY[:3], *([AT[name]] if name in AT else [])]
SIZES["lung_prior_maps"] = ORDINARY[1:]    # the four patches of a 2 x 2 grid are equally far from its centre

if __name__ == "__main__":
    prove(in_use=True)
