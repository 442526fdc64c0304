"""From NumPy to a stranger's framework and back: arrays, the few operations that arguments need, and gradients.

A leaf is an input that gradients are asked for: v (B,P,D), t (B,L,D), v_bar, t_bar (B,D), theta ().  `run` calls a function of
leaves and gives what came out, and per loss its gradient for every leaf; None where the framework sees no path.
"""

import copy
import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

FRAMEWORKS = ("torch", "jax", "numpy", "tensorflow", "cupy")


@dataclass(frozen=True)
class Bridge:
    """What the checker needs of a framework; every field is a function on its arrays."""

    name: str
    array: Callable                                       # array(x, dtype) from NumPy
    exp: Callable
    permute: Callable                                     # permute(x, axes)
    reshape: Callable
    join: Callable                                        # join([x, y], axis)
    numpy: Callable                                       # to float64 or bool or int NumPy; raises where it cannot
    differentiate: Callable                               # differentiate(f, leaves, upstream) -> outputs, losses, grads


def importable(name: str) -> bool:
    """Whether a framework is there, without importing it."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


def bridge(name: str, device: str = "cpu") -> Bridge:
    """The bridge to a framework.  Raises ValueError for an unknown name, ImportError where it is not installed."""
    match name:
        case "torch":
            return torch_bridge(device)
        case "jax":
            return jax_bridge(device)
        case "numpy":
            return numpy_bridge()
        case "cupy":
            return cupy_bridge()
        case "tensorflow":
            return tensorflow_bridge(device)
    raise ValueError(f"framework: expected one of {', '.join(FRAMEWORKS)}; got {name!r}")


def framework_of(x: Any) -> str | None:
    """Whose array this is; None for what is no array."""
    root = type(x).__module__.split(".")[0]
    return {"torch": "torch", "jax": "jax", "jaxlib": "jax", "numpy": "numpy", "tensorflow": "tensorflow",
            "cupy": "cupy"}.get(root)


def to_numpy(x: Any) -> np.ndarray | None:
    """Any framework's array, or a number, as a NumPy copy; half precision as float32; None for what is neither."""
    if isinstance(x, bool | int | float | np.generic):
        return np.array(x)
    kind = framework_of(x)
    try:
        if kind == "torch":
            import torch

            if not isinstance(x, torch.Tensor) or x.is_complex():
                return None
            x = x.detach().to("cpu")
            return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).numpy().copy()
        if kind == "cupy":
            x = x.get()
        elif kind == "jax" and not hasattr(x, "shape"):
            return None
        if kind is None or not hasattr(x, "shape"):
            return None
        x = np.array(x)
    except Exception:                                     # a tracer, a ragged or symbolic tensor
        return None
    if x.dtype.kind == "V" or x.dtype == np.float16:      # bfloat16 comes as its own kind
        x = x.astype(np.float32)
    return x if x.dtype.kind in "fiub" else None


def torch_bridge(device: str) -> Bridge:
    import torch

    kinds = {
        "float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
        "bool": torch.bool, "int64": torch.int64,
    }

    def array(x, dtype):
        return torch.tensor(x, device=device).to(kinds[dtype])

    def differentiate(f, leaves, upstream=1.0):
        leaves = {name: x.requires_grad_() for name, x in leaves.items()}
        outputs, losses, extra = f({name: x.clone() for name, x in leaves.items()})  # clones: a leaf may not be written to
        if "theta" in extra:
            leaves = leaves | {"theta": extra["theta"]}
        grads = {}
        for name, loss in losses.items():
            if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
                grads[name] = None
                continue
            loss = loss if upstream == 1 else loss * upstream
            found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
            grads[name] = dict(zip(leaves, found))
        return outputs, losses, grads

    return Bridge("torch", array, torch.exp, lambda x, axes: x.permute(*axes), torch.reshape,
                  lambda parts, axis: torch.cat(parts, axis), to_numpy, differentiate)


def jax_bridge(device: str) -> Bridge:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    if device == "cpu":
        jax.config.update("jax_default_device", jax.devices("cpu")[0])

    return Bridge("jax", lambda x, dtype: jnp.asarray(x, getattr(jnp, dtype + "_" if dtype == "bool" else dtype)), jnp.exp,
                  jnp.transpose, jnp.reshape, jnp.concatenate, to_numpy, no_autograd)  # gradients: bridge_jax


def numpy_bridge() -> Bridge:
    def array(x, dtype):
        return np.array(x, dtype="float32" if dtype == "bfloat16" else dtype)

    return Bridge("numpy", array, np.exp, np.transpose, np.reshape, np.concatenate, to_numpy, no_autograd)


def cupy_bridge() -> Bridge:
    import cupy

    return Bridge("cupy", lambda x, dtype: cupy.asarray(x, dtype), cupy.exp, cupy.transpose, cupy.reshape, cupy.concatenate,
                  to_numpy, no_autograd)


def no_autograd(f, leaves, upstream=1.0):
    """Values alone; gradients are what the implementation returns itself (see `own_gradients`)."""
    outputs, losses, _ = f(leaves)
    return outputs, losses, dict.fromkeys(losses)


