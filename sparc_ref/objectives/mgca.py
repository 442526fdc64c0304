"""MGCA: CLIP's loss, a token alignment both ways inside each pair, and prototypes that both modalities must agree on.

B batch, L tokens, P patches, D joint width, d width of the attention, K prototypes.
"""

from collections.abc import Callable

from array_api_compat import array_namespace

from sparc_ref import ops
from sparc_ref.alignment import check_finite
from sparc_ref.backend import Array
from sparc_ref.losses import diagonal_cross_entropy, global_loss, token_shares
from sparc_ref.objectives.shared import check_choice, open_inputs, scaled

CHOICES = {"attention": ("mha", "paramfree"), "normalize": ("word", "both")}
PARTS = ("query", "key", "value", "out")
PROTOTYPES = "mgca.prototypes"


def attention_names(side: str) -> tuple[str, ...]:
    """The parameters of one cross-attention, side "word" or "patch": no key bias, whose gradient is zero."""
    names = (f"{part}.{kind}" for part in PARTS for kind in ("weight", "bias"))
    return tuple(f"mgca.{side}.{name}" for name in names if name != "key.bias")


def mgca(
    params: dict[str, Array], v: Array, t: Array, mask: Array, v_bar: Array, t_bar: Array, *,
    lambda_ita: float = 1.0, lambda_cta: float = 1.0, lambda_cpa: float = 1.0, attention: str = "mha",
    normalize: str = "word", attention_tau: float = 0.1, prototype_tau: float = 0.2, epsilon: float = 0.05,
    iterations: int = 3, freeze_prototypes: bool = False,
) -> tuple[Array, dict[str, Array], Callable]:
    """L = lambda_ita ITA + lambda_cta CTA + lambda_cpa CPA, where with unit tokens t_hat (L,D) and patches v_hat (P,D)

    ITA = CE(z) + CE(z')                                   2 times eq. 1, a sum
    o   = attention of words to patches, then a unit vector;  G = exp(theta_cross) t_hat o'   (L,L), real tokens alone
    CTA = 1/2 sum_l w_l [CE_l(G) + CE_l(G')]               w_l = 1 / L_i; mean over the batch
        + the same for patches: q attends to real words, G = exp(theta_cross) v_hat q' (P,P), w_p = 1/P
    CPA = -1/2 mean_b sum_k [q_v log p_t + q_t log p_v]    p = softmax(x_bar_hat C' / prototype_tau), q its sinkhorn codes

    Source: Wang et al. 2022 (NeurIPS), read in its code.  What SPARC changes (D.3, D.4): no weights from a [CLS] token, one
    head, d = 128, learned temperatures; which are learned is not said: here theta (ITA) and theta_cross (CTA, init log 10).
    The paper's learned projections and softmax(qk/sqrt d) are recalled; the code has them and leaves them out by default.
    attention   "mha": query, key, value (d,D) and out (D,d), with biases, from params | "paramfree": softmax of the
                similarity / attention_tau, the public code.  SPARC says that MGCA adds parameters
    normalize   "word": the words' attended vectors alone, as the code does for a ViT | "both"
    prototypes  params["mgca.prototypes"] (K,D), used as they are: training makes its rows unit vectors after each update,
                outside of the gradient.  freeze_prototypes: they get no gradient (the code's first epoch)
    epsilon, iterations     of sinkhorn(), through which no gradient passes
    A caption without a real token adds nothing to CTA.
    Returns loss (), parts (loss_ita, loss_cta, loss_cpa ()), back; back(dloss) -> gradients by name.  Errors as clip.
    """
    check_choice("attention", attention, CHOICES["attention"])
    check_choice("normalize", normalize, CHOICES["normalize"])
    for name, value in (("attention_tau", attention_tau), ("prototype_tau", prototype_tau), ("epsilon", epsilon)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}: expected a positive number, got {value}")
    heads = (*attention_names("word"), *attention_names("patch")) if attention == "mha" and lambda_cta else ()
    uses = ("theta", *("theta_cross",) * bool(lambda_cta), *heads, *(PROTOTYPES,) * bool(lambda_cpa))
    x, close = open_inputs(params, v, t, mask, v_bar, t_bar, uses)
    xp = array_namespace(x["v"])
    zero = xp.zeros_like(x["theta"])
    loss_g, _, back_ita = global_loss(x["v_bar"], x["t_bar"], x["theta"])
    ita, cta, cpa = 2 * loss_g, zero, zero
    if lambda_cta:
        cta, back_cta = cross_token_alignment(x, mask, attention, normalize, attention_tau)
    if lambda_cpa:
        cpa, back_cpa = cross_prototype_alignment(
            x["v_bar"], x["t_bar"], x[PROTOTYPES], prototype_tau, epsilon, iterations)
    loss = lambda_ita * ita + lambda_cta * cta + lambda_cpa * cpa
    check_finite("MGCA loss", loss, v=x["v"], t=x["t"], v_bar=x["v_bar"], t_bar=x["t_bar"], theta=x["theta"])

    def back(dloss=1.0):
        dloss = float(dloss)
        dv_bar, dt_bar, dtheta = back_ita(2 * lambda_ita * dloss)
        grads = {"theta": dtheta}
        if lambda_cta:
            grads |= back_cta(lambda_cta * dloss)
        if lambda_cpa:
            dv_more, dt_more, dprototypes = back_cpa(lambda_cpa * dloss)
            dv_bar, dt_bar = dv_bar + dv_more, dt_bar + dt_more
            grads[PROTOTYPES] = xp.zeros_like(dprototypes) if freeze_prototypes else dprototypes
        return close("mgca", dloss, {"v_bar": dv_bar, "t_bar": dt_bar, **grads})

    return loss, {"loss_ita": ita, "loss_cta": cta, "loss_cpa": cpa}, back


