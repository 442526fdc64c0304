import jax
import jax.numpy as jnp


def standard(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).sum(-1, keepdims=True))


def sparc(v, t, mask, scale):
    s = jnp.einsum("bld,bpd->blp", t, v)
    s = s - s.min(-1, keepdims=True)
    s = s / s.max(-1, keepdims=True)
    s = jnp.where(s >= 1 / v.shape[1], s, 0)
    c = standard(jnp.einsum("blp,bpd->bld", s, v))
    z = scale * jnp.einsum("bld,bmd->blm", c, standard(t))
    neg = jnp.where(mask, 0.0, -1e30)[:, None]
    own = jnp.diagonal(z, axis1=1, axis2=2)
    nll = jax.nn.logsumexp(z + neg, -1) + jax.nn.logsumexp(z.swapaxes(1, 2) + neg, -1) - 2 * own
    return (jnp.where(mask, nll, 0).sum(1) / mask.sum(1)).mean() / 2
