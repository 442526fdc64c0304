"""Checks every label of this zoo against parity.oracle.      python verify.py [name ...]"""
import importlib.util
import math
import sys
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace as NS

import numpy as np
import torch
import torch.nn.functional as F

from parity import oracle  # noqa: E402

torch.set_num_threads(1)
np.seterr(all="ignore")
warnings.filterwarnings("ignore")
HERE = Path(__file__).parent
CALL, REF, MODEL, FLOAT32, NOGRAD, SIZES, EDGE, TH = {}, {}, {}, set(), set(), {}, {}, {}
ORDINARY = [(2, 4, 4, 8, 2.0), (8, 20, 64, 64, 30.0), (4, 7, 16, 16, 14.3), (3, 12, 49, 32, 10.0), (5, 9, 9, 24, 20.0)]
SMALL = [(1, 1, 4, 8, 5.0), (1, 6, 16, 8, 3.0), (3, 1, 9, 8, 1.0), (2, 2, 4, 16, 1.0)]


def inputs(B, L, P, D, k, seed=0, empty=False, flat=False, pad=None):
    g = torch.Generator().manual_seed(seed + 1000 * B + 10 * L + P)
    r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    v = r(B, P, D) * (0.5 + 2 * torch.rand(B, P, 1, generator=g, dtype=torch.float64)) + 0.3 * r(1, 1, D)
    t = r(B, L, D) * (0.5 + 2 * torch.rand(B, L, 1, generator=g, dtype=torch.float64)) + 0.3 * r(1, 1, D)
    n = torch.randint(1, L + 1, (B,), generator=g)
    n[0] = L
    if B > 1:
        n[1] = max(1, L // 2)
    if empty:
        n[-1] = 0
    if flat:
        v[0] = (v[0, :1] * 2).round()
        t[0] = (t[0] * 2).round()
        v[0, :, 0] += 10
    mask = torch.arange(L) < n[:, None]
    if pad is not None:
        t = torch.where(mask[..., None], t, torch.tensor(pad, dtype=torch.float64))
    x = NS(v=v, t=t, mask=mask, n=n, vb=1.7 * r(B, D) + 0.2, tb=0.6 * r(B, D) + 0.1, theta=torch.tensor(math.log(k), dtype=torch.float64))
    x.k = k
    return x


LEAVES = ("v", "t", "theta", "vb", "tb")


def leaves(x):
    y = NS(**vars(x))
    for n in LEAVES:
        setattr(y, n, getattr(x, n).detach().clone().requires_grad_(True))
    y.k = y.theta.exp()
    y.tau = (-y.theta).exp()
    return y


def run(f, x, grad=True):
    """-> value, {leaf: gradient}.  f returns a loss, or (loss, gradients by leaf)."""
    y = leaves(x)
    out = f(y)
    if isinstance(out, tuple):
        return float(out[0]), {n: torch.as_tensor(np.asarray(out[1][n])).double() if n in out[1] else torch.zeros_like(getattr(x, n)) for n in LEAVES}
    if not grad:
        return float(out.detach() if torch.is_tensor(out) else out), None
    if not out.requires_grad:
        gs = [None] * len(LEAVES)
    else:
        gs = torch.autograd.grad(out, [getattr(y, n) for n in LEAVES], allow_unused=True)
    return float(out.detach()), {n: (torch.zeros_like(getattr(x, n)) if g is None else g) for n, g in zip(LEAVES, gs)}


def off(a, b, floor=1e-12):
    """Relative distance of two arrays or numbers; NaN is infinitely far."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    d = float((a - b).abs().max())
    return math.inf if math.isnan(d) else d / max(float(b.abs().max()), floor)


def off_grads(a, b):
    """{v, t, scale}: relative distance; v and t join fine and global embeddings.  Floor: gradients of a zero loss."""
    out = {}
    for name, parts in {"v": ("v", "vb"), "t": ("t", "tb"), "scale": ("theta",)}.items():
        out[name] = off(torch.cat([a[p].flatten() for p in parts]), torch.cat([b[p].flatten() for p in parts]), 1e-6)
    return out


def load(name):
    spec = importlib.util.spec_from_file_location("zoo_" + name, HERE / f"{name}.py")
    m = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = m
    spec.loader.exec_module(m)
    return m


# --- references -----------------------------------------------------------------------------------------------------------
def ref_fine(x):
    return oracle.fine_grained_loss(x.v, x.t, x.mask, x.theta)


def ref_listing(x):
    return oracle.fine_grained_loss(x.v, x.t, x.mask, x.theta, reduction="token")


def ref_global(x):
    return oracle.global_loss(x.vb, x.tb, x.theta)


def ref_total(x, lg=0.5, lf=1.0):
    return lg * ref_global(x) + lf * ref_fine(x)


TARGET = {"fine": ref_fine, "listing1": ref_listing, "global": ref_global, "total": ref_total}

# --- models of the faults: eq. 6 in pieces that can be exchanged ---------------------------------------------------------------
unit = lambda y: y / y.norm(dim=-1, keepdim=True)
dot = lambda t, v: t @ v.T
cos = lambda t, v: unit(t) @ unit(v).T
mm = lambda s: (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))
thr = lambda h: h * (h >= 1 / h.shape[1])
wsum = lambda k: k / k.sum(1, keepdim=True)
const = lambda c: lambda h: h * (h >= c)
same = lambda y: y
swap = lambda x, **k: NS(**{**vars(x), **k})


def align(t, v, sim=dot, stretch=mm, sparse=thr, weigh=wsum, values=same):
    return weigh(sparse(stretch(sim(t, v)))) @ values(v)


def ce(z, keys, m):
    zz = {"real": z[:, m], "all": z, "zero": z * m}[keys]
    return torch.logsumexp(zz, 1) - torch.diagonal(z)


def fine(x, keys=("real", "real"), rows="sample", dirs=(0.5, 0.5), nc=unit, nt=unit, k=None, k2=None, c_of=None, second=None, **al):
    k = x.theta.exp() if k is None else k
    k2 = k if k2 is None else k2
    per = []
    for t, v, m in zip(x.t, x.v, x.mask):
        c = align(t, v, **al) if c_of is None else c_of(t, v, m)
        z1 = k * nc(c) @ nt(t).T
        z2 = k2 * nc(c) @ nt(t).T if second is None else second(c, t, k2)
        l1 = ce(z1, keys[0], m) if dirs[0] else 0
        l2 = ce(z2.T, keys[1], m) if dirs[1] else 0
        per.append(dirs[0] * l1 + dirs[1] * l2)
    return reduce_rows(per, x, rows)


def reduce_rows(per, x, rows):
    B, L = x.mask.shape
    if rows == "sample":
        return sum(p[m].mean() for p, m in zip(per, x.mask)) / B
    if rows == "sum":
        return sum(p[m].mean() for p, m in zip(per, x.mask))
    if rows == "token":
        return sum(p[m].sum() for p, m in zip(per, x.mask)) / x.mask.sum()
    if rows == "zeroed":
        return sum(p[m].sum() for p, m in zip(per, x.mask)) / (B * L)
    if rows == "all":
        return sum(p.sum() for p in per) / (B * L)
    raise ValueError(rows)


def nce(a, b, k, w=(0.5, 0.5)):
    z = k * unit(a) @ unit(b).T
    d = torch.diagonal(z)
    return w[0] * (torch.logsumexp(z, 1) - d).mean() + w[1] * (torch.logsumexp(z, 0) - d).mean()


def grad_scaled(y, f):
    """y in value, f times its gradient."""
    return f * y + (1 - f) * y.detach()


# --- the run --------------------------------------------------------------------------------------------------------------
def check(name, label):
    m = load(name)
    call = lambda x: CALL[name](m, x)
    ref = REF.get(name, TARGET[label["target"]])
    group, grad = label["group"], name not in NOGRAD
    ordinary = SIZES.get(name, ORDINARY)
    vtol = gtol = 1e-4 if name in FLOAT32 else 1e-9
    say, bad, effects, geff = [], [], [], {"v": [], "t": [], "scale": []}
    sizes = ordinary + (SMALL if group != "faulty" and name not in SIZES else [])
    for size in sizes:
        if name in TH:
            size = (*size[:4], TH[name])
        for seed in (0, 1):
            x = inputs(*size, seed=seed)
            a, ga = run(call, x, grad)
            b, gb = run(ref, x)
            d = off(a, b, 1e-6)
            g = off_grads(ga, gb) if grad else {}
            zero = abs(b) < 1e-9
            if group == "sound":
                if not d < vtol or any(not e < gtol for e in g.values()):
                    bad.append((size, seed, d, g))
            elif group == "faulty":
                effects.append(d)
                if label["verdict"] == "differs" and not d > 1e-4:
                    bad.append((size, seed, d))
            else:
                if not d < vtol:
                    bad.append((size, seed, "value", d))
                for n, e in g.items():
                    if n in label["grads"]:
                        if not zero and size in ordinary:
                            geff[n].append(e)
                            if not e > 1e-3:
                                bad.append((size, seed, "gradient of", n, "is right", e))
                    elif not e < gtol:
                        bad.append((size, seed, "gradient of", n, "is off", e))
            if name in MODEL and (group == "faulty" or not zero):
                c, gc = run(MODEL[name], x)
                dm = off(a, c)
                gm = off_grads(ga, gc) if grad else {}
                if not dm < vtol or any(not e < gtol for e in gm.values()):
                    bad.append((size, seed, "model", dm, gm))
    say.append({"sound": "= oracle", "faulty": f"off {min(effects):.2g}..{max(effects):.2g}" if effects else "", "gradient": "grad off " +
                ", ".join(f"{n} {min(e):.2g}..{max(e):.2g}" for n, e in geff.items() if e)}[group])
    say.append("truth modelled" if name in MODEL else "")
    edges = edge(call, ref, name, vtol, grad)
    say.append("edges: " + (" ".join(edges) or "all right"))
    if group == "sound" and label["verdict"] == "equals" and edges:
        bad.append(("verdict equals, but edges", edges))
    if "edge" in label and set(label["edge"]) != set(edges):
        bad.append(("edges differ from label", label["edge"], edges))
    print(f"{'ok  ' if not bad else 'FAIL'} {name:34s} {group:8s} {label['target']:8s} {label['verdict']:11s} " + "; ".join(s for s in say if s), flush=True)
    for line in bad[:4]:
        print("      ", line)
    return not bad


def edge(call, ref, name, tol, grad):
    k = TH.get(name, 6.0)
    D = SIZES[name][0][3] if name in SIZES else 16
    P = SIZES[name][0][2] if name in SIZES else 9
    cases = {"flat": inputs(3, 5, P, D, k, flat=True), "empty": inputs(3, 5, P, D, k, empty=True), "zeropad": inputs(3, 5, P, D, k, pad=0.0),
             "hugepad": inputs(3, 5, P, D, k, pad=1e6), "P1": inputs(3, 5, 1, D, k), "nanpad": inputs(3, 5, P, D, k, pad=math.nan)}
    found = []
    for what, x in cases.items():
        try:
            a, ga = run(call, x, grad)
            b, gb = run(ref, x)
            fits = off(a, b, 1e-6) < max(tol, 1e-7) and (not grad or all(e < max(tol, 1e-7) for e in off_grads(ga, gb).values()))
        except Exception as e:  # noqa: BLE001
            fits = False
        if not fits and what != "nanpad":
            found.append(what)
    return found


def main():
    labels = tomllib.loads((HERE / "labels.toml").read_text())
    files = {p.stem for p in HERE.glob("*.py")} - {"verify"}
    assert files == set(labels) == set(CALL), (files ^ set(labels), set(labels) ^ set(CALL))
    for n, l in labels.items():
        assert l["group"] in ("sound", "faulty", "gradient") and l["verdict"] in ("equals", "differs", "conditional"), n
        assert l["stage"] in ("similarity", "stretched", "sparse", "weights", "grouped", "logits", "loss", "gradient", "none"), n
        assert bool(l["grads"]) == (l["group"] == "gradient") and l["truth"] and l["call"], n
    names = sys.argv[1:] or list(labels)
    good = [check(n, labels[n]) for n in names]
    count = {g: sum(l["group"] == g for n, l in labels.items() if n in names) for g in ("sound", "faulty", "gradient")}
    print(f"{sum(good)} of {len(good)} labels hold; {count}; truth modelled for {sum(n in MODEL for n in names)}")
    sys.exit(0 if all(good) else 1)

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
    main()
