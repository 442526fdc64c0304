# %% [markdown]
# # 01. Gradients by hand
#
# Tutorial 00 moved one number and watched the loss. A model has millions of numbers, and we want to know for each of them
# which way is down, all at once. That is the *gradient*, and the chain rule gives it. Libraries do this for you; this
# library writes it out, so that you can read it. Here you learn to write it out yourself, and, what is harder, to know that
# it is right.
#
# Each time: split the formula into steps so small that none can be wrong; go through them backwards; simplify on paper; and
# let the computer assert that both agree.

# %%
# On a hosted notebook this cell installs the library from a clone. Where sparc_ref is installed it does nothing.
import importlib.util
import os
import subprocess
import sys

REPOSITORY = ""  # no clone around this notebook? what you would give to `git clone`
if importlib.util.find_spec("sparc_ref") is None:
    if not os.path.exists("drawing.py"):
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, "clone"], check=True)
        os.chdir("clone/tutorials")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", os.path.dirname(os.getcwd()) + "[parity]"], check=True)

# %%
import numpy as np
import torch
from drawing import GREY, line, matrix, panels, show, step
from exercises import check
from sparc_ref import ops

rng = np.random.default_rng(0)

# %% [markdown]
# ## What `back` is
#
# Every function of the library returns its value and a function that takes the gradient back:
#
# ```
# y, back = op(x)          dx = back(dy)
# ```
#
# `dy` always means $\partial \text{Loss} / \partial y$, the *upstream gradient*: how much the final loss moves when an
# entry of `y` does. `back` turns it into `dx`, the same for `x`. It need not know what comes after `y`; `dy` says it all. A
# chain of functions is taken back by calling their `back`s in reverse. What is used twice gets a gradient from each use,
# and they are added (in softmax below, $e$ is above the line and in the sum).
#
# In this tutorial nothing comes after `y`. So we invent a loss: draw *random* numbers `dy`, and let
# $\text{Loss} = \sum y \cdot dy$, with them as fixed weights. Its gradient with respect to `y` is then exactly those weights.
#
# ## Linear
#
# `x` is (N,C), `W` (K,C), so $y = x W^T + b$ is (N,K). One entry: $y_{nk} = \sum_c x_{nc} W_{kc} + b_k$. Which outputs does
# $x_{nc}$ reach? Every $y_{nk}$ of its row, with the factor $W_{kc}$:
#
# $$dx_{nc} = \sum_k dy_{nk} W_{kc} \qquad dW_{kc} = \sum_n dy_{nk} x_{nc} \qquad db_k = \sum_n dy_{nk}$$
#
# These are matrix products. The shapes leave no choice: (N,K)(K,C) is the only product that gives (N,C).

# %%
N, C, K = 3, 4, 2
x, W, b = rng.standard_normal((N, C)), rng.standard_normal((K, C)), rng.standard_normal(K)
y, back = ops.linear(x, W, b)                                     # (N,K)
dy = rng.standard_normal((N, K))
dx, dW, db = back(dy)
assert np.allclose(y, x @ W.T + b)
assert np.allclose(dx, dy @ W) and np.allclose(dW, dy.T @ x) and np.allclose(db, dy.sum(0))
print(dx.shape, dW.shape, db.shape)

# %% [markdown]
# ## Softmax
#
# $a = e^z / \sum e^z$ in three steps, of one row. Forward, then backwards, the last step first. Each line backward answers:
# which of the later quantities does this one enter?

# %%
z = rng.standard_normal(5)                                        # (K,)
e = np.exp(z)
S = e.sum()
a = e / S

da = rng.standard_normal(5)                                       # upstream
de = da / S                                                       # a = e / S: e enters above the line ...
dS = -(da * e).sum() / S**2                                       # ... and S below it, in every entry
de = de + dS                                                      # S = sum of e: each e gets all of dS
dz_steps = de * e                                                 # e = exp(z): its slope is itself
assert dz_steps.shape == z.shape

