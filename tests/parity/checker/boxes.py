"""Black boxes for the diagnosis: its own switches, plain torch with a hook at every stage; and how answers are compared."""

import torch
import torch.nn.functional as F

from parity.checker.diagnosis.asking import gradient_off, loss_off
from parity.checker.diagnosis.switches import variant_of
from parity.checker.diagnosis.variants import evaluate
from parity.checker.probes import Answer, draw

FRESH = [draw(f"fresh_{k}", lengths, columns, patches) for k, (lengths, columns, patches) in enumerate(
    [((4, 2, 6), 7, 10), ((5, 5), 5, 8), ((3, 6, 1, 2), 6, 11)])]  # fmt: skip


def box(fine=None, pairs=None, weights=None, grads=True, names=None):
    """A black box from settings of the switches; weights (lambda_g, lambda_f): it gives the total."""
    def ask(probe):
        r = evaluate(probe, fine, pairs)
        losses, given = dict(r.losses), dict(r.grads)
        if weights:
            w = dict(zip(("global", "fine"), weights))
            losses["total"] = sum(w[k] * r.losses[k] for k in w)
            given["total"] = {name: sum(w[k] * r.grads[k][name] for k in w) for name in r.grads["fine"]}
        kept = names or (("total",) if weights else tuple(losses))
        return Answer({k: losses[k] for k in kept}, {k: given[k] for k in kept} if grads else {})

    return ask


def wrapped(loss, **kwargs):
    """A black box from a torch function of v, t, mask, theta."""
    def ask(probe):
        x = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (probe.v, probe.t, probe.theta)]
        y = loss(x[0], x[1], torch.tensor(probe.mask), x[2], **kwargs)
        g = torch.autograd.grad(y, x, allow_unused=True)
        grads = {k: a.numpy() for k, a in zip(("v", "t", "theta"), g) if a is not None}
        return Answer({"fine": float(y.detach())}, {"fine": grads})

    return ask


def plain(
    v, t, mask, theta, *, like=None, stretch=None, cut=None, weigh=None, average=None, c_unit=None, t_unit=None,
    logits=None, fill=-torch.inf, ce=None, mean=None,
):
    """SPARC's fine-grained loss; each keyword replaces one of its steps."""
    s = (like or (lambda t, v: t @ v.mT))(t, v)
    if stretch is None:
        low, high = s.amin(2, keepdim=True), s.amax(2, keepdim=True)
        same = low == high
        h = torch.where(same, 1.0, (s - low) / torch.where(same, 1.0, high - low))
    else:
        h = stretch(s)
    h = (cut or (lambda h: torch.where(h >= 1 / h.shape[2], h, 0.0)))(h)
    a = (weigh or (lambda h: h / torch.where(h.sum(2, keepdim=True) == 0, 1.0, h.sum(2, keepdim=True))))(h)
    c = (average or (lambda a, v, t: a @ v))(a, v, t)
    c = (c_unit or (lambda c: F.normalize(c, dim=2)))(c)
    u = (t_unit or (lambda t: F.normalize(t, dim=2)))(t)
    z = (logits or (lambda c, u, theta: theta.exp() * c @ u.mT))(c, u, theta)
    gone = ~mask[:, None, :]
    vt, tv = (x.masked_fill(gone, fill) for x in (z, z.mT))
    each = (ce or entropy)(vt, tv)
    if mean is not None:
        return mean(each, mask)
    return (torch.where(mask, each, 0.0).sum(1) / mask.sum(1).clamp(min=1)).mean()


def entropy(vt, tv):
    return -(vt.log_softmax(2) + tv.log_softmax(2)).diagonal(dim1=1, dim2=2) / 2


def same_side(vt, tv):
    return -vt.log_softmax(2).diagonal(dim1=1, dim2=2)


def raw_range(s, eps=0.0):
    low = s.amin(2, keepdim=True)
    return (s - low) / (s.amax(2, keepdim=True) - low + eps)


def divide(h, eps=0.0):
    return h / (h.sum(2, keepdim=True) + eps)


def soft_unit(x):
    return x / (x.norm(dim=2, keepdim=True) + 1e-6)


def over_batch(v, t, mask, theta):
    """All tokens of the batch compete, those of padding left out."""
    low = (s := torch.bmm(t, v.transpose(1, 2))).min(-1, keepdim=True).values
    h = (s - low) / (s.max(-1, keepdim=True).values - low)
    h = h * (h >= 1 / v.size(1))
    c = F.normalize(torch.bmm(h / h.sum(-1, keepdim=True), v), dim=-1)[mask]
    u = F.normalize(t, dim=-1)[mask]
    y = torch.arange(len(c))
    z = theta.exp() * c @ u.T
    return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2


def said(diagnosis):
    return sorted(map(str, diagnosis.deviations))


def is_equal(wanted, diagnosis):
    """The deviations that were planted, or a set that the diagnosis itself calls equal."""
    return any(sorted(map(str, some)) == sorted(wanted) for some in [diagnosis.deviations, *diagnosis.equals])


def indistinguishable(planted, diagnosis):
    """Do both sets give the same loss and gradients on probes that the engine has never seen?"""
    other = variant_of([d for d in diagnosis.deviations if d.id not in ("edge.all_padding", "edge.zero_padding")])[0]
    for probe in FRESH:
        a, b = evaluate(probe, planted), evaluate(probe, other)
        if loss_off(a.losses["fine"], b.losses["fine"]) > 1e-9 or gradient_off(a.grads["fine"], b.grads["fine"]) > 1e-7:
            return False
    return True
