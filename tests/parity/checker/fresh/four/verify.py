"""Checks every label of this zoo:  python verify.py [names]"""
import importlib.util, math, os, sys, tomllib
os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
import torch.nn.functional as F
from parity import oracle
torch.set_num_threads(1)
HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True


def load(name):
    spec = importlib.util.spec_from_file_location(name, f"{HERE}/{name}.py")
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m


def U(x):
    return x / x.norm(dim=-1, keepdim=True)


def MM(s):
    return (s - s.amin(1, keepdim=True)) / (s.amax(1, keepdim=True) - s.amin(1, keepdim=True))


def CE(z):
    return torch.logsumexp(z, 1) - z.diagonal(), torch.logsumexp(z, 0) - z.diagonal()


def SAMPLE(pairs):
    return sum((a + b).sum() / len(a) for a, b in pairs) / (2 * len(pairs))


def TOKEN(pairs):
    return sum((a + b).sum() for a, b in pairs) / (2 * sum(len(a) for a, b in pairs))


def R(v, t, k, th, prep=None, sim=None, mm=MM, sp=None, wt=None, grp=None, nc=U, nt=U, lg=None, ce=CE, red=SAMPLE):
    """Eq. 6, one sample at a time, with any step exchanged."""
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


def m_guard(v):
    v = v * 1
    if v.requires_grad:
        v.register_hook(lambda g: g.clamp(-10, 10))
    return v


def G(vb, tb, th):
    return oracle.global_loss(vb, tb, th)


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


def call(f, x):
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
    if target == "global":
        return lambda v, t, k, th: G(v.mean(1), oracle.masked_mean(t, k), th)
    if target == "total":
        return lambda v, t, k, th: 0.5 * G(v.mean(1), oracle.masked_mean(t, k), th) + oracle.fine_grained_loss(v, t, k, th)
    if target == "listing1":
        return lambda v, t, k, th: oracle.fine_grained_loss(v, t, k, th, reduction="token")
    return lambda v, t, k, th: oracle.fine_grained_loss(v, t, k, th)


SMALL = [(1, 5, 9, 8, 3.0), (2, 4, 4, 8, 1.0), (3, 8, 16, 16, 5.0), (5, 6, 12, 16, 4.0)]
ORDINARY = SMALL[2:] + [(8, 12, 49, 32, 14.0), (8, 20, 64, 64, 30.0), (4, 9, 25, 24, 10.0)]
REAL = {  # sizes of real use: B, L, P, D, 1/tau, scale of v, scale of t
    "base": (16, 48, 196, 64, 1 / 0.07, 1.0, 1.0), "long": (16, 77, 256, 32, 14.0, 1.0, 1.0), "hot": (16, 32, 196, 64, 99.0, 6.0, 6.0),
    "tiny": (16, 32, 196, 64, 14.0, 1e-5, 1e-5), "wide": (2, 12, 49, 768, 14.0, 1.0, 1.0),
    "hard": (16, 48, 49, 8, 99.0, 1.0, 1.0, False),
    "loose": (16, 32, 196, 64, 99.0, 1.0, 1.0, False)}
CASES = {}


def case(name, A, M=None, S="base", tol=1e-9):
    CASES[name] = (A, M, S, tol)


