"""The zoo: reads a file's label without running it, draws batches, and calls the file as its author would.

    EXPECT = {"target": function or class, "verdict", "deviations", "harmless", "conditions", "call": one word per argument,
              "returns": "fine" or what it gives; where needed "init", "attributes", "framework", "stage", "precision",
              "behaviour": findings that no loss or gradient shows, "also": true consequences that may be named or not,
              "edges": what shows only where numbers are exactly equal}

call     v patches (B,P,D) | v_bdhw (B,D,H,W) | v_cls (B,1+P,D) | t | mask bool | mask_int | mask_float | padding (true there) |
         lengths | scale 1/tau | tau | theta log(1/tau) | v_bar | t_bar; "name=word" where the argument goes by keyword
returns  "fine" | "global" | "2.0*fine+0.5*global" | a list or dict of these, of "vt" and "tv" (one direction each), "grad v"
         (and so on), None (something else)
"""

import ast
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zoo_truth

ZOO = Path(__file__).parent / "zoo"
GRID = (2, 4)                                             # H, W of the patches: P = 8
CONDITIONS = (                                            # from mild to strong
    "no zero embeddings at padding", "no caption of padding alone", "no flat rows", "equal lengths", "no padding", "B = 1",
    "unit-norm patches",
)
DEFAULTS = {"returns": "fine", "framework": "torch", "precision": 1e-9} | {
    key: [] for key in ("deviations", "harmless", "conditions", "behaviour", "also", "edges")
}


def files(kind):
    return sorted((ZOO / kind).glob("*.py"))


