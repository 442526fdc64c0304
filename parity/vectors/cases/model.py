"""Level "model": the whole loss, eq. 7, and the gradient of every parameter, on a toy model whose sizes all differ."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np

from parity import oracle
from parity.vectors.cases.core import Definition, Draw, Function, lengths
from parity.vectors.cases.encoders import AXES as INPUTS
from parity.vectors.cases.encoders import TOY, draw_params
from parity.vectors.cases.losses import AXES as FINE
from sparc_ref.model import SPARCConfig, forward, parameter_shapes

AXES = FINE | INPUTS | {
    "image_features": "BPC", "text_features": "BLE", "v_bar": "BD", "t_bar": "BD", "loss_global": "", "loss_fine": "",
    "logits": "BB", "loss_image": "B", "loss_text": "B",
}
FLAGS = {"separate": "a temperature for each loss: one gradient that should have been two"}
BATCH = ("images", "tokens", "mask")
FEATURES, GLOBAL = ("image_features", "text_features", "v", "t", "v_bar", "t_bar"), ("logits", "loss_image", "loss_text")
LOSSES = ("loss_global", "loss_fine")
SEED = 567  # margins of 0.002 and more under all options; 651: 0.02 with two blocks


def _forward(x, o):
    params = {n: p for n, p in x.items() if n not in BATCH}
    loss, trace, back = forward(params, *(x[n] for n in BATCH), SPARCConfig(**o))
    order = [*FEATURES, *GLOBAL, "loss_global", *(n for n in trace if n not in (*FEATURES, *GLOBAL, *LOSSES)), "loss_fine"]
    return {"loss": loss}, {n: trace[n] for n in order if n in trace}, lambda ct: back(float(ct["loss"]))


def _oracle(x, o):
    loss, stages = oracle.model_stages(x, *(x[n] for n in BATCH), SimpleNamespace(**o))
    return {"loss": loss}, stages


FUNCTIONS = {"model": Function("model", _forward, _oracle, AXES, "BDHG", constant=("images",), padded=True)}


def toy(seed=SEED, real=(5, 2, 4, 3), size=(12, 12), **changes):
    """Inputs and options of a toy model."""
    options = asdict(SPARCConfig(**TOY | changes))
    draw = Draw(seed)
    params = draw_params(draw, parameter_shapes(SPARCConfig(**options)))
    if "theta_fine" in params:
        params["theta_fine"] = np.asarray(1.25, np.float32)
    batch = {"images": draw.normal(len(real), 3, *size), "tokens": draw.ids(13, len(real), 5), "mask": lengths(5, *real)}
    return batch | params, options


def cases():
    """Every case of this level."""
    return list(_cases())


def _cases():
    def case(name, flags=("ordinary",), note="", left_out=(), inputs=None, **how):
        x, options = toy(**how)
        return Definition(f"model_{name}", "model", x | (inputs or {}), options, flags, note, left_out=left_out)

    yield case("default", vision_depth=2, seed=651, note="Caught: one of the two uses of g_v or g_t left out of its gradient, "
               "dropped residuals, h_v on patches.")
    yield case("gelu_erf", ("gelu",), "Caught: the tanh form, in a tower or in h_v.", gelu="erf")
    yield case("no_text_positions", text_positions="none")
    yield case("text_pool_all", text_pool="all", note="Listing 1: padding is pooled too; it reads token 0.")
    yield case("no_h_v", h_v="none", note="Listing 1.")
    yield case("separate_temperatures", ("separate",), "theta for eq. 1, theta_fine for eq. 6. Caught: one used for both.",
               temperature="separate")
    yield case("token_reduction", reduction="token", note="Listing 1.")
    yield case("sigma_0375", sigma=0.375)
    yield case("cosine", similarity="cosine")
    yield case("softmax", align="softmax")
    yield case("no_threshold", align="no_threshold")
    yield case("threshold_on_weights", threshold_on="weights")
    yield case("lambda_f_5", lambda_f=5.0, note="Caught: weights exchanged, or applied to the loss and not to its gradient.")
    yield case("global_alone", lambda_f=0.0, note="No fine-grained loss: its stages are absent.")
    yield case("fine_alone", lambda_g=0.0, lambda_f=10.0, note="The pooled path gets no gradient.")
    yield case("resize_bicubic", ("resize",), "3 x 5 patches, positions learned for 3 x 3. Caught: rows for columns.",
               size=(12, 20))
    yield case("resize_linear", ("resize",), "The same, interpolated linearly. Caught: bicubic.", size=(12, 20),
               position_resize="linear")
    yield case("no_padding", real=(5, 5, 5, 5), note="Hides every fault of padding.")
    x = toy()[0]
    other = np.where(x["mask"], x["tokens"], np.array([-100, 12, 99, -1, 7]))
    yield case("padding_ids", ("padding",), "Padded places hold other ids, some outside of the vocabulary. Caught: "
               "padding that reaches the loss or the embedding's gradient.", inputs={"tokens": other})
    yield case("all_padding", ("all_padding",), "A caption of padding alone. Caught: NaN, a mean over none.", real=(5, 0, 4, 1))
    yield case("one_patch", ("one_patch", "flat"), "Pictures of one patch: every row of the alignment is flat. Caught: NaN.",
               ("minmax", "sparse"), size=(4, 4), real=(5, 3))
    yield case("one_sample", ("one_sample",), "B = 1: eq. 1 is 0, eq. 6 is not. Caught: squeezed axes.", real=(4,))
