"""SPARC behind the objectives' signature: eq. 7, with the ablations of Table 8 as options."""

from collections.abc import Callable

from sparc_ref.backend import Array
from sparc_ref.losses import fine_grained_loss, global_loss
from sparc_ref.objectives.shared import open_inputs


def sparc(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, *,
    lambda_g: float = 0.5, lambda_f: float = 1.0, **options,
) -> tuple[Array, dict[str, Array], Callable]:
    """L = lambda_g L_g + lambda_f L_f, eq. 7.

    options are fine_grained_loss's and align_patches' keywords.  The ablations: align="no_threshold" and align="softmax"
    (Table 8), threshold_on="weights" (the threshold after eq. 4).  "No sparsity" and "softmax" are read as sigma = 0 and as
    a softmax over plain similarities; the paper does not spell them out.
    params: theta (), and theta_fine for eq. 6 where there is one.
    Returns loss (), parts (both losses' traces, loss_global, loss_fine), back; back(dloss) -> gradients by name.
    """
    fine = "theta_fine" if "theta_fine" in params else "theta"
    x, close = open_inputs(params, v, t, mask, v_bar, t_bar, tuple(dict.fromkeys(("theta", fine))))
    loss_g, parts, back_global = global_loss(x["v_bar"], x["t_bar"], x["theta"])
    loss_f, trace, back_fine = fine_grained_loss(x["v"], x["t"], mask, x[fine], **options)

    def back(dloss=1.0):
        dv_bar, dt_bar, dtheta = back_global(lambda_g * float(dloss))
        dv, dt, dtheta_fine = back_fine(lambda_f * float(dloss))
        thetas = {"theta": dtheta, fine: dtheta_fine} if fine != "theta" else {"theta": dtheta + dtheta_fine}
        return close("sparc", dloss, {"v": dv, "t": dt, "v_bar": dv_bar, "t_bar": dt_bar, **thetas})

    return lambda_g * loss_g + lambda_f * loss_f, {"loss_global": loss_g, "loss_fine": loss_f, **parts, **trace}, back
