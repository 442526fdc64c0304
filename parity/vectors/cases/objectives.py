"""Level "objectives": what SPARC is compared with, each under its defaults and its other readings.

B batch, L tokens, P patches, D joint width, E width of MGCA's attention, K prototypes.
"""

import numpy as np

from parity import oracle_objectives
from parity.vectors.cases.core import Definition, Draw, Function, lengths, number
from sparc_ref import objectives

EMBEDDINGS = ("v", "t", "mask", "v_bar", "t_bar")
AXES = {"v": "BPD", "t": "BLD", "mask": "BL", "v_bar": "BD", "t_bar": "BD", "mgca.prototypes": "KD", "pacl.up.weight": "DD",
        "pacl.up.bias": "D", "pacl.down.weight": "DD", "pacl.down.bias": "D"}
AXES |= {f"flair.{part}.weight": "ED" for part in ("query", "key", "value")}
AXES |= {"flair.query.bias": "E", "flair.out.weight": "DE", "flair.out.bias": "D", "logit_bias": ""}
AXES |= dict.fromkeys(("scores", "scores_image", "scores_text"), "BB")
AXES |= dict.fromkeys(("loss", "loss_clip", "loss_filip", "loss_local", "loss_global", "loss_ita", "loss_cta", "loss_cpa",
                       "loss_fine", "theta", "theta_filip", "theta_pool", "theta_local", "theta_words",
                       "theta_attention", "theta_cross"), "")
for _side in ("word", "patch"):
    AXES |= {f"mgca.{_side}.{part}.weight": "ED" for part in ("query", "key", "value")}
    AXES |= {f"mgca.{_side}.{part}.bias": "E" for part in ("query", "value")}
    AXES |= {f"mgca.{_side}.out.weight": "DE", f"mgca.{_side}.out.bias": "D"}
B, L, P, D, E, K = 4, 5, 7, 6, 3, 8
OPTIONS = {  # every keyword, with its default
    "clip": {},
    "filip": {"keep": 0.2, "drop_side": "gathered", "select": "batch", "ties": "share"},
    "pacl": {"pairs": "all", "values": "plain", "weight_scale": 1.0},
    "gloria": {"temp1": 4.0, "temp2": 5.0, "temp3": 10.0, "similarity": "scaled", "double_softmax": False, "agg": "sum"},
    "mgca": {"lambda_ita": 1.0, "lambda_cta": 1.0, "lambda_cpa": 1.0, "attention": "mha", "normalize": "word",
             "attention_tau": 0.1, "prototype_tau": 0.2, "epsilon": 0.05, "iterations": 3, "freeze_prototypes": False},
    "siglip": {},
    "flair": {},
    "sparc": {"lambda_g": 0.5, "lambda_f": 1.0, "reduction": "sample", "sigma": None, "similarity": "dot", "align": "minmax",
              "threshold_on": "minmax", "flat": "uniform", "ties": "share"},
}
OPTIONS["clip_filip"] = {"weight_clip": 0.5, "weight_filip": 0.5} | OPTIONS["filip"]
PARTS = {"clip": (), "filip": ("scores_image", "scores_text"), "clip_filip": ("loss_clip", "loss_filip"), "pacl": ("scores",),
         "gloria": ("scores", "loss_local", "loss_global"), "mgca": ("loss_ita", "loss_cta", "loss_cpa"),
         "siglip": (), "flair": ("scores", "loss_local", "loss_global"), "sparc": ("loss_global", "loss_fine")}


def _split(x):
    return {n: p for n, p in x.items() if n not in EMBEDDINGS}, [x[n] for n in EMBEDDINGS]


def _ours(name):
    def call(x, o):
        params, embeddings = _split(x)
        loss, parts, back = getattr(objectives, name)(params, *embeddings, **o)
        return {"loss": loss}, {n: parts[n] for n in PARTS[name]}, lambda ct: back(float(ct["loss"]))

    return call


def _theirs(name):
    def call(x, o):
        params, embeddings = _split(x)
        loss, parts = getattr(oracle_objectives, name)(params, *embeddings, **o)
        return {"loss": loss}, {n: parts[n] for n in PARTS[name]}

    return call