def label(path):
    """The EXPECT of a file, read without importing it.  Raises ValueError where there is none."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(name, "id", "") for name in node.targets] == ["EXPECT"]:
            return DEFAULTS | ast.literal_eval(node.value)
    raise ValueError(f"{path}: expected a line EXPECT = {{...}}, got none")


def load(path):
    """The file as a module of its own that nobody can import by name: a check then forks instead of starting a process."""
    spec = importlib.util.spec_from_file_location(f"zoo_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def target_of(path):
    """What to hand to a check: the callable itself, or its name if it cannot be had or uses JAX, which no fork survives."""
    expect = label(path)
    if expect["verdict"] == "cannot_run" or expect["framework"] == "jax" or "jax" in sys.modules:
        return f"{path}:{expect['target']}"
    found = load(path)
    for part in expect["target"].split("."):
        found = getattr(found, part)
    return found


@dataclass(frozen=True)
class Batch:
    """One batch in float64.  v (B,P,D), t (B,L,D), mask (B,L) bool, theta (), v_bar, t_bar (B,D).

    flat: a real token is as similar to every patch; knife: some s_hat is exactly sigma, so no condition rests on it.
    """

    v: torch.Tensor
    t: torch.Tensor
    mask: torch.Tensor
    theta: torch.Tensor
    v_bar: torch.Tensor
    t_bar: torch.Tensor
    flat: bool = False
    knife: bool = False

    def fulfils(self):
        """The conditions that hold here."""
        lengths = self.mask.sum(1)
        zeros = ((self.t == 0).all(-1) & ~self.mask).any()
        met = (                                           # a padded token of zeros has a flat row, too
            not zeros, (lengths > 0).all(), not self.flat and not zeros, (lengths == lengths[0]).all(), self.mask.all(),
            len(self.v) == 1, ((self.v.norm(dim=-1) - 1).abs() < 1e-12).all(),
        )
        return {name for name, holds in zip(CONDITIONS, met) if holds}

    def leaves(self):
        """Copies that collect gradients."""
        return {name: getattr(self, name).clone().requires_grad_() for name in ("v", "t", "theta", "v_bar", "t_bar")}


def batches(seed=0):
    """Name -> Batch.  Every condition is broken somewhere, and met by itself in at least two batches."""
    rng = np.random.default_rng(seed)
    patches, width = GRID[0] * GRID[1], 6

    def draw(lengths, columns=None, patch_norm=None, flat=False, zero=False, knife=False):
        rows, columns = len(lengths), columns or max(lengths)
        v = rng.standard_normal((rows, patches, width)) * (rng.random((rows, patches, 1)) + 0.5)
        t = rng.standard_normal((rows, columns, width)) * (rng.random((rows, columns, 1)) + 0.5)
        mask = np.arange(columns) < np.array(lengths)[:, None]
        if patch_norm:
            v /= np.linalg.norm(v, axis=-1, keepdims=True)
        if flat and patch_norm:                           # eight corners of a cube: length 1 to the last bit
            v[:, :, 4:] = 0
            v[:, :, :4] = [[0.5, *(0.5 - np.array(corner))] for corner in np.ndindex(2, 2, 2)]
            t[0, 1] = [2, 0, 0, 0, 1, 0]
        elif flat:                                        # whole numbers: the sums are equal to the last bit
            v[0, :, :3] = [1, 2, -1]
            t[0, 1] = [2, 1, 1, 0, 0, 0]
        if knife:                                         # s_hat of one row: 0, 1/8 exactly, ..., 1
            v[0] = rng.integers(-3, 4, (patches, width))
            v[0, :, 0] = [0, 1, 8, 3, 4, 5, 6, 7]
            t[0, 0] = [2, 0, 0, 0, 0, 0]
        if zero:
            t[~mask] = 0
        arrays = (v, t, mask, rng.uniform(1.0, 1.8), *rng.standard_normal((2, rows, width)))
        return Batch(*(torch.from_numpy(np.array(x)) for x in arrays), flat=flat, knife=knife)

    return {
        "padded": draw([5, 3, 2, 4], 6), "padded again": draw([2, 6, 4], 6), "one token": draw([1, 4, 3], 4),
        "unpadded": draw([5, 5, 5]), "unpadded again": draw([4, 4, 4, 4]),
        "equal lengths": draw([3, 3, 3], 5), "equal lengths again": draw([4, 4], 7),
        "single": draw([4], 6), "single again": draw([3], 5), "single unpadded": draw([5]),
        "unit patches": draw([5, 3, 4], 6, True), "unit patches again": draw([2, 6], 6, True),
        "unit unpadded": draw([4, 4], 4, True), "unit single": draw([4], 4, True), "unit all padding": draw([3, 0], 4, True),
        "unit zero padding": draw([3, 5], 5, True, zero=True), "unit equal lengths": draw([3, 3], 5, True),
        "unit flat": draw([5, 3], 6, True, flat=True), "unit flat unpadded": draw([4, 4], 4, True, flat=True),
        "flat": draw([5, 3, 2], 6, flat=True), "flat unpadded": draw([4, 4], flat=True), "flat single": draw([4], flat=True),
        "zero padding": draw([4, 2, 5], 6, zero=True), "zero padding again": draw([3, 3], 6, zero=True),
        "zero single": draw([3], 5, zero=True),
        "all padding": draw([4, 0, 3], 5), "all padding first": draw([0, 2, 4], 5), "all padding single": draw([0], 4),
        "knife": draw([4, 3], 5, knife=True), "knife unpadded": draw([3, 3], knife=True),
    }


def conditions_needed(agrees, batches, most=3):
    """The smallest and mildest set of conditions under which all batches that fulfil it agree; None if there is none.

    agrees, batches: by name.  A condition counts only where at least two batches fulfil it.
    """
    from itertools import combinations

    met = {name: batch.fulfils() for name, batch in batches.items()}
    for size in range(most + 1):
        for wanted in combinations(CONDITIONS, size):
            chosen = [name for name in batches if set(wanted) <= met[name] and not batches[name].knife]
            if len(chosen) > 1 and all(agrees[name] for name in chosen):
                return list(wanted)
    return None


def arrange(word, batch, leaves):
    """The argument that a word of `call` stands for."""
    v, theta = leaves["v"], leaves["theta"]
    if word == "v_bdhw":
        return v.transpose(1, 2).reshape(len(v), -1, *GRID)
    if word == "v_cls":
        return torch.cat([leaves["v_bar"][:, None], v], 1)
    plain = {
        "scale": torch.exp(theta), "tau": torch.exp(-theta), "lengths": batch.mask.sum(1), "mask": batch.mask.clone(),
        "mask_int": batch.mask.to(torch.int64), "mask_float": batch.mask.to(v.dtype), "padding": ~batch.mask,
    }
    return plain[word] if word in plain else leaves[word]


def build(path, batch=None, leaves=None):
    """The callable of a file; a class is constructed, its parameters set to the batch's temperature."""
    expect, module = label(path), load(path)
    target = module
    for part in expect["target"].split("."):
        target = getattr(target, part)
    if isinstance(target, type):
        target = target(**expect.get("init", {}))
        if isinstance(target, torch.nn.Module):
            target = target.double()
            for name, word in expect.get("attributes", {}).items():
                if isinstance(getattr(target, name), torch.nn.Parameter):
                    getattr(target, name).data.copy_(arrange(word, batch, leaves).detach())
                    leaves["theta"] = getattr(target, name)
                else:
                    setattr(target, name, arrange(word, batch, leaves))
        else:
            for name, word in expect.get("attributes", {}).items():
                setattr(target, name, arrange(word, batch, leaves))
    return target


