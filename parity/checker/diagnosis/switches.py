"""The switches of variants, and what they are called: from ids to a setting, from a setting to ids.

Where real code writes a deviation in several ways, its switch has several positions, and a Found's `way` says which.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from parity.checker.diagnosis.deviations import DEVIATIONS, Found


@dataclass(frozen=True)
class Variant:
    """One setting of all switches of eq. 6.  Defaults are the paper."""

    rows: str = "tokens"            # "patches": every patch groups tokens
    keys: str = "masked"            # then padded tokens are left out of min, max and sum | "open" | "zeroed" after eq. 3
    cosine: bool = False            # keys l2-normalised in the similarity
    token_norm: bool = False        # rows l2-normalised in the similarity
    scaled: bool = False            # similarity times 1/tau
    detach: str = ""                # "similarity" | "weights" | "tokens", "patches": these in the similarity alone |
    #                                 "range": min and max | "values" that are averaged | "c", "t" in the logits
    minmax: bool = True
    flat: str = "uniform"           # "nan" | "zero": c = 0 | "nan_gradient": finite, by a where() that comes too late |
    #                                 "nan_gradient_zero": and c = 0
    inf_padding: str = ""           # infinities at padded rows of the similarity: NaN in the "gradient" | in the "loss" too
    sigma: str | float = "keys"     # 1/keys, real ones | "columns": 1/L for tokens as keys | "patches": 1/P | "none" | a number
    strict: bool = False
    on_weights: bool = False        # threshold after eq. 4
    weights: str = "sum"            # "mean" | "softmax" of s | "softmax_all" of s_hat | "softmax_zeros" of s_til |
    #                                 "softmax_kept" of what passed | "softmax_cut" of s, then eqs. 3-4 | "raw" s |
    #                                 "raw_sum" s / sum s
    own_tau: float | str | None = None  # temperature of that softmax | "sqrt(D)"
    unit_values: bool = False       # l2-normalised keys are averaged
    no_norm: str = ""               # "both" | "c" | "t"
    tau: float | None = None        # hard-coded
    gain: float | str = 1.0         # logits times this, beside 1/tau | "1/sqrt(D)"
    open_vt: str = "masked"         # padded columns of z: "masked" | "open" | "zero"
    open_tv: str = "masked"         # and of z'
    zero_rows: bool = False         # "zero" fills padded rows too, as z * m m' does
    negatives: str = "caption"      # "batch" | "position": same place in the other captions
    special: str = ""               # "first" | "last" | "both": these real tokens are left out | "ends": first and last place
    special_rows: bool = False      # as rows alone: they still compete
    contrast: str = "softmax"       # "decoupled": no own pair in the denominator | "sigmoid": sum over pairs | "sigmoid_mean"
    alone: float | str = "zero"     # decoupled: a row without negatives has loss 0 | its denominator is exp of this number
    alone_places: bool = False      # once for every place, as where masked logits hold that number
    bias: float = 0.0               # sigmoid
    smoothing: float = 0.0          # share of the label spread over the tokens of a caption
    smooth_others: bool = False     # over the others alone
    constant: float = 0.0           # added to the loss
    constant_of: str = ""           # "" | "log(1/tau)": times that
    constant_rows: bool = False     # to the loss of every token, so that a caption without tokens gets none
    direction: str = "both"         # "vt" | "tv"
    factor: float = 1.0
    reduction: str = "sample"       # "token" | "mean_all" | "masked_over_all" | "sum"
    padded_rows: str | float = "own"  # mean_all, masked columns: padded rows keep their own column | logit of masked ones
    nan_rows: bool = False          # padded rows are all -inf, and the product with the mask keeps their NaN
    nan_zero: str = ""              # zero rows in 0/0: "gradient" | "loss"
    nan_empty: bool = False         # a caption of padding alone is 0/0
    gates: tuple[tuple[str, float], ...] = ()  # paths of the gradient, and the share of it that takes them; see gradients
    eps: tuple[tuple[str, float], ...] = ()  # small numbers: in denominators range, sum, norm, key_norm; square, log, fill


@dataclass(frozen=True)
class GlobalVariant:
    """One setting of all switches of eq. 1.  vision, text: "given" | "mean" | "unit": mean of l2-normalised ones | "cls"."""

    vision: str = "given"
    text: str = "given"
    padding: bool = False           # the caption's mean runs over padding too
    tau: float | None = None
    direction: str = "both"         # "vt" | "tv"
    factor: float = 1.0


VT, TV = "when groups pick tokens", "when tokens pick groups"
_GROUPS = {"masked": "", "open": "padded tokens compete", "zeroed": "padded tokens are dropped after the threshold"}
_SIGMAS = {"columns": "sigma is 1/L", "patches": "sigma is 1/P"}
_SOFTMAX = {"s_hat": "softmax_all", "s_til": "softmax_zeros", "the kept s_til": "softmax_kept"}
# id -> way, or value in words -> switches.  The first is the usual one, and may be left out.
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "similarity.cosine": {"": {"cosine": True}},
    "similarity.detached": {
        "": {"detach": "similarity"},
        "the tokens' side alone": {"detach": "tokens"}, "the patches' side alone": {"detach": "patches"},
    },
    "similarity.patches_group": {
        "; ".join(filter(None, (_GROUPS[keys], words))): {"rows": "patches", "keys": keys, "sigma": sigma}
        for keys in _GROUPS
        for sigma, words in ({"keys": ""} | _SIGMAS).items()
    },
    "similarity.scaled": {"": {"scaled": True}},
    "similarity.tokens_normalised": {"": {"token_norm": True}},
    "minmax.nan_on_flat": {"": {"flat": "nan"}},
    "minmax.epsilon": {"": {"flat": "zero"}},
    "minmax.missing": {"": {"minmax": False}},
    "minmax.nan_from_padding": {
        "": {"inf_padding": "gradient"}, "in the loss": {"inf_padding": "loss"}, "in the gradient": {"inf_padding": "gradient"},
    },
    "threshold.absent": {"": {"sigma": "none"}},
    "threshold.strict": {"": {"strict": True}},
    "threshold.on_weights": {"": {"on_weights": True}},
    "weights.detached": {"": {"detach": "weights"}},
    "minmax.detached": {"": {"detach": "range"}},
    "grouping.detached": {"": {"detach": "values"}},
    "logits.detached": {"c": {"detach": "c"}, "t": {"detach": "t"}},
    "weights.softmax": {"of s": {"weights": "softmax"}, "of s/tau": {"weights": "softmax", "scaled": True}},
    "weights.softmax_minmax": {
        f"{what}{tau}": {"weights": name} | ({"scaled": True} if tau else {})
        for tau in ("", "/tau") for what, name in _SOFTMAX.items()
    },
    "weights.raw": {"s": {"weights": "raw"}, "normalised": {"weights": "raw_sum"}},
    "weights.mean": {"": {"weights": "mean"}},
    "grouping.normalised_patches": {"": {"unit_values": True}},
    "norm.missing": {"": {"no_norm": "both"}},
    "norm.missing_c": {"": {"no_norm": "c"}},
    "norm.missing_t": {"": {"no_norm": "t"}},
    "logits.padding_not_masked": {
        "": {"open_vt": "open", "open_tv": "open"}, VT: {"open_vt": "open"}, TV: {"open_tv": "open"},
    },
    "logits.padding_filled_zero": {
        "": {"open_vt": "zero", "open_tv": "zero"}, VT: {"open_vt": "zero"}, TV: {"open_tv": "zero"},
        "rows and columns": {"open_vt": "zero", "open_tv": "zero", "zero_rows": True},
    },
    "logits.batch_negatives": {"": {"negatives": "batch"}, "those at the same place": {"negatives": "position"}},
    "logits.nan_all_masked_rows": {"": {"nan_rows": True}},
    "logits.directions_swapped": {"": {}},
    "reduction.token": {"": {"reduction": "token"}},
    "reduction.mean_all": {"": {"reduction": "mean_all"}},
    "reduction.masked_over_all": {"": {"reduction": "masked_over_all"}},
    "reduction.sum": {"": {"reduction": "sum"}},
    "edge.zero_padding": {"gradient": {"nan_zero": "gradient"}, "loss": {"nan_zero": "loss"}},
    "edge.all_padding": {"poison": {"nan_empty": True}},
    "edge.nan_gradient": {"flat": {"flat": "nan_gradient"}, "c = 0 there": {"flat": "nan_gradient_zero"}},
}  # fmt: skip
_VALUES = {
    "threshold.constant": "sigma", "logits.temperature_constant": "tau", "loss.factor": "factor",
    "loss.one_direction": "direction", "reduction.mean_all": "padded_rows",
}  # fmt: skip
_LEFT_OUT = {
    "first": "the first token", "last": "the last token", "both": "the first and the last token",
    "ends": "the first and the last place",
}
_GLOBAL_VALUES = {"global.temperature_constant": "tau", "global.one_direction": "direction", "global.factor": "factor"}
EPSILONS = {
    "range": "minmax.epsilon", "sum": "weights.epsilon", "norm": "norm.epsilon", "key_norm": "similarity.epsilon",
    "square": "norm.epsilon", "fill": "logits.padding_filled_zero", "log": "loss.epsilon",
}  # fmt: skip


def _cut(value, way):
    return {"weights": "softmax_cut", "scaled": way == "of s/tau", "sigma": "keys" if value == "1/P" else float(value)}


def _constant(value, way):
    each = way.startswith("to every token")
    return {"constant": 1.0 if value == "log(1/tau)" else float(str(value).removesuffix(" log(1/tau)")),
            "constant_of": "log(1/tau)" if "tau" in str(value) else "", "constant_rows": each}


# What has a number or a word of its own: value, way -> switches.
NUMBERED: dict[str, Callable[[Any, str], dict[str, Any]]] = {
    "weights.softmax_cut": _cut,
    "weights.temperature": lambda value, _: {"own_tau": value},
    "logits.scaled": lambda value, _: {"gain": value},
    "logits.special_left_out": lambda value, way: {
        "special": next(k for k, words in _LEFT_OUT.items() if words == value), "special_rows": bool(way)},
    "loss.decoupled": lambda _, way: {
        "contrast": "decoupled", "alone": float(way.partition("exp(")[2].rstrip(")")) if "exp" in way else "zero",
        "alone_places": "L exp" in way},
    "loss.sigmoid": lambda value, way: {"contrast": "sigmoid_mean" if "mean" in way else "sigmoid", "bias": float(value)},
    "loss.smoothing": lambda value, way: {"smoothing": float(value), "smooth_others": bool(way)},
    "loss.constant": _constant,
}  # fmt: skip


def variant_of(deviations) -> tuple[Variant, GlobalVariant]:
    """The settings that ids, or Founds where a value or a way is meant, stand for.

    Raises ValueError for an id that is unknown, lacks its value, or is no property of a single call.
    """
    fine, pairs = Variant(), GlobalVariant()
    found = [Found(d) if isinstance(d, str) else d for d in deviations]
    for d in sorted(found, key=lambda d: d.id != "similarity.patches_group"):  # its sigma first, a constant after it
        if d.id not in DEVIATIONS:
            raise ValueError(f"deviations: expected ids of parity.checker.diagnosis.deviations, got {d.id!r}")
        if d.id.startswith("global."):
            pairs = _global(pairs, d)
            continue
        if d.id in NUMBERED:
            if d.value is None and d.id != "loss.decoupled":
                raise ValueError(f"{d.id}: expected a value, as in Found({d.id!r}, 0.3)")
            fine = replace(fine, **NUMBERED[d.id](d.value, d.way))
            continue
        ways, name = WAYS.get(d.id), _VALUES.get(d.id)
        if ways is None and name is None and DEVIATIONS[d.id].edge:
            continue                                      # no switch: only where numbers are exactly equal
        if ways is None and name is None:
            raise ValueError(f"{d.id} is no property of a single call; parity.checker.diagnosis.behaviour looks for it")
        if ways:
            asked = d.way or (d.value if isinstance(d.value, str) and name != "direction" else "")
            way = asked if asked in ways else None if asked else next(iter(ways))
            if way is None:
                raise ValueError(f"{d.id}: expected a way of {', '.join(filter(None, ways))}; got {asked!r}")
            fine = replace(fine, **ways[way])
        if name and d.value is not None and (name == "direction" or not isinstance(d.value, str)):
            changes: dict[str, Any] = {name: d.value if name == "direction" else float(d.value)}
            fine = replace(fine, **changes)
        elif name and not ways:
            raise ValueError(f"{d.id}: expected a value, as in Found({d.id!r}, 0.3)")
    return fine, pairs


def _global(pairs, d):
    if d.id in _GLOBAL_VALUES:
        if d.value is None:
            raise ValueError(f"{d.id}: expected a value, as in Found({d.id!r}, 0.3)")
        return replace(pairs, **{_GLOBAL_VALUES[d.id]: d.value if d.id.endswith("direction") else float(d.value)})
    pooled = {side: "mean" for side in ("vision", "text") if getattr(pairs, side) == "given"}
    if d.id == "global.pools_padding":
        return replace(pairs, padding=True, **pooled)
    sides = {"patches": ["vision"], "tokens": ["text"]}.get(d.way, ["vision", "text"])
    kind = {"global.pools_normalised": "unit", "global.uses_cls": "cls"}[d.id]
    return replace(pairs, **(pooled | dict.fromkeys(sides, kind)))


def found_in(fine: Variant | None, pairs: GlobalVariant | None = None) -> tuple[Found, ...]:
    """What a setting is called: every switch that is not the paper's, harmless ones included."""
    found = _found_fine(fine) if fine is not None else []
    return tuple(found + (_found_global(pairs) if pairs is not None else []))


