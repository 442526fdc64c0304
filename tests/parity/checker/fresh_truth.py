"""How a folder of fresh losses proves its labels without the checker: each loss against parity.oracle and a model of its fault.

A verify.py beside the losses does `from fresh_truth import *` and says, in one of two ways, how each loss is called and what
each fault computes; what it says nothing of cannot pass.

    by name         CALL[loss], MODEL[loss], ... are functions of a batch whose arrays have names                prove()
    by position     case(loss, call, model), functions of v, t, mask and theta                                   prove_cases()
"""

import functools
import importlib.util
import math
import os
import sys
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace as NS

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
import torch.nn.functional as F  # noqa: F401  for the files that import all of this

from parity import oracle

torch.set_num_threads(1)
np.seterr(all="ignore")
warnings.filterwarnings("ignore")
sys.dont_write_bytecode = True
HERE = Path(sys.argv[0]).resolve().parent
STAGES = ("similarity", "stretched", "sparse", "weights", "grouped", "logits", "loss", "gradient", "none")


def load(name):
    spec = importlib.util.spec_from_file_location("zoo_" + name, HERE / f"{name}.py")
    m = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = m
    spec.loader.exec_module(m)
    return m


def labels_for(calls):
    """The table of the folder: one label and one call for every loss."""
    labels = tomllib.loads((HERE / "labels.toml").read_text())
    files = {p.stem for p in HERE.glob("*.py")} - {"verify"}
    assert files == set(labels) == set(calls), (files ^ set(labels), set(labels) ^ set(calls))
    return labels


# --- eq. 6 in pieces that can be exchanged ---------------------------------------------------------------------------------


def unit(y):
    return y / y.norm(dim=-1, keepdim=True)


def dot(t, v):
    return t @ v.T


def cos(t, v):
    return unit(t) @ unit(v).T


def mm(s):
    return (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))


def thr(h):
    return h * (h >= 1 / h.shape[1])


def wsum(k):
    return k / k.sum(1, keepdim=True)


def same(y):
    return y


def const(c):
    return lambda h: h * (h >= c)


def swap(x, **k):
    return NS(**{**vars(x), **k})


def align(t, v, sim=dot, stretch=mm, sparse=thr, weigh=wsum, values=same):
    return weigh(sparse(stretch(sim(t, v)))) @ values(v)


def ce(z, keys, m):
    zz = {"real": z[:, m], "all": z, "zero": z * m}[keys]
    return torch.logsumexp(zz, 1) - torch.diagonal(z)


def fine(x, keys=("real", "real"), rows="sample", dirs=(0.5, 0.5), nc=unit, nt=unit, k=None, k2=None, c_of=None, second=None,
         **al):
    """Eq. 6 on all rows, padding among them."""
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


U, MM = unit, mm


def CE(z):
    return torch.logsumexp(z, 1) - z.diagonal(), torch.logsumexp(z, 0) - z.diagonal()


def SAMPLE(pairs):
    return sum((a + b).sum() / len(a) for a, b in pairs) / (2 * len(pairs))


def TOKEN(pairs):
    return sum((a + b).sum() for a, b in pairs) / (2 * sum(len(a) for a, b in pairs))


def R(v, t, k, th, prep=None, sim=None, mm=MM, sp=None, wt=None, grp=None, nc=U, nt=U, lg=None, ce=CE, red=SAMPLE):
    """Eq. 6 on the real rows of one sample at a time, with any step exchanged."""
    if prep:
        v, t, k = prep(v, t, k)
    e, out = th.exp(), []
    for vi, ti, ki in zip(v, t, k):
        ti = ti[ki]
        s = sim(ti, vi) if sim else ti @ vi.T
        h = mm(s)
        w = sp(h) if sp else h * (h >= 1 / h.shape[1])
        a = wt(w) if wt else w / w.sum(1, keepdim=True)
        c = grp(a, vi, ti) if grp else a @ vi
        z = lg(nc(c), nt(ti), e) if lg else e * nc(c) @ nt(ti).T
        out.append(ce(z))
    return red(out)


def G(vb, tb, th):
    return oracle.global_loss(vb, tb, th)


# --- by name ---------------------------------------------------------------------------------------------------------------

