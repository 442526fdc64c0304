"""FLAIR: a caption as a whole attends to the patches of every picture, and asks each pair by itself.

B batch, P patches, D joint width, E width of the attention.  The patches and one empty token make P+1 places.
"""

from collections.abc import Callable

from array_api_compat import array_namespace

from sparc_ref import ops
from sparc_ref.alignment import check_finite
from sparc_ref.backend import Array
from sparc_ref.objectives.shared import by_columns, cosine_of_mean, open_inputs, open_scores
from sparc_ref.objectives.siglip import BIAS, sigmoid_pairs

ATTENTION = ("flair.query.weight", "flair.query.bias", "flair.key.weight", "flair.value.weight", "flair.out.weight",
             "flair.out.bias")


def flair(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, *, chunk: int | None = None,
) -> tuple[Array, dict[str, Array], Callable]:
    """u_ij  = out sum_p a_ijp value_ip,  a_ij = softmax_p(query(t_bar_j)' key_ip / sqrt E); an empty token: key and value 0
    L     = 1/2 [L_sig(phi(u_ij, t_bar_j)) + L_sig(phi(v_bar_i, t_bar_j))],  L_sig of siglip, theta and logit_bias shared

    Source: Xiao et al. 2024 (arXiv 2412.03561), text-conditioned attention pooling and its two sigmoid losses, with one
    caption a picture; recalled.  One head (theirs: several); key and value have no bias; what is normalised is what comes out.
    chunk       captions in a block of columns, see shared.by_columns
    Exact and cheap, as PACL: no (B,B,D) tensor, B^2 (PE + PD + P^2) MAC.
    t (B,L,D), mask (B,L): taken and not used.  params: theta (), logit_bias (), flair.{query,key,value}.weight (E,D),
    flair.query.bias (E,), flair.out.weight (D,E), flair.out.bias (D,).
    Returns loss (), parts (scores (B,B): phi(u_ij, t_bar_j); loss_local, loss_global), back; back(dloss) -> gradients by name.
    ValueError, ArithmeticError as clip.
    """
    x, close = open_inputs(params, v, t, mask, v_bar, t_bar, ("theta", BIAS, *ATTENTION))
    v_hat, back_v = ops.l2_normalize(x["v_bar"])
    t_hat, back_t = ops.l2_normalize(x["t_bar"])
    phi, back_phi = attended_cosine(x, x["v"], x["t_bar"], t_hat, chunk)
    local, back_local = sigmoid_pairs(phi, x["theta"], x[BIAS])
    whole, back_whole = sigmoid_pairs(v_hat @ t_hat.T, x["theta"], x[BIAS])
    loss = (local + whole) / 2
    check_finite("FLAIR loss", loss, v=x["v"], v_bar=x["v_bar"], t_bar=x["t_bar"], theta=x["theta"], logit_bias=x[BIAS])

    def back(dloss=1.0):
        half = float(dloss) / 2
        dphi, dtheta, dbias = back_local(half)
        dcosine, dtheta_whole, dbias_whole = back_whole(half)
        dv, dt_bar, dt_hat, grads = back_phi(dphi)
        dt_bar = dt_bar + back_t(dt_hat + dcosine.T @ v_hat)
        return close("flair", dloss, {"v": dv, "v_bar": back_v(dcosine @ t_hat), "t_bar": dt_bar,
                                      "theta": dtheta + dtheta_whole, BIAS: dbias + dbias_whole, **grads})

    return loss, {"scores": phi, "loss_local": local, "loss_global": whole}, back


def attended_cosine(
    p: dict[str, Array], v: Array, t_bar: Array, t_hat: Array, chunk: int | None = None
) -> tuple[Array, Callable]:
    """phi(u_ij, t_bar_j).      v (N,P,D), t_bar, t_hat (M,D) -> (N,M); back(dphi) -> dv, dt_bar, dt_hat, gradients by name"""
    xp = array_namespace(v, t_bar)
    T = xp.matrix_transpose
    N, P, D = v.shape
    q, back_q = ops.linear(t_bar, p["flair.query.weight"], p["flair.query.bias"])         # (M,E)
    k, back_k = ops.linear(v, p["flair.key.weight"])                                      # (N,P,E)
    y, back_value = ops.linear(v, p["flair.value.weight"])
    y, back_out = ops.linear(with_empty(y), p["flair.out.weight"], p["flair.out.bias"])   # (N,P+1,D)
    k, scale = with_empty(k), q.shape[-1] ** -0.5
    gram = y @ T(y)

    def block(part):
        a, back_a = ops.softmax(scale * (q[part, :] @ T(k)))                              # (N,m,P+1)
        phi, back_phi = cosine_of_mean(a, t_hat[part, :] @ T(y), gram)

        def back_block(dphi):
            da, dw, dgram = back_phi(dphi)
            ds = scale * back_a(da)
            m = ds.shape[1]
            by_caption = [xp.reshape(xp.permute_dims(d, (1, 0, 2)), (m, -1)) for d in (ds, dw)]
            own = (by_caption[0] @ xp.reshape(k, (N * (P + 1), -1)), by_caption[1] @ xp.reshape(y, (N * (P + 1), D)))
            return (T(ds) @ q[part, :], T(dw) @ t_hat[part, :], dgram), own

        return phi, back_block

    phi, back_blocks = by_columns(block, t_bar.shape[0], 3 * N * (P + 1), chunk)

    def back(dphi):
        g = {}
        (dk, dy, dgram), (dq, dt_hat) = back_blocks(dphi)
        dy, g["flair.out.weight"], g["flair.out.bias"] = back_out(dy + 2 * (dgram @ y))
        dv, g["flair.value.weight"] = back_value(dy[:, :P, :])
        dv_k, g["flair.key.weight"] = back_k(dk[:, :P, :])
        dt_bar, g["flair.query.weight"], g["flair.query.bias"] = back_q(dq)
        return dv + dv_k, dt_bar, dt_hat, g

    return phi, back


def with_empty(x):
    """One more place, of zeros.      (N,P,E) -> (N,P+1,E)"""
    xp = array_namespace(x)
    return xp.concat([x, xp.zeros_like(x[:, :1, :])], axis=1)


def flair_scores(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, *, chunk: int | None = None,
) -> tuple[Array, Array]:
    """FLAIR's own scores for retrieval, phi(u_ij, t_bar_j), the same both ways.

    v (N,P,D), t_bar (M,D); t, mask and v_bar are not used -> (N,M), (N,M)
    """
    v, t_bar = open_scores(v=v, t_bar=t_bar)
    xp = array_namespace(v)
    p = {name: xp.astype(xp.asarray(params[name]), v.dtype, copy=False) for name in ATTENTION}
    phi = attended_cosine(p, v, t_bar, ops.l2_normalize(t_bar)[0], chunk)[0]
    return phi, phi
