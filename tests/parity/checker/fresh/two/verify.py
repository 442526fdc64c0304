"""Checks every label of this folder against parity.oracle:      python verify.py [loss ...]"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fresh_truth import *  # noqa: F403

def m_guard(v):
    v = v * 1
    if v.requires_grad:
        v.register_hook(lambda g: g.clamp(-10, 10))
    return v


case('patch_layernorm', lambda m, v, t, k, th: m.sparc_local(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, sim=lambda t, v: t @ F.layer_norm(v, v.shape[-1:]).T), S='base')
case('euclid_affinity', lambda m, v, t, k, th: (lambda n: (delattr(n, 'logit_scale'), setattr(n, 'logit_scale', th), n(t, v, ~k))[2])(m.SparcLoss()),
     lambda v, t, k, th: R(v, t, k, th, sim=lambda t, v: -((t[:, None] - v[None]) ** 2).sum(-1).sqrt()), S='base')
case('rbf_groups', lambda m, v, t, k, th: m.loss(v, t, k.sum(1), (-th).exp()),
     lambda v, t, k, th: R(v, t, k, th, sim=lambda t, v: torch.exp(-((t[:, None] - v[None]) ** 2).mean(-1) / 2)), S='base')
case('map_minmax', lambda m, v, t, k, th: m.local(v, t, k.long(), th),
     lambda v, t, k, th: R(v, t, k, th, mm=lambda s: (s - s.min()) / (s.max() - s.min())), S='base')
case('token_axis_minmax', lambda m, v, t, k, th: m.fine_grained(t, v, k.double(), th),
     lambda v, t, k, th: R(v, t, k, th, mm=lambda s: (s - s.amin(0)) / (s.amax(0) - s.amin(0) + 1e-10), sp=lambda h: h * (h >= 1 / h.shape[1]), wt=lambda w: w / w.sum(1, keepdim=True).clamp(min=1e-10), nc=lambda c: c / c.norm(dim=-1, keepdim=True).clamp(min=1e-12)), S='base')
case('zscore_sigmoid', lambda m, v, t, k, th: m.sparc(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, mm=lambda s: 1 / (1 + torch.exp(-(s - s.mean(1, keepdim=True)) / ((s - s.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True).sqrt()))), S='base')
case('soft_gate', lambda m, v, t, k, th: m.sparc_loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, sp=lambda h: h / (1 + torch.exp(-20 * (h - 1 / h.shape[1])))), S='base')
case('shrinkage', lambda m, v, t, k, th: m.loss_fn(t, v, k.sum(1), th),
     lambda v, t, k, th: R(v, t, k, th, sp=lambda h: (h - 1 / h.shape[1]).clamp(min=0)), S='base')
case('squared_alignment', lambda m, v, t, k, th: m.Loss()(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, wt=lambda w: w ** 2 / (w ** 2).sum(1, keepdim=True)), S='base')
case('weighted_maxpool', lambda m, v, t, k, th: m.local_contrast(v, t, ~k, (-th).exp()),
     lambda v, t, k, th: R(v, t, k, th, grp=lambda a, v, t: (a[:, :, None] * v[None]).amax(1)), S='base')
case('token_residual', lambda m, v, t, k, th: m.f(v, t, k, th),
     lambda v, t, k, th: R(v, t, k, th, grp=lambda a, v, t: t + a @ v), S='base', tol=1e-6)
case('tanh_groups', lambda m, v, t, k, th: m.SparcHead()(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, sp=lambda h: h * (h >= 0.3), grp=lambda a, v, t: torch.tanh(a @ v)), S='base')
case('l1_embeddings', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, nc=lambda x: x / x.abs().sum(-1, keepdim=True), nt=lambda x: x / x.abs().sum(-1, keepdim=True)), S='base')
case('siglip_tokens', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, ce=lambda z: (lambda x: (x, x))(-F.logsigmoid(z * (2 * torch.eye(len(z)).double() - 1)).sum(1))), S='base')
case('smoothed_targets', lambda m, v, t, k, th: m.fg_loss(v, t, k.sum(1), th.exp()),
     lambda v, t, k, th: R(v, t, k, th, ce=lambda z: (0.9 * CE(z)[0] + 0.1 * (torch.logsumexp(z, 1) - z.mean(1)), 0.9 * CE(z)[1] + 0.1 * (torch.logsumexp(z, 0) - z.mean(0)))), S='base')
case('arc_margin', lambda m, v, t, k, th: m.MarginLoss()(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, lg=lambda c, t, e: e * (c @ t.T - 0.1 * torch.eye(len(c)).double())), S='base')
case('focal_tokens', lambda m, v, t, k, th: m.loss(t, v, ~k, (-th).exp()),
     lambda v, t, k, th: (lambda c: sum(sum((((1 - torch.exp(-x)) ** 2 * x)[ki]).sum() for x in CE(th.exp() * U(ci) @ U(ti).T)) / ki.sum() for ci, ti, ki in zip(c, t, k)) / (2 * len(v)))(oracle.align_stages(t, v, None)[0]), S='base')
case('triplet_tokens', lambda m, v, t, k, th: m.hinge_loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, ce=lambda z: tuple((x - x.diagonal()[:, None] + 0.2 * th.exp()).clamp(min=0).mul(1 - torch.eye(len(z)).double()).sum(1) for x in (z, z.T))), S='base')
case('mixed_probability', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, ce=lambda z: (lambda x: (x, x))(-torch.log((torch.softmax(z, 0).diagonal() + torch.softmax(z, 1).diagonal()) / 2))), S='base')
case('length_minus_one', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, red=lambda o: sum((a + b).sum() / max(1, len(a) - 1) for a, b in o) / (2 * len(o))), S='base')
case('last_token_left_out', lambda m, v, t, k, th: m.loss(v, t, k.sum(1), th),
     lambda v, t, k, th: R(v, t, k, th, prep=lambda v, t, k: (v, t, k & torch.cat([k[:, 1:], k[:, :1] & False], 1)), red=lambda o: sum((a + b).sum() / max(1, len(a)) for a, b in o) / (2 * len(o))), S='base')
case('squared_scale', lambda m, v, t, k, th: m.loss(v, t, k, th),
     lambda v, t, k, th: R(v, t, k, th, sim=lambda t, v: t @ U(v).T, lg=lambda c, t, e: e * e * c @ t.T), S='base')
case('one_sided_scale', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, ce=lambda z: (CE(z)[0], CE(z / th.exp())[1])), S='base')
case('half_of_patches', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, sp=lambda h: h * (h >= h.sort(1, descending=True).values[:, h.shape[1] // 2 - 1:h.shape[1] // 2])), S='base')
case('centred_patches', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, prep=lambda v, t, k: (v - v.mean((0, 1)), t, k), red=TOKEN), S='base')
case('norm_weighted_words', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: sum(((a + b) * (lambda n: n / n.sum())(ti[ki].norm(dim=1))).sum() for (a, b), ti, ki in zip(R(v, t, k, th, red=list), t, k)) / (2 * len(v)), S='base')
case('median_floor', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, mm=lambda s: (lambda q: (s - q) / (s.amax(1, keepdim=True) - q))(s.sort(1).values[:, (s.shape[1] - 1) // 2:(s.shape[1] - 1) // 2 + 1])), S='base')
case('first_patch_skipped', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, prep=lambda v, t, k: (v[:, 1:], t, k)), S='base')
case('reshaped_patches', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, prep=lambda v, t, k: (torch.stack([x.flatten().view(v.shape[2], v.shape[1]).T for x in v]), t, k)), S='base')
case('summed_direction', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: (lambda c: sum(sum((-torch.log_softmax(y * ki.double()[None], 1).diagonal()[ki]).sum() for y in (z, z.T)) / ki.sum() for z, ki in ((th.exp() * U(ci) @ U(ti).T, ki) for ci, ti, ki in zip(c, t, k))) / len(v))(oracle.align_stages(t, v, None)[0]), S='base')
case('context_32', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t[:, :32], k[:, :32], th), S='base')
case('patches_128', lambda m, v, t, k, th: m.sparc_fine(t, v, k, th.exp()),
     lambda v, t, k, th: R(v[:, :128], t, k, th), S='base')
case('logits_clamped_12', lambda m, v, t, k, th: m.local_loss(v, t, ~k, th),
     lambda v, t, k, th: R(v, t, k, th, lg=lambda c, t, e: (e * c @ t.T).clamp(-12, 12)), S='hot')
case('similarity_clamped_50', lambda m, v, t, k, th: m.fine_grained(v, t, k.sum(1), (-th).exp()),
     lambda v, t, k, th: R(v, t, k, th, sim=lambda t, v: (t @ v.T).clamp(-50, 50)), S='hot')
case('sigma_floor', lambda m, v, t, k, th: m.contrast(t, v, k.double(), th.exp()),
     lambda v, t, k, th: R(v, t, k, th, sp=lambda h: h * (h >= max(1 / h.shape[1], 0.05))), S='base')
case('sigma_grid_7', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, sp=lambda h: h * (h >= 1 / min(49, h.shape[1]))), S='base')
case('bf16_big_maps', lambda m, v, t, k, th: m.sparc_fine(t, v, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, sim=lambda t, v: t.bfloat16().to(t.dtype) @ v.bfloat16().to(t.dtype).T), S='base')
case('int8_patch_ids', lambda m, v, t, k, th: m.local_loss(v, t, ~k, th),
     lambda v, t, k, th: R(v[:, [p if p < 128 else p - 256 + v.shape[1] for p in range(v.shape[1])]], t, k, th), S='base')
case('chunked_grouping', lambda m, v, t, k, th: m.fine_grained(v, t, k.sum(1), (-th).exp()),
     lambda v, t, k, th: R(v, t, k, th, grp=lambda a, v, t: a[:, :len(v) // 64 * 64] @ v[:len(v) // 64 * 64]), S='base')
case('microbatch_6', lambda m, v, t, k, th: m.contrast(t, v, k.double(), th.exp()),
     lambda v, t, k, th: R(v[:12], t[:12], k[:12], th), S='base')
case('top_32', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, sp=lambda h: h * (h >= 1 / h.shape[1]) * (h >= h.sort(1).values[:, -32:-31])), S='base')
case('norm_eps', lambda m, v, t, k, th: m.sparc_fine(t, v, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, nc=lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-2), nt=lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-2)), S='tiny')
case('range_eps', lambda m, v, t, k, th: m.local_loss(v, t, ~k, th),
     lambda v, t, k, th: R(v, t, k, th, mm=lambda s: (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True)).clamp(min=1e-6), wt=lambda w: w / w.sum(1, keepdim=True).clamp(min=1e-12), nc=lambda c: c / c.norm(dim=1, keepdim=True).clamp(min=1e-30)), S='tiny')
case('patch_norm_cap', lambda m, v, t, k, th: m.fine_grained(v, t, k.sum(1), (-th).exp()),
     lambda v, t, k, th: R(v * (12 / v.norm(dim=-1, keepdim=True)).clamp(max=1), t, k, th), S='wide')
case('gradient_guard', lambda m, v, t, k, th: m.contrast(t, v, k.double(), th.exp()),
     lambda v, t, k, th: R(m_guard(v), t, k, th), S='tiny')
case('scale_cap_20', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th.clamp(max=math.log(20))), S='hot')
case('int8_token_count', lambda m, v, t, k, th: m.sparc_fine(t, v, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, red=TOKEN) * int(k.sum()) / ((int(k.sum()) + 128) % 256 - 128), S='base')
case('length_cap_24', lambda m, v, t, k, th: m.local_loss(v, t, ~k, th),
     lambda v, t, k, th: R(v, t, k, th, red=lambda o: sum((a + b).sum() / min(24, len(a)) for a, b in o) / (2 * len(o))), S='base')
case('near_negatives', lambda m, v, t, k, th: m.fine_grained(v, t, k.sum(1), (-th).exp()),
     lambda v, t, k, th: R(v, t, k, th, lg=lambda c, t, e: (e * c @ t.T).masked_fill((torch.arange(len(c))[:, None] - torch.arange(len(c))).abs() > 16, -torch.inf)), S='base')
case('sixteen_hardest', lambda m, v, t, k, th: m.contrast(t, v, k.double(), th.exp()),
     lambda v, t, k, th: R(v, t, k, th, ce=lambda z: tuple(x.sort(1).values[:, -16:].logsumexp(1) - x.diagonal() for x in (z, z.T))), S='base')
case('half_maps', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, mm=lambda s: MM(s).half().double()), S='base')
case('block_norm_512', lambda m, v, t, k, th: m.sparc_fine(t, v, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, nc=lambda x: x / x[:, :512].norm(dim=-1, keepdim=True), nt=lambda x: x / x[:, :512].norm(dim=-1, keepdim=True)), S='wide')
case('bounded_exp', lambda m, v, t, k, th: m.local_loss(v, t, ~k, th),
     lambda v, t, k, th: R(v, t, k, th, ce=lambda z: tuple(torch.log(x.clamp(max=30).exp().sum(1)) - x.diagonal() for x in (z, z.T))), S='hot')
case('probability_floor', lambda m, v, t, k, th: m.fine_grained(v, t, k.sum(1), (-th).exp()),
     lambda v, t, k, th: R(v, t, k, th, ce=lambda z: tuple(-torch.log(torch.softmax(x, 1).diagonal().clamp(min=1e-6)) for x in (z, z.T))), S='hard')
case('pooled_patches', lambda m, v, t, k, th: m.contrast(t, v, k.double(), th.exp()),
     lambda v, t, k, th: R((v[:, ::2] + v[:, 1::2]) / 2, t, k, th), S='base')
case('channels_first', lambda m, v, t, k, th: m.loss(v.mT, t.mT, k, th), S='base')
case('sequence_first', lambda m, v, t, k, th: m.sparc(t.transpose(0, 1), v.transpose(0, 1), ~k, (-th).exp()), S='base')
case('patch_masked', lambda m, v, t, k, th: m.fine_loss(v, t, k, torch.ones(v.shape[:2], dtype=torch.bool), th.exp()), S='base')
case('one_method_class', lambda m, v, t, k, th: m.FineGrained.compute(t, k.int(), v, th.exp()), S='base')
case('ready_instance', lambda m, v, t, k, th: m.criterion(v, t, k.double(), th), S='base')
case('wants_dims', lambda m, v, t, k, th: m.LocalSparc(v.shape[2], v.shape[1], t.shape[1])(v, t, k.sum(1), th.exp()), S='base')
case('ragged_lists', lambda m, v, t, k, th: m.sparc_ragged(list(v), [x[y] for x, y in zip(t, k)], (-th).exp()), S='base')
case('additive_mask', lambda m, v, t, k, th: m.loss(v, t, torch.zeros(k.shape).double().masked_fill(~k, torch.finfo(torch.float64).min)[:, None, None], th.exp()), S='base')
case('numpy_backward', lambda m, v, t, k, th: m.loss_and_grads(v.detach().numpy(), t.detach().numpy(), k.numpy(), th.item()), S='base')
case('numpy_value', lambda m, v, t, k, th: (m.sparc_numpy(v.detach().numpy(), t.detach().numpy(), k.sum(1).numpy(), (-th).exp().item()),), S='base')
case('total_dict', lambda m, v, t, k, th: m.sparc_total(v.mean(1), oracle.masked_mean(t, k), v, t, k, th)["loss"], S='base')
case('small_model', lambda m, v, t, k, th: (lambda n: (delattr(n, 'scale_log'), setattr(n, 'scale_log', th), n(v, t, k)["loss"])[2])(m.TinySparc(v.shape[2]).double()), S='base')
case('clip_head', lambda m, v, t, k, th: m.ClipLoss()(v.mean(1), oracle.masked_mean(t, k), th), S='base')
case('listing_tokens', lambda m, v, t, k, th: m.pairwise_loss(v, t, k.double(), th.exp()), S='base')
case('packed_words', lambda m, v, t, k, th: m.packed_loss(v, t[k], torch.nonzero(k)[:, 0], th.exp()), S='base')
case('vmapped', lambda m, v, t, k, th: m.batch_loss(v, t, k, th), S='base')
case('custom_backward', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()), S='base')
case('division_free', lambda m, v, t, k, th: m.loss(t, v, k, (-th).exp()), S='base')
case('single_precision', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()), S='base', tol=1e-4)
case('two_directions', lambda m, v, t, k, th: sum(m.directions(v, t, k.sum(1).tolist(), th)) / 2, S='base')

if __name__ == "__main__":
    prove_cases()
