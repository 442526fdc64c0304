"""An argument's description into the framework's array, and a gradient with respect to it back into one of the leaf's."""

import math
import sys

import numpy as np

from parity.checker.calling import bridges

SLOPE = {"theta": lambda x: 1.0, "scale": math.exp, "tau": lambda x: -math.exp(-x), "log_tau": lambda x: -1.0}


def argument(spec, leaves, fw, arrays, dtype):
    """Turn an argument's description into the framework's array."""
    if "value" in spec:
        return spec["value"]
    if "size" in spec:
        return size(spec, arrays)
    if "mask" in spec or "patch_mask" in spec:
        return mask_argument(spec, fw, arrays, dtype)
    x = leaves[spec["leaf"]]
    if spec["leaf"] == "theta":
        kind = spec.get("as", "theta")
        if spec.get("form") == "float":
            theta = float(arrays["theta"])
            return {"theta": theta, "scale": math.exp(theta), "tau": math.exp(-theta), "log_tau": -theta}[kind]
        return {"theta": lambda: x, "scale": lambda: fw.exp(x), "tau": lambda: fw.exp(-x), "log_tau": lambda: -x}[kind]()
    layout = spec.get("layout", "bpd")
    if layout in ("bpd", "bld"):
        return x
    if layout in ("pbd", "lbd"):
        return fw.permute(x, (1, 0, 2))
    if layout == "pbd_cls":
        return fw.permute(argument(spec | {"layout": "cls"}, leaves, fw, arrays, dtype), (1, 0, 2))
    batch, _, width = arrays["v"].shape
    if layout == "list":
        return [one[np.flatnonzero(real)] for one, real in zip(x, real_of(spec, arrays))]
    if layout == "packed":
        return fw.reshape(x, (-1, width))[np.flatnonzero(arrays["mask"])]
    if layout == "flat":
        return fw.reshape(x, (-1, width))
    if layout == "cls":                                   # slot 0 holds the pooled embedding
        return fw.join([fw.reshape(leaves[spec["leaf"] + "_bar"], (batch, 1, width)), x], 1)
    if layout in ("zero", "nan"):
        real = arrays["mask"][..., None]
        return x * fw.array(real, dtype) + fw.array(np.where(real, 0.0, np.nan if layout == "nan" else 0.0), dtype)
    if layout == "bhwd":
        return fw.reshape(x, (batch, *grid(arrays), width))
    x = fw.permute(x, (0, 2, 1))
    return x if layout in ("bdp", "bdl") else fw.reshape(x, (batch, width, *grid(arrays)))


def real_of(spec, arrays):
    """Which rows of each sample a list holds: all patches, real tokens."""
    return arrays["mask"] if spec["leaf"] == "t" else np.ones(arrays["v"].shape[:2], bool)


def mask_argument(spec, fw, arrays, dtype):
    if "patch_mask" in spec:
        batch, patches, _ = arrays["v"].shape
        mask = np.ones((batch, patches + spec.get("extra", 0)), bool)
        spec = spec | {"mask": spec["patch_mask"]}
    else:
        mask = arrays["mask"]
    mask = mask.T if spec.get("turned") else mask
    if "patch_mask" not in spec and spec.get("extra"):
        mask = np.concatenate([np.ones((len(mask), 1), bool), mask], 1)
    if spec.get("listed"):
        return mask.sum(1).tolist()
    match spec["mask"]:
        case "ends":
            return fw.array(mask.sum(1) - 1, "int64")
        case "lengths":
            return fw.array(mask.sum(1), "int64")
        case "owner":
            return fw.array(np.nonzero(mask)[0], "int64")
        case "cu_seqlens":
            return fw.array(np.concatenate([[0], np.cumsum(mask.sum(1))]), "int64")
    if spec.get("axes") == "bll":
        mask = mask[:, :, None] & mask[:, None, :]
    elif axes := spec.get("axes"):
        mask = mask.reshape({"flat": (-1,), "bl1": (*mask.shape, 1)}.get(axes, (len(mask), *(1,) * axes.count("1"), -1)))
    if spec["mask"] == "additive":                        # 0 at real tokens, very negative at padding, as in BERT
        return fw.array(np.where(mask, 0.0, np.finfo("float32").min if dtype != "float16" else -6e4), dtype)
    mask = mask ^ bool(spec.get("invert"))
    return fw.array(mask, dtype if spec["mask"] == "float" else spec["mask"])


