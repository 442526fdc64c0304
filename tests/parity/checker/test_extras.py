"""What people add to the loss: constants, smoothed labels, other contrasts, special tokens, temperatures, factors.

Each in at least two codings, alone and beside a known deviation; in plain torch, sharing nothing with the engine.
"""

import pytest
import torch
import torch.nn.functional as F

from parity.checker.diagnosis.deviations import DEVIATIONS, Found, words
from parity.checker.diagnosis.diagnose import diagnose
from parity.checker.diagnosis.switches import Variant, found_in, variant_of
from parity.checker.diagnosis.variants import evaluate
from parity.checker.probes import HELD_OUT, PROBES, Answer

SLOW = pytest.mark.slow


def box(loss):
    """A black box from a torch function of v, t, mask and the scale 1/tau."""
    def ask(probe):
        x = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (probe.v, probe.t, probe.theta)]
        y = loss(x[0], x[1], torch.tensor(probe.mask), x[2].exp())
        g = torch.autograd.grad(y, x, allow_unused=True)
        grads = {k: a.numpy() for k, a in zip(("v", "t", "theta"), g) if a is not None}
        return Answer({"fine": float(y.detach())}, {"fine": grads})

    return ask


def unit(x):
    return F.normalize(x, dim=-1)


def groups(v, t, eps=None, cosine=False):
    s = t @ (unit(v) if cosine else v).mT
    lo, hi = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    if eps is not None:
        s = (s - lo) / (hi - lo + eps)
        s = torch.where(s < 1 / v.shape[1], 0.0, s)
        return s / (s.sum(-1, keepdim=True) + eps) @ v
    flat = lo == hi
    s = torch.where(flat, 1.0, (s - lo) / torch.where(flat, 1.0, hi - lo))
    s = torch.where(s < 1 / v.shape[1], 0.0, s)
    return s / s.sum(-1, keepdim=True) @ v


def softened(v, t, sharp=1.0, cosine=False, least=None):
    a = ((unit(t) @ unit(v).mT if cosine else t @ v.mT) * sharp).softmax(-1)
    if least is not None:
        a = torch.where(a < least, 0.0, a)
        a = a / a.sum(-1, keepdim=True).clamp_min(1e-30)
    return a @ v


def logits(c, t, scale):
    return scale * unit(c) @ unit(t).mT


def entropies(z, mask, masked=True, fill=-torch.inf):
    """Both directions, summed."""
    both = (y.masked_fill(~mask[:, None], fill) if masked else y for y in (z, z.mT))
    return -sum(y.log_softmax(-1).diagonal(dim1=1, dim2=2) for y in both)


def smoothed(z, mask, share, others=False):
    each = 0
    for y in (z, z.mT):
        log_p = y.masked_fill(~mask[:, None], -1e9).log_softmax(-1)
        own, n = log_p.diagonal(dim1=1, dim2=2), mask.sum(1)[:, None]
        every = torch.where(mask[:, None], log_p, 0.0).sum(-1)
        spread = (every - own) / (n - 1).clamp_min(1) if others else every / n.clamp_min(1)
        each = each - (1 - share) * own - share * spread
    return each


def without_own(z, mask, masked=True, fill=-1e9):
    eye, each = torch.eye(z.shape[-1], dtype=torch.bool), 0
    for y in (z, z.mT):
        rest = (y.masked_fill(~mask[:, None], fill) if masked else y).masked_fill(eye, fill)
        each = each + rest.logsumexp(-1) - y.diagonal(dim1=1, dim2=2)
    return each


def without_own_by_exp(z, mask):
    e = z.exp() * (mask[:, :, None] & mask[:, None])
    own, z = e.diagonal(dim1=1, dim2=2), z.diagonal(dim1=1, dim2=2)
    return sum(torch.log((e.sum(dim) - own).clamp_min(1e-12)) - z for dim in (1, 2))


def pairs(z, mask, bias, mean=False):
    label = 2 * torch.eye(z.shape[-1]) - 1
    each = torch.where(mask[:, :, None] & mask[:, None], -F.logsigmoid(label * (z + bias)), 0.0).sum((1, 2))
    n = mask.sum(1).clamp_min(1)
    return (each / (n * n if mean else n)).mean()