CALL, REF, MODEL, FLOAT32, NOGRAD, SIZES, TH = {}, {}, {}, set(), set(), {}, {}
LARGE = {}                                                # loss -> (B, L, P, D, 1/tau, scale of v and t) where it departs
ORDINARY = [(2, 4, 4, 8, 2.0), (8, 20, 64, 64, 30.0), (4, 7, 16, 16, 14.3), (3, 12, 49, 32, 10.0), (5, 9, 9, 24, 20.0)]
SMALL = [(1, 1, 4, 8, 5.0), (1, 6, 16, 8, 3.0), (3, 1, 9, 8, 1.0), (2, 2, 4, 16, 1.0)]
IN_USE = (4, 48, 196, 64, 1 / 0.07)
EDGES = {"flat": {"flat": True}, "empty": {"empty": True}, "zeropad": {"pad": 0.0}, "hugepad": {"pad": 1e6}, "P1": {}}
LEAVES = ("v", "t", "theta", "vb", "tb")


def inputs(B, L, P, D, k, scale=1.0, seed=0, empty=False, flat=False, pad=None):
    g = torch.Generator().manual_seed(seed + 1000 * B + 10 * L + P)

    def r(*s):
        return torch.randn(*s, generator=g, dtype=torch.float64)

    v = r(B, P, D) * (0.5 + 2 * torch.rand(B, P, 1, generator=g, dtype=torch.float64)) + 0.3 * r(1, 1, D)
    t = r(B, L, D) * (0.5 + 2 * torch.rand(B, L, 1, generator=g, dtype=torch.float64)) + 0.3 * r(1, 1, D)
    v, t = v * scale, t * scale
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
    theta = torch.tensor(math.log(k), dtype=torch.float64)
    return NS(v=v, t=t, mask=mask, n=n, vb=1.7 * r(B, D) + 0.2, tb=0.6 * r(B, D) + 0.1, theta=theta, k=k)


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
        made = {n: torch.as_tensor(np.array(g)).double() for n, g in out[1].items()}
        return float(out[0]), {n: made.get(n, torch.zeros_like(getattr(x, n))) for n in LEAVES}
    if not grad:
        return float(out.detach() if torch.is_tensor(out) else out), None
    if not out.requires_grad:
        gs = [None] * len(LEAVES)
    else:
        gs = torch.autograd.grad(out, [getattr(y, n) for n in LEAVES], allow_unused=True)
    return float(out.detach()), {n: (torch.zeros_like(getattr(x, n)) if g is None else g) for n, g in zip(LEAVES, gs)}


@functools.cache
def truth(ref, size, options):
    """What the oracle says of a batch: the same for every loss."""
    return run(ref, inputs(*size, **dict(options)))


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


def ref_fine(x):
    return oracle.fine_grained_loss(x.v, x.t, x.mask, x.theta)


def ref_listing(x):
    return oracle.fine_grained_loss(x.v, x.t, x.mask, x.theta, reduction="token")


def ref_global(x):
    return oracle.global_loss(x.vb, x.tb, x.theta)


def ref_total(x, lg=0.5, lf=1.0):
    return lg * ref_global(x) + lf * ref_fine(x)


TARGET = {"fine": ref_fine, "listing1": ref_listing, "global": ref_global, "total": ref_total}


def check(name, label, in_use):
    m = load(name)
    ref = REF.get(name, TARGET[label["target"]])
    group, grad = label["group"], name not in NOGRAD
    ordinary = SIZES.get(name, ORDINARY)
    vtol = gtol = 1e-4 if name in FLOAT32 else 1e-9
    say, bad, effects, geff, large = [], [], [], {"v": [], "t": [], "scale": []}, []

    def call(x):
        return CALL[name](m, x)

    sizes = ordinary + (SMALL if group not in ("faulty", "unlisted") and name not in SIZES else [])
    sizes = sizes + ([IN_USE] if in_use and group in ("sound", "gradient") else [])
    for size in [*sizes, *([LARGE[name]] if group == "size" else [])]:
        if name in TH:
            size = (*size[:4], TH[name])
        for seed in (0, 1):
            x = inputs(*size, seed=seed)
            a, ga = run(call, x, grad)
            b, gb = truth(ref, size, (("seed", seed),))
            d = off(a, b, 1e-6)
            g = off_grads(ga, gb) if grad else {}
            zero = abs(b) < 1e-9
            if group == "size" and size == LARGE[name]:
                large.append(max([d, *g.values()]))
                if not large[-1] > 1e-4 or (group == "gradient" and not d < vtol):
                    bad.append((size, seed, "right", d, g))
            elif group in ("sound", "size"):
                if not d < vtol or any(not e < gtol for e in g.values()):
                    bad.append((size, seed, d, g))
            elif group in ("faulty", "unlisted"):
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
            if name in MODEL and (group in ("faulty", "unlisted") or not zero):
                c, gc = run(MODEL[name], x)
                dm = off(a, c)
                gm = off_grads(ga, gc) if grad else {}
                if not dm < vtol or any(not e < gtol for e in gm.values()):
                    bad.append((size, seed, "model", dm, gm))
    apart = f"off {min(effects):.2g}..{max(effects):.2g}" if effects else ""
    grads = "grad off " + ", ".join(f"{n} {min(e):.2g}..{max(e):.2g}" for n, e in geff.items() if e)
    say.append({"sound": "= oracle", "gradient": grads, "size": f"= oracle, large off {large}"}.get(group, apart))
    say.append("truth modelled" if name in MODEL else "")
    edges = edge(call, ref, name, vtol, grad)
    say.append("edges: " + (" ".join(edges) or "all right"))
    if group == "sound" and label["verdict"] == "equals" and edges:
        bad.append(("verdict equals, but edges", edges))
    if "edge" in label and set(label["edge"]) != set(edges):
        bad.append(("edges differ from label", label["edge"], edges))
    print(f"{'ok  ' if not bad else 'FAIL'} {name:34s} {group:8s} {label['target']:8s} {label['verdict']:11s} "
          + "; ".join(s for s in say if s), flush=True)
    for line in bad[:4]:
        print("      ", line)
    return not bad


