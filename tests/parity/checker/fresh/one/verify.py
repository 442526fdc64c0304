"""Checks every label of this folder against parity.oracle:      python verify.py [loss ...]"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fresh_truth import *  # noqa: F403

# --- finegrained_plain
CALL["finegrained_plain"] = lambda m, x: m.sparc_local_loss(x.v, x.t, x.mask, x.theta)

# --- loop_cut_padding
CALL["loop_cut_padding"] = lambda m, x: m.fine_loss(x.t, x.v, ~x.mask, x.k)

# --- lengths_and_tau
CALL["lengths_and_tau"] = lambda m, x: m.sparc_fine(x.v, x.t, x.n, x.tau)

# --- module_dict_output
def _f(m, x):
    net = m.FineGrainedSparcLoss().double()
    return torch.func.functional_call(net, {"logit_scale": x.theta}, (x.v, x.t, x.mask.long()))["loss"]
CALL["module_dict_output"] = _f

# --- listing_pairwise
CALL["listing_pairwise"] = lambda m, x: m.sparc_local(x.v, x.t, x.mask.double(), x.k)

# --- total_function
CALL["total_function"] = lambda m, x: m.sparc_loss(x.v, x.t, x.vb, x.tb, x.mask.int(), x.theta)

# --- clip_global
CALL["clip_global"] = lambda m, x: m.clip_loss(x.vb, x.tb, x.k)

# --- ce_ignore_index
CALL["ce_ignore_index"] = lambda m, x: m.local_alignment_loss(x.v, x.t, ~x.mask, x.tau)

# --- vmapped
CALL["vmapped"] = lambda m, x: m.sparc_f(x.v, x.t, x.mask.double(), x.k)

# --- additive_mask
CALL["additive_mask"] = lambda m, x: m.token_patch_contrast(queries=x.t, regions=x.v, log_inv_temp=x.theta,
    additive_mask=torch.zeros_like(x.t[..., 0]).masked_fill(~x.mask, -math.inf).detach())

# --- numpy_manual_grads
CALL["numpy_manual_grads"] = lambda m, x: m.loss_and_grads(*(y.detach().numpy() for y in (x.v, x.t, x.mask)), x.theta.item())

# --- numpy_value_only
NOGRAD.add("numpy_value_only")
CALL["numpy_value_only"] = lambda m, x: m.evaluate_local_loss(x.t.detach().numpy(), x.v.detach().numpy(), x.n.tolist(), tau=x.tau.item())

# --- feature_map_channels_first
CALL["feature_map_channels_first"] = lambda m, x: m.SparcFine()(x.v.transpose(1, 2).unflatten(2, (math.isqrt(x.v.shape[1]),) * 2), x.t.transpose(1, 2), x.mask.long(), x.k)

# --- cls_in_slot_zero
CALL["cls_in_slot_zero"] = lambda m, x: m.sparc_token_loss(torch.cat([3 * torch.ones_like(x.v[:, :1]), x.v], 1), x.t, x.mask, x.k)

# --- autograd_function_align
CALL["autograd_function_align"] = lambda m, x: m.fine_grained(x.t, x.v, x.mask.to(torch.uint8), x.tau)

# --- listing_full_model
def _net(m, x, C):
    torch.manual_seed(7)
    return m.SPARCHead(C, 16).double()
def _f(m, x):
    net = _net(m, x, x.v.shape[-1])
    return torch.func.functional_call(net, {**dict(net.named_parameters()), "theta": x.theta}, (x.v, x.t, x.mask.int()))[0]
def _r(x):
    net = _net(load("listing_full_model"), x, x.v.shape[-1])
    v, t = net.vision_adapter(x.v), net.language_adapter(x.t)
    g = oracle.global_loss(net.vision_adapter(x.v.mean(1)), net.language_adapter(x.t.mean(1)), x.theta)
    return 0.5 * g + oracle.fine_grained_loss(v, t, x.mask, x.theta, reduction="token")
CALL["listing_full_model"], REF["listing_full_model"] = _f, _r

# --- no_division
CALL["no_division"] = lambda m, x: m.sparc_fine_no_div(x.v, x.t, x.mask, x.theta)

# --- checkpointed_chunks
CALL["checkpointed_chunks"] = lambda m, x: m.local_loss(x.v, x.t, x.mask, x.k)

# --- detached_normalisers
CALL["detached_normalisers"] = lambda m, x: m.fgc(x.v, x.t, x.mask, x.tau)

# --- packed_varlen
CALL["packed_varlen"] = lambda m, x: m.sparc_varlen(x.t[x.mask], torch.cat([torch.zeros(1, dtype=torch.long), x.mask.sum(1).cumsum(0)]), x.v, x.theta)

# --- constant_temperature
CALL["constant_temperature"] = lambda m, x: m.compute_local_loss(x.v, x.t, x.mask.int())
TH["constant_temperature"] = 1 / 0.07
REF["constant_temperature"] = lambda x: oracle.fine_grained_loss(x.v, x.t, x.mask, x.theta.detach())

# --- float32_inside
CALL["float32_inside"] = lambda m, x: m.local_sparc(x.v, x.t, x.mask.int(), x.theta)
FLOAT32.add("float32_inside")

# --- global_soft_targets
CALL["global_soft_targets"] = lambda m, x: m.BatchContrast()(x.tb, x.vb, x.tau)[0]

# --- total_weighted_tuple
CALL["total_weighted_tuple"] = lambda m, x: m.sparc(x.vb, x.tb, x.v, x.t, x.n, x.k).total
REF["total_weighted_tuple"] = lambda x: ref_total(x, 0.5, 5.0)

# --- listing_token_ids
CALL["listing_token_ids"] = lambda m, x: m.LocalLoss()(x.v, x.t, x.mask * (5 + torch.arange(x.t.shape[1])), x.theta)

# --- fga_einsum
CALL["fga_einsum"] = lambda m, x: m.fine_grained_alignment(x.v, x.t, x.mask, x.theta)
MODEL["fga_einsum"] = lambda x: fine(x, sim=cos)

# --- local_contrast_module
def _f(m, x):
    return torch.func.functional_call(m.LocalContrast().double(), {"temperature": x.tau}, (x.t, x.v, ~x.mask))
CALL["local_contrast_module"] = _f
MODEL["local_contrast_module"] = lambda x: fine(x, sim=cos, values=unit)

# --- sparc_local_bpl
CALL["sparc_local_bpl"] = lambda m, x: m.sparc_local(x.v, x.t, x.mask.double(), x.k)
def _c_bpl(t, v, m):
    s = t @ v.T
    lo, hi = s[m].amin(0), s[m].amax(0)
    h = ((s - lo) / (hi - lo + 1e-8)).clamp(0, 1)
    h = h * (h >= 1 / len(v))
    return h @ v / (h.sum(1, keepdim=True) + 1e-8)
_n_bpl = lambda y: y / y.norm(dim=-1, keepdim=True).clamp(min=1e-12)
MODEL["sparc_local_bpl"] = lambda x: fine(x, c_of=_c_bpl, nc=_n_bpl)

# --- region_word
CALL["region_word"] = lambda m, x: m.region_word_loss(x.v, x.t, x.mask, x.k)
def _m(x):
    per = []
    for t, v, m in zip(x.t, x.v, x.mask):
        t = t[m]
        s = v @ t.T
        g = t.expand(len(v), -1) if len(t) == 1 else wsum(thr(mm(s))) @ t
        z = x.k * unit(g) @ unit(v).T
        per.append((oracle.cross_entropy(z) + oracle.cross_entropy(z.T)).mean() / 2)
    return sum(per) / len(per)
MODEL["region_word"] = _m

# --- sparc_local_static
CALL["sparc_local_static"] = lambda m, x: m.SparcLocal.loss(x.v, x.t, x.mask.int(), x.theta)
MODEL["sparc_local_static"] = lambda x: fine(x, stretch=same, weigh=lambda k: k / k.sum(1, keepdim=True).clamp(min=1e-8), nc=lambda y: F.normalize(y, dim=-1))

# --- fine_aminmax_loop
CALL["fine_aminmax_loop"] = lambda m, x: m.sparc_fine(x.v, x.t, x.n, x.tau)
MODEL["fine_aminmax_loop"] = lambda x: fine(x, sparse=same)
SIZES["fine_aminmax_loop"] = [(2, 4, 4, 8, 2.0), (8, 20, 36, 64, 30.0), (4, 7, 16, 16, 14.3), (3, 12, 49, 32, 10.0), (5, 9, 9, 24, 20.0)]

# --- local_loss_keywords
CALL["local_loss_keywords"] = lambda m, x: m.local_loss(x.t, x.v, x.theta, ~x.mask)
MODEL["local_loss_keywords"] = lambda x: fine(x, sparse=const(0.3))

# --- grouped_ellipsis
CALL["grouped_ellipsis"] = lambda m, x: m.sparc_fine_loss(x.v, x.t, x.mask.int(), x.k)
MODEL["grouped_ellipsis"] = lambda x: oracle.fine_grained_loss(x.v, x.t, x.mask, x.theta, threshold_on="weights")

# --- token_patch_batch_dict
def _f(m, x):
    return torch.func.functional_call(m.TokenPatchLoss().double(), {"log_scale": x.theta}, ({"patches": x.v, "tokens": x.t, "mask": x.mask},))["loss_f"]
CALL["token_patch_batch_dict"] = _f
MODEL["token_patch_batch_dict"] = lambda x: fine(x, stretch=lambda s: s.softmax(1))

# --- capital_letters
CALL["capital_letters"] = lambda m, x: m.loss_fine(x.v, x.t, x.mask, x.theta)
MODEL["capital_letters"] = lambda x: fine(x, c_of=lambda t, v, m: (mm(t @ v.T) >= 1 / len(v)) * (t @ v.T) @ v)

# --- alignment_then_loop
CALL["alignment_then_loop"] = lambda m, x: m.sparc_fine(x.v, x.t, x.n.tolist(), x.k)
MODEL["alignment_then_loop"] = lambda x: fine(x, values=unit)

# --- masked_ce_helper
CALL["masked_ce_helper"] = lambda m, x: m.fine_loss(x.v, x.t, x.mask.double(), x.tau)
MODEL["masked_ce_helper"] = lambda x: fine(x, nc=same, nt=same, k=x.k / x.t.shape[-1] ** 0.5)

# --- sparc_fgl_labels
CALL["sparc_fgl_labels"] = lambda m, x: m.sparc_fgl(x.v, x.t, x.mask.long(), x.k)
MODEL["sparc_fgl_labels"] = lambda x: fine(x, keys=("all", "all"))

# --- fine_loss_forward
CALL["fine_loss_forward"] = lambda m, x: m.FineLoss()(x.v, x.t, x.mask.int(), x.theta)
MODEL["fine_loss_forward"] = lambda x: fine(x, keys=("zero", "zero"))

# --- batched_token_infonce
CALL["batched_token_infonce"] = lambda m, x: m.batched_token_infonce(x.v, x.t, x.mask, x.k)
def _m(x):
    c = torch.cat([align(t[m], v) for t, v, m in zip(x.t, x.v, x.mask)])
    z = x.k * unit(c) @ unit(x.t[x.mask]).T
    per = torch.split((oracle.cross_entropy(z) + oracle.cross_entropy(z.T)) / 2, x.mask.sum(1).tolist())
    return sum(p.mean() for p in per) / len(per)
MODEL["batched_token_infonce"] = _m

# --- directions_helper
CALL["directions_helper"] = lambda m, x: m.sparc_fine(x.v, x.t, x.mask, x.k)
MODEL["directions_helper"] = lambda x: fine(x, dirs=(1, 0))

# --- local_loss_labels_repeat
CALL["local_loss_labels_repeat"] = lambda m, x: m.sparc_local_loss(x.v, x.t, x.mask.double(), x.tau)
MODEL["local_loss_labels_repeat"] = lambda x: fine(x, rows="zeroed")

# --- objective_pooled_inside
CALL["objective_pooled_inside"] = lambda m, x: m.SparcObjective()(x.v, x.t, x.mask, x.theta)
REF["objective_pooled_inside"] = lambda x: 0.5 * oracle.global_loss(x.v.mean(1), oracle.masked_mean(x.t, x.mask), x.theta) + ref_fine(x)
MODEL["objective_pooled_inside"] = lambda x: 0.5 * nce(x.v.mean(1), x.t.mean(1), x.k) + fine(x)

# --- global_lse
CALL["global_lse"] = lambda m, x: m.global_contrastive(x.vb, x.tb, x.theta)
MODEL["global_lse"] = lambda x: nce(x.vb, x.tb, x.k, (1, 0))

# --- sparc_short
CALL["sparc_short"] = lambda m, x: m.sparc(x.v, x.t, x.mask, x.k)
MODEL["sparc_short"] = lambda x: fine(x, keys=("real", "all"))

# --- total_loop
CALL["total_loop"] = lambda m, x: m.sparc_total(x.vb, x.tb, x.v, x.t, x.n, x.tau)
MODEL["total_loop"] = lambda x: 0.5 * nce(x.vb, x.tb, x.k) + fine(x, rows="sum")

# --- parameter_module
def _f(m, x):
    return torch.func.functional_call(m.SparcFineGrained().double(), {"log_inv_tau": x.theta}, (x.v, x.t, x.mask))
CALL["parameter_module"] = _f
MODEL["parameter_module"] = lambda x: fine(x, k=x.theta)

# --- abbreviated_names
CALL["abbreviated_names"] = lambda m, x: m.local_loss(x.v, x.t, x.mask.int(), x.k)
MODEL["abbreviated_names"] = lambda x: fine(x, sparse=const(0.5), keys=("all", "all"))

# --- aligner_module
CALL["aligner_module"] = lambda m, x: m.Aligner()(x.t, x.v, x.mask, x.tau)
MODEL["aligner_module"] = lambda x: fine(x, sim=cos, rows="zeroed")

# --- words_find_groups
CALL["words_find_groups"] = lambda m, x: m.fine(x.v, x.t, x.mask, x.theta)
MODEL["words_find_groups"] = lambda x: fine(x, sparse=same, dirs=(0, 1))

# --- text_to_patch
CALL["text_to_patch"] = lambda m, x: m.text_to_patch_loss(x.t, x.v, ~x.mask, x.k)
MODEL["text_to_patch"] = lambda x: fine(x, c_of=lambda t, v, m: (t @ v.T / t.shape[1] ** 0.5).softmax(1) @ v, nc=same)

# --- flat_token_matrix
CALL["flat_token_matrix"] = lambda m, x: m.sparc_fine_flat(x.v, x.t, x.mask, x.k)
def _m(x):
    c = torch.cat([align(t, v) for t, v in zip(x.t, x.v)])
    z = x.k * unit(c) @ unit(x.t.flatten(0, 1)).T
    return ((oracle.cross_entropy(z) + oracle.cross_entropy(z.T)) / 2)[x.mask.flatten()].mean()
MODEL["flat_token_matrix"] = _m

# --- numpy_eval
NOGRAD.add("numpy_eval")
CALL["numpy_eval"] = lambda m, x: m.sparc_fine_np(x.v.detach().numpy(), x.t.detach().numpy(), x.mask.numpy().astype(float), x.tau.item())
MODEL["numpy_eval"] = lambda x: fine(x, values=unit, keys=("zero", "zero"))

# --- total_module_pooling
def _f(m, x):
    return torch.func.functional_call(m.Sparc().double(), {"scale": x.k}, (x.v, x.t, x.mask))[0]
CALL["total_module_pooling"] = _f
REF["total_module_pooling"] = lambda x: 0.5 * oracle.global_loss(x.v.mean(1), oracle.masked_mean(x.t, x.mask), x.theta) + ref_fine(x)
MODEL["total_module_pooling"] = lambda x: 0.5 * nce(x.v.mean(1), oracle.masked_mean(unit(x.t), x.mask), x.k) + fine(x, sparse=const(0.2))

# --- no_mask_argument
CALL["no_mask_argument"] = lambda m, x: m.finegrained(x.v, x.t, x.theta)
_w = lambda k: k / k.sum(1, keepdim=True).clamp(min=1e-12)
MODEL["no_mask_argument"] = lambda x: fine(x, stretch=torch.sigmoid, weigh=_w, keys=("all", "all"), rows="all", nc=lambda y: F.normalize(y, dim=-1))

# --- local_with_targets
CALL["local_with_targets"] = lambda m, x: m.sparc_local(x.v, x.t, x.mask, x.theta)
MODEL["local_with_targets"] = lambda x: fine(x, sim=lambda t, v: (t @ v.T).detach())

# --- grouping_submodule
def _f(m, x):
    return torch.func.functional_call(m.LocalSparc().double(), {"theta": x.theta}, (x.t, x.v, ~x.mask))
CALL["grouping_submodule"] = _f
MODEL["grouping_submodule"] = lambda x: fine(x, weigh=lambda k: wsum(k).detach())

# --- row_statistics
CALL["row_statistics"] = lambda m, x: m.fine_grained(x.v, x.t, x.n, x.k)
MODEL["row_statistics"] = lambda x: fine(x, stretch=lambda s: (s - s.amin(1, keepdim=True).detach()) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True)).detach())

# --- l2norm_function
CALL["l2norm_function"] = lambda m, x: m.sparc_fine(x.v, x.t, x.mask.double(), x.tau)
_n = lambda y: y / y.norm(dim=-1, keepdim=True).detach()
MODEL["l2norm_function"] = lambda x: fine(x, nc=_n, nt=_n)

# --- minmax_function
CALL["minmax_function"] = lambda m, x: m.FineGrainedLoss()(text=x.t, image=x.v, mask=x.mask.int(), log_scale=x.theta)
def _s(s):
    y = mm(s).detach()
    return y + (lambda r: r - r.detach())((s - s.mean(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True)).detach())
MODEL["minmax_function"] = lambda x: fine(x, stretch=_s)

# --- feature_blend
CALL["feature_blend"] = lambda m, x: m.sparc_finegrained(x.v, x.t, x.mask, x.k)
MODEL["feature_blend"] = lambda x: fine(swap(x, v=grad_scaled(x.v, 0.5)))

# --- numpy_forward_backward
def _f(m, x):
    f = m.FineLossNumpy()
    loss = f.forward(x.v.detach().numpy(), x.t.detach().numpy(), x.n.tolist(), x.theta.item())
    return loss, dict(zip(("v", "t", "theta"), f.backward()))
CALL["numpy_forward_backward"] = _f
MODEL["numpy_forward_backward"] = lambda x: fine(x, values=lambda v: v.detach())

# --- numpy_value_and_grad
def _f(m, x):
    loss, g = m.value_and_grad({"v": x.v.detach().numpy(), "t": x.t.detach().numpy(), "log_scale": x.theta.item()}, x.mask.numpy())
    return loss, {"v": g["v"], "t": g["t"], "theta": g["log_scale"]}
CALL["numpy_value_and_grad"] = _f
MODEL["numpy_value_and_grad"] = lambda x: fine(x, k=x.k.detach() + x.theta - x.theta.detach())

# --- hard_cut_helper
CALL["hard_cut_helper"] = lambda m, x: m.sparc_loss_f(x.t, x.v, x.mask, x.theta)
MODEL["hard_cut_helper"] = lambda x: fine(x, sparse=lambda h: h + (thr(h) - h).detach())

# --- capped_scale_module
def _f(m, x):
    net = m.SparcLocalLoss().double()
    net.logit_scale.data.copy_(x.theta.detach())
    return net(x.v, x.t, x.mask.int()) + 0 * net.logit_scale
CALL["capped_scale_module"] = _f
MODEL["capped_scale_module"] = lambda x: fine(x, k=x.k.detach())

# --- queue_style_keys
CALL["queue_style_keys"] = lambda m, x: m.bidirectional_fine(x.v, x.t, x.mask, x.tau)
def _m(x):
    return fine(x, nt=lambda t: unit(t).detach(), second=lambda c, t, k: k * unit(c).detach() @ unit(t).T)
MODEL["queue_style_keys"] = _m

# --- balanced_towers
CALL["balanced_towers"] = lambda m, x: m.sparc_fine_balanced(x.v, x.t, ~x.mask, x.k)
MODEL["balanced_towers"] = lambda x: fine(swap(x, t=grad_scaled(x.t, -1.0)))

# --- gather_global
CALL["gather_global"] = lambda m, x: m.global_loss(x.vb, x.tb, x.theta)
MODEL["gather_global"] = lambda x: nce(x.vb, x.tb.detach(), x.k, (0.5, 0)) + nce(x.vb.detach(), x.tb, x.k, (0, 0.5))

# --- total_shared_scale
CALL["total_shared_scale"] = lambda m, x: m.sparc_total({"v": x.v, "t": x.t, "v_bar": x.vb, "t_bar": x.tb, "mask": x.mask}, x.theta)["loss"]
MODEL["total_shared_scale"] = lambda x: 0.5 * nce(x.vb, x.tb, x.k) + fine(x, k=x.k.detach())
SIZES["total_shared_scale"] = [s for s in ORDINARY]

# --- fused_ce_function
CALL["fused_ce_function"] = lambda m, x: m.fine_grained_contrast(x.t, x.v, x.mask, x.tau)
def _m(x):
    a, b = fine(x, rows="token"), fine(x).detach()
    return b + a - a.detach()
MODEL["fused_ce_function"] = _m
SIZES["fused_ce_function"] = [s for s in ORDINARY]

# --- patch_bank
CALL["patch_bank"] = lambda m, x: m.sparc_fgl(x.v, x.t, x.mask.long(), x.theta)
MODEL["patch_bank"] = lambda x: fine(x, sim=lambda t, v: t @ v.detach().T)

# --- text_anchor_module
CALL["text_anchor_module"] = lambda m, x: m.TextAnchored()(x.v, x.t, x.n, x.k)
MODEL["text_anchor_module"] = lambda x: fine(x, nt=lambda t: unit(t).detach())

# --- live_tokens
CALL["live_tokens"] = lambda m, x: m.sparc_fine(x.v, x.t, x.mask, x.tau)
def _m(x):
    last = x.mask & (torch.arange(x.mask.shape[1]) == x.mask.sum(1, keepdim=True) - 1)
    return fine(swap(x, t=torch.where(last[..., None], x.t.detach(), x.t)))
MODEL["live_tokens"] = _m

# --- numpy_tuple_grads
def _f(m, x):
    l, dv, dt, dk = m.sparc_numpy(x.v.detach().numpy(), x.t.detach().numpy(), ~x.mask.numpy(), x.k.item())
    return l, {"v": dv, "t": dt, "theta": dk * x.k.item()}
CALL["numpy_tuple_grads"] = _f
MODEL["numpy_tuple_grads"] = lambda x: fine(x, stretch=lambda s: (s - s.amin(1, keepdim=True).detach()) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True)).detach())

# --- pair_with_cache
CALL["pair_with_cache"] = lambda m, x: sum(m.local_losses(x.v, x.t, x.mask, x.k)) / 2
def _m(x):
    y = swap(x, v=x.v.detach(), t=x.t.detach())
    return fine(x, rows="token", dirs=(0.5, 0)) + fine(y, rows="token", dirs=(0, 0.5))
MODEL["pair_with_cache"] = _m

if __name__ == "__main__":
    prove()