def by_sample(each, mask):
    return (torch.where(mask, each, 0.0).sum(1) / mask.sum(1).clamp_min(1)).mean() / 2


def by_token(each, mask):
    return torch.where(mask, each, 0.0).sum() / mask.sum().clamp_min(1) / 2


def inner(mask):
    place = torch.arange(mask.shape[1])
    return mask & (place > 0) & (place < mask.sum(1, keepdim=True) - 1)


def in_a_loop(v, t, mask, scale):
    out = []
    for a, b, n in zip(v, t, mask.sum(1).tolist()):
        if n == 0:
            out.append(a.sum() * 0)
            continue
        z = logits(groups(a[None], b[None, :n]), b[None, :n], scale)[0]
        both = [F.cross_entropy(y, torch.arange(n), label_smoothing=0.2) for y in (z, z.T)]
        out.append(sum(both) / 2)
    return torch.stack(out).mean()


def sliced(v, t, mask, scale):
    t, mask = t[:, 1:-1], mask[:, 1:-1]
    return by_sample(entropies(logits(groups(v, t), t, scale), mask, fill=-1e9), mask)


def without_first(v, t, mask, scale):
    t, mask = t[:, 1:], mask[:, 1:]
    return by_sample(entropies(logits(groups(v, t, 1e-8), t, scale), mask, fill=-1e9), mask)


def gained(v, t, mask, scale):
    """Cosine, epsilons, and logits divided by a number."""
    return by_sample(entropies(logits(groups(v, t, 1e-8, True), t, scale / 4), mask, fill=-1e9), mask)


def plain(v, t, scale, **how):
    return logits(groups(v, t, **how), t, scale)


def root(v):
    return v.shape[-1] ** 0.5