def _hold_codes(x, o):
    """MGCA with the codes of `x`, through which no gradient passes."""
    def unit(y):
        return y / np.linalg.norm(y, axis=1, keepdims=True)

    def scores(y):
        return [unit(y[n]) @ y["mgca.prototypes"].T for n in ("v_bar", "t_bar")]

    def balanced(s):
        q = np.exp(s / o["epsilon"])
        for _ in range(o["iterations"]):
            q = q / q.sum(0)
            q = q / q.sum(1, keepdims=True)
        return q / q.sum(1, keepdims=True)

    codes = [balanced(s) for s in scores(x)]

    def loss(y):
        log_p = [s / o["prototype_tau"] for s in scores(y)]
        log_p = [s - np.log(np.exp(s).sum(1, keepdims=True)) for s in log_p]
        cpa = -sum(np.sum(q * p) for q, p in zip(codes, log_p[::-1])) / (2 * len(codes[0]))
        rest = _ours("mgca")(y, o | {"lambda_cpa": 0.0})[0]["loss"]
        return {"loss": np.asarray(rest + o["lambda_cpa"] * cpa)}

    return loss


FUNCTIONS = {name: Function("objectives", _ours(name), _theirs(name), AXES, "BPLDEK", _hold_codes if name == "mgca" else None,
                            low=("float32",)) for name in OPTIONS}


def inputs(seed, *names):
    """Captions of unequal length, vectors of unequal length, and these parameters."""
    draw = Draw(seed)
    x = {"v": draw.normal(B, P, D), "t": draw.normal(B, L, D), "mask": lengths(L, 5, 3, 2, 4), "v_bar": draw.normal(B, D),
         "t_bar": draw.normal(B, D)}
    values = {"theta": 2.65625, "theta_filip": 1.75, "theta_pool": 0.75, "theta_local": 1.25, "theta_words": 1.0,
              "theta_attention": 0.5, "theta_cross": 1.5, "logit_bias": -2.5}
    size = {"B": B, "L": L, "P": P, "D": D, "E": E, "K": K}
    for name, letters in AXES.items():
        if name in values and name in names:
            x[name] = number(values[name])
        elif "." in name and any(name.startswith(f"{each}.") or name == each for each in names):
            x[name] = draw.normal(*(size[letter] for letter in letters)) * np.float32(0.5)
    return x


def cases():
    """Every case of this level."""
    return list(_cases())


def _cases():
    def case(id, name, x, note="", **changed):
        return Definition(f"objective_{id}", name, x, OPTIONS[name] | changed, note=note, edge=name == "mgca")

    base = inputs(4100, "theta")
    yield case("clip", "clip", base, "Caught: tokens that reach CLIP's loss.")
    yield case("filip", "filip", base, "Caught: padding in the maximum, a mean over L for L_j, one matrix for both directions.")
    yield case("filip_all", "filip", base, "Nothing is dropped.", keep=1.0)
    yield case("filip_both", "filip", base, "Those that ask are dropped too.", keep=0.8, drop_side="both")
    yield case("filip_pair", "filip", base, keep=0.5, select="pair")
    yield case("clip_filip", "clip_filip", inputs(4101, "theta", "theta_filip"), "Two temperatures.", weight_filip=0.75)
    yield case("pacl", "pacl", inputs(4102, "theta", "pacl"), "Caught: weights of the matched caption alone.")
    yield case("pacl_no_embedder", "pacl", base, weight_scale=10.0)
    yield case("pacl_learned", "pacl", inputs(4103, "theta", "theta_pool", "pacl"), values="unit")
    yield case("pacl_matched", "pacl", inputs(4102, "theta", "pacl"), pairs="matched")
    x = inputs(4104, "theta", "theta_local")
    yield case("gloria", "gloria", x, "Caught: padding in the sum over words, halves of the sums.")
    yield case("gloria_code", "gloria", x, "As the public code: two softmaxes, no sqrt(D).", similarity="dot",
               double_softmax=True)
    yield case("gloria_mean", "gloria", x, agg="mean")
    yield case("gloria_learned", "gloria", inputs(4104, "theta", "theta_local", "theta_words", "theta_attention"))
    x = inputs(4105, "theta", "theta_cross", "mgca")
    yield case("mgca", "mgca", x, "Caught: padding as a key or as a column, a gradient through the codes.")
    yield case("mgca_both", "mgca", x, normalize="both", lambda_ita=0.5, lambda_cta=2.0, lambda_cpa=0.25)
    yield case("mgca_code", "mgca", inputs(4105, "theta", "theta_cross", "mgca.prototypes"), "As the public code.",
               attention="paramfree")
    x = inputs(4106, "theta", "logit_bias", "flair")
    yield case("siglip", "siglip", {n: x[n] for n in (*EMBEDDINGS, "theta", "logit_bias")}, "Caught: a mean over B^2 for B.")
    yield case("flair", "flair", x, "Caught: no empty token, an attention over normalised patches.")
    base = inputs(4110, "theta")
    yield case("sparc", "sparc", base)
    yield case("sparc_no_threshold", "sparc", base, align="no_threshold")
    yield case("sparc_softmax", "sparc", base, align="softmax")
    yield case("sparc_weights", "sparc", base, threshold_on="weights")
