"""Three witnesses of one case in float64: manual gradients, autograd through the oracle, differences along directions.

A case is written only when they agree.  Bounds are those of tests/witness.py, measured in docs/tolerances.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from parity.vectors import budgets
from parity.vectors.cases import FUNCTIONS
from parity.vectors.cases.core import Definition, Draw, Values
from parity.vectors.read import zero_padding

AUTOGRAD, DIFFERENCES = 1e-12, 1e-7
STEPS = (1e-4, 1e-5, 1e-6)  # the largest that fits the curvature decides
MARGIN = 1e-4  # of ordinary cases: how far the threshold is, how far apart the two least and the two largest similarities


class Disagreement(ValueError):
    """Two witnesses differ."""


@dataclass(frozen=True)
class Computed:
    """A case's tensors by full name, and how far the oracle was from them."""

    tensors: dict[str, np.ndarray]  # in.* ct.* mid.* out.* grad.*, in this order
    gap: dict[str, float]  # mid.*, out.*, grad.*: budgets.error of the oracle


def wide(x: np.ndarray) -> np.ndarray:
    """Floats as float64; ids and masks as they are."""
    return x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x


def gradients_of(case: Definition) -> list[str]:
    """The inputs that have a gradient."""
    constant = FUNCTIONS[case.function].constant
    return [n for n, x in case.inputs.items() if np.issubdtype(x.dtype, np.floating) and n not in constant]


def padded_axes(case: Definition, name: str) -> list[int]:
    """The axes of a mid.* or out.* tensor along which only real tokens count."""
    kind, _, short = name.partition(".")
    function = FUNCTIONS[case.function]
    letters = function.letters(case.options).get(short, "")
    if not function.padded or kind not in ("mid", "out", "ct") or "mask" not in case.inputs or not letters.startswith("BL"):
        return []
    return [axis for axis, letter in enumerate(letters) if letter == "L"]


def reference(case: Definition, inputs: Values | None = None, upstream: Values | None = None) -> dict:
    """The reference's own answer, names in forward order: mid.*, out.*, grad.*."""
    inputs = {n: wide(x) for n, x in case.inputs.items()} if inputs is None else inputs
    function = FUNCTIONS[case.function]
    out, mid, back = function.ours(inputs, case.options)
    answer = {f"mid.{n}": x for n, x in mid.items() if n not in case.left_out} | {f"out.{n}": x for n, x in out.items()}
    if back is None:
        return answer
    if upstream is None:
        upstream = {n: x.astype(np.float64) for n, x in draw_upstream(case, out).items()}
    grads = back(upstream)
    return answer | {f"grad.{n}": grads[n] for n in gradients_of(case)}


def draw_upstream(case: Definition, out: Values) -> dict[str, np.ndarray]:
    """ct.*: one random gradient for each output, 0 at padding."""
    drawn = {n: case.draw_upstream(n, np.shape(x)) for n, x in out.items()}
    return {n: zero_padding(x, case.inputs.get("mask"), padded_axes(case, f"ct.{n}")) for n, x in drawn.items()}


def oracle(case: Definition, upstream: Values, dtype: str = "float64", third: bool = False) -> dict[str, np.ndarray]:
    """The oracle's answer under the same names, or that of the function's third witness."""
    import torch

    function, leaves = FUNCTIONS[case.function], set(gradients_of(case)) if upstream else set()
    inputs = {}
    for n, x in case.inputs.items():
        inputs[n] = torch.tensor(wide(x))
        if inputs[n].is_floating_point():
            inputs[n] = inputs[n].to(getattr(torch, dtype)).requires_grad_(n in leaves)
    out, mid = ((function.witness or function.theirs) if third else function.theirs)(inputs, case.options)
    answer = {f"mid.{n}": x for n, x in mid.items() if n not in case.left_out} | {f"out.{n}": x for n, x in out.items()}
    if leaves:
        total = [(y * torch.tensor(upstream[n]).to(y.dtype)).sum() for n, y in out.items()]
        total = [y for y in total if y.requires_grad]
        if total:
            sum(total).backward()
    grads = {f"grad.{n}": inputs[n].grad if inputs[n].grad is not None else torch.zeros_like(inputs[n]) for n in leaves}
    return {n: budgets.to_float64(x) for n, x in (answer | grads).items()}  # forward order is the reference's


def compute(case: Definition, thorough: bool = True) -> Computed:
    """All tensors of a case.  Raises Disagreement, with the tensor and both numbers, unless the witnesses agree.

    thorough: differences for each input on its own; otherwise along one direction of all inputs together.
    """
    function = FUNCTIONS[case.function]
    inputs = {n: wide(x) for n, x in case.inputs.items()}
    with np.errstate(invalid="ignore", over="ignore"):
        out, _, back = function.ours(inputs, case.options)
        upstream = draw_upstream(case, out) if back else {}
        answer = {n: np.asarray(x) for n, x in reference(case).items()}
        theirs = oracle(case, upstream)
        if answer.keys() != theirs.keys():
            raise Disagreement(f"{case.id}: only one witness has {', '.join(sorted(answer.keys() ^ theirs.keys()))}")
        mask = case.inputs.get("mask")
        answer, theirs = (
            {n: zero_padding(x, mask, padded_axes(case, n)) for n, x in each.items()} for each in (answer, theirs)
        )
        gap = gaps(case, answer, theirs)
        if function.witness:
            gaps(case, answer, oracle(case, upstream, third=True))
        if back:
            check_differences(case, answer, {n: x.astype(np.float64) for n, x in upstream.items()}, thorough)
    if "ordinary" in case.flags:
        check_margins(case, answer)
    given = {f"in.{n}": x for n, x in case.inputs.items()} | {f"ct.{n}": x for n, x in upstream.items()}
    return Computed(given | {n: answer[n] for n in sorted(answer, key=order)}, gap)


