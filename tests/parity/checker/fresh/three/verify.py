"""Checks every label of this folder against parity.oracle:      python verify.py [loss ...]"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from fresh_truth import *  # noqa: F403

# --- seq_first
CALL["seq_first"] = lambda m, x: m.sparc_token_patch(x.v.transpose(0, 1), x.t.transpose(0, 1), ~x.mask, x.k)

# --- ragged_lists
CALL["ragged_lists"] = lambda m, x: m.fine_term(list(x.v), [t[k] for t, k in zip(x.t, x.mask)], -x.theta)

# --- gram_identity
CALL["gram_identity"] = lambda m, x: m.sparc_by_gram(x.v, x.t, x.mask, x.theta)

# --- slots_hold_globals
def _f(m, x):
    args = torch.cat([x.vb[:, None], x.v], 1), torch.cat([x.tb[:, None], x.t], 1), x.n
    return torch.func.functional_call(m.Objective().double(), {"tau": x.tau}, args)
CALL["slots_hold_globals"] = _f

# --- numpy_vjp_closure
def _f(m, x):
    loss, back = m.fine_loss(x.v.detach().numpy(), x.t.detach().numpy(), x.n.tolist(), x.theta.item())
    return loss, dict(zip(("v", "t", "theta"), back(1.0)))
CALL["numpy_vjp_closure"] = _f

# --- pair_mask_class
CALL["pair_mask_class"] = lambda m, x: m.PairwiseTokenLoss()(x.tau, x.mask[:, :, None] & x.mask[:, None, :], x.t, x.v.transpose(1, 2))

# --- fine_loss_einsum
CALL["fine_loss_einsum"] = lambda m, x: m.fine_loss(x.v, x.t, x.mask, x.k)
def _c(t, v, m):
    s = t @ v.T
    h = (s - s[m].amin()) / (s[m].amax() - s[m].amin())
    return (h * (h >= 1 / len(v)) * m[:, None]) @ v
MODEL["fine_loss_einsum"] = lambda x: fine(x, c_of=_c, nc=lambda y: F.normalize(y, dim=-1))

# --- grouping_layer
CALL["grouping_layer"] = lambda m, x: m.local_loss(x.v, x.t, x.n, x.theta)
MODEL["grouping_layer"] = lambda x: fine(x, sparse=const(1 / x.t.shape[1]))
SIZES["grouping_layer"] = [(2, 9, 4, 8, 2.0), (8, 20, 64, 64, 30.0), (4, 7, 16, 16, 14.3), (3, 12, 49, 32, 10.0), (5, 4, 9, 24, 20.0)]

# --- exp_sums
CALL["exp_sums"] = lambda m, x: m.sparc(x.t, x.v, x.mask, x.k)
MODEL["exp_sums"] = lambda x: fine(x, sparse=lambda h: F.relu(h - 1 / h.shape[1]))

# --- criterion_module
def _f(m, x):
    return torch.func.functional_call(m.SparcCriterion().double(), {"s": x.k}, (x.v, x.t, ~x.mask))
CALL["criterion_module"] = _f
def _m(x):
    total = 0
    for t, v, m in zip(x.t, x.v, x.mask):
        z = x.k * unit(align(t[m], v)) @ unit(t[m]).T
        for y in (z, z.T):
            total = total + (y.logsumexp(1) - 0.9 * y.diagonal() - 0.1 * y.mean(1)).mean() / 2
    return total / len(x.t)
MODEL["criterion_module"] = _m

# --- dense_contrast
CALL["dense_contrast"] = lambda m, x: m.dense_contrast(x.v, x.t, x.mask, x.tau)
def _m(x):
    total = 0
    for t, v, m in zip(x.t, x.v, x.mask):
        n = int(m.sum())
        if n > 1:
            z = x.k * unit(align(t[m], v)) @ unit(t[m]).T
            for y in (z, z.T):
                others = torch.stack([torch.cat([y[j, :j], y[j, j + 1:]]) for j in range(n)])
                total = total + (others.logsumexp(1) - y.diagonal()).mean() / 2
    return total / len(x.t)
MODEL["dense_contrast"] = _m

# --- numpy_metric
NOGRAD.add("numpy_metric")
CALL["numpy_metric"] = lambda m, x: m.sparc_fine(x.t.detach().numpy().copy(), x.v.detach().numpy(), x.mask.numpy().astype(int), x.theta.item())[0]
MODEL["numpy_metric"] = lambda x: fine(x, weigh=lambda k: wsum(k**2))

# --- bmm_and_ce
CALL["bmm_and_ce"] = lambda m, x: m.sparc_local(x.v, x.t, x.mask, x.k)
def _m(x):
    per = [fine(NS(v=x.v[i:i+1], t=x.t[i:i+1], mask=x.mask[i:i+1], theta=2 * x.theta)) * x.mask[i].sum() for i in range(len(x.v))]
    return sum(per) / len(per)
MODEL["bmm_and_ce"] = _m

# --- keyword_module
CALL["keyword_module"] = lambda m, x: m.MixedDirections()(patches=x.v, words=x.t, words_pad=~x.mask, log_scale=x.theta)["fine"]
def _m(x):
    total = 0
    for t, v, m in zip(x.t, x.v, x.mask):
        c = align(t[m], v, sparse=lambda h: h * (h >= h.mean(1, keepdim=True)))
        z = x.k * unit(c) @ unit(t[m]).T
        total = total - torch.log((z.softmax(1).diagonal() + z.softmax(0).diagonal()) / 2).mean()
    return total / len(x.t)
MODEL["keyword_module"] = _m

# --- stable_patches
CALL["stable_patches"] = lambda m, x: m.sparc_fine(x.v, x.t, x.mask, x.tau)
class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.view_as(y)
    @staticmethod
    def backward(ctx, g):
        return torch.minimum(torch.maximum(g, torch.full_like(g, -1e-3)), torch.full_like(g, 1e-3))
MODEL["stable_patches"] = lambda x: fine(swap(x, v=_Clamp.apply(x.v)))
SIZES["stable_patches"] = ORDINARY[:1] + ORDINARY[2:]

# --- lengths_function
CALL["lengths_function"] = lambda m, x: m.fine_grained(x.v, x.t, x.n, x.tau)
MODEL["lengths_function"] = lambda x: fine(swap(x, theta=grad_scaled(x.theta, -1.0)))

# --- assign_helper
CALL["assign_helper"] = lambda m, x: m.loss_fn((x.v, x.t, x.mask.int()), x.k)
MODEL["assign_helper"] = lambda x: fine(x, stretch=same, sparse=same, weigh=lambda s: wsum(thr(mm(s))).detach() + s.softmax(1) - s.softmax(1).detach())

# --- numpy_nested_tuple
def _f(m, x):
    l, g = m.fine_value_and_grads(x.v.detach().numpy(), x.t.detach().numpy(), x.mask.numpy(), x.theta.item())
    return l, dict(zip(("v", "t", "theta"), g))
CALL["numpy_nested_tuple"] = _f
def _m(x):
    total = 0
    for t, v, m in zip(x.t, x.v, x.mask):
        z = x.theta.exp() * unit(align(t[m], v)) @ unit(t[m]).T
        q = (z.T.softmax(1) - torch.eye(len(z))).detach() / len(z)      # gradient of t to c, wrt z.T
        l2 = oracle.cross_entropy(z.T).mean().detach() + (q * (z - z.detach())).sum()
        total = total + (oracle.cross_entropy(z).mean() + l2) / 2
    return total / len(x.t)
MODEL["numpy_nested_tuple"] = _m

# --- accumulated_chunks
CALL["accumulated_chunks"] = lambda m, x: m.accumulated(x.v, x.t, x.mask, x.theta)
def _m(x):
    h = -(-len(x.v) // 2)
    part = lambda i, f: fine(NS(v=f(x.v[i]), t=f(x.t[i]), mask=x.mask[i], theta=f(x.theta))) * len(x.v[i])
    return (part(slice(0, h), lambda y: y.detach()) + part(slice(h, None), same)) / len(x.v)
MODEL["accumulated_chunks"] = _m
SIZES["accumulated_chunks"] = list(ORDINARY)

# --- two_term_module
CALL["two_term_module"] = lambda m, x: m.LockedImageSparc()(x.vb, x.v, x.tb, x.t, x.mask.int(), x.k)
MODEL["two_term_module"] = lambda x: 0.5 * nce(x.vb.detach(), x.tb, x.k) + fine(x)
SIZES["two_term_module"] = list(ORDINARY)

if __name__ == "__main__":
    prove()
