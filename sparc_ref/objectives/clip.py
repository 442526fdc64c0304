"""CLIP: every picture finds its caption among the batch's, and every caption its picture.  Eq. 1 of SPARC alone."""

from collections.abc import Callable

from sparc_ref.backend import Array
from sparc_ref.losses import global_loss
from sparc_ref.objectives.shared import open_inputs


def clip(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array
) -> tuple[Array, dict[str, Array], Callable]:
    """L = 1/2 [CE(z) + CE(z')],  z_ij = exp(theta) phi(v_bar_i, t_bar_j).

    Source: Radford et al. 2021 (arXiv 2103.00020), read in its code; SPARC's eq. 1 is the same.  theta starts at log(1/0.07)
    and is kept in [0, log 100] by the trainer.  Pooling and h_v are SPARC's, so that the objectives differ in the loss
    alone; whether SPARC's own CLIP baseline has h_v is not stated.
    v (B,P,D), t (B,L,D), mask (B,L): taken and not used.  v_bar, t_bar (B,D); params: theta ().
    Returns loss (), parts (logits (B,B); loss_image, loss_text (B,)), back; back(dloss) -> gradients by name: v, t, v_bar,
    t_bar, theta.  ValueError for shapes and dtypes, ArithmeticError where something is not finite.
    """
    x, close = open_inputs(params, v, t, mask, v_bar, t_bar)
    loss, parts, back_global = global_loss(x["v_bar"], x["t_bar"], x["theta"])

    def back(dloss=1.0):
        dv_bar, dt_bar, dtheta = back_global(dloss)
        return close("clip", dloss, {"v_bar": dv_bar, "t_bar": dt_bar, "theta": dtheta})

    return loss, parts, back
