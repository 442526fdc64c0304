"""What several verify.py need beside fresh_truth to call losses: JAX, NumPy, feature maps, a temperature in a module."""

import jax
import jax.numpy as jnp
from fresh_truth import *  # noqa: F403
from fresh_truth import F, R, math, torch

jax.config.update("jax_enable_x64", True)


def jaxed(f, x, *names):
    """f(**arrays) of the named leaves -> value, gradients; compiled once a batch."""
    given = {n: jnp.asarray(getattr(x, n).detach().numpy()) for n in names}
    return jax.jit(jax.value_and_grad(lambda p: f(**p)))(given)


def numpied(*arrays):
    return tuple(a.detach().numpy().copy() for a in arrays)


def keep(x):
    return jnp.asarray(x.mask.numpy())


def grid(y):
    """(B,P,D) -> (B,D,H,W) with H*W = P, as square as it goes"""
    B, P, D = y.shape
    h = next(h for h in range(math.isqrt(P), 0, -1) if P % h == 0)
    return y.transpose(1, 2).reshape(B, D, h, P // h)


def with_theta(module, name, x, *args, value=None):
    return torch.func.functional_call(module.double(), {name: x.theta if value is None else value}, args)


def r(x, **step):
    return R(x.v, x.t, x.mask, x.theta, **step)


def n_(y):
    return F.normalize(y, dim=-1)
