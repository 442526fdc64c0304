"""Draws sets of two to four deviations and a way to write and call them, seeded; zoo_source.py writes the file."""

import random
from dataclasses import dataclass, field

SLOTS = {                                                 # one deviation at most from each; None: as the paper has it
    "similarity": ("similarity.cosine", "similarity.detached"),
    "minmax": ("minmax.nan_on_flat", "minmax.epsilon", "minmax.missing"),
    "threshold": ("threshold.absent", "threshold.constant", "threshold.on_weights"),
    "weights": (
        "weights.softmax", "weights.softmax_minmax=s_hat", "weights.softmax_minmax=s_til", "weights.raw=s",
        "weights.raw=normalised", "weights.detached",
    ),
    "grouping": ("grouping.normalised_patches",),
    "norm": ("norm.missing", "norm.missing_c", "norm.missing_t"),
    "logits": ("logits.padding_not_masked", "logits.padding_filled_zero", "logits.batch_negatives"),
    "temperature": ("logits.temperature_constant",),
    "loss": ("loss.one_direction=vt", "loss.one_direction=tv", "loss.factor"),
    "reduction": ("reduction.token", "reduction.mean_all", "reduction.masked_over_all"),
    "global": (
        "global.pools_normalised", "global.pools_padding", "global.temperature_constant", "global.one_direction=vt",
    ),
}
VALUES = {
    "minmax.epsilon": (1e-8, 1e-6, 1e-10), "threshold.constant": (0.2, 0.25, 0.3, 0.4, 0.5, 0.6),
    "logits.temperature_constant": (0.05, 0.07, 0.1), "loss.factor": (2.0, 0.5),
    "global.temperature_constant": (0.05, 0.07, 0.1),
}
HIDDEN = {                                                # under which condition nothing of it shows
    "similarity.cosine": "unit-norm patches", "grouping.normalised_patches": "unit-norm patches",
    "minmax.nan_on_flat": "no flat rows", "minmax.epsilon": "no flat rows", "logits.batch_negatives": "B = 1",
    **dict.fromkeys(("logits.padding_not_masked", "logits.padding_filled_zero", "reduction.mean_all",
                     "reduction.masked_over_all", "global.pools_padding"), "no padding"),
}
ORDER = ("no flat rows", "no padding", "B = 1", "unit-norm patches")
STYLES = ("matmul", "einsum", "bmm", "module", "loop", "jax")
NAMES = (
    {"v": "patches", "t": "tokens", "s": "sim", "a": "weights", "c": "grouped", "f": "sparc_loss"},
    {"v": "image_tokens", "t": "text_tokens", "s": "similarity", "a": "attn", "c": "context", "f": "fine_grained_loss"},
    {"v": "v", "t": "t", "s": "s", "a": "a", "c": "c", "f": "local_loss"},
    {"v": "regions", "t": "words", "s": "scores", "a": "attention", "c": "pooled", "f": "word_region"},
    {"v": "x", "t": "y", "m": "m", "k": "z", "s": "e", "a": "w", "c": "g", "f": "compute"},
)
CALLED = {                                                # what strangers call what they mean; the last set of NAMES is opaque
    "mask": ("mask", "text_mask", "valid", "keep"), "mask_int": ("attention_mask", "mask"), "mask_float": ("mask", "m"),
    "padding": ("padding_mask", "pad", "key_padding_mask"), "lengths": ("lengths", "text_lengths"),
    "scale": ("scale", "logit_scale", "inv_tau", "inverse_temperature"), "tau": ("tau", "temperature", "temp"),
    "theta": ("log_scale", "logit_scale", "log_inv_tau"),
}


@dataclass(frozen=True)
class Plan:
    """deviations as a label has them; style, names; how it is called and what it returns."""

    seed: int
    deviations: tuple[str, ...]
    style: str
    names: dict = field(hash=False)
    layout: str = "v"
    mask: str = "mask"
    scale: str = "scale"
    text_first: bool = False
    returns: str = "number"
    harmless: tuple[str, ...] = ()

    def has(self, id):
        return any(d.split("=")[0] == id for d in self.deviations)

    def value(self, id, default=None):
        return next((d.partition("=")[2] for d in self.deviations if d.split("=")[0] == id), default)