def cross_token_alignment(x, mask, attention, normalize, tau):
    """CTA.      x: v (B,P,D), t (B,L,D), theta_cross, the parameters -> (), back; back(dloss) -> gradients by name"""
    xp = array_namespace(x["v"])
    v_hat, back_v = ops.l2_normalize(x["v"])
    t_hat, back_t = ops.l2_normalize(x["t"])
    o, back_o = attend(x, "word", t_hat, v_hat, None, attention, tau)             # (B,L,D)
    q, back_q = attend(x, "patch", v_hat, t_hat, mask, attention, tau)            # (B,P,D)
    o, back_norm_o = ops.l2_normalize(o)
    q, back_norm_q = ops.l2_normalize(q) if normalize == "both" else (q, lambda d: d)
    w_t = token_shares(mask, "sample", v_hat.dtype)                               # (B,L), 1/(B L_i)
    w_v = xp.sum(w_t, axis=1)[:, None] * xp.ones_like(v_hat[..., 0]) / v_hat.shape[1]   # (B,P), 1/(B P)
    word, back_word = pick_own(t_hat, o, x["theta_cross"], w_t, mask)
    patch, back_patch = pick_own(v_hat, q, x["theta_cross"], w_v, None)

    def back(dloss):
        dt_hat, do, dtheta_word = back_word(dloss)
        dv_hat, dq, dtheta_patch = back_patch(dloss)
        dt_asked, dv_seen, grads_word = back_o(back_norm_o(do))
        dv_asked, dt_seen, grads_patch = back_q(back_norm_q(dq))
        dv = back_v(dv_hat + dv_seen + dv_asked)
        dt = back_t(dt_hat + dt_asked + dt_seen)
        return {"v": dv, "t": dt, "theta_cross": dtheta_word + dtheta_patch, **grads_word, **grads_patch}

    return word + patch, back


def pick_own(x, y, theta, weight, mask):
    """1/2 sum_n weight_n [CE_n(z) + CE_n(z')], z = exp(theta) x y' in each sample.

    x, y (B,N,D), weight (B,N), 0 where the mask (B,N) is false -> (), back; back(dloss) -> dx, dy, dtheta
    """
    xp = array_namespace(x)
    T = xp.matrix_transpose
    columns = None if mask is None else mask[:, None, :]
    z, back_z = scaled(theta, x @ T(y))                   # (B,N,N)
    ce, back_ce = diagonal_cross_entropy(z, columns)
    ce_t, back_ce_t = diagonal_cross_entropy(T(z), columns)
    loss = xp.sum(weight * (ce + ce_t)) / 2

    def back(dloss):
        each = weight * (dloss / 2)
        dtheta, ds = back_z(back_ce(each) + T(back_ce_t(each)))
        return ds @ y, T(ds) @ x, dtheta

    return loss, back