def one_of(x, spec, i):
    """An argument of a batch as that of sample i, where it is one of each sample."""
    return x[i] if spec.get("leaf", "theta") != "theta" or {"mask", "patch_mask"} & spec.keys() else x


def mean_of(outputs, arrays, fw):
    """What a function of one sample gave for each of them, as one answer: the mean of each number."""
    flat = [bridges.flatten(x) for x in outputs]
    found = {}
    for i, (path, _) in enumerate(flat[0]):
        each = [one[i][1] for one in flat if len(one) == len(flat[0])]
        if any(bridges.to_numpy(y) is None for y in each):
            continue
        parts = []
        for y, real in zip(each, arrays["mask"]):
            shape = tuple(getattr(y, "shape", ()))
            if len(shape) == 1 and shape[0] in (len(real), real.sum()):  # a loss for each token
                y = y.sum() / max(1, int(real.sum()))
            elif math.prod(shape) != 1:
                break
            parts.append(fw.reshape(y, ()) if shape and len(shape) != 1 else y)
        if len(parts) == len(outputs):
            found[path] = sum(parts) / len(parts)
    return bridges.Each(found)


def grid(arrays):
    """The most square H x W with H W = P."""
    patches = arrays["v"].shape[1]
    high = max(h for h in range(1, math.isqrt(patches) + 1) if patches % h == 0)
    return high, patches // high


def size(spec, arrays):
    batch, patches, width = arrays["v"].shape
    high, wide = grid(arrays)
    return {"B": batch, "P": patches, "D": width, "L": arrays["t"].shape[1], "H": high, "W": wide,
            "1/P": 1 / patches}[spec["size"]]


def set_attributes(fn, request, leaves, fw, arrays, dtype):
    """Give a learned temperature (or a plain attribute) the probe's.      -> {"theta": parameter}, undo"""
    owner, extra, old = getattr(fn, "__self__", fn), {}, {}
    for name, spec in request.get("set", {}).items():
        path = name.split(".")
        holder = owner
        for part in path[:-1]:
            holder = getattr(holder, part)
        now = getattr(holder, path[-1])
        value = argument(spec | {"form": "tensor"}, leaves, fw, arrays, dtype)
        if hasattr(now, "requires_grad") and hasattr(now, "data"):
            now.data = value.detach().reshape(now.shape).to(now.dtype)
            if now.requires_grad and spec.get("leaf") == "theta":
                extra["theta"] = now
            continue
        old[name] = (holder, path[-1], now)
        setattr(holder, path[-1], argument(spec | {"form": "float"}, leaves, fw, arrays, dtype))

    def undo():
        for holder, last, value in old.values():
            setattr(holder, last, value)

    return extra, undo


def passes_on(*args, **named):
    """What a part of a model that is set aside gives: its first argument."""
    return (*args, *named.values())[0]


def tower(width: int):
    """A module for a constructor that wants one: it passes on what it gets, and has no parameters.      width: D"""
    from types import SimpleNamespace

    sizes = dict.fromkeys(("hidden_size", "projection_dim", "embed_dim", "output_dim", "out_features", "num_features", "width",
                           "dim", "d_model"), width)

    def forward(*args, **named):
        x = passes_on(*args, **named)
        if hasattr(x, "view_as"):                         # as transformers' models give it
            x = x.view_as(x)
            x.last_hidden_state = x
        return x

    if "torch" in sys.modules:
        made = sys.modules["torch"].nn.Module()
    else:
        made = type("Tower", (), {"__call__": lambda self, *args, **named: forward(*args, **named)})()
    made.forward = made.encode_image = made.encode_text = forward
    for name, x in (sizes | {"config": SimpleNamespace(**sizes)}).items():
        setattr(made, name, x)
    return made


