"""Checks every label of this folder against parity.oracle:      python verify.py [loss ...]"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fresh_calls import *  # noqa: F403


def pooled_total(x):
    return 0.5 * oracle.global_loss(x.v.mean(1), oracle.masked_mean(x.t, x.mask), x.theta) + ref_fine(x)


def detached_past(v, n):
    return torch.cat([v[:, :n], v[:, n:].detach()], 1)


# --- sound
CALL["trainer_compute_loss"] = lambda m, x: m.SparcTrainer().compute_loss(
    {"patch_embeddings": x.v, "token_embeddings": x.t, "attention_mask": x.mask.long(), "logit_scale": x.theta})
CALL["einsum_all"] = lambda m, x: m.sparc_local(x.v, x.t, x.mask.double(), x.k)
CALL["jax_vmapped"] = lambda m, x: jaxed(lambda v, t, theta: m.sparc_loss(v, t, keep(x), theta), x, "v", "t", "theta")
CALL["jax_listing"] = lambda m, x: jaxed(
    lambda v, t, theta: m.fine_grained_loss(v, t, keep(x).astype(float), jnp.exp(theta)), x, "v", "t", "theta")
CALL["numpy_eval_metric"] = lambda m, x: m.local_loss(*numpied(x.t), x.n.tolist(), *numpied(x.v), float(x.tau.detach()))
NOGRAD.add("numpy_eval_metric")
CALL["ddp_world_one"] = lambda m, x: m.SparcLoss()(x.vb, x.tb, x.v, x.t, x.mask, x.k)
CALL["config_object"] = lambda m, x: torch.func.functional_call(
    m.SparcCriterion().double(), {"log_temperature": -x.theta}, (x.vb, x.tb, x.v, x.t, (~x.mask).long()))["loss"]
CALL["strictly_above"] = lambda m, x: m.fine_grained(x.t, x.v, x.n, x.tau)
CALL["eps_everywhere"] = lambda m, x: m.LocalAlign()(x.v, x.t, x.mask.double(), x.k)[0]
CALL["listing_int_mask"] = lambda m, x: m.sparc_local_loss(x.v, x.t, x.mask.int(), x.k)
CALL["listing_flat_rows"] = lambda m, x: m.loss(x.v, x.t, x.mask * torch.arange(7, 7 + x.t.shape[1]), x.theta)
CALL["clip_three_outputs"] = lambda m, x: torch.func.functional_call(m.ClipHead().double(), {"logit_scale": x.theta}, (x.vb, x.tb))[0]
CALL["jax_global"] = lambda m, x: jaxed(lambda vb, tb, theta: m.global_loss({"t": theta}, vb, tb), x, "vb", "tb", "theta")
CALL["chunked_samples"] = lambda m, x: m.sparc_fine(x.v, x.t, ~x.mask, x.k)
CALL["concatenated_captions"] = lambda m, x: m.fine_loss(x.t[x.mask], x.mask.nonzero()[:, 0], x.v, x.theta)
CALL["upcast_module"] = lambda m, x: torch.func.functional_call(
    m.FineGrained().double(), {"theta": x.theta}, (x.v, x.t, x.mask[..., None].double()))
CALL["shuffled_patches"] = lambda m, x: m.local_objective(patch_tokens=x.v, word_tokens=x.t, word_mask=x.mask, logit_scale=x.k)
CALL["lightning_step"] = lambda m, x: m.SparcModule().training_step((x.v, x.t, x.mask.long(), x.theta))["loss"]
REF["lightning_step"] = pooled_total
CALL["pair_of_directions"] = lambda m, x: sum(m.sparc_directions(x.v, x.t, x.mask, x.tau)) / 2
CALL["gathered_labels"] = lambda m, x: m.word_region_loss(x.v, x.t, x.mask[..., None].double(), x.k)

# --- faulty
CALL["cosine_alignment"] = lambda m, x: torch.func.functional_call(
    m.PatchWordAlignment().double(), {"logit_scale": x.theta}, (x.t, x.v, x.mask))
MODEL["cosine_alignment"] = lambda x: r(x, sim=cos)
CALL["third_threshold"] = lambda m, x: m.sparc_finegrained(x.v, x.t, x.mask.long(), x.tau)
MODEL["third_threshold"] = lambda x: r(x, sp=const(0.3))
CALL["dense_and_unmasked"] = lambda m, x: m.local_contrastive(x.v, x.t, x.mask.double(), x.k)
MODEL["dense_and_unmasked"] = lambda x: fine(x, keys=("all", "all"), sparse=same)
CALL["attention_softmax"] = lambda m, x: m.token_to_region_loss(x.t, x.v, x.n, x.theta)
MODEL["attention_softmax"] = lambda x: r(x, mm=lambda s: torch.softmax(s / math.sqrt(x.v.shape[2]), 1), sp=same)
CALL["multiplied_mask"] = lambda m, x: m.sparc_local(*numpied(x.v, x.t), x.mask.double().numpy(), float(x.tau.detach()))
MODEL["multiplied_mask"] = lambda x: fine(x, keys=("zero", "zero"))
NOGRAD.add("multiplied_mask")
CALL["same_direction_twice"] = lambda m, x: m.sparc(x.v, x.t, x.mask, x.k)["local"]
MODEL["same_direction_twice"] = lambda x: r(x, ce=lambda z: (CE(z)[0],) * 2)
CALL["padded_mean"] = lambda m, x: m.LocalLoss()(x.v, x.t, x.mask.long(), x.k)
MODEL["padded_mean"] = lambda x: fine(x, rows="zeroed")
CALL["whole_batch_negatives"] = lambda m, x: m.fine_loss(x.v, x.t, x.mask, x.k)
def _m(x):
    groups = torch.cat([align(t[k], v) for t, v, k in zip(x.t, x.v, x.mask)])
    a, b = CE(x.theta.exp() * unit(groups) @ unit(x.t[x.mask]).T)
    return sum((both.mean() for both in (a + b).split(x.n.tolist()))) / (2 * len(x.v))
MODEL["whole_batch_negatives"] = _m
FLOAT32.add("whole_batch_negatives")                      # its weights: a bool by an integer
CALL["raw_inner_products"] = lambda m, x: m.loss_fn(x.v, x.t, ~x.mask, x.tau)
MODEL["raw_inner_products"] = lambda x: r(x, nc=same, nt=same)
CALL["detached_cosine_weights"] = lambda m, x: m.local_loss(x.v, x.t, x.n, x.theta)
MODEL["detached_cosine_weights"] = lambda x: r(x, sim=cos, grp=lambda a, v, t: a.detach() @ v)
CALL["jax_patch_queries"] = lambda m, x: jaxed(lambda v, t, theta: m.patch_word_loss(v, t, keep(x), theta), x, "v", "t", "theta")
def _m(x):
    per = []
    for t, v, k in zip(x.t, x.v, x.mask):
        t = t[k]
        g = t.expand(len(v), -1) if len(t) == 1 else align(v, t)
        a, b = CE(x.theta.exp() * unit(g) @ unit(v).T)
        per.append((a + b).mean() / 2)
    return sum(per) / len(per)
MODEL["jax_patch_queries"] = _m
CALL["fixed_fourteen"] = lambda m, x: m.fg_loss(x.v, x.t, x.mask.int(), x.k)
MODEL["fixed_fourteen"] = lambda x: R(x.v, x.t, x.mask, torch.tensor(math.log(1 / 0.07), dtype=torch.float64))
CALL["unit_values_token_mean"] = lambda m, x: m.sparc_fine_grained(x.v, x.t, x.mask, x.k)
MODEL["unit_values_token_mean"] = lambda x: r(x, grp=lambda a, v, t: a @ unit(v), red=TOKEN)
CALL["unit_pooling"] = lambda m, x: torch.func.functional_call(m.SparcObjective().double(), {"t": x.theta}, (x.v, x.t, x.mask.double()))[0]
MODEL["unit_pooling"] = lambda x: r(x) + 0.5 * nce(unit(x.v).mean(1), oracle.masked_mean(unit(x.t), x.mask), x.theta.exp())
REF["unit_pooling"] = pooled_total

# --- unlisted
CALL["rank_weights"] = lambda m, x: m.fine_loss(x.v, x.t, x.mask, x.k)
MODEL["rank_weights"] = lambda x: r(x, mm=lambda s: (s[:, None] < s[:, :, None]).double().sum(2) / (s.shape[1] - 1))
CALL["window_negatives"] = lambda m, x: m.WindowedContrast()(x.v, x.t, x.mask, x.k)
def _near(z):
    at = torch.arange(len(z))
    return CE(z.masked_fill((at[:, None] - at).abs() > 2, -math.inf))
MODEL["window_negatives"] = lambda x: r(x, ce=_near)
CALL["entropy_bonus"] = lambda m, x: m.loss_and_parts(x.v, x.t, x.n.tolist(), x.tau)[0]
def _m(x):
    ent = []
    def grp(a, v, t):
        ent.append(-(a * torch.log(a + 1e-12)).sum(1).mean())
        return a @ v
    return r(x, grp=grp) + 0.05 * sum(ent) / len(ent)
MODEL["entropy_bonus"] = _m
CALL["centred_caption"] = lambda m, x: m.sparc_local_loss(x.t, x.mask, x.v, x.tau)
MODEL["centred_caption"] = lambda x: r(x, sim=lambda t, v: (t - t.mean(0)) @ v.T if len(t) > 1 else t @ v.T)
CALL["bigram_queries"] = lambda m, x: m.fine(x.v, x.t, x.n.tolist(), x.theta)
MODEL["bigram_queries"] = lambda x: r(x, sim=lambda t, v: (t + torch.cat([t[1:], t[-1:]])) @ v.T / 2)
CALL["cubed_cosines"] = lambda m, x: m.fine_loss(*numpied(x.v, x.t), x.mask.numpy(), float(x.theta.detach()))
MODEL["cubed_cosines"] = lambda x: r(x, lg=lambda c, t, e: e * (c @ t.T) ** 3)
NOGRAD.add("cubed_cosines")
CALL["log_weights"] = lambda m, x: m.contrast(x.v, x.t, x.mask, x.k)
MODEL["log_weights"] = lambda x: r(x, wt=lambda w: torch.log(1 + 10 * w))
CALL["hard_samples_first"] = lambda m, x: m.CurriculumSparc().compute_loss(x.v, x.t, x.n.tolist(), x.k)
def _hard(pairs):
    each = torch.stack([(a + b).mean() / 2 for a, b in pairs])
    return (each * (each - each.max()).exp().detach()).sum() / (each - each.max()).exp().detach().sum()
MODEL["hard_samples_first"] = lambda x: r(x, red=_hard)
CALL["median_word"] = lambda m, x: m.loss({"image": x.v, "text": x.t, "length": x.n}, x.tau)
MODEL["median_word"] = lambda x: r(x, red=lambda o: sum(((a + b) / 2).sort().values[(len(a) - 1) // 2] for a, b in o) / len(o))
CALL["pearson_logits"] = lambda m, x: jaxed(lambda v, t, theta: m.sparc(v, t, keep(x), jnp.exp(theta)), x, "v", "t", "theta")
MODEL["pearson_logits"] = lambda x: r(x, nc=lambda y: unit(y - y.mean(1, keepdim=True)), nt=lambda y: unit(y - y.mean(1, keepdim=True)))

# --- gradient
CALL["straight_through_cut"] = lambda m, x: m.sparc_fine(x.v, x.t, x.mask, x.k)
MODEL["straight_through_cut"] = lambda x: r(x, sp=lambda h: h - (h * (h < 1 / h.shape[1])).detach())
CALL["tokens_fixed_one_way"] = lambda m, x: m.FineGrainedLoss()(x.v, x.t, ~x.mask, x.k)
MODEL["tokens_fixed_one_way"] = lambda x: fine(x, nt=lambda t: unit(t).detach(), second=lambda c, t, k: k * unit(c) @ unit(t).T)
CALL["slow_temperature"] = lambda m, x: torch.func.functional_call(
    m.LocalContrast().double(), {"temperature.value": x.theta}, (x.v, x.t, x.mask.long()))
MODEL["slow_temperature"] = lambda x: fine(x, k=grad_scaled(x.theta, 0.1).exp())
CALL["gathered_times_world"] = lambda m, x: m.fine_grained_loss(x.v, x.t, x.mask, x.theta)
MODEL["gathered_times_world"] = lambda x: fine(swap(x, t=grad_scaled(x.t, len(x.t))))
CALL["cheap_norm"] = lambda m, x: m.loss(x.v, x.t, x.n.tolist(), x.k)
MODEL["cheap_norm"] = lambda x: r(x, wt=same, nc=lambda y: y / y.norm(dim=1, keepdim=True).detach(), nt=lambda y: y / y.norm(dim=1, keepdim=True).detach())
CALL["siamese_stop"] = lambda m, x: m.symmetric_stop_grad_loss(x.v, x.t, x.mask, x.tau)
MODEL["siamese_stop"] = lambda x: fine(x, nt=lambda t: unit(t).detach(), second=lambda c, t, k: k * unit(c).detach() @ unit(t).T)
CALL["jax_stop_range"] = lambda m, x: jaxed(
    lambda v, t, theta: m.local_loss({"log_scale": theta}, v, t, keep(x)), x, "v", "t", "theta")
MODEL["jax_stop_range"] = lambda x: r(x, mm=lambda s: (s - s.amin(1, keepdim=True).detach()) / (s.amax(1) - s.amin(1)).detach()[:, None])
def _f(m, x):
    loss, dv, dt, dtheta = m.value_and_grad(*numpied(x.v, x.t), x.mask.numpy(), float(x.theta.detach()))
    return loss, {"v": dv, "t": dt, "theta": dtheta}
CALL["numpy_scale_sign"] = _f
MODEL["numpy_scale_sign"] = lambda x: r(swap(x, theta=grad_scaled(x.theta, -1)))

# --- size
CALL["blocks_of_32"] = lambda m, x: m.fine_loss(x.v, x.t, x.mask, x.k)
def _blocks(z):
    at = torch.arange(len(z)) // 32
    return CE(z.masked_fill(at[:, None] != at, -math.inf))
MODEL["blocks_of_32"], LARGE["blocks_of_32"] = lambda x: r(x, ce=_blocks), IN_USE
CALL["grid_at_most_14"] = lambda m, x: m.FineLoss()(x.v, x.t, x.mask.int(), x.k)
def _pool(v, n=196):
    if v.shape[1] <= n:
        return v
    ends = [(i * v.shape[1] // n, -((i + 1) * v.shape[1] // -n)) for i in range(n)]
    return torch.stack([v[:, a:b].mean(1) for a, b in ends], 1)
MODEL["grid_at_most_14"] = lambda x: r(x, prep=lambda v, t, k: (_pool(v), t, k))
LARGE["grid_at_most_14"] = (4, 20, 256, 32, 14.0)
CALL["whole_microbatches"] = lambda m, x: m.GradAccumTrainer().compute_loss(x.v, x.t, x.mask, x.theta)
MODEL["whole_microbatches"] = lambda x: r(x, prep=lambda v, t, k: tuple(y[: len(v) // 8 * 8 or len(v)] for y in (v, t, k)))
LARGE["whole_microbatches"] = (20, 12, 49, 32, 14.0)
CALL["soft_cap_when_hot"] = lambda m, x: m.loss(x.t, x.v, x.mask, x.k)
MODEL["soft_cap_when_hot"] = lambda x: r(x, lg=lambda c, t, e: 50 * torch.tanh(e * c @ t.T / 50) if e > 50 else e * c @ t.T)
LARGE["soft_cap_when_hot"] = (6, 20, 196, 64, 99.0)
CALL["flat_below_1e6"] = lambda m, x: m.fine_grained(x.v, x.t, x.n, x.tau)
def _flat(a, v, t):
    s = t @ v.T
    return torch.where(s.amax(1, keepdim=True) - s.amin(1, keepdim=True) < 1e-6, v.mean(0), a @ v)
MODEL["flat_below_1e6"], LARGE["flat_below_1e6"] = lambda x: r(x, grp=_flat), (6, 20, 196, 64, 14.0, 1e-5)
CALL["late_patches_no_gradient"] = lambda m, x: m.sparc(x.v, x.t, x.mask, x.k)
MODEL["late_patches_no_gradient"] = lambda x: r(x, prep=lambda v, t, k: (detached_past(v, 128), t, k))
LARGE["late_patches_no_gradient"] = (6, 20, 196, 64, 14.0)
CALL["matryoshka_512"] = lambda m, x: m.NestedSparc()(x.v, x.t, ~x.mask, x.theta)
MODEL["matryoshka_512"], LARGE["matryoshka_512"] = lambda x: r(swap(x, v=x.v[..., :512], t=x.t[..., :512])), (2, 12, 49, 768, 14.0)
CALL["divisor_at_most_36"] = lambda m, x: m.loss_fn(x.v, x.t, x.n, x.k)
MODEL["divisor_at_most_36"] = lambda x: r(x, red=lambda o: sum((a + b).sum() / min(36, len(a)) for a, b in o) / (2 * len(o)))
LARGE["divisor_at_most_36"] = IN_USE

for name in [n for n in CALL if n.startswith("jax_") or n == "pearson_logits"]:
    SIZES[name] = ORDINARY[:3]

if __name__ == "__main__":
    prove(in_use=True)