def parts(returns):
    pairs = returns.items() if isinstance(returns, dict) else enumerate(returns)
    return [(key, kind) for key, kind in pairs if kind is not None]


def part_of(out, returns, wanted):
    """What was asked for ("fine", "global", "total") in what came out."""
    if returns is None:
        return None
    if isinstance(returns, str):
        if returns == wanted or (wanted == "total" and "*" in returns):
            return out
        return None
    found = {kind: out[key] for key, kind in parts(returns)}
    if wanted in found:
        return found[wanted]
    if wanted == "fine" and "vt" in found:
        return (found["vt"] + found["tv"]) / 2
    if wanted == "total":
        return next((x for kind, x in found.items() if "*" in kind), None)
    return None


def answer(path, batch, wanted="fine"):
    """Loss and gradients of a file on a batch.      -> float, arrays by name (v, t, theta, v_bar, t_bar); or None, {}"""
    expect, leaves = label(path), batch.leaves()
    framework = expect["framework"]
    if framework == "torch":
        target = build(path, batch, leaves)
        out = target(*positional(expect, batch, leaves), **named(expect, batch, leaves))
        loss = part_of(out, expect["returns"], wanted)
        if loss is None:
            return None, {}
        loss = torch.as_tensor(loss)
        if not loss.requires_grad:
            return float(loss), {}
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        grads = {name: as_zeros(g, leaves[name]) for name, g in zip(leaves, grads)}
        for word in expect.get("attributes", {}).values():
            if word in ("tau", "scale") and leaves["theta"] is not None and "theta" in grads:
                at = leaves["theta"].item()               # a parameter tau = exp(-theta): dtheta = -tau dtau
                grads["theta"] = grads["theta"] * (-at if word == "tau" else at)
        return loss.item(), grads
    arrays = {name: x.detach().numpy() for name, x in leaves.items()}
    if framework == "numpy":
        target = build(path, batch, leaves)
        out = target(
            *(np.array(as_numpy(x)) for x in positional(expect, batch, leaves)),
            **{name: np.array(as_numpy(x)) for name, x in named(expect, batch, leaves).items()},
        )
        words = [] if isinstance(expect["returns"], str) else parts(expect["returns"])
        grads = {kind[5:]: np.asarray(out[key]) for key, kind in words if kind.startswith("grad ")}
        return float(part_of(out, expect["returns"], wanted)), grads
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True):
        target = build(path, batch, leaves)

        def run(v, t, theta, v_bar, t_bar):
            words = {
                "v": v, "t": t, "theta": theta, "v_bar": v_bar, "t_bar": t_bar, "scale": jnp.exp(theta), "tau": jnp.exp(-theta),
                "mask": jnp.asarray(batch.mask.numpy()), "mask_int": jnp.asarray(batch.mask.numpy(), jnp.int32),
                "mask_float": jnp.asarray(batch.mask.numpy(), v.dtype), "padding": jnp.asarray(~batch.mask.numpy()),
                "lengths": jnp.asarray(batch.mask.numpy().sum(1)),
                "v_cls": jnp.concatenate([v_bar[:, None], v], 1), "v_bdhw": jnp.swapaxes(v, 1, 2).reshape(len(v), -1, *GRID),
            }
            args = [words[w] for w in expect["call"] if "=" not in w]
            out = target(*args, **{w.split("=")[0]: words[w.split("=")[1]] for w in expect["call"] if "=" in w})
            loss = part_of(out, expect["returns"], wanted)
            return jnp.zeros(()) if loss is None else loss

        order = ("v", "t", "theta", "v_bar", "t_bar")
        loss, grads = jax.value_and_grad(run, argnums=tuple(range(5)))(*(jnp.asarray(arrays[name]) for name in order))
        return float(loss), {name: np.asarray(g) for name, g in zip(order, grads)}