def check(name, label):
    A, M, S, tol = CASES[name]
    m, ref, g = load(name), ref_for(label["target"]), torch.Generator().manual_seed(7)
    f = lambda *x: A(m, *x)
    line, ok = [], True
    if label["group"] == "sound":
        worst = 0.0
        for size in SMALL + ORDINARY + ([(4, 1, 4, 8, 2.0)] if label["target"] != "global" else []):
            x = draw(g, *size[:4], size[4], 1.7, 0.6)
            worst = max(worst, *far(call(f, x), call(ref, x)))
        ok = worst < tol
        x = draw(g, 3, 5, 9, 8, 3.0)
        x[2][1] = False
        try:
            e = max(far(call(f, x), call(ref, x)))
        except Exception as err:
            e = type(err).__name__
        line += [f"off by {worst:.1e}; with an empty caption {e if isinstance(e, str) else format(e, '.0e')}"]
    elif label["group"] in ("unlisted", "faulty"):
        effect = []
        for size in ORDINARY:
            x = draw(g, *size[:4], size[4], 1.7, 0.6)
            a, b = call(f, x), call(ref, x)
            effect.append(rel(a[0], b[0]))
            if M:
                d = max(far(a, call(M, x)))
                ok &= d < max(tol, 1e-9)
        ok &= min(effect) > 1e-4
        line += ["effect " + " ".join(f"{e:.2g}" for e in effect)] + ([f"model off by {d:.1e}"] if M else ["no model"])
    elif label["group"] == "size":
        worst = 0.0
        for size in SMALL:
            x = draw(g, *size[:4], size[4], 1.0, 0.8)
            worst = max(worst, *far(call(f, x), call(ref, x)))
        ok = worst < tol
        size = REAL[S]
        x = draw(g, *size)
        a, b = call(f, x), call(ref, x)
        d = far(a, b)
        ok &= max(d) > 1e-6
        line += [f"small {worst:.1e}", f"{S}: value {d[0]:.2g} gradients " + " ".join(f"{e:.2g}" for e in d[1:])]
        if M:
            e = max(far(a, call(M, x)))
            ok &= e < 1e-8
            line += [f"model off by {e:.1e}"]
        else:
            line += ["no model"]
    print("ok  " if ok else "FAIL", f"{name:34}", "; ".join(line), flush=True)
    return ok


def main():
    labels = tomllib.load(open(f"{HERE}/labels.toml", "rb"))
    files = {f[:-3] for f in os.listdir(HERE) if f.endswith(".py") and f != "verify.py"}
    assert files == set(labels) == set(CASES), files ^ set(labels) | files ^ set(CASES)
    names = [n for n in labels if n in sys.argv[1:]] if sys.argv[1:] else list(labels)
    bad = []
    for n in names:
        try:
            if not check(n, labels[n]):
                bad.append(n)
        except Exception as err:
            print("FAIL", n, type(err).__name__, err)
            bad.append(n)
    count = {g: sum(labels[n]["group"] == g for n in names) for g in sorted({labels[n]["group"] for n in names})}
    print(len(names), "files", count, "all labels hold" if not bad else f"FAILED {bad}")
    return bool(bad)


case('two_way_normaliser', lambda m, v, t, k, th: m.step(dict(patches=v, words=t, word_lengths=k.sum(1), scale=th.exp())),
     lambda v, t, k, th: R(v, t, k, th, wt=lambda w: (lambda q: q / q.sum(1, keepdim=True))(w / w.sum(0).clamp(min=1e-12))), S='base')
case('text_text_negatives', lambda m, v, t, k, th: m.make_criterion()(v, t, k, th.exp()),
     lambda v, t, k, th: (lambda o: sum((a.sum() + (torch.logsumexp(torch.cat([z.T, (th.exp() * U(ti[ki]) @ U(ti[ki]).T).masked_fill(torch.eye(len(z)).bool(), -torch.inf)], 1), 1) - z.diagonal()).sum()) / len(z) for (a, z), ti, ki in zip(o, t, k)) / (2 * len(v)))(R(v, t, k, th, ce=lambda z: (CE(z)[0], z), red=list)), S='base')
case('angular_logits', lambda m, v, t, k, th: m.Angular(inv_tau=th.exp()).apply_loss(images=v, texts=t, pad=~k),
     lambda v, t, k, th: R(v, t, k, th, lg=lambda c, t, e: e * (1 - 2 / math.pi * torch.acos(c @ t.T))), S='base')
case('above_row_mean', lambda m, v, t, k, th: (m.sparc(t.detach().numpy(), v.detach().numpy(), k.numpy(), (-th).exp().item()),),
     lambda v, t, k, th: R(v, t, k, th, sp=lambda h: h * (h >= h.mean(1, keepdim=True))), S='base')