# %% [markdown]
# On paper: $de \cdot e = (da/S - \sum da\,e/S^2)\, e$, and $e/S = a$. So
#
# $$dz = a \,(da - \langle a, da\rangle)$$
#
# Three lines became one: subtract the weighted mean of `da`, multiply by `a`.

# %%
dz = a * (da - (a * da).sum())
assert np.allclose(dz, dz_steps)
ours, back = ops.softmax(z)
assert np.allclose(ours, a) and np.allclose(back(da), dz)
print("dz", dz.round(3), f"sum {dz.sum():.1e}")
assert abs(dz.sum()) < 1e-12                                      # adding a number to all z changes nothing

# %%
def jacobian(sharpness):
    """d a_i / d u_j of softmax(u), where u = sharpness * z."""
    p, back = ops.softmax(sharpness * z)
    slopes = np.stack([back(row) for row in np.eye(5)])           # row i: upstream is 1 at a_i alone
    figure, (left, right) = panels(2, 3, [0.5, 1])
    names = [str(i) for i in range(5)]
    matrix(left, p[:, None], f"a = softmax(u), u = {sharpness:g} z", names, low=0, high=1)
    matrix(right, slopes, "slope of a_i (row) by u_j (column)", names, names, signed=True, reach=0.25)
    return figure


show(jacobian(1), "01_softmax_slopes")
show(jacobian(8), "01_softmax_slopes_sharp")
step(jacobian, sharpness=(0.0, 10.0))

# %% [markdown]
# Purple is positive, orange negative: pushing one argument $u_j$ up takes from all others. Second picture, $u = 8z$: where
# one entry takes nearly all, there is little slope left by each argument. By $z$ itself the slopes are 8 times these, so the
# winner's is not small; but those of entries 0 and 2, which are 0.00 here, stay next to nothing. Keep that for tutorial 05.
#
# ## L2 norm
#
# $y = x / |x|$. Steps: $q = \sum x^2$, $n = \sqrt q$, $y = x/n$. On paper: the way through $n$ brings
# $-\frac{\langle dy, x\rangle}{n^2} \cdot \frac{1}{2n} \cdot 2x = -\,y\,\langle y, dy\rangle / n$ ($n$ below the line, the
# square root, the square), and the direct way $dy/n$.

# %%
x = rng.standard_normal(4)
q = (x * x).sum()
n = np.sqrt(q)
y = x / n

dy = rng.standard_normal(4)
dx_steps = dy / n                                                 # x enters y directly ...
dn = -(dy * x).sum() / n**2                                       # ... n below the line
dq = dn / (2 * n)                                                 # n = sqrt(q)
dx_steps = dx_steps + dq * 2 * x                                  # q = sum of x x
dx = (dy - y * (y * dy).sum()) / n                                # on paper
assert np.allclose(dx, dx_steps)
assert np.allclose(ops.l2_normalize(x)[1](dy), dx)
print(f"dx . y = {dx @ y:.1e}")
assert abs(dx @ y) < 1e-12

# %% [markdown]
# In words: take `dy`, remove its part along `y`, divide by the length. What remains is at a right angle to `y`, since moving
# `x` along itself does not change its direction. And a long vector turns less: twice the length, half the gradient.

# %%
def turning(length):
    """x, its direction, an upstream gradient and what is left of it; beside it the same for x half as long."""
    figure, axes = panels(2, 3.6)
    around = np.linspace(-0.4, 2, 100)
    for ax, n, what in zip(axes, (length / 2, length), ("dy without its part along x", "half of that")):
        x, dy = n * np.array([0.8, 0.6]), np.array([0.3, 0.9])
        y, back = ops.l2_normalize(x)
        dx = back(dy)
        ax.plot(np.cos(around), np.sin(around), color=GREY, linewidth=1)
        ax.annotate("length 1", (0.02, 1.02), color=GREY, fontsize=13)
        for start, end, words, colour in ((0 * x, x, "x" if n > 1 else "x = y", "#000000"), (y, y + dy, "dy", "#0072B2"),
                                          (y, y + dx, "dx", "#D55E00")):
            ax.annotate("", end, start, arrowprops={"width": 2.5, "headwidth": 11, "color": colour})
            ax.annotate(words, end, end + 0.05, color=colour, fontsize=18)
        if n != 1:
            ax.plot(*y, "o", color="#000000")
            ax.annotate("y", y, y - [0, 0.25], fontsize=18)
        ax.set(aspect="equal", xlim=(-0.1, 2.1), ylim=(0, 1.8), title=f"|x| = {n:g}: {what}")
    return figure