SPECIAL, AT_TOKENS = "logits.special_left_out", "the first and the last token"
CASES = {
    "constant": (lambda v, t, m, s: by_sample(entropies(plain(v, t, s), m), m) + 0.3, ["loss.constant(0.3)"]),
    "constant, epsilons": (lambda v, t, m, s: by_sample(entropies(plain(v, t, s, eps=1e-8), m), m) - 2.5,
                           ["minmax.epsilon(1e-08)", "loss.constant(-2.5)"]),
    "constant, Listing 1": (lambda v, t, m, s: by_token(entropies(plain(v, t, s), m), m) - 1.5,
                            ["loss.constant(-1.5)", "reduction.token"]),
    "log(1/tau)": (lambda v, t, m, s: by_sample(entropies(plain(v, t, s), m) + 2 * torch.log(s), m),
                   ["loss.constant(log(1/tau))"]),
    "log(1/tau), open": (lambda v, t, m, s: by_sample(entropies(plain(v, t, s), m, masked=False), m) + torch.log(s),
                         ["logits.padding_not_masked", "loss.constant(log(1/tau))"]),
    "softmax, its temperature": (lambda v, t, m, s: by_sample(entropies(logits(softened(v, t, 10.0), t, s), m), m),
                                 ["weights.softmax", "weights.temperature(0.1)"]),
    "softmax by sqrt(D)": (lambda v, t, m, s: by_sample(entropies(logits(softened(v, t, 1 / root(v)), t, s), m), m),
                           ["weights.softmax", "weights.temperature(sqrt(D))"]),
    "softmax of cosines, Listing 1": (
        lambda v, t, m, s: by_token(entropies(logits(softened(v, t, 4.0, True), t, s), m), m),
        ["similarity.cosine", "weights.softmax", "weights.temperature(0.25)", "reduction.token"]),
    "softmax and logits, each its number": (
        lambda v, t, m, s: by_sample(entropies(logits(softened(v, t, 1 / 0.2), t, 1 / 0.07), m), m),
        ["weights.softmax", "weights.temperature(0.2)", "logits.temperature_constant(0.07)"]),
    "softmax, then 1/P": (
        lambda v, t, m, s: by_sample(entropies(logits(softened(v, t, least=1 / v.shape[1]), t, s), m), m),
        ["weights.softmax_cut(1/P)"]),
    "softmax, then a number": (lambda v, t, m, s: by_sample(entropies(logits(softened(v, t, least=0.02), t, s), m), m),
                               ["weights.softmax_cut(0.02)"]),
    "softmax, then a larger number": (
        lambda v, t, m, s: by_sample(entropies(logits(softened(v, t, least=0.05), t, s), m), m), ["weights.softmax_cut(0.05)"]),
    "softmax, then 1/P, open": (
        lambda v, t, m, s: by_sample(entropies(logits(softened(v, t, 10.0, least=1 / v.shape[1]), t, s), m, False), m),
        ["weights.softmax_cut(1/P)", "weights.temperature(0.1)", "logits.padding_not_masked"]),
    "smoothing": (lambda v, t, m, s: by_sample(smoothed(plain(v, t, s), m, 0.1), m), ["loss.smoothing(0.1)"]),
    "smoothing in a loop": (in_a_loop, ["loss.smoothing(0.2)"]),
    "smoothing over the others": (lambda v, t, m, s: by_sample(smoothed(plain(v, t, s), m, 0.05, True), m),
                                  ["loss.smoothing(0.05)"]),
    "smoothing, cosine, epsilons": (
        lambda v, t, m, s: by_sample(smoothed(plain(v, t, s, eps=1e-8, cosine=True), m, 0.1), m),
        ["similarity.cosine", "minmax.epsilon(1e-08)", "loss.smoothing(0.1)"]),
    "smoothing, tau a number": (lambda v, t, m, s: by_sample(smoothed(plain(v, t, 1 / 0.07), m, 0.1), m),
                                ["logits.temperature_constant(0.07)", "loss.smoothing(0.1)"]),
    "decoupled": (lambda v, t, m, s: by_sample(without_own(plain(v, t, s), m), m), ["loss.decoupled"]),
    "decoupled by exp": (lambda v, t, m, s: by_sample(without_own_by_exp(plain(v, t, s), m), m), ["loss.decoupled"]),
    "decoupled, open": (lambda v, t, m, s: by_sample(without_own(plain(v, t, s), m, masked=False), m),
                        ["logits.padding_not_masked", "loss.decoupled"]),
    "decoupled, cosine, Listing 1": (
        lambda v, t, m, s: by_token(without_own(plain(v, t, s, cosine=True), m, fill=-1e4), m),
        ["similarity.cosine", "loss.decoupled", "reduction.token"]),
    "sigmoid": (lambda v, t, m, s: pairs(plain(v, t, s), m, -10.0), ["loss.sigmoid(-10)"]),
    "sigmoid, a mean": (lambda v, t, m, s: pairs(plain(v, t, s), m, -2.5, True), ["loss.sigmoid(-2.5)"]),
    "sigmoid, epsilons": (lambda v, t, m, s: pairs(plain(v, t, s, eps=1e-8), m, -5.0),
                          ["minmax.epsilon(1e-08)", "loss.sigmoid(-5)"]),
    "sigmoid, cosine, tau a number": (lambda v, t, m, s: pairs(plain(v, t, 10.0, cosine=True), m, -10.0),
                                      ["similarity.cosine", "logits.temperature_constant(0.1)", "loss.sigmoid(-10)"]),
    "special tokens": (lambda v, t, m, s: by_sample(entropies(plain(v, t, s), inner(m), fill=-1e9), inner(m)),
                       [f"{SPECIAL}({AT_TOKENS})"]),
    "special tokens sliced": (sliced, [f"{SPECIAL}(the first and the last place)"]),
    "special first, epsilons": (without_first, ["minmax.epsilon", f"{SPECIAL}(the first token)"]),
    "special rows": (lambda v, t, m, s: by_sample(entropies(plain(v, t, s), m, fill=-1e9), inner(m)),
                     [f"{SPECIAL}({AT_TOKENS})"]),
    "special, cosine, Listing 1": (
        lambda v, t, m, s: by_token(entropies(plain(v, t, s, cosine=True), inner(m), fill=-1e9), inner(m)),
        ["similarity.cosine", f"{SPECIAL}({AT_TOKENS})", "reduction.token"]),
    "logits by sqrt(D)": (lambda v, t, m, s: by_sample(entropies(plain(v, t, s / root(v)), m), m),
                          ["logits.scaled(1/sqrt(D))"]),
    "logits by 4, cosine, epsilons": (gained, ["similarity.cosine", "minmax.epsilon(1e-08)", "logits.scaled(0.25)"]),
    "logits twice, Listing 1": (lambda v, t, m, s: by_token(entropies(plain(v, t, 2 * s), m), m),
                                ["logits.scaled(2)", "reduction.token"]),
    "logits by sqrt(D), smoothing": (lambda v, t, m, s: by_sample(smoothed(plain(v, t, s / root(v)), m, 0.1), m),
                                     ["logits.scaled(1/sqrt(D))", "loss.smoothing(0.1)"]),
    "sqrt(D) twice": (lambda v, t, m, s: by_sample(entropies(logits(softened(v, t, 1 / root(v)), t, s / root(v)), m), m),
                      ["weights.softmax", "weights.temperature(sqrt(D))", "logits.scaled(1/sqrt(D))"]),
}  # fmt: skip
QUICK = {"constant, epsilons", "decoupled by exp", "special tokens"}


