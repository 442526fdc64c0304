"""Mixed precision against a float64 replay that rounds where the trainer rounds, one rounding after the other.

Two sound bfloat16 runs soon differ by as much as either differs from the truth: an entry that falls on the other side of a
rounding moves the next layer's entries across theirs.  So nothing is compared from end to end.  Every tensor that the trainer
rounded or handed on is computed again in float64 from the tensors that the trainer itself had before it, forward and back,
by the reference's own operations; what may be off is then one rounding and the order of one sum.  If every step is right,
so is the whole.

Where the trainer rounds (torch.autocast in bfloat16): operands and results of linear layers and of attention, GELU's result,
and the gradients of all these.  Residuals, norms, positions, embeddings, means and both losses are float32.  With a bfloat16
stream ("stream") residuals, what leaves norms and means, and the gradients of these are rounded as well.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from parity.ladder.rungs.arithmetic import Arithmetic
from parity.ladder.rungs.judge import judge
from parity.ladder.rungs.record import Pass
from parity.ladder.rungs.setup import Row, Setup, worst
from parity.vectors import budgets

NEAR = 2e-6  # of a row's range: nearer to the threshold than that, float32 may keep other patches than float64
Upstream = float | Sequence[np.ndarray]  # of the loss; or, of towers alone, of both towers' features
HALF = 2.0**-9  # the least that rounding to bfloat16 may move a tensor's largest entry: half a unit, at the end of a binade


@dataclass(frozen=True)
class Step:
    """A tensor on the way.      name: "where: what", or what alone; narrow: the trainer holds it or its parts in bfloat16"""

    name: str
    want: np.ndarray
    got: np.ndarray
    narrow: bool

    @property
    def turn(self) -> int:
        """Forward order, then the order in which gradients arrive: losses, heads, towers."""
        if "backward" not in self.name:
            return 0
        return {"losses": 1, "heads": 2}.get(self.name.split(",")[0], 3)


class Replay:
    """One arithmetic's answers to a recorded run: steps on the way, and the sum of every parameter's gradient."""

    def __init__(self, setup: Setup, config: Any, how: Arithmetic):
        self.setup, self.c, self.how = setup, config, how
        self.ops, self.losses = setup.reference.ops, setup.reference.losses
        self.steps: list[Step] = []
        self.sums: dict[str, np.ndarray] = {}
        self.narrow: set[str] = set()

    def at(self, name: str, x: Any, got: np.ndarray, narrow: bool = False, inside: bool = False) -> None:
        """A value or gradient on the way, beside the trainer's.      inside: float32, of parts that were rounded"""
        narrow = narrow or (self.how.stream and not name.startswith("loss"))
        self.steps.append(Step(name, self.how.out(x) if narrow else self.how.give(x), got, narrow or inside))

    def add(self, name: str, g: Any, narrow: bool = True) -> None:
        """A part of a parameter's gradient: one for every pass."""
        g = self.how.out(g) if narrow else self.how.give(g)
        self.sums[name] = self.sums[name] + g if name in self.sums else g
        if narrow:
            self.narrow.add(name)

    # ---------------------------------------------------------------------------------------------------------- towers

    def tower(self, kind: str, run: Pass, inputs: Any, mask: np.ndarray | None) -> None:
        """From pictures or tokens to features, and back to every parameter.      kind: "vision" | "text" """
        c, how, ops = self.c, self.how, self.ops
        p = {name.removeprefix(f"{kind}."): x for name, x in run.params.items() if name.startswith(f"{kind}.")}
        depth, heads = getattr(c, f"{kind}_depth"), getattr(c, f"{kind}_heads")
        entries = [f"{kind}.blocks.{i}.norm1.in" for i in range(depth)] + [f"{kind}.norm.in"]
        here = f"{kind}, first layer"
        if kind == "vision":
            y, back_first = ops.patch_embedding(how.r(inputs), how.r(p["patch.weight"]), how.r(p["patch.bias"]), c.patch_size)
            self.at(f"{here}: patch", y, run.value("vision.patch.out"), narrow=True)
            x = how.give(run.value("vision.patch.out")) + how.give(p["positions"])
        else:
            y, back_first = ops.embedding(inputs, how.give(p["embedding.weight"]))
            self.at(f"{here}: embedding", y, run.value("text.embedding.out"))
            x = how.give(run.value("text.embedding.out")) + how.give(p["positions"])[: inputs.shape[1]]
        self.at(f"{here}: positions", x, run.value(entries[0]))
        backs = [self.block(f"{kind}.blocks.{i}", run, heads, mask, entries[i + 1]) for i in range(depth)]
        y, back_norm = ops.layer_norm(how.give(run.value(entries[-1])), how.give(p["norm.weight"]), how.give(p["norm.bias"]),
                                      c.layer_norm_eps)
        self.at("image_features" if kind == "vision" else "text_features", y, run.value(f"{kind}.norm.out"))
        dx, dgain, dshift = back_norm(how.give(run.grad(f"{kind}.norm.out")))
        self.at(f"{kind}, last norm, backward: x", dx, run.grad(entries[-1]))
        self.add(f"{kind}.norm.weight", dgain, narrow=False)
        self.add(f"{kind}.norm.bias", dshift, narrow=False)
        for back in reversed(backs):
            back()
        dx = how.give(run.grad(entries[0]))               # (B,L,C) or (B,P,C)
        dpositions = np.sum(dx, 0)
        if kind == "vision":
            self.at(f"{here}, backward: patch", dx, run.grad("vision.patch.out"), narrow=True)
            _, dweight, dbias = back_first(how.r(dx))
            self.add("vision.patch.weight", dweight)
            self.add("vision.patch.bias", dbias)
        else:
            self.add("text.embedding.weight", back_first(dx), narrow=False)
            beyond = np.zeros_like(p["positions"][inputs.shape[1] :])
            dpositions = np.concatenate([dpositions, how.give(beyond)])
        self.add(f"{kind}.positions", dpositions, narrow=False)

    def block(self, name: str, run: Pass, heads: int, mask: Any, leaves: str) -> Callable[[], None]:
        """x + attention(norm(x)), then x + mlp(norm(x)), and back.      leaves: the name of what comes out"""
        c, how, ops = self.c, self.how, self.ops
        p = {n.removeprefix(f"{name}."): x for n, x in run.params.items() if n.startswith(f"{name}.")}

        def value(n):
            return how.give(run.value(f"{name}.{n}"))

        def grad(n):
            return how.give(run.grad(f"{name}.{n}"))

        def here(n, x, narrow=True):
            self.at(f"{name}: {n}", x, run.value(f"{name}.{n}"), narrow)

        weight = np.concatenate([p[f"attn.{part}.weight"] for part in ("query", "key", "value")])
        bias = np.concatenate([p["attn.query.bias"], np.zeros_like(p["attn.query.bias"]), p["attn.value.bias"]])
        norms = [(how.give(p[f"norm{i}.weight"]), how.give(p[f"norm{i}.bias"]), c.layer_norm_eps) for i in (1, 2)]

        h, back_norm1 = ops.layer_norm(value("norm1.in"), *norms[0])
        here("norm1.out", h, narrow=False)
        qkv, back_qkv = how.linear(ops, value("norm1.out"), weight, bias)
        o, back_attention = how.attention(ops, how.r(qkv), heads, mask)
        here("attn.out.in", o)
        a, back_out = how.linear(ops, value("attn.out.in"), p["attn.out.weight"], p["attn.out.bias"])
        here("attn.out.out", a)
        here("norm2.in", value("norm1.in") + value("attn.out.out"), narrow=False)
        h, back_norm2 = ops.layer_norm(value("norm2.in"), *norms[1])
        here("norm2.out", h, narrow=False)
        u, back_up = how.linear(ops, value("norm2.out"), p["mlp.up.weight"], p["mlp.up.bias"])
        here("mlp.up.out", u)
        g, back_gelu = ops.gelu(value("mlp.up.out"), c.gelu)
        here("mlp.down.in", g)
        m, back_down = how.linear(ops, value("mlp.down.in"), p["mlp.down.weight"], p["mlp.down.bias"])
        here("mlp.down.out", m)
        self.at(f"{name}: out", value("norm2.in") + value("mlp.down.out"), run.value(leaves))

        def back():
            def there(n, dx, narrow=True):
                self.at(f"{name}, backward: {n}", dx, run.grad(f"{name}.{n}"), narrow)

            dy = how.give(run.grad(leaves))
            there("mlp.down.out", dy)
            dg, dweight, dbias = back_down(grad("mlp.down.out"))
            self.add(f"{name}.mlp.down.weight", dweight)
            self.add(f"{name}.mlp.down.bias", dbias)
            there("mlp.down.in", dg)
            there("mlp.up.out", back_gelu(grad("mlp.down.in")))
            dh, dweight, dbias = back_up(grad("mlp.up.out"))
            self.add(f"{name}.mlp.up.weight", dweight)
            self.add(f"{name}.mlp.up.bias", dbias)
            there("norm2.out", dh)
            dx, dgain, dshift = back_norm2(grad("norm2.out"))
            self.add(f"{name}.norm2.weight", dgain, narrow=False)
            self.add(f"{name}.norm2.bias", dshift, narrow=False)
            there("norm2.in", dy + how.s(dx), narrow=False)
            there("attn.out.out", grad("norm2.in"))
            do, dweight, dbias = back_out(grad("attn.out.out"))
            self.add(f"{name}.attn.out.weight", dweight)
            self.add(f"{name}.attn.out.bias", dbias)
            there("attn.out.in", do)
            dh, dweight, dbias = back_qkv(back_attention(grad("attn.out.in")))
            width = len(dbias) // 3
            for i, part in enumerate(("query", "key", "value")):
                self.add(f"{name}.attn.{part}.weight", dweight[i * width : (i + 1) * width])
                if part != "key":
                    self.add(f"{name}.attn.{part}.bias", dbias[i * width : (i + 1) * width])
            there("norm1.out", dh)
            dx, dgain, dshift = back_norm1(grad("norm1.out"))
            self.add(f"{name}.norm1.weight", dgain, narrow=False)
            self.add(f"{name}.norm1.bias", dshift, narrow=False)
            there("norm1.in", grad("norm2.in") + how.s(dx), narrow=False)

        return back

    # ----------------------------------------------------------------------------------------------- heads and the losses

    def heads(self, run: Pass, mask: np.ndarray) -> None:
        """Features to v, v_bar, t, t_bar, and back.      mask (B,L)"""
        c, how, ops = self.c, self.how, self.ops
        p, value, grad = run.params, run.value, run.grad
        f_v, f_t = how.give(value("vision.norm.out")), how.give(value("text.norm.out"))
        v, back_v = how.linear(ops, f_v, p["g_v.weight"], p["g_v.bias"])
        self.at("v", v, value("v"), narrow=True)
        y, back_h = how.linear(ops, np.mean(f_v, 1), p["h_v.weight"], p["h_v.bias"])
        self.at("heads: h_v.out", y, value("h_v.out"), narrow=True)
        y, back_gelu = ops.gelu(how.give(value("h_v.out")), c.gelu)
        v_bar, back_v_bar = how.linear(ops, how.r(y), p["g_v.weight"], p["g_v.bias"])
        self.at("v_bar", v_bar, value("v_bar"), narrow=True)
        t, back_t = how.linear(ops, f_t, p["g_t.weight"], p["g_t.bias"])
        self.at("t", t, value("t"), narrow=True)
        pooled, back_pool = ops.masked_mean(f_t, mask)
        t_bar, back_t_bar = how.linear(ops, pooled, p["g_t.weight"], p["g_t.bias"])
        self.at("t_bar", t_bar, value("t_bar"), narrow=True)

        dv, *of_v = back_v(how.give(grad("v")))
        dz, *of_v_bar = back_v_bar(how.give(grad("v_bar")))
        dh = back_gelu(how.r(dz))
        self.at("heads, backward: h_v.out", dh, grad("h_v.out"), narrow=True)
        dpool, *of_h = back_h(how.give(grad("h_v.out")))
        patches = f_v.shape[1]
        self.at("heads, backward: image_features", how.r(dv) + how.s(how.r(dpool)[:, None] / patches),
                grad("vision.norm.out"), inside=True)
        dt, *of_t = back_t(how.give(grad("t")))
        dpool, *of_t_bar = back_t_bar(how.give(grad("t_bar")))
        self.at("heads, backward: text_features", how.r(dt) + how.s(back_pool(how.r(dpool))), grad("text.norm.out"),
                inside=True)
        for name, *parts in (("h_v", of_h), ("g_v", of_v, of_v_bar), ("g_t", of_t, of_t_bar)):
            for i, kind in enumerate(("weight", "bias")):
                # a weight that is used twice is rounded once for both, and so are their gradients' sums
                self.add(f"{name}.{kind}", sum(how.out(part[i]) for part in parts))

    def loss(self, runs: Sequence[Pass], mask: np.ndarray, dloss: float, said: Mapping[str, np.ndarray],
             nudge: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> None:
        """Eq. 7 of the embeddings of all passes, in float32 as the trainer's.      said: the losses that it reported"""
        c, how, p = self.c, self.how, runs[0].params
        v, t, v_bar, t_bar = (how.give(nudge(np.concatenate([run.value(name) for run in runs])))
                              for name in ("v", "t", "v_bar", "t_bar"))
        theta = how.give(nudge(p["theta"]))
        theta_fine = how.give(nudge(p["theta_fine"])) if "theta_fine" in p else theta
        lg, _, back_global = self.losses.global_loss(v_bar, t_bar, theta)
        lf, _, back_fine = self.losses.fine_grained_loss(v, t, mask, theta_fine, reduction=c.reduction, **c.align_options)
        for name, x in {"loss_global": lg, "loss_fine": lf, "loss": c.lambda_g * lg + c.lambda_f * lf}.items():
            if name in said:
                self.at(name, x, budgets.to_float64(said[name]))
        dv_bar, dt_bar, dtheta = back_global(c.lambda_g * dloss)
        dv, dt, dtheta_fine = back_fine(c.lambda_f * dloss)
        for name, g in {"v": dv, "t": dt, "v_bar": dv_bar, "t_bar": dt_bar}.items():
            self.at(f"losses, backward: {name}", g, np.concatenate([run.grad(name) for run in runs]), narrow=True)
        if "theta_fine" in p:
            self.add("theta", dtheta, narrow=False)
            self.add("theta_fine", dtheta_fine, narrow=False)
        else:
            self.add("theta", dtheta + dtheta_fine, narrow=False)


def threshold_distance(setup: Setup, drawn: Any, trained: "Trained") -> float:
    """How near an entry of eq. 2 comes to its threshold, by the trainer's own embeddings."""
    v, t = (np.concatenate([run.value(name) for run in trained.passes]) for name in ("v", "t"))
    _, trace, _ = setup.reference.alignment.align_patches(t, v, drawn.mask, **drawn.config.align_options)
    sigma = 1 / v.shape[1] if drawn.config.sigma is None else drawn.config.sigma
    return float(np.min(np.abs(trace["minmax"][drawn.mask] - sigma))) if "minmax" in trace else 1.0


def replay(
    setup: Setup, drawn: Any, runs: Sequence[Pass], how: Arithmetic, said: Mapping[str, np.ndarray], dloss: Upstream
) -> Replay:
    """One arithmetic's answers to what was recorded.      dloss: see Upstream"""
    answers = Replay(setup, drawn.config, how)
    edges = np.cumsum([0] + [len(run.value("vision.norm.out")) for run in runs])
    if edges[-1] != len(drawn.mask):
        raise ValueError(f"recorded passes: expected {len(drawn.mask)} samples in all, got {edges[-1]}")
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    for run, at in zip(runs, parts):
        answers.tower("vision", run, drawn.images[at], None)
        answers.tower("text", run, drawn.tokens[at] * drawn.mask[at], drawn.mask[at])
    if isinstance(dloss, float):
        for run, at in zip(runs, parts):
            answers.heads(run, drawn.mask[at])
        answers.loss(runs, drawn.mask, dloss, said)
    else:
        for tower, name in (("vision", "image_features"), ("text", "text_features")):
            f = np.concatenate([run.value(f"{tower}.norm.out") for run in runs])
            answers.at(name, np.where(drawn.mask[..., None], f, 0) if tower == "text" else f, said[name])
        for tower, d in zip(("vision", "text"), dloss):
            got = np.concatenate([run.grad(f"{tower}.norm.out") for run in runs])
            answers.at(f"losses, backward: {tower} features", d, got)
    return answers


@dataclass(frozen=True)
class Trained:
    """What one run of the trainer left."""

    passes: Sequence[Pass]
    said: Mapping[str, np.ndarray]                        # what it reported: losses, the norm before clipping; towers' features
    grads: Mapping[str, np.ndarray]                       # "grad.NAME"


def rows(
    setup: Setup, drawn: Any, trained: Trained, dtype: str, side: str, dloss: Upstream,
    again: Callable[[], Trained] | None = None, clip: float | None = None,
) -> Iterator[Row]:  # fmt: skip
    """Every step, then every gradient.      dtype: "mixed" | "stream" | "float64", which rounds nothing; again: in float64

    clip: the limit to which the trainer has scaled the gradients before they were taken.
    """
    found = list(compared(setup, drawn, trained, dtype, dloss, clip))
    for name, got, want, scale, budget, along in found:
        label, _, what = name.partition(": ")
        where = f"{what}: {worst(got, want)}" if what else ""
        twin = partial(_again, setup, drawn, again, name, dloss, clip) if again and dtype != "float64" else None
        yield judge(label, dtype, side, got, want, scale, budget, along, where=where, again=twin)


def flat(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([x.reshape(-1) for x in tensors.values()])


def _again(setup, drawn, again, name, dloss, clip):
    found = next(x for x in compared(setup, drawn, again(), "float64", dloss, clip) if x[0] == name)
    _, got, want, scale, budget, _ = found
    return budgets.error(got, want, scale), budget


def compared(
    setup: Setup, drawn: Any, trained: Trained, dtype: str, dloss: Upstream, clip: float | None = None
) -> Iterator[tuple[str, np.ndarray, np.ndarray, float, float, float | None]]:
    """name, got, want, scale, budget of the entries, budget of the factor."""
    rounds = dtype in ("mixed", "stream")
    exact, own = (replay(setup, drawn, trained.passes, Arithmetic(rounds, own, dtype == "stream"), trained.said, dloss)
                  for own in (False, True))
    lucky = alone(setup, drawn, trained, dloss, exact)

    def budget(error, narrow):
        return budgets.float64_from(error) if dtype == "float64" else budgets.SLACK * max(error, least(narrow))

    def least(narrow):
        return HALF if narrow and rounds else budgets.EPS["float32"]

    for step, mine in sorted(zip(exact.steps, own.steps, strict=True), key=lambda pair: pair[0].turn):
        scale, along = budgets.scale(step.want), None
        error = max(budgets.error(mine.want, step.want, scale), lucky.get(step.name, 0.0))
        if rounds and step.narrow:
            unit = HALF * budgets.factor_unit(step.want)
            along = budgets.SLACK * math.hypot(budgets.factor_noise(mine.want, step.want), unit)
        yield step.name, step.got, step.want, scale, budget(error, step.narrow), along
    names = [name for name in drawn.params if name in exact.sums]
    wants, mines = ({f"grad.{name}": budgets.to_float64(each.sums[name]) for name in names} for each in (exact, own))
    if missing := trained.grads.keys() ^ wants.keys():
        raise ValueError(f"gradients: expected those of the parameters, differs in {', '.join(sorted(missing)[:5])}")
    if clip is not None:
        square = float(np.sum(flat(wants) ** 2))
        error = budgets.factor_noise(flat(mines), flat(wants))
        yield "norm", trained.said["norm"], np.asarray(math.sqrt(square)), math.sqrt(square), budget(error, False), None
        shrink = min(1.0, clip / float(trained.said["norm"]))  # by the trainer's norm, which was judged
        wants, mines = ({name: g * shrink for name, g in each.items()} for each in (wants, mines))
    scales = budgets.all_scales(wants)
    factors = budgets.factor_budgets(wants, [mines], budgets.EPS["float32"])
    for name, x in wants.items():
        narrow = name.removeprefix("grad.") in exact.narrow
        error = max(budgets.error(mines[name], x, scales[name]), lucky.get(name, 0.0))
        one = max(lucky.get(name, 0.0), least(narrow) * budgets.factor_unit(x))
        allowed = max(factors[name], budgets.SLACK * one)
        allowed *= budgets.EPS["float64"] / budgets.EPS["float32"] if dtype == "float64" else 1
        yield name, trained.grads[name], x, scales[name], budget(error, narrow), allowed


def alone(setup: Setup, drawn: Any, trained: Trained, dloss: Upstream, exact: Replay) -> dict[str, float]:
    """For numbers that stand alone, of which one run can be right by luck: how far float64 moves them when the embeddings are
    nudged by one unit of float32's rounding, the most of several."""
    if not isinstance(dloss, float):
        return {}
    want = {s.name: s.want for s in exact.steps} | {f"grad.{n}": x for n, x in exact.sums.items()}
    want = {name: x for name, x in want.items() if x.ndim == 0}
    off = dict.fromkeys(want, 0.0)
    for seed in range(4):
        rng = np.random.default_rng([seed, 19])
        moved = Replay(setup, drawn.config, Arithmetic(False, False))

        def nudge(x: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
            return x * (1 + budgets.EPS["float32"] * rng.choice([-1.0, 1.0], np.shape(x)))

        moved.loss(trained.passes, drawn.mask, dloss, trained.said, nudge)
        got = {s.name: s.want for s in moved.steps} | {f"grad.{n}": x for n, x in moved.sums.items()}
        off = {name: max(off[name], budgets.error(got[name], x, budgets.scale(x))) for name, x in want.items()}
    return off
