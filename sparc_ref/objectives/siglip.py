"""SigLIP: every pair of the batch is asked by itself whether it belongs together.  No softmax over the batch."""

from collections.abc import Callable

from array_api_compat import array_namespace, device

from sparc_ref import ops
from sparc_ref.alignment import check_finite
from sparc_ref.backend import Array
from sparc_ref.objectives.shared import open_inputs, scaled

BIAS = "logit_bias"


def siglip(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array
) -> tuple[Array, dict[str, Array], Callable]:
    """L = -1/B sum_ij log sigmoid(y_ij z_ij),  z_ij = exp(theta) phi(v_bar_i, t_bar_j) + b,  y_ij = 1 where i = j, else -1.

    Source: Zhai et al. 2023 (arXiv 2303.15343), algorithm 1; recalled.  b = logit_bias starts at -10, so that a pair starts as
    unlikely as it is.  Theirs starts at theta = log 10; here theta is the model's and starts where it does for every objective.
    v (B,P,D), t (B,L,D), mask (B,L): taken and not used.  v_bar, t_bar (B,D); params: theta (), logit_bias ().
    Returns loss (), parts (scores (B,B): phi), back; back(dloss) -> gradients by name.  ValueError, ArithmeticError as clip.
    """
    x, close = open_inputs(params, v, t, mask, v_bar, t_bar, ("theta", BIAS))
    v_hat, back_v = ops.l2_normalize(x["v_bar"])
    t_hat, back_t = ops.l2_normalize(x["t_bar"])
    phi = v_hat @ t_hat.T
    loss, back_pairs = sigmoid_pairs(phi, x["theta"], x[BIAS])
    check_finite("SigLIP loss", loss, v_bar=x["v_bar"], t_bar=x["t_bar"], theta=x["theta"], logit_bias=x[BIAS])

    def back(dloss=1.0):
        dphi, dtheta, dbias = back_pairs(dloss)
        return close("siglip", dloss, {"v_bar": back_v(dphi @ t_hat), "t_bar": back_t(dphi.T @ v_hat), "theta": dtheta,
                                       BIAS: dbias})

    return loss, {"scores": phi}, back


def sigmoid_pairs(scores: Array, theta: Array, bias: Array) -> tuple[Array, Callable]:
    """-1/B sum log sigmoid(+-(exp(theta) s + b)), plus on the diagonal.

    scores (B,B), theta (), bias () -> (); back(dloss) -> dscores, dtheta, dbias
    """
    xp = array_namespace(scores)
    B = scores.shape[0]
    own = xp.eye(B, dtype=scores.dtype, device=device(scores))
    z, back_z = scaled(theta, scores)
    wrong = (1 - 2 * own) * (z + bias)                    # how far each pair is on the wrong side
    e = xp.exp(-xp.abs(wrong))
    each = xp.where(wrong > 0, wrong, 0.0) + xp.log1p(e)
    miss = xp.where(wrong > 0, 1.0, e) / (1 + e)          # sigmoid(wrong)

    def back(dloss):
        dz = (1 - 2 * own) * miss * (float(dloss) / B)
        dtheta, dscores = back_z(dz)
        return dscores, dtheta, xp.sum(dz)

    return xp.sum(each) / B, back