def order(name: str) -> int:
    """Forward order: inputs, upstream gradients, stages, outputs, gradients."""
    return ("in", "ct", "mid", "out", "grad").index(name.split(".")[0])


def gaps(case, answer, theirs):
    """How far the oracle is from the reference, tensor by tensor; Disagreement beyond AUTOGRAD."""
    scale, result = budgets.all_scales(answer), {}
    for n, x in answer.items():
        result[n] = budgets.error(theirs[n], x, scale[n])
        if not result[n] <= AUTOGRAD:
            raise Disagreement(f"{case.id}: {n}: autograd differs by {result[n]:.3g} of the scale {scale[n]:.3g}")
    return result


def check_differences(case: Definition, answer: dict, upstream: Values, thorough: bool = True) -> None:
    """Central differences along random directions, extrapolated once (Richardson)."""
    function, draw = FUNCTIONS[case.function], Draw(len(case.id))
    inputs = {n: wide(x) for n, x in case.inputs.items()}
    held = function.held(inputs, case.options) if case.edge and function.held else None
    value = held or (lambda x: function.ours(x, case.options)[0])
    outputs = value(inputs)
    for n, y in outputs.items():
        y = zero_padding(y, case.inputs.get("mask"), padded_axes(case, f"out.{n}"))
        apart = budgets.error(y, answer[f"out.{n}"], budgets.scale(answer[f"out.{n}"]))
        if not apart <= AUTOGRAD:
            raise Disagreement(f"{case.id}: out.{n}: with its decisions held it differs by {apart:.3g}")
    names = gradients_of(case)
    for group in [[n] for n in names] if thorough else [names]:
        directions, length = {}, 0.0
        for n in group:
            x = inputs[n]
            size = np.max(np.abs(x), axis=-1, keepdims=True) if x.ndim else np.abs(x)  # rows of any length move alike
            size = np.where(size == 0, 1.0, size)
            directions[n] = draw.normal(*x.shape) * size
            length += float(np.sum((answer[f"grad.{n}"] * size) ** 2))

        def along(h, directions=directions):
            up, down = (value(inputs | {n: inputs[n] + s * h * x for n, x in directions.items()}) for s in (1, -1))
            return sum(float(np.sum(upstream[k] * (up[k] - down[k]))) for k in up) / (2 * h)

        claimed = sum(float(np.sum(answer[f"grad.{n}"] * x)) for n, x in directions.items())
        bound, measured = DIFFERENCES * length**0.5 + 1e-10, []
        for step in STEPS:
            measured.append((4 * along(step / 2) - along(step)) / 3)
            if abs(measured[-1] - claimed) <= bound or np.isnan([measured[-1], claimed]).all():
                break
        else:
            what = f"grad.{group[0]}" if len(group) == 1 else "all gradients"
            raise Disagreement(f"{case.id}: {what}: differences say {measured[0]:.10g}, the formula {claimed:.10g}")


def check_margins(case: Definition, answer: dict) -> None:
    """Ordinary cases: nothing near the threshold, one minimum, one maximum, no flat rows."""
    for name, margin in margins(case, answer):
        if not margin >= MARGIN:
            raise Disagreement(f"{case.id}: {name}: a margin of {margin:.3g}; an ordinary case keeps {MARGIN}")


def margins(case: Definition, answer: dict) -> Iterator[tuple[str, float]]:
    """(what, how far) for every decision of the alignment, in parts of a row's range."""
    if "mid.minmax" not in answer:
        return
    x = answer["mid.minmax"]                                  # (B,L,P)
    mask = case.inputs.get("mask")
    rows = x[mask] if mask is not None else x.reshape(-1, x.shape[-1])
    ordered = np.sort(rows, -1)
    if x.shape[-1] > 2:
        yield "the gap above the minimum", float(np.min(ordered[:, 1] - ordered[:, 0]))
        yield "the gap below the maximum", float(np.min(ordered[:, -1] - ordered[:, -2]))
    yield "the range of the similarity", float(np.min(ordered[:, -1] - ordered[:, 0]))
    sigma = case.options.get("sigma")
    sigma = 1 / x.shape[-1] if sigma is None else sigma
    if sigma and case.options.get("align") != "no_threshold":
        rows = rows / rows.sum(-1, keepdims=True) if case.options["threshold_on"] == "weights" else rows
        yield "the distance from sigma", float(np.min(np.abs(rows - sigma)))