case('root_length', lambda m, v, t, k, th: m.loss(visual=v, textual=t, textual_mask=k, log_temperature=-th),
     lambda v, t, k, th: R(v, t, k, th, red=lambda o: sum((a + b).sum() / len(a) ** 0.5 for a, b in o) / (2 * len(o))), S='base')
case('soft_text_targets', lambda m, v, t, k, th: m.SoftSparc()(v, t, k, th.exp()),
     lambda v, t, k, th: (lambda o: sum(sum(-(torch.softmax(5 * U(ti[ki]) @ U(ti[ki]).T, 1) * y.log_softmax(1)).sum() for y in (z, z.T)) / len(z) for (z, _), ti, ki in zip(o, t, k)) / (2 * len(v)))(R(v, t, k, th, ce=lambda z: (z, z), red=list)), S='base')
case('running_context', lambda m, v, t, k, th: m.criterion(v, t, k, th),
     lambda v, t, k, th: R(v, t, k, th, grp=lambda a, v, t: torch.stack([(a @ v)[:i + 1].mean(0) for i in range(len(a))])), S='base')
case('percentile_range', lambda m, v, t, k, th: m.loss_fn({"theta": th}, v, t, k.sum(1)),
     lambda v, t, k, th: R(v, t, k, th, mm=lambda s: ((s - torch.quantile(s, 0.1, dim=1, keepdim=True)) / (torch.quantile(s, 0.9, dim=1, keepdim=True) - torch.quantile(s, 0.1, dim=1, keepdim=True))).clamp(0, 1)), S='base')
case('late_tokens_detached', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, torch.cat([t[:, :24], t[:, 24:].detach()], 1), k, th), S='base')
case('half_norms', lambda m, v, t, k, th: m.Cosine()(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, nc=lambda x: x / x.norm(dim=-1, keepdim=True).half().double(), nt=lambda x: x / x.norm(dim=-1, keepdim=True).half().double()), S='wide')
case('first_eight', lambda m, v, t, k, th: m.loss([(x, y, int(z.sum())) for x, y, z in zip(v, t, k)], th.exp()),
     lambda v, t, k, th: R(v[:8], t[:8], k[:8], th), S='base')
case('forty_positions', lambda m, v, t, k, th: m.loss(t, k.sum(1), v, th),
     lambda v, t, k, th: (lambda o: sum((a + b).sum() / n for (a, b), n in zip(o, k.sum(1))) / (2 * len(v)))(R(v, t[:, :40], k[:, :40], th, red=list)), S='base')
case('scale_gate', lambda m, v, t, k, th: m.loss(v, t, k, th),
     lambda v, t, k, th: R(v, t, k, th.detach() if th > math.log(50) else th), S='hot')
case('shifted_partition', lambda m, v, t, k, th: m.loss(v, t, k, th.exp()),
     lambda v, t, k, th: R(v, t, k, th, ce=lambda z: tuple(th.exp() + torch.log(torch.exp(x - th.exp()).sum(1) + 1e-20) - x.diagonal() for x in (z, z.T))), S='loose')
case('keyword_batch', lambda m, v, t, k, th: m.training_loss(image_grid=v.mT.unsqueeze(-1), words=t, ignore=(~k).double(), tau=(-th).exp()[None])["fine"], S='base')
case('flat_tokens', lambda m, v, t, k, th: m.loss(v.flatten(0, 1), t.flatten(0, 1), k.flatten(), len(v), th.exp()), S='base')
case('factory', lambda m, v, t, k, th: m.build()(t, v, ~k, th.exp()), S='base')
case('numpy_global', lambda m, v, t, k, th: (m.clip_np(v.mean(1).detach().numpy(), oracle.masked_mean(t, k).detach().numpy(), th.item()),), S='base')
case('objective_class', lambda m, v, t, k, th: m.Objective()(dict(image_patches=v, text_tokens=t, text_mask=k, theta=th))[0], S='base')
case('sorted_by_length', lambda m, v, t, k, th: m.loss(v, t, k, th), S='base')

if __name__ == "__main__":
    sys.exit(main())
