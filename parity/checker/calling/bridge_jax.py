"""Calling a JAX implementation: compiled once per shape, gradients with respect to its arguments.

Operation by operation JAX compiles every operation for every shape, which takes seconds per batch; compiled as a whole, without
optimisation, a tenth of one.  Code that needs concrete values (an if on the mask, boolean indexing) falls back by steps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
QUICK: tuple[dict[str, Any], ...] = ({"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True,
          "xla_cpu_use_fusion_emitters": False}, {})


def stages(fn: Callable, arguments: list, named: dict[str, Any], files: list[str]) -> list[tuple[str, np.ndarray]]:
    """Local variables of their lines, and operations inside a line, with their values, in the order made.

    Both are collected while JAX traces, and returned by what it compiles.
    """
    import jax
    import jax.numpy as jnp

    from parity.checker.calling.load import unwrap
    from parity.checker.calling.trace import ENTRIES, RECORDS, Book, TracerBook, watched

    plain = unwrap(fn)
    plain = plain if callable(plain) and not isinstance(plain, type) and hasattr(fn, "__wrapped__") else fn
    arrays = {p: jnp.asarray(x) for p, x in [*enumerate(arguments), *named.items()] if hasattr(x, "dtype")}
    where: list[str] = []
    steps: list[tuple[str, Any]] = []

    def called(given):
        return plain(*(given.get(i, x) for i, x in enumerate(arguments)), **{p: given.get(p, x) for p, x in named.items()})

    def run(given):
        book = TracerBook()
        with watched(files, book):
            called(given)
        made = jax.make_jaxpr(lambda x: jax.tree.leaves(called(x)))(given)
        steps[:] = []
        operations(made.jaxpr, made.consts, jax.tree.leaves(given), set(files), steps)
        where[:] = [w for w, _ in book.records]
        return [x for _, x in book.records], [x for _, x in steps]

    try:
        variables, made = quickly(jax.jit(run).lower(arrays))(arrays)
    except Exception:                                     # it needs concrete values, or keeps a tracer: no trace
        return []
    records = Book(ENTRIES, RECORDS)
    for name, x in zip((w for w, _ in steps), made):
        records.add(name, np.asarray(x), named=False)
    for name, x in zip(where, variables):                 # a variable's name says more than an operation's
        records.add(name, np.asarray(x), named=True)
    return records.records


def operations(jaxpr: Any, constants: list, inputs: list, files: set[str], out: list[tuple[str, Any]], at: str = "") -> list:
    """Run a jaxpr step by step and note what each step makes, and at which of their lines.      -> its outputs

    at: the line that calls it, for what was traced before, elsewhere
    """
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs]))
    for step in jaxpr.eqns:
        line = at or line_of(step, files)
        given = [x.val if hasattr(x, "val") else known[x] for x in step.invars]
        inner = next((step.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in step.params), None)
        if step.primitive.name in CALLS and inner is not None and hasattr(inner, "consts"):
            made = operations(inner.jaxpr, inner.consts, given, files, out, line)
        else:
            bound = step.primitive.get_bind_params(step.params)
            functions, params = bound if isinstance(bound, tuple) else ((), bound)  # older versions give functions too
            made = step.primitive.bind(*functions, *given, **params)
            made = list(made) if step.primitive.multiple_results else [made]
            if line:
                out += [(f"{line} {step.primitive.name}()", x) for x in made if x.size > 1 and x.dtype.kind in "fib"]
        known.update(zip(step.outvars, made))
    return [x.val if hasattr(x, "val") else known[x] for x in jaxpr.outvars]


def line_of(step: Any, files: set[str]) -> str:
    """ "file.py:12" of theirs; "" where the step is none of theirs."""
    frames = getattr(step.source_info.traceback, "frames", ())
    return next((f"{Path(f.file_name).name}:{f.line_num}" for f in frames if f.file_name in files), "")


def call(fn: Callable, arguments: list, named: dict[str, Any], wrt: list, losses_of: Callable, key: Any, cache: dict,
         grads: bool, upstream: float = 1.0):
    """Outputs, losses, and per loss the gradient of each argument in `wrt`.

    arguments, named: NumPy arrays or plain values; wrt: positions (int) or names (str) of those that are differentiated;
    losses_of(outputs) -> {name: value}; key: what tells one compiled call from another beside shapes; upstream: what each loss
    is multiplied by before its gradient.
    """
    import jax
    import jax.numpy as jnp

    from parity.checker.calling.bridges import framework_of, keep_arrays, put_arrays

    key = (key, upstream)
    places = [*range(len(arguments)), *named]
    every = dict(zip(places, [*arguments, *named.values()]))
    arrays = {p: jnp.asarray(x) for p, x in every.items() if hasattr(x, "dtype")}
    diff = {p: arrays[p] for p in wrt if p in arrays}
    rest = {p: x for p, x in arrays.items() if p not in diff}
    kept: dict[str, Any] = {}

    def run(diff, rest):
        full = every | rest | diff
        outputs = fn(*(full[p] for p in range(len(arguments))), **{p: full[p] for p in named})
        losses = losses_of(outputs)
        found, structure = keep_arrays(outputs, lambda x: framework_of(x) == "jax")
        kept["structure"], kept["names"] = structure, list(losses)
        return [jnp.asarray(x) for x in losses.values()], found

    def all_of_it(diff, rest):
        if not grads or not diff:
            values, found = run(diff, rest)
            return values, found, []
        values, back, found = jax.vjp(lambda d: run(d, rest), diff, has_aux=True)
        if len(values) == 1:
            return values, found, [back([jnp.full_like(values[0], upstream)])[0]]
        backs = [jax.vjp(lambda d, i=i: run(d, rest)[0][i], diff)[1] for i in range(len(values))]
        return values, found, [back(jnp.full_like(x, upstream))[0] for back, x in zip(backs, values)]  # 0 times NaN is NaN

    def compiled(with_rest):
        shapes = tuple((str(p), x.shape, str(x.dtype)) for p, x in arrays.items())
        content = () if with_rest else tuple((str(p), np.asarray(x).tobytes()) for p, x in rest.items())
        label = (key, shapes, grads, with_rest, content)
        if label not in cache:
            function = jax.jit(all_of_it if with_rest else lambda diff: all_of_it(diff, rest))
            lowered = function.lower(diff, rest) if with_rest else function.lower(diff)
            cache[label] = (quickly(lowered), dict(kept))
        ready, about = cache[label]
        return ready(diff, rest) if with_rest else ready(diff), about

    concrete = (
        jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, jax.errors.NonConcreteBooleanIndexError,
        jax.errors.TracerIntegerConversionError, jax.errors.UnexpectedTracerError,
    )
    steps: list[Callable] = [lambda: compiled(True), lambda: compiled(False), lambda: (all_of_it(diff, rest), kept)]
    for step in steps:
        try:
            (values, found, given), about = step()
            break
        except concrete:
            continue
    else:                                                 # float(loss), np.asarray(x): values, but no gradient
        outputs = fn(*(arrays.get(i, x) for i, x in enumerate(arguments)), **{p: arrays.get(p, x) for p, x in named.items()})
        losses = losses_of(outputs)
        return outputs, losses, dict.fromkeys(losses)
    names = about["names"]
    return put_arrays(about["structure"],
                      found), dict(zip(names, values)), dict(zip(names, given)) if given else dict.fromkeys(names)


def quickly(lowered: Any) -> Any:
    """Compile for a short compilation; an option that this version does not know is left out."""
    for options in QUICK:
        try:
            return lowered.compile(compiler_options=options or None)
        except Exception as error:
            if not options or "option" not in str(error).lower():
                raise
    raise AssertionError