BEYOND = {  # what real sizes show besides: the axis along which it ends
    "decoupled by exp": "inverse",                         # exp(z) less one of its terms loses its digits at 1/tau = 100
    "decoupled, open": "L",                                # a token alone has no other to be told from
    "softmax, then a number": "P", "softmax, then a larger number": "P",  # of so many patches none keeps that much
}


@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x in QUICK else SLOW) for x in CASES])
def test_it_is_named_with_its_number(name):
    loss, wanted = CASES[name]
    d = diagnose(box(loss))
    limit = BEYOND.get(name)
    assert d.verdict == ("unexplained" if limit else "explained"), d.note
    assert sorted(map(str, d.deviations)) == sorted(wanted) and {x.key for x in d.limits} == {limit} - {None}, d.note
    assert d.reproduced_to < 1e-7 and d.stage == DEVIATIONS[wanted[0].partition("(")[0]].stage


EACH = [
    Found("loss.constant", 0.3), Found("loss.constant", "log(1/tau)", "to every token's loss"), Found("loss.smoothing", 0.1),
    Found("loss.smoothing", 0.1, "over the other tokens alone"), Found("loss.decoupled"), Found("loss.sigmoid", -10.0),
    Found("loss.sigmoid", -2.0, "a mean over pairs"), Found("logits.scaled", 0.25), Found("logits.scaled", "1/sqrt(D)"),
    Found("logits.special_left_out", AT_TOKENS), Found("logits.special_left_out", "the first token", "as rows alone"),
    Found("weights.softmax_cut", "1/P", "of s"), Found("weights.softmax_cut", 0.02, "of s/tau"),
    Found("loss.decoupled", None, "a caption of one token has the denominator L exp(-10000)"),
]  # fmt: skip


@pytest.mark.parametrize("found", EACH, ids=str)
def test_each_has_its_name_back_and_its_words(found):
    setting, _ = variant_of([found])
    assert found_in(setting) == (found,)
    value = found.value if isinstance(found.value, str) else f"{found.value:.6g}" if found.value is not None else ""
    assert value in words(found) and "{" not in words(found)
    offs = [abs(evaluate(p, setting).losses["fine"] - evaluate(p, Variant()).losses["fine"]) for p in HELD_OUT.values()]
    assert min(offs) > 1e-3


def test_temperature_of_a_softmax_has_its_name_back():
    both = (Found("weights.softmax", None, "of s"), Found("weights.temperature", 0.1))
    setting, _ = variant_of(both)
    assert found_in(setting) == both
    assert abs(evaluate(PROBES["padded"], setting).losses["fine"]
               - evaluate(PROBES["padded"], Variant(weights="softmax")).losses["fine"]) > 1e-3


def test_what_lacks_its_number_is_refused():
    with pytest.raises(ValueError, match=r"loss\.constant: expected a value"):
        variant_of(["loss.constant"])
