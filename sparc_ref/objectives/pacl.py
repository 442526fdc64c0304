"""PACL: a caption as a whole pools the patches that resemble it, in every pair of the batch.

B batch, P patches, D joint width.  e (B,P,D) are the embedded patches, e_hat and t_hat normalised.
"""

from collections.abc import Callable

from array_api_compat import array_namespace

from sparc_ref import ops
from sparc_ref.alignment import check_finite
from sparc_ref.backend import Array
from sparc_ref.objectives.shared import both_ways, by_columns, check_choice, cosine_of_mean, open_inputs, open_scores, scaled

CHOICES = {"pairs": ("all", "matched"), "values": ("plain", "unit")}
EMBEDDER = ("pacl.up.weight", "pacl.up.bias", "pacl.down.weight", "pacl.down.bias")


def pacl(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, *,
    pairs: str = "all", values: str = "plain", weight_scale: float = 1.0, chunk: int | None = None,
) -> tuple[Array, dict[str, Array], Callable]:
    """e    = v + down relu(up v)                                the vision embedder, where params hold pacl.up and pacl.down
    s_ijp   = phi(e_ip, t_bar_j);  a_ij = softmax_p(k s_ij)      k = weight_scale, or exp(theta_pool) where params hold it
    u_ij    = sum_p a_ijp e_ip
    z_ij    = exp(theta) phi(u_ij, t_bar_j)                      parts["scores"] (B,B) is phi, pictures x captions
    L       = 1/2 [CE(z) + CE(z')]

    Source: Mukhoti et al. 2023 (arXiv 2212.04994), no official code; second-hand, from notes and a reproduction.  The softmax
    without a temperature and ReLU are recalled; the temperature of the loss is SPARC's addition (D.4).  The original embedder
    reads the tower's features, with a linear shortcut; here g_v is that shortcut and the residual layers read what it gives.
    pairs       "all": each caption weighs every picture's patches, as SPARC's Table 11 implies | "matched": weights of a
                picture's own caption alone, one pooled vector for all captions (the reproduction's code)
    values      what is averaged: "plain" patches | "unit" ones
    weight_scale    1, as in the paper | 10, as in the reproduction
    chunk       captions in a block of columns, see shared.by_columns
    Exact and cheap: <u,t> = sum_p a_p <e_p,t> and |u|^2 = a'(e e')a, so no (B,B,D) tensor: B^2 (PD + P^2) MAC.
    t (B,L,D), mask (B,L), v_bar (B,D): taken and not used.
    Returns loss (), parts, back; back(dloss) -> gradients by name.  ValueError, ArithmeticError as clip.
    """
    check_choice("pairs", pairs, CHOICES["pairs"])
    check_choice("values", values, CHOICES["values"])
    check_scale(weight_scale)
    uses = ("theta", *("theta_pool",) * ("theta_pool" in params), *EMBEDDER * any(name in params for name in EMBEDDER))
    x, close = open_inputs(params, v, t, mask, v_bar, t_bar, uses)
    xp = array_namespace(x["v"])
    e, back_e = embed(x, x["v"])
    t_hat, back_t = ops.l2_normalize(x["t_bar"])
    k = xp.exp(x["theta_pool"]) if "theta_pool" in x else xp.ones_like(x["theta"]) * weight_scale
    pool = pooled_cosine if pairs == "all" else matched_cosine
    phi, back_phi = pool(e, t_hat, k, values, chunk)      # (B,B)
    z, back_z = scaled(x["theta"], phi)
    loss, parts, back_ce = both_ways(z, z.T, xp.ones_like(x["real"]))
    check_finite("PACL loss", loss, v=x["v"], t_bar=x["t_bar"], theta=x["theta"])

    def back(dloss=1.0):
        dz_image, dz_text = back_ce(dloss)
        dtheta, dphi = back_z(dz_image + dz_text.T)
        de, dt_hat, dk = back_phi(dphi)
        dv, grads = back_e(de)
        pool = {"theta_pool": dk * k} if "theta_pool" in x else {}
        return close("pacl", dloss, {"v": dv, "t_bar": back_t(dt_hat), "theta": dtheta, **pool, **grads})

    return loss, {"scores": phi, **parts}, back


def embed(p: dict[str, Array], v: Array) -> tuple[Array, Callable]:
    """e = v + down relu(up v), or v itself where p has no embedder.      v (B,P,D) -> (B,P,D); back(de) -> dv, gradients"""
    if "pacl.up.weight" not in p:
        return v, lambda de: (de, {})
    xp = array_namespace(v)
    h, back_up = ops.linear(v, p["pacl.up.weight"], p["pacl.up.bias"])
    on = h > 0
    y, back_down = ops.linear(xp.where(on, h, 0.0), p["pacl.down.weight"], p["pacl.down.bias"])

    def back(de):
        g = {}
        dh, g["pacl.down.weight"], g["pacl.down.bias"] = back_down(de)
        dv, g["pacl.up.weight"], g["pacl.up.bias"] = back_up(xp.where(on, dh, 0.0))
        return dv + de, g

    return v + y, back