def fits(chosen, style):
    """Do these go together, so that each of them shows?"""
    ids = {d.split("=")[0] for d in chosen}
    no_minmax = ids & {"weights.softmax", "weights.raw"}
    padded_rows = ids & {"logits.padding_not_masked", "logits.padding_filled_zero"}
    return not (
        (no_minmax and any(id.startswith(("minmax.", "threshold.")) for id in ids))
        or ("weights.softmax_minmax=s_hat" in chosen and any(id.startswith("threshold.") for id in ids))
        or ("weights.softmax_minmax" in ids and ids & {"minmax.missing", "threshold.on_weights", "minmax.epsilon"})
        or ("minmax.missing" in ids and ids & {"threshold.absent", "threshold.on_weights"})
        or {"similarity.detached", "weights.detached"} <= ids
        or {"minmax.epsilon", "threshold.absent"} <= ids  # flat rows then have a gradient of 1e28, which no id names
        or ("reduction.mean_all" in ids and not padded_rows)
        or ("logits.batch_negatives" in ids and ids & {"reduction.masked_over_all"})
        or (style == "loop" and (padded_rows or ids & {"logits.batch_negatives", "reduction.mean_all"}))
        or (style in ("loop", "jax") and any(id.startswith("global.") for id in ids))
    )


def plan(seed):
    """Two to four deviations that go together, and a way to write and call them."""
    rng = random.Random(seed)
    style = STYLES[seed % len(STYLES)]
    number = 2 + seed % 3
    while True:
        slots = rng.sample(sorted(SLOTS), number)
        chosen = []
        for slot in sorted(slots, key=list(SLOTS).index):
            deviation = rng.choice(SLOTS[slot])
            if deviation in VALUES:
                deviation += f"={rng.choice(VALUES[deviation])!r}"
            chosen.append(deviation)
        if "reduction.mean_all" in chosen and "logits" not in slots and number < 4:
            chosen.insert(-1, "logits.padding_not_masked")    # with padded keys shut, padded rows have no label
        if fits(chosen, style):
            break
    ids = {d.split("=")[0] for d in chosen}
    harmless = ()
    token_length_counts = {"weights.softmax", "weights.raw", "minmax.missing", "minmax.epsilon"}
    if rng.random() < 0.3 and not ids & token_length_counts:
        harmless = ("similarity.tokens_normalised",)
    whole = any(id.startswith("global.") for id in ids)
    masks = ["lengths", "mask"] if style == "loop" else ["mask", "mask_int", "mask_float", "padding"]
    if ids >= {"logits.padding_not_masked", "reduction.mean_all"} and (not whole or "global.pools_padding" in ids):
        masks = ["none"]
    kinds = ["number"] if "loss.one_direction" in ids else ["number", "dict", "tuple", "pair"]
    scales = ["attribute"] if style == "module" else ["scale", "tau", "theta"]
    if "logits.temperature_constant" in ids and not whole:
        scales = ["none"]
    cls = style == "einsum" and not whole and rng.random() < 0.4
    mask, scale = rng.choice(masks), rng.choice(scales)
    names = rng.choice(NAMES)
    names = {"m": rng.choice(CALLED.get(mask, ("",))), "k": rng.choice(CALLED.get(scale, ("",)))} | names
    return Plan(
        seed, tuple(chosen), style, names, layout="v_bdhw" if style == "bmm" else "v_cls" if cls else "v", mask=mask,
        scale=scale, text_first=rng.random() < 0.4, returns="both" if whole else rng.choice(kinds), harmless=harmless,
    )


def expectation(p):
    """The label, by rule: conditional if at most two conditions hide everything."""
    conditions = set()
    hidden = True
    for deviation in p.deviations:
        id = deviation.split("=")[0]
        if id == "reduction.token":
            continue
        hidden = hidden and id in HIDDEN
        conditions.add(HIDDEN.get(id))
    needed = [c for c in ORDER if c in conditions]
    conditional = hidden and 0 < len(needed) <= 2
    also = []
    padding_matters = any(p.has(id) for id in ("logits.padding_not_masked", "reduction.mean_all", "global.pools_padding"))
    if padding_matters:
        also.append("edge.padding_leak")
    if padding_matters or p.has("minmax.nan_on_flat"):
        also.append("edge.zero_padding")
    if p.has("logits.temperature_constant") or p.has("global.temperature_constant"):
        also.append("edge.no_gradient")
    args = [p.layout, "t"]
    if p.text_first:
        args.reverse()
    if p.mask != "none":
        args.append(p.mask)
    if p.scale not in ("none", "attribute"):
        args.append(p.scale)
    shown = {
        "number": "fine", "dict": {"loss": "fine", "weights": None}, "tuple": ["fine", None], "pair": ["vt", "tv"],
        "both": {"global": "global", "local": "fine"},
    }
    expect = {
        "target": p.names["f"].title().replace("_", "") if p.style == "module" else p.names["f"],
        "verdict": "conditional" if conditional else "explained", "deviations": list(p.deviations), "also": also,
        "harmless": list(p.harmless), "conditions": needed if conditional else [], "call": args, "returns": shown[p.returns],
    }
    if p.style == "jax":
        expect["framework"] = "jax"
    if p.scale == "attribute":
        expect["attributes"] = {"logit_scale": "theta"}
    return expect