show(turning(2.0), "01_l2_norm")
step(turning, length=(1.2, 2.4))                                  # with ipywidgets: a slider; on paper nothing

# %% [markdown]
# ## Layer norm
#
# A *layer norm*: every row is centred, divided by its standard deviation, then stretched by a *gain* and moved by a
# *shift*, both learned: $y = \hat x \cdot \text{gain} + \text{shift}$. The longest chain of this tutorial, and the same
# game. (A tiny `eps` added to the variance keeps a row of equal numbers from a division by 0.)

# %%
C, eps = 6, 1e-6
x, gain, shift = rng.standard_normal(C), rng.standard_normal(C), rng.standard_normal(C)
mean = x.sum() / C
centred = x - mean
var = (centred * centred).sum() / C
rstd = (var + eps) ** -0.5
x_hat = centred * rstd
y = x_hat * gain + shift

dy = rng.standard_normal(C)
dx_hat = dy * gain
dgain, dshift = dy * x_hat, dy
dcentred = dx_hat * rstd                                          # x_hat = centred rstd
drstd = (dx_hat * centred).sum()
dvar = drstd * -0.5 * (var + eps) ** -1.5                         # rstd = (var + eps)^-1/2
dcentred = dcentred + dvar * 2 * centred / C                      # var = mean of centred^2: each entry enters once, squared
dmean = -dcentred.sum()                                           # centred = x - mean: the mean enters every entry
dx_steps = dcentred + dmean / C                                   # mean = sum of x / C; and x enters centred directly

dx = (dx_hat - dx_hat.mean() - x_hat * (dx_hat * x_hat).mean()) * rstd  # on paper
assert np.allclose(dx, dx_steps)
library, back = ops.layer_norm(x[None], gain, shift, eps)
for ours, theirs in zip((dx, dgain, dshift), back(dy[None]), strict=True):
    assert np.allclose(ours, theirs)
print("sum of dx", f"{dx.sum():.1e}", "  dx . x_hat", f"{dx @ x_hat:.1e}")

# %% [markdown]
# (On paper: the way through `var` is $-\hat x$ times the mean of $d\hat x\,\hat x$, that through `mean` subtracts the mean;
# the mean of $\hat x$ itself is 0.) Once more the simplified form tells what the op does. Two directions of `x` have no
# effect on $\hat x$: moving all entries alike, and stretching. So `dx` has no part along either. (With `eps` the second is
# true only nearly.)
#
# ## Two ways to check a gradient
#
# **One:** *differences*. Move the input a little along a random direction $u$ and compare
# $\frac{f(x + hu) - f(x - hu)}{2h}$ with $\langle dx, u\rangle$. One number for all entries at once, however many there are.
#
# **Two: another implementation** that shares no code with yours, such as torch's. Torch records what is done with `leaf`;
# `.backward(dy)` walks it back from the upstream gradient `dy` and leaves the result in `leaf.grad`. Called on a sum, with no
# argument, that upstream gradient is all ones.
#
# If the formula agrees with both, on random numbers, and the check could have failed (below), believe it.

# %%
def differences(op, x, dy, h=1e-5, seed=1):
    """(what differences say, what back says) of the loss sum(y dy), along one random direction."""
    u = np.random.default_rng(seed).standard_normal(x.shape).astype(x.dtype)
    up, down = op(x + h * u)[0], op(x - h * u)[0]
    return float((dy * (up - down)).sum() / (2 * h)), float((op(x)[1](dy) * u).sum())