def pooled_cosine(
    e: Array, t_hat: Array, k: Array, values: str = "plain", chunk: int | None = None
) -> tuple[Array, Callable]:
    """phi_ij: the cosine of caption j with the patches of picture i that it pools.

    e (N,P,D), t_hat (M,D) normalised, k () -> (N,M); back(dphi) -> de, dt_hat, dk
    """
    xp = array_namespace(e, t_hat)
    T = xp.matrix_transpose
    N, P, D = e.shape
    e_hat, back_hat = ops.l2_normalize(e)
    length = xp.vecdot(e, e_hat) if values == "plain" else xp.ones_like(e[..., 0])  # (N,P)
    base = e if values == "plain" else e_hat
    gram = base @ T(base)                                 # (N,P,P)

    def block(part):
        s = t_hat[part, :] @ T(e_hat)                     # (N,m,P)
        w = s * length[:, None, :]                        # <e_p, t>, or of unit patches
        a, back_a = ops.softmax(k * s)
        phi, back_phi = cosine_of_mean(a, w, gram)

        def back_block(dphi):                             # (N,m)
            da, dw, dgram = back_phi(dphi)
            dks = back_a(da)
            ds = k * dks + dw * length[:, None, :]
            m = ds.shape[1]
            flat = xp.reshape(xp.permute_dims(ds, (1, 0, 2)), (m, N * P))
            whole = (T(ds) @ t_hat[part, :], xp.sum(dw * s, axis=1), dgram, xp.sum(dks * s))
            return whole, (flat @ xp.reshape(e_hat, (N * P, D)),)

        return phi, back_block

    phi, back_blocks = by_columns(block, t_hat.shape[0], 3 * N * P, chunk)

    def back(dphi):
        (de_hat, dlength, dgram, dk), (dt_hat,) = back_blocks(dphi)
        dbase = 2 * (dgram @ base)
        if values == "unit":
            return back_hat(de_hat + dbase), dt_hat, dk
        return back_hat(de_hat) + dlength[..., None] * e_hat + dbase, dt_hat, dk

    return phi, back


def matched_cosine(e, t_hat, k, values="plain", chunk=None):
    """phi_ij of one pooled vector a picture, weighed by its own caption.      e (B,P,D), t_hat (B,D), k () -> (B,B), back"""
    xp = array_namespace(e, t_hat)
    e_hat, back_hat = ops.l2_normalize(e)
    base = e if values == "plain" else e_hat
    s = xp.vecdot(e_hat, t_hat[:, None, :])               # (B,P)
    a, back_a = ops.softmax(k * s)
    u_hat, back_u = ops.l2_normalize(xp.sum(a[..., None] * base, axis=1))  # (B,D)

    def back(dphi):
        du = back_u(dphi @ t_hat)
        dks = back_a(xp.vecdot(base, du[:, None, :]))
        ds = (k * dks)[..., None]                         # (B,P,1)
        dbase = a[..., None] * du[:, None, :]
        dt_hat = dphi.T @ u_hat + xp.sum(ds * e_hat, axis=1)
        de_hat = ds * t_hat[:, None, :]
        de = back_hat(de_hat + dbase) if values == "unit" else back_hat(de_hat) + dbase
        return de, dt_hat, xp.sum(dks * s)

    return u_hat @ t_hat.T, back


def pacl_scores(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, *,
    values: str = "plain", weight_scale: float = 1.0, chunk: int | None = None,
) -> tuple[Array, Array]:
    """PACL's own scores for retrieval, phi with each caption's own weights, the same both ways.

    v (N,P,D), t_bar (M,D); t, mask and v_bar are not used -> (N,M), (N,M)
    """
    v, t_bar = open_scores(v=v, t_bar=t_bar)
    xp = array_namespace(v, t_bar)
    theta = params.get("theta_pool")
    k = xp.ones_like(t_bar[0, 0]) * weight_scale if theta is None else xp.astype(xp.exp(theta), v.dtype, copy=False)
    phi = pooled_cosine(embed(params, v)[0], ops.l2_normalize(t_bar)[0], k, values, chunk)[0]
    check_finite("scores", phi, v=v, t_bar=t_bar)
    return phi, phi


def check_scale(weight_scale):
    if not 0 <= weight_scale < float("inf"):
        raise ValueError(f"weight_scale: expected at least 0, got {weight_scale}")