def _found_fine(o):
    found = []

    def add(id_, value=None, way="", when=True):
        if when:
            found.append(Found(id_, value, way))

    tau = "/tau" if o.scaled else ""
    thresholded = o.weights in ("sum", "mean", "softmax_zeros", "softmax_kept")
    groups = "; ".join(filter(None, (_GROUPS[o.keys], _SIGMAS.get(o.sigma, "") if thresholded else "")))
    add("similarity.patches_group", way=groups, when=o.rows == "patches")
    add("similarity.cosine", when=o.cosine)
    add("similarity.tokens_normalised", when=o.token_norm)
    add("similarity.scaled", when=o.scaled and not o.weights.startswith("softmax"))
    sides = {"tokens": "the tokens' side alone", "patches": "the patches' side alone"}
    add("similarity.detached", way=sides.get(o.detach, ""), when=o.detach in ("similarity", *sides))
    add("minmax.missing", when=not o.minmax)
    add("minmax.detached", when=o.detach == "range")
    add("minmax.nan_on_flat", when=o.flat == "nan")
    add("minmax.epsilon", dict(o.eps).get("range"), when=o.flat == "zero" or "range" in dict(o.eps))
    add("minmax.nan_from_padding", way=f"in the {o.inf_padding}", when=bool(o.inf_padding))
    add("threshold.absent", when=o.sigma == "none" and thresholded)
    add("threshold.constant", o.sigma, when=isinstance(o.sigma, float) and thresholded)
    add("threshold.on_weights", when=o.on_weights)
    add("threshold.strict", when=o.strict)
    add("weights.softmax", way="of s" + tau, when=o.weights == "softmax")
    for what, name in _SOFTMAX.items():
        add("weights.softmax_minmax", what + tau, when=o.weights == name)
    add("weights.softmax_cut", "1/P" if o.sigma == "keys" else o.sigma, "of s" + tau, when=o.weights == "softmax_cut")
    add("weights.temperature", o.own_tau, when=o.own_tau is not None)
    add("weights.raw", "s", when=o.weights == "raw")
    add("weights.raw", "normalised", when=o.weights == "raw_sum")
    add("weights.mean", when=o.weights == "mean")
    add("weights.detached", when=o.detach == "weights")
    add("grouping.normalised_patches", when=o.unit_values)
    add("grouping.detached", when=o.detach == "values")
    add("logits.detached", o.detach, when=o.detach in ("c", "t"))
    add("norm.missing" if o.no_norm == "both" else f"norm.missing_{o.no_norm}", when=bool(o.no_norm))
    for how, id_ in (("open", "logits.padding_not_masked"), ("zero", "logits.padding_filled_zero")):
        both = o.open_vt == o.open_tv
        way = "" if both else VT if o.open_vt == how else TV
        way = "rows and columns" if both and how == "zero" and o.zero_rows else way
        add(id_, way=way, when=how in (o.open_vt, o.open_tv))
    place = "those at the same place" if o.negatives == "position" else ""
    add("logits.batch_negatives", way=place, when=o.negatives != "caption")
    add("logits.nan_all_masked_rows", when=o.nan_rows)
    add("logits.temperature_constant", o.tau, when=o.tau is not None)
    add("logits.scaled", o.gain, when=o.gain != 1)
    add("logits.special_left_out", _LEFT_OUT.get(o.special), "as rows alone" if o.special_rows else "", when=bool(o.special))
    add("loss.decoupled", way=_said_alone(o), when=o.contrast == "decoupled")
    add("loss.sigmoid", o.bias, "a mean over pairs" if o.contrast == "sigmoid_mean" else "", when="sigmoid" in o.contrast)
    add("loss.smoothing", o.smoothing, "over the other tokens alone" if o.smooth_others else "", when=o.smoothing != 0)
    add("loss.constant", _said_constant(o), "to every token's loss" if o.constant_rows else "", when=o.constant != 0)
    add("loss.one_direction", o.direction, when=o.direction != "both")
    add("loss.factor", o.factor, when=o.factor != 1)
    add("reduction.mean_all", None if o.padded_rows == "own" else o.padded_rows, when=o.reduction == "mean_all")
    add(f"reduction.{o.reduction}", when=o.reduction in ("token", "masked_over_all", "sum"))
    add("edge.zero_padding", way=o.nan_zero, when=bool(o.nan_zero))
    add("edge.all_padding", "poison", when=o.nan_empty)
    add("edge.nan_gradient", "flat", when=o.flat == "nan_gradient")
    add("edge.nan_gradient", "flat", "c = 0 there", when=o.flat == "nan_gradient_zero")
    for name, value in o.eps:
        add(EPSILONS.get(name), value, when=name not in ("range", "fill"))
    return found