def attend(p, side, asking, seen, mask, attention, tau):
    """One head of cross-attention, or its form without parameters.

    asking (B,N,D), seen (B,M,D), mask (B,M) of what may be seen -> (B,N,D); back(dy) -> dasking, dseen, gradients
    """
    xp = array_namespace(asking)
    T = xp.matrix_transpose
    columns = None if mask is None else mask[:, None, :]
    if attention == "paramfree":
        a, back_a = ops.softmax(asking @ T(seen) / tau, columns)

        def back_free(dy):
            ds = back_a(dy @ T(seen)) / tau
            return ds @ seen, T(ds) @ asking + T(a) @ dy, {}

        return a @ seen, back_free
    name = f"mgca.{side}."
    q, back_q = ops.linear(asking, p[f"{name}query.weight"], p[f"{name}query.bias"])      # (B,N,d)
    k, back_k = ops.linear(seen, p[f"{name}key.weight"])
    u, back_u = ops.linear(seen, p[f"{name}value.weight"], p[f"{name}value.bias"])
    scale = q.shape[-1] ** -0.5
    a, back_a = ops.softmax(scale * (q @ T(k)), columns)
    y, back_out = ops.linear(a @ u, p[f"{name}out.weight"], p[f"{name}out.bias"])

    def back(dy):
        g = {}
        dh, g[f"{name}out.weight"], g[f"{name}out.bias"] = back_out(dy)
        ds = scale * back_a(dh @ T(u))
        dasking, g[f"{name}query.weight"], g[f"{name}query.bias"] = back_q(ds @ k)
        dseen_k, g[f"{name}key.weight"] = back_k(T(ds) @ q)
        dseen_u, g[f"{name}value.weight"], g[f"{name}value.bias"] = back_u(T(a) @ dh)
        return dasking, dseen_k + dseen_u, g

    return y, back


def cross_prototype_alignment(v_bar, t_bar, prototypes, tau=0.2, epsilon=0.05, iterations=3):
    """CPA: each modality predicts the other's code.      v_bar, t_bar (B,D), prototypes (K,D) -> (), back -> their gradients"""
    xp = array_namespace(v_bar, t_bar)
    v_hat, back_v = ops.l2_normalize(v_bar)
    t_hat, back_t = ops.l2_normalize(t_bar)
    o_v, o_t = v_hat @ prototypes.T, t_hat @ prototypes.T  # (B,K)
    q_v, q_t = sinkhorn(o_v, epsilon, iterations), sinkhorn(o_t, epsilon, iterations)
    log_v, back_log_v = ops.log_softmax(o_v / tau)
    log_t, back_log_t = ops.log_softmax(o_t / tau)
    share = 1 / (2 * v_bar.shape[0])

    def back(dloss):
        do_v = back_log_v(-q_t * (share * dloss)) / tau
        do_t = back_log_t(-q_v * (share * dloss)) / tau
        return back_v(do_v @ prototypes), back_t(do_t @ prototypes), do_v.T @ v_hat + do_t.T @ t_hat

    return -share * xp.sum(q_v * log_t + q_t * log_v), back


def sinkhorn(scores: Array, epsilon: float = 0.05, iterations: int = 3) -> Array:
    """Codes: exp(scores/epsilon), prototypes balanced over the batch, then every sample's brought to sum 1, in turn.

    scores (B,K) -> (B,K), each row sums to 1; prototypes are balanced approximately, for the samples come last.  In logarithms:
    exp(1/0.05) is 5e8 already, which float16 does not hold.  On several devices the sums go over all of them.
    """
    if iterations < 0 or not epsilon > 0:
        raise ValueError(f"iterations, epsilon: expected at least 0 and more than 0, got {iterations}, {epsilon}")
    log_q = scores / epsilon
    for _ in range(iterations):
        log_q = normalized(log_q, 0)
        log_q = normalized(log_q, 1)
    return array_namespace(scores).exp(normalized(log_q, 1))


def normalized(log_q, axis):
    """Less the logarithm of the sum of exp along an axis."""
    xp = array_namespace(log_q)
    top = xp.max(log_q, axis=axis, keepdims=True)
    return log_q - top - xp.log(xp.sum(xp.exp(log_q - top), axis=axis, keepdims=True))


def unit_prototypes(prototypes: Array) -> Array:
    """Rows of length one, what training does to the prototypes after each update.      (K,D) -> (K,D)"""
    return ops.l2_normalize(prototypes)[0]