x, dy = rng.standard_normal((3, 5)), rng.standard_normal((3, 5))
leaf = torch.tensor(x, requires_grad=True)
torch.softmax(leaf, -1).backward(torch.tensor(dy))
measured, claimed = differences(ops.softmax, x, dy)
print(f"differences {measured:.10f}   formula {claimed:.10f}")
print("torch equals the formula to rounding:", np.allclose(leaf.grad.numpy(), ops.softmax(x)[1](dy), rtol=1e-12, atol=1e-14))
assert np.isclose(measured, claimed, rtol=1e-6)
assert np.allclose(leaf.grad.numpy(), ops.softmax(x)[1](dy), rtol=1e-12, atol=1e-14)

# %% [markdown]
# ### How large a step?
#
# Too large, and the curve bends between the two points. Too small, and the two values agree in nearly all of their digits,
# so that their difference is mostly rounding. In between is a best step:

# %%
sizes = 10.0 ** np.arange(-13, 0)
errors = {}
for kind in (np.float64, np.float32):
    off = np.zeros(len(sizes))
    for seed in range(20):                                        # the mean over directions: one alone may be lucky
        truth = differences(ops.softmax, x, dy, seed=seed)[1]
        measured = [differences(ops.softmax, x.astype(kind), dy.astype(kind), kind(h), seed)[0] for h in sizes]
        off += np.abs(np.array(measured) - truth) / np.linalg.norm(ops.softmax(x)[1](dy)) / 20
    errors[kind.__name__] = off
figure, (ax,) = panels(1, 3.8)
for i, (name, values) in enumerate(errors.items()):
    line(ax, i, sizes, np.maximum(values, 1e-16), name)
    print(f"{name}: smallest error {values.min():.0e} with a step of {sizes[values.argmin()]:.0e}")
ax.set(xscale="log", yscale="log", xlabel="step h", ylabel="relative error")
ax.legend()
ax.set_title("left: rounding; right: the curve bends")
show(figure, "01_step")
assert errors["float64"].min() < 1e-8 < errors["float32"].min()

# %% [markdown]
# ## Four ways in which a check fools you
#
# A check that cannot fail proves nothing. These four are easy to walk into. (`x` and `dy` are those of the section above.)
#
# **First: ones upstream.** `y.sum().backward()` feeds `dy = 1`. The entries of a softmax sum to 1, so their sum does not
# depend on `z` at all, and the right answer is 0. So is that of this wrong gradient:

# %%
def wrong_softmax(z):
    a = ops.softmax(z)[0]
    return a, lambda da: 17 * a * (da - (a * da).sum(-1, keepdims=True))  # 17 times too large


ones = np.ones_like(x)
print("ones:  ", [f"{value:+.6f}" for value in differences(wrong_softmax, x, ones)])
print("random:", [f"{value:+.6f}" for value in differences(wrong_softmax, x, dy)])
assert np.allclose(*differences(wrong_softmax, x, ones), atol=1e-9)         # passes
assert not np.allclose(*differences(wrong_softmax, x, dy), rtol=0.1)        # random upstream: caught

# %% [markdown]
# **Second: initial values.** A layer norm's gain starts at 1. Who forgets to multiply by the gain on the way back will not
# see it there.

# %%
def wrong_norm(gain):
    def op(x):
        y = ops.layer_norm(x, gain, np.zeros(5))[0]
        back = ops.standardize(x)[1]                              # a layer norm without gain and shift
        return y, lambda dy: back(dy)                             # should be back(dy * gain)

    return op


initial, drawn = np.ones(5), rng.standard_normal(5)
assert np.allclose(*differences(wrong_norm(initial), x, dy))                # passes
assert not np.allclose(*differences(wrong_norm(drawn), x, dy), rtol=0.1)    # random gain: caught
print("initial:", np.allclose(*differences(wrong_norm(initial), x, dy)),
      "  random:", np.allclose(*differences(wrong_norm(drawn), x, dy), rtol=0.1))