def tensorflow_bridge(device: str) -> Bridge:
    import tensorflow as tf

    def array(x, dtype):
        with tf.device("/GPU:0" if device == "cuda" else "/CPU:0"):
            return tf.cast(tf.constant(x), dtype)

    def differentiate(f, leaves, upstream=1.0):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(list(leaves.values()))
            outputs, losses, extra = f(leaves)
            losses = {name: x if upstream == 1 else x * upstream for name, x in losses.items()}
        leaves = leaves | ({"theta": extra["theta"]} if "theta" in extra else {})
        grads = {}
        for name, loss in losses.items():
            found = tape.gradient(loss, list(leaves.values()))
            grads[name] = {key: None if g is None else tf.convert_to_tensor(g) for key, g in zip(leaves, found)}
        return outputs, losses, grads

    return Bridge("tensorflow", array, tf.exp, lambda x, axes: tf.transpose(x, axes), tf.reshape, tf.concat, to_numpy,
                  differentiate)


def keep_arrays(tree: Any, is_array: Callable) -> tuple[list, Any]:
    """Take the arrays out of nested dicts, lists and tuples; `put_arrays` puts others in their places."""
    arrays: list = []

    def walk(x):
        if is_array(x):
            arrays.append(x)
            return Slot(len(arrays) - 1)
        if isinstance(x, dict):
            return {key: walk(value) for key, value in x.items()}
        return inside(x, walk)

    return arrays, walk(tree)


def inside(x: Any, change: Callable) -> Any:
    """The same list, tuple, named tuple or dataclass with its parts changed; anything else as it is."""
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(change, x))
    if dataclasses.is_dataclass(x) and not isinstance(x, type | Slot):
        made = copy.copy(x)
        for field in dataclasses.fields(x):
            object.__setattr__(made, field.name, change(getattr(x, field.name)))
        return made
    return type(x)(map(change, x)) if type(x) in (list, tuple) else x


@dataclass(frozen=True)
class Slot:
    at: int


def put_arrays(structure: Any, arrays: list) -> Any:
    if isinstance(structure, Slot):
        return arrays[structure.at]
    if isinstance(structure, dict):
        return {key: put_arrays(value, arrays) for key, value in structure.items()}
    return inside(structure, lambda x: put_arrays(x, arrays))


class Each(dict):
    """What was made of the answers to single samples: values by path."""


def flatten(outputs: Any, path: str = "", depth: int = 0) -> list[tuple[str, Any]]:
    """What an implementation returns as (path, leaf) pairs: nested dicts, lists, tuples, dataclasses and plain objects taken
    apart.

    Paths read as code: "", "[0]", "['loss']", ".loss".  At most 200 leaves, five levels deep.
    """
    if depth < 5:
        if isinstance(outputs, Each):
            return list(outputs.items())
        if isinstance(outputs, dict):
            parts = [(f"{path}[{key!r}]", x) for key, x in outputs.items()]
        elif isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
            parts = [(f"{path}.{key}", x) for key, x in zip(outputs._fields, outputs)]
        elif isinstance(outputs, list | tuple):
            parts = [(f"{path}[{i}]", x) for i, x in enumerate(outputs)]
        elif hasattr(outputs, "__dataclass_fields__"):
            parts = [(f"{path}.{key}", getattr(outputs, key)) for key in outputs.__dataclass_fields__]
        elif framework_of(outputs) is None and not callable(outputs) and vars_of(outputs):
            parts = [(f"{path}.{key}", x) for key, x in vars_of(outputs).items() if not key.startswith("_")]
        else:
            return [(path, outputs)]
        return [leaf for where, x in parts[:200] for leaf in flatten(x, where, depth + 1)][:200]
    return [(path, outputs)]


def vars_of(x: Any) -> dict[str, Any]:
    """What a plain object holds, a SimpleNamespace for example; {} for what holds nothing so."""
    return dict(getattr(x, "__dict__", None) or {})


def own_gradients(outputs: list[tuple[str, Any]], slots: list[tuple[str, tuple[int, ...]]], roles: dict[str, str]):
    """Gradients that an implementation returns itself, as a closure or as arrays.      -> {leaf: array} or None

    outputs as `flatten` gives them; slots: leaf and shape of each differentiable argument in calling order; roles: leaf by
    the argument's name.  A closure is called without an argument, then with 1.0; what it gives is matched by name, or in
    calling order where shapes agree.  Arrays of a leaf's shape count where their path says so: a word with grad or d-.
    """
    for _, x in outputs:
        if callable(x) and framework_of(x) is None:
            for arguments in ((), (1.0,)):
                try:
                    given = x(*arguments)
                except TypeError:
                    continue
                return match_gradients(flatten(given), slots, roles)
    arrays = [(path, x) for path, x in outputs if framework_of(x) in ("numpy", "cupy")]
    while arrays and not np.ndim(arrays[0][1]):           # the loss comes first
        arrays = arrays[1:]
    found = match_gradients(arrays, slots, roles)
    return found if found and {"v", "t"} & {leaf for leaf, _ in slots} <= set(found) else None


def match_gradients(given, slots, roles):
    """Pair what came back with leaves: by name, or in calling order where shapes agree."""
    found: dict[str, Any] = {}
    shapes = dict(slots)
    for path, x in given:
        word = path.replace("]", ".").replace("[", ".").replace("'", "").strip(".").split(".")[-1].lower()
        for name, leaf in roles.items():
            name = name.lower()
            if word in {name, f"d{name}", f"d_{name}", f"grad_{name}", f"{name}_grad",
                        f"g{name}"} and np.shape(x) == shapes[leaf]:
                found[leaf] = x
    if found:
        return found
    at = 0
    for _, x in given:                                    # what fits no slot is something else
        for i in range(at, len(slots)):
            if np.shape(x) == slots[i][1]:
                found[slots[i][0]] = x
                at = i + 1
                break
    return found or None