def edge(call, ref, name, tol, grad):
    """The edge cases where the loss is not its target: flat rows, empty captions, what padding holds, one patch."""
    k = TH.get(name, 6.0)
    D = SIZES[name][0][3] if name in SIZES else 16
    P = SIZES[name][0][2] if name in SIZES else 9
    found = []
    for what, kind in EDGES.items():
        given = ((3, 5, 1 if what == "P1" else P, D, k), tuple(kind.items()))
        try:
            a, ga = run(call, inputs(*given[0], **kind), grad)
            b, gb = truth(ref, *given)
            far_off = [off(a, b, 1e-6), *(off_grads(ga, gb).values() if grad else ())]
            fits = all(e < max(tol, 1e-7) for e in far_off)
        except Exception:
            fits = False
        if not fits:
            found.append(what)
    return found


def prove(in_use=False):
    """Exit status 0 if every label holds; in_use: right losses and right values at sizes of real use too."""
    labels = labels_for(CALL)
    for n, l in labels.items():
        assert l["verdict"] in ("equals", "differs", "conditional") and l["stage"] in STAGES, n
        assert l["truth"] and l["call"] and (bool(l["grads"]) == (l["group"] == "gradient") or l["group"] == "size"), n
    names = sys.argv[1:] or list(labels)
    good = [check(n, labels[n], in_use) for n in names]
    count = {g: sum(labels[n]["group"] == g for n in names) for g in sorted({labels[n]["group"] for n in names})}
    print(f"{sum(good)} of {len(good)} labels hold; {count}; truth modelled for {sum(n in MODEL for n in names)}")
    sys.exit(0 if all(good) else 1)


# --- by position -----------------------------------------------------------------------------------------------------------

WEAK = [(1, 5, 9, 8, 3.0), (2, 4, 4, 8, 1.0), (3, 8, 16, 16, 5.0), (5, 6, 12, 16, 4.0)]
USUAL = [*WEAK[2:], (8, 12, 49, 32, 14.0), (8, 20, 64, 64, 30.0), (4, 9, 25, 24, 10.0)]
REAL = {  # sizes of real use: B, L, P, D, 1/tau, scale of v, scale of t
    "base": (16, 48, 196, 64, 1 / 0.07, 1.0, 1.0), "long": (16, 77, 256, 32, 14.0, 1.0, 1.0),
    "hot": (16, 32, 196, 64, 99.0, 6.0, 6.0), "tiny": (16, 32, 196, 64, 14.0, 1e-5, 1e-5),
    "wide": (2, 12, 49, 768, 14.0, 1.0, 1.0),
    "hard": (16, 48, 49, 8, 99.0, 1.0, 1.0, False), "loose": (16, 32, 196, 64, 99.0, 1.0, 1.0, False)}
CASES = {}


def case(name, A, M=None, S="base", tol=1e-9):
    CASES[name] = (A, M, S, tol)