# %% [markdown]
# **Third:** *ties*. Where entries share the maximum, it has no gradient: whichever way you go, another one may win. So
# implementations choose: share the gradient evenly (`torch.amax`, jax, this library), or give it to the first
# (`torch.max(dim)`). Differences know neither. They return the mean of two slopes, the one of a step along $u$ and the one
# of a step against it. Below, "share" gives tied entries equal parts, "first" all to the first.

# %%
def maximum(ties):
    def op(x):
        at = x == x.max()
        at = at / at.sum() if ties == "share" else np.eye(len(x))[at.argmax()]
        return x.max(), lambda dy: dy * at

    return op


for name, tied in (("two tied", np.array([2.0, 2.0, 1.0])), ("three tied", np.array([2.0, 2.0, 2.0])),
                   ("none tied", np.array([2.1, 2.0, 1.9]))):
    (measured, shared), (_, first) = (differences(maximum(ties), tied, 1.0) for ties in ("share", "first"))
    print(f"{name:10} differences {measured:+.4f}   share {shared:+.4f}   first {first:+.4f}")
    assert np.isclose(measured, first) == (name == "none tied")
    assert np.isclose(measured, shared) == (name != "three tied")

# %% [markdown]
# With two tied, one step follows the larger of $u_1, u_2$, the other the smaller: the mean of two is the shared gradient.
# With three the middle one is never followed, and the difference is nobody's gradient. So draw inputs without ties, and
# test ties on their own, against a stated convention.
#
# **Fourth: float32.** Look at the picture above again: with float32 the best that differences can do is far worse, and with
# a step that is fine in float64 they are worth nothing. People then raise the tolerance until the test passes; so does the
# bug. Here is one direction, its error relative to what `back` claims (the picture shows the mean of 20 directions, relative
# to the length of the gradient):

# %%
h = 1e-7
for kind in (np.float64, np.float32):
    measured, claimed = differences(ops.softmax, x.astype(kind), dy.astype(kind), kind(h))
    print(f"{kind.__name__}: off by {100 * abs(measured - claimed) / abs(claimed):.2g} %")
assert errors["float32"][sizes == h][0] > 1000 * errors["float64"][sizes == h][0]

# %% [markdown]
# So: random inputs, random parameters, a random upstream gradient, no ties, float64. That is how every gradient of this
# library is tested.
#
# ## Exercise 01.1: the gradient of log-softmax
#
# $y = z - \log\sum e^z$, row by row. Start from the steps; it becomes one line.

# %%
def log_softmax_back(z, dy):                                      # z, dy (N,K) -> dz (N,K)
    return None


print(check("01.1", log_softmax_back))

# %% [markdown]
# <details><summary>Solution</summary>
#
# Each $z_j$ enters its own $y_j$ with slope 1 and, by the logarithm, every $y_k$ of the row with slope $-p_j$. (Subtracting
# the maximum changes nothing, and keeps exp from overflowing.)
#
# ```python
# def log_softmax_back(z, dy):
#     e = np.exp(z - z.max(1, keepdims=True))
#     p = e / e.sum(1, keepdims=True)
#     return dy - p * dy.sum(1, keepdims=True)
# ```
#
# </details>
#
# ## Exercise 01.2: the gradient of a cosine
#
# $\phi(x, y) = \hat x \cdot \hat y$ with respect to `x`. You have all parts.

# %%
def cosine_back(x, y):                                            # x, y (D,) -> dx (D,)
    return None


print(check("01.2", cosine_back))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The upstream gradient of $\hat x$ is $\hat y$; the rest is the l2 norm.
#
# ```python
# def cosine_back(x, y):
#     n = np.linalg.norm(x)
#     x_hat, y_hat = x / n, y / np.linalg.norm(y)
#     return (y_hat - x_hat * (x_hat @ y_hat)) / n
# ```
#
# </details>
#
# Next: [02, the two towers](02_towers.ipynb); or skip to [03, the global loss](03_global_loss.ipynb).