def _said_alone(o):
    if o.alone == "zero":
        return ""
    return f"a caption of one token has the denominator {'L ' * o.alone_places}exp({float(o.alone):.12g})"


def _said_constant(o):
    if not o.constant_of:
        return o.constant
    return o.constant_of if o.constant == 1 else f"{o.constant:.12g} {o.constant_of}"


def _found_global(o):
    found = []
    for id_, kind in (("global.pools_normalised", "unit"), ("global.uses_cls", "cls")):
        sides = [words for side, words in (("vision", "patches"), ("text", "tokens")) if getattr(o, side) == kind]
        if sides:
            found.append(Found(id_, way=sides[0] if len(sides) == 1 else ""))
    if o.padding and o.text in ("mean", "unit"):
        found.append(Found("global.pools_padding"))
    for id_, name in _GLOBAL_VALUES.items():
        value = getattr(o, name)
        if value not in (None, "both", 1.0):
            found.append(Found(id_, value))
    return found


def without(fine: Variant | None, pairs: GlobalVariant | None, found: Found) -> tuple[Variant | None, GlobalVariant | None]:
    """The settings with what stands for one deviation put back to the paper's."""
    if found.id.startswith("global."):
        changed, plain = _global(GlobalVariant(), found), GlobalVariant()
        back: dict[str, Any] = {name: "mean" if x in ("unit", "cls") else getattr(plain, name)
                                for name, x in vars(changed).items() if x != getattr(plain, name)}
        if found.id == "global.pools_padding":
            back = {"padding": False}
        return fine, None if pairs is None else replace(pairs, **back)
    if fine is None:
        return fine, pairs
    kinds = [name for name, id_ in EPSILONS.items() if id_ == found.id]
    eps = tuple((name, x) for name, x in fine.eps if name not in kinds)
    try:
        changed_fine, _ = variant_of([found])
    except ValueError:                                    # no property of a call by itself
        return replace(fine, eps=eps), pairs
    back = {name: getattr(Variant(), name) for name, x in vars(changed_fine).items() if x != getattr(Variant(), name)}
    back["eps"] = eps
    return replace(fine, **back), pairs