class stubs:
    """While a model's forward runs, its towers hand over the probe's embeddings and its adapters pass them on unchanged."""

    def __init__(self, fn, plan, leaves):
        self.owner, self.plan, self.leaves, self.old = getattr(fn, "__self__", fn), plan or {}, leaves, []

    def __enter__(self):
        for name, what in self.plan.items():
            child = self.owner
            for part in name.split("."):
                child = getattr(child, part)
            self.old.append((child, child.__dict__.get("forward")))
            leaf = self.leaves.get(what)
            child.forward = passes_on if what == "identity" else (lambda *_, leaf=leaf, **__: leaf)

    def __exit__(self, *_):
        for child, forward in self.old:
            if forward is None:
                del child.forward
            else:
                child.forward = forward


def own_grads(request, flat, arrays):
    """Gradients that came back with the loss, for frameworks without autograd."""
    slots, roles = [], {}
    pairs = [*zip(request.get("labels", []), request.get("args", [])), *request.get("kwargs", {}).items()]
    for name, spec in pairs:
        if leaf := spec.get("leaf"):
            shape = tuple(arrays[leaf].shape)
            slots.append((leaf, layout_shape(spec, arrays) if leaf in ("v", "t") else shape))
            roles[str(name).removesuffix("']").split("['")[-1].split(".")[-1]] = leaf
    return bridges.own_gradients(flat, slots, roles)


def specs_of(request):
    return [*request.get("args", []), *request.get("kwargs", {}).values()]


def layout_shape(spec, arrays):
    batch, patches, width = arrays["v"].shape
    tokens = arrays["t"].shape[1]
    return {
        "bld": (batch, tokens, width), "bdl": (batch, width, tokens), "lbd": (tokens, batch, width),
        "pbd": (patches, batch, width), "pbd_cls": (patches + 1, batch, width), "bpd": (batch, patches, width),
        "bdp": (batch, width, patches), "bdhw": (batch, width, *grid(arrays)),
        "bhwd": (batch, *grid(arrays), width), "list": (), "packed": (int(arrays["mask"].sum()), width),
        "cls": (batch, 1 + (patches if spec["leaf"] == "v" else tokens), width), "zero": (batch, tokens, width),
        "nan": (batch, tokens, width), "flat": (batch * (patches if spec["leaf"] == "v" else tokens), width),
    }[spec.get("layout", "bpd" if spec["leaf"] == "v" else "bld")]


def chain(leaf, g, request, arrays, own):
    """A gradient with respect to an argument or parameter, as one with respect to the leaf."""
    specs = specs_of(request)
    if leaf == "theta":
        held = [s for s in request.get("set", {}).values() if s.get("leaf") == "theta"]
        given = [s for s in specs if s.get("leaf") == "theta"] if own else []
        kind = (held or given or [{}])[0].get("as", "theta")
        return np.asarray(np.sum(g) * SLOPE[kind](float(arrays["theta"])))
    if leaf not in ("v", "t") or not own:
        return g
    layout = next((s.get("layout", "") for s in specs if s.get("leaf") == leaf), "")
    if layout in ("pbd", "lbd", "pbd_cls"):
        return np.ascontiguousarray(g.transpose(1, 0, 2)[:, layout == "pbd_cls" :])
    if layout == "packed":
        whole = np.zeros(arrays["t"].shape)
        whole[arrays["mask"]] = g
        return whole
    if layout in ("bdp", "bdhw", "bdl"):
        return np.ascontiguousarray(g.reshape(g.shape[0], g.shape[1], -1).transpose(0, 2, 1))
    if layout in ("zero", "nan"):
        return g * arrays["mask"][..., None]
    return g[:, 1:] if layout == "cls" else g.reshape(arrays[leaf].shape)