def draw(g, B, L, P, D, inv, sv=1.0, st=1.0, corr=True):
    v = torch.randn(B, P, D, generator=g, dtype=torch.float64) * sv
    t = torch.randn(B, L, D, generator=g, dtype=torch.float64)
    if corr:
        t = t + 0.7 * v[:, torch.arange(L) % P] / sv
    t = t * st * (0.5 + torch.rand(B, L, 1, generator=g, dtype=torch.float64))
    n = torch.randint(1, L + 1, (B,), generator=g)
    n[0] = L
    if B > 1 and L > 2:
        n[1] = max(2, L // 2)
    k = torch.arange(L)[None] < n[:, None]
    return v, t, k, torch.tensor(math.log(inv), dtype=torch.float64)


def call_of(f, x):
    """Value and gradients for v, t and theta."""
    x = [a.clone() for a in x]
    for i in (0, 1, 3):
        x[i].requires_grad_()
    y = f(*x)
    if isinstance(y, tuple):
        return [torch.as_tensor(np.array(a)).double().detach() for a in y]
    y = y.double()
    g = torch.autograd.grad(y, [x[0], x[1], x[3]], allow_unused=True)
    return [y.detach()] + [torch.zeros_like(x[i]) if a is None else a for a, i in zip(g, (0, 1, 3))]


def rel(a, b):
    d = (a - b).abs().max().item()
    if not math.isfinite(d):
        return math.inf
    return d / (b.abs().max().item() + 1e-8) if d else 0.0


def far(a, b):
    return [rel(p, q) for p, q in zip(a, b)]


def ref_for(target):
    def coarse(v, t, k, th):
        return G(v.mean(1), oracle.masked_mean(t, k), th)

    def total(v, t, k, th):
        return 0.5 * coarse(v, t, k, th) + oracle.fine_grained_loss(v, t, k, th)

    def listing(v, t, k, th):
        return oracle.fine_grained_loss(v, t, k, th, reduction="token")

    return {"global": coarse, "total": total, "listing1": listing}.get(target, oracle.fine_grained_loss)


def check_case(name, label):
    A, M, S, tol = CASES[name]
    m, ref, g = load(name), ref_for(label["target"]), torch.Generator().manual_seed(7)
    line, ok = [], True

    def f(*x):
        return A(m, *x)

    if label["group"] == "sound":
        worst = 0.0
        for size in WEAK + USUAL + ([(4, 1, 4, 8, 2.0)] if label["target"] != "global" else []):
            x = draw(g, *size[:4], size[4], 1.7, 0.6)
            worst = max(worst, *far(call_of(f, x), call_of(ref, x)))
        ok = worst < tol
        x = draw(g, 3, 5, 9, 8, 3.0)
        x[2][1] = False
        try:
            e = format(max(far(call_of(f, x), call_of(ref, x))), ".0e")
        except Exception as err:
            e = type(err).__name__
        line += [f"off by {worst:.1e}; with an empty caption {e}"]
    elif label["group"] in ("unlisted", "faulty"):
        effect, d = [], 0.0
        for size in USUAL:
            x = draw(g, *size[:4], size[4], 1.7, 0.6)
            a, b = call_of(f, x), call_of(ref, x)
            effect.append(rel(a[0], b[0]))
            if M:
                d = max(far(a, call_of(M, x)))
                ok &= d < max(tol, 1e-9)
        ok &= min(effect) > 1e-4
        line += ["effect " + " ".join(f"{e:.2g}" for e in effect)] + ([f"model off by {d:.1e}"] if M else ["no model"])
    elif label["group"] == "size":
        worst = 0.0
        for size in WEAK:
            x = draw(g, *size[:4], size[4], 1.0, 0.8)
            worst = max(worst, *far(call_of(f, x), call_of(ref, x)))
        ok = worst < tol
        x = draw(g, *REAL[S])
        a, b = call_of(f, x), call_of(ref, x)
        d = far(a, b)
        ok &= max(d) > 1e-6
        line += [f"small {worst:.1e}", f"{S}: value {d[0]:.2g} gradients " + " ".join(f"{e:.2g}" for e in d[1:])]
        if M:
            e = max(far(a, call_of(M, x)))
            ok &= e < 1e-8
            line += [f"model off by {e:.1e}"]
        else:
            line += ["no model"]
    print("ok  " if ok else "FAIL", f"{name:34}", "; ".join(line), flush=True)
    return ok


def prove_cases():
    """Exit status 0 if every label holds."""
    labels = labels_for(CASES)
    names = [n for n in labels if n in sys.argv[1:]] if sys.argv[1:] else list(labels)
    bad = []
    for n in names:
        try:
            if not check_case(n, labels[n]):
                bad.append(n)
        except Exception as err:
            print("FAIL", n, type(err).__name__, err)
            bad.append(n)
    count = {g: sum(labels[n]["group"] == g for n in names) for g in sorted({labels[n]["group"] for n in names})}
    print(len(names), "files", count, "all labels hold" if not bad else f"FAILED {bad}")
    sys.exit(bool(bad))