def losses_given(expect):
    """Which of fine, global and total a file gives."""
    kinds = [expect["returns"]] if isinstance(expect["returns"], str) else [kind for _, kind in parts(expect["returns"])]
    given = ["fine"] if {"fine", "vt"} & set(kinds) else []
    given += ["global"] if "global" in kinds else []
    return given + (["total"] if any("*" in kind for kind in kinds) else [])


def expected(expect, batch, wanted="fine", deviations=None):
    """Loss and gradients that a label promises.      deviations: others than the label's"""
    dev = zoo_truth.parse([*expect["deviations"], *expect.get("edges", [])] if deviations is None else deviations)
    if deviations is None and "edge.zero_padding" in expect["also"] and wanted != "global":
        dev["edge.zero_padding"] = None
    if deviations is None and expect["verdict"] == "listing1":
        dev["reduction.token"] = None
    leaves = batch.leaves()
    if zoo_truth.poisoned(batch, dev):
        return float("nan"), {}
    theta = leaves["theta"]

    def fine():
        return zoo_truth.fine_grained(leaves["v"], leaves["t"], batch.mask, theta, dev)

    def global_():
        given = any(word.split("=")[-1] == "v_bar" for word in expect["call"])
        pooled = zoo_truth.pool(leaves["v"], leaves["t"], batch.mask, dev)
        v_bar, t_bar = (leaves["v_bar"], leaves["t_bar"]) if given else pooled
        if "global.uses_cls" in dev:
            v_bar = leaves["v_bar"]
        return zoo_truth.global_pairs(v_bar, t_bar, theta, dev)

    if wanted == "total":
        returns = expect["returns"]
        text = returns if isinstance(returns, str) else next(kind for _, kind in parts(returns) if "*" in kind)
        terms = [term.split("*") for term in text.split("+")]
        loss = sum(float(weight) * (fine() if name == "fine" else global_()) for weight, name in terms)
    else:
        loss = fine() if wanted == "fine" else global_()
    if not loss.requires_grad:
        return loss.item(), {}
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return loss.item(), {name: as_zeros(g, leaves[name]) for name, g in zip(leaves, grads)}


def as_zeros(g, leaf):
    return np.zeros(leaf.shape) if g is None else g.numpy()


def off_by(got, want, v=None):
    """The worst relative difference of two (loss, gradients), of those gradients that the first has.

    v: patches of norm 1, so that only the gradient along the sphere is compared.
    nan if exactly one side is not finite; 0 if neither is.
    """
    def finite(answer):                                   # 1e12 is what the usual norms make of an embedding of zeros
        return np.isfinite(answer[0]) and all((np.abs(g) < 1e6).all() for g in answer[1].values())

    if not finite(got) or not finite(want):
        return 0.0 if finite(got) == finite(want) else float("nan")
    if v is not None:
        got, want = ((loss, along_sphere(grads, v)) for loss, grads in (got, want))
    worst = abs(got[0] - want[0]) / max(abs(want[0]), 1e-3)
    scale = max([np.abs(g).max() for g in want[1].values()], default=1.0)
    for name, a in got[1].items():
        b = want[1].get(name, 0.0)
        worst = max(worst, float(np.abs(a - b).max()) / max(float(np.abs(b).max()), 1e-3 * scale, 1e-9))
    return worst


def along_sphere(grads, v):
    if "v" not in grads:
        return grads
    return grads | {"v": grads["v"] - v * (grads["v"] * v).sum(-1, keepdims=True)}


def as_numpy(x):
    return x.detach().numpy() if isinstance(x, torch.Tensor) else x


def positional(expect, batch, leaves):
    return [arrange(word, batch, leaves) for word in expect["call"] if "=" not in word]


def named(expect, batch, leaves):
    pairs = (word.split("=") for word in expect["call"] if "=" in word)
    return {name: arrange(word, batch, leaves) for name, word in pairs}
