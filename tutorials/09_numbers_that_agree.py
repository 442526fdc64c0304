# %% [markdown]
# # 09. Numbers that agree
#
# Two right programs do not give the same numbers. Different order of sums, another chip, fewer bits: the last digits differ.
# So how near is near enough, and when is it a mistake? People type `atol=1e-3`, the difference that a test lets pass, until the
# test is green. Here we measure it.
#
# That holds for this page too: on another machine the last digits of what is printed below, and counts of rare events, will
# differ, since another chip adds in another order.

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
from drawing import line, panels, show
from exercises import check
from sparc_ref import align_patches, fine_grained_loss

rng = np.random.default_rng(0)

# %% [markdown]
# ## Bits
#
# A floating-point number is a fraction with so many *bits* times a power of two: with 4 bits, 6.5 is 1.101 (binary) times
# 4. Rounding to the nearest such number is off by at most half a *unit of rounding*, the step from 1 to the next number,
# relative to the number. `rounded` keeps as many bits as we like, so that we can try formats that this machine does not
# have.

# %%
def rounded(x, bits):
    """x to the nearest number with `bits` bits, the leading one included."""
    fraction, exponent = np.frexp(np.asarray(x, np.float64))      # x = fraction 2^exponent, fraction in [1/2, 1)
    return np.ldexp(np.round(np.ldexp(fraction, bits)), exponent - bits)


formats = {"float64": 53, "float32": 24, "float16": 11, "TF32": 11, "bfloat16": 8}
x = rng.standard_normal(100_000)
for name, bits in formats.items():
    error = np.abs(rounded(x, bits) / x - 1).max()
    print(f"{name:9} {bits:2} bits   half a unit of rounding {2.0**-bits:.1e}   largest error seen {error:.1e}")
    assert error <= 2.0**-bits
assert np.array_equal(rounded(x, 24), x.astype(np.float32))
x32 = x.astype(np.float32)
assert np.array_equal(rounded(x32, 8), torch.tensor(x32).to(torch.bfloat16).double().numpy())

# %% [markdown]
# (float64 has no error here: x is float64 already.) bfloat16 has two to three decimal digits, and float32's range. float16
# has three, but ends at 65504. *TF32* is no storage format: a GPU's matrix unit rounds the *inputs* of a product to 11 bits,
# as many as float16 has, and adds in float32. (torch is here only because NumPy has no bfloat16.)
#
# ## Order of sums
#
# Addition is not associative: each `+` rounds. The same numbers in another order give another sum. How far apart? We
# compare with float64's sum, and divide the error by the sum of absolute values, which is what rounding errors are
# proportional to; one unit of rounding would be $2^{-23}$ of it.

# %%
def one_by_one(x):
    total = np.float32(0)
    for value in x:
        total += value
    return total


sizes = [10, 100, 1000, 10_000]
off = {"one by one": [], "in pairs": []}
for size in sizes:
    errors = {name: [] for name in off}
    for seed in range(10):
        numbers = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
        exact, scale = numbers.astype(np.float64).sum(), np.abs(numbers).sum()
        errors["one by one"].append(abs(one_by_one(numbers) - exact) / scale)
        errors["in pairs"].append(abs(numbers.sum() - exact) / scale)
    for name in off:
        off[name].append(np.mean(errors[name]) * 2**23)
figure, (ax,) = panels(1, 3.4)
for i, (name, values) in enumerate(off.items()):
    line(ax, i, sizes, values, name)
    print(f"{name:11}", [f"{value:.3f}" for value in values], "units of rounding")
ax.set(xscale="log", yscale="log", xlabel="how many numbers", ylabel="units of rounding")
ax.set_title("error of a float32 sum, relative to the sum of absolute values")
ax.legend()
show(figure, "09_order_of_sums")
numbers = rng.standard_normal(1000).astype(np.float32)
several = {float(one_by_one(rng.permutation(numbers))) for _ in range(20)}
print("different sums of 1000 numbers in 20 orders:", len(several))
assert len(several) > 5 and off["in pairs"][-1] < off["one by one"][-1]

# %% [markdown]
# NumPy adds in pairs, then pairs of pairs (from blocks of some numbers on). One by one, the first number goes through n
# roundings; in pairs each number goes through about $\log_2 n$. So the lower line *falls*: the roundings hardly grow in number,
# while the sum of absolute values, by which we divide, grows with n. One by one both grow, and the line is flat. None of these
# sums is wrong. A test that asks for equality
# with one of them asks for an accident.
#
# ## Fewer bits in a product
#
# A product of two matrices with inputs rounded, exact otherwise: that is nearly what TF32 and bfloat16 units do.

# %%
a, b = rng.standard_normal((64, 512)), rng.standard_normal((512, 64))
exact = a @ b
for name in ("float32", "TF32", "bfloat16"):
    product = rounded(a, formats[name]) @ rounded(b, formats[name])
    error = np.abs(product - exact).max() / np.abs(exact).max()
    print(f"inputs in {name:9} error {error:.1e} of the largest entry = {error * 2.0 ** (formats[name] - 1):.2f} units")
    assert error < 2.0 ** (1 - formats[name])

# %% [markdown]
# Below one unit of its format, although 512 products are added: half of the errors go up, half down. A test made for
# float32 fails with TF32, which is why libraries have a switch for it, and why a comparison should say which it ran with.
#
# ## Where the loss loses digits
#
# Eq. 2 subtracts: similarity minus the row's minimum. If all similarities are large and nearly equal, what is left after the
# subtraction is mostly rounding. We add the same vector to all patches, more and more of it. For the exact weights that
# changes nothing, since a row that moves as a whole keeps its min-max.

# %%
P, L, D = 49, 6, 32
v, t = rng.standard_normal((1, P, D)), rng.standard_normal((1, L, D))
offsets = 10.0 ** np.arange(0, 7)
errors = []
for offset in offsets:
    shared = v + offset * rng.standard_normal(D)
    right = align_patches(t, shared)[1]["weights"]
    single = align_patches(t.astype(np.float32), shared.astype(np.float32))[1]["weights"]
    errors.append(np.abs(single - right).max() / right.max())
figure, (ax,) = panels(1, 3.2)
line(ax, 0, offsets, errors)
ax.set(xscale="log", yscale="log", xlabel="size of the vector that all patches share", ylabel="error of the weights")
ax.set_title("float32: what is shared takes up the digits")
show(figure, "09_cancellation")
print([f"{error:.0e}" for error in errors])
assert errors[-1] > 1000 * errors[0]

# %% [markdown]
# Two roundings are in it: of the inputs, where the shared part has used up the digits, and of the inner products. bfloat16
# has 24 - 8 = 16 bits fewer, so its errors are $2^{16}$ = 65,536 times larger: about 1 % with next to nothing shared. That
# is why similarity, min-max, norms, softmax and losses are computed in at least float32 here, whatever the dtype of the
# inputs. (It does not bring back what the inputs have lost already.)
#
# ## Knife edges
#
# The threshold decides. A min-max value that lies within rounding of sigma falls to one side in float32 and to the other in
# float64. Then the numbers differ by far more than rounding, and *both* are right. To see some, we make it drastic: patches
# with much in common (which makes rounding some hundred times larger), and sigma = 0.5, where many values are.

# %%
def decide(sigma, common):
    """Decisions that differ between float32 and float64, all decisions, and rows' errors with and without such a flip."""
    flips, decisions, errors = 0, 0, {True: [], False: []}
    for seed in range(40):
        g = np.random.default_rng(seed)
        v32 = (g.standard_normal((8, 196, 32)) + common * g.standard_normal(32)).astype(np.float32)
        t32 = g.standard_normal((8, 20, 32)).astype(np.float32)
        _, in64, _ = align_patches(t32.astype(np.float64), v32.astype(np.float64), sigma=sigma)
        _, in32, _ = align_patches(t32, v32, sigma=sigma)
        differ = (in64["sparse"] > 0) != (in32["sparse"] > 0)     # (8,20,196)
        flips, decisions = flips + int(differ.sum()), decisions + differ.size
        error = np.abs(in64["weights"] - in32["weights"]).max(-1) / in64["weights"].max(-1)
        for flipped in (True, False):
            errors[flipped] += error[differ.any(-1) == flipped].tolist()
    return flips, decisions, errors


for sigma, common in ((0.5, 1000), (1 / 196, 1000), (0.5, 0)):
    flips, decisions, errors = decide(sigma, common)
    print(f"sigma {sigma:.3f}, in common {common:4}: {flips} of {decisions} decisions differ", end="")
    without = np.median(errors[False])
    with_flip = f"error of a row with a flip {np.median(errors[True]):.1e}" if errors[True] else "no row with a flip"
    print(f"; {with_flip}, without {without:.1e}")
    if sigma == 0.5 and common:
        assert 0 < flips < decisions / 10_000 and np.median(errors[True]) > 100 * without
    else:
        assert flips < 20
edge = align_patches(np.array([[[1.0, 0, 2, 4]]]), np.eye(4)[None])[1]["sparse"][0, 0]  # similarities 1, 0, 2, 4
assert edge[0] == 1 / 4                                           # exactly sigma: kept, in any format

# %% [markdown]
# The error is relative to a row's largest weight. The patch that flips has a min-max value of 0.5 where the largest has 1, so
# it brings or takes half of the largest weight. At the library's sigma, 1/P, it would be half a percent; and without so much
# in common there is hardly a flip. But a training step makes millions of decisions. So vectors for comparison are drawn away
# from the edge, and edges are tested on their own with numbers that are exact, such as 1, 0, 2, 4 above.
#
# ## How a budget is measured
#
# A *budget* says how far a tensor may be from the reference. Instead of typing it, run the *right* program in ways that
# should not matter, and see how far it goes. Here: patches and joint dimensions in other orders, and inputs nudged to a
# neighbouring number.

# %%
v, t = rng.standard_normal((2, P, D)).astype(np.float32), rng.standard_normal((2, L, D)).astype(np.float32)
mask, theta = np.ones((2, L), bool), float(np.log(1 / 0.07))
wide = [x.astype(np.float64) for x in (v, t)]
loss64, _, back64 = fine_grained_loss(*wide, mask, theta)
dv64, dt64, _ = back64()


def distance(seed):
    """Errors of (loss, dv, dt) of one harmless variant in float32, relative to each tensor's largest entry."""
    g = np.random.default_rng(seed)
    patches, width = g.permutation(P), g.permutation(D)
    nudge = [(x * (1 + g.choice([-1, 1], x.shape) * 2.0**-24)).astype(np.float32) for x in (v, t)]
    loss, _, back = fine_grained_loss(nudge[0][:, patches][..., width], nudge[1][..., width], mask, theta)
    dv, dt, _ = back()
    back_patches, back_width = np.argsort(patches), np.argsort(width)
    pairs = (loss, loss64), (dv[:, back_patches][..., back_width], dv64), (dt[..., back_width], dt64)
    return [float(np.abs(got - want).max() / np.abs(want).max()) for got, want in pairs]


measured = np.array([distance(seed) for seed in range(50)])       # (50,3)
budget = 8 * measured.max(0)
for name, value, units in zip(("loss", "dv", "dt"), budget, budget * 2**23):
    print(f"budget of {name:5} {value:.1e} = {units:.0f} units of rounding of float32")
assert measured.shape == (50, 3) and np.all(budget < 1e-3)

# %% [markdown]
# The 8 is typed: slack for orders and machines that we did not try. Does such a budget notice a mistake? Here is one that
# is hard to see. Public code often adds a small number to a divisor "for stability". In eq. 4 the loss cannot see it, since
# it takes cosines. In the l2 norm it can:

# %%
def slightly_wrong(eps):
    """Error of the loss if |c| is replaced by |c| + eps, relative to the right loss, in float64."""
    c, _, _ = align_patches(wide[1], wide[0])
    t_hat = wide[1] / np.linalg.norm(wide[1], axis=-1, keepdims=True)

    def loss(extra):
        z = np.exp(theta) * (c / (np.linalg.norm(c, axis=-1, keepdims=True) + extra)) @ np.swapaxes(t_hat, 1, 2)
        ce = np.log(np.exp(z).sum(-1)) + np.log(np.exp(z).sum(-2)) - 2 * np.diagonal(z, axis1=1, axis2=2)
        return ce.mean() / 2

    assert np.isclose(loss(0), loss64)
    return abs(loss(eps) / loss(0) - 1)


for eps in (1e-8, 1e-6, 1e-4, 1e-2):
    off = slightly_wrong(eps)
    print(f"epsilon {eps:.0e}: off by {off:.1e}   {'noticed' if off > budget[0] else 'within the budget'}")
assert slightly_wrong(1e-2) > budget[0] > slightly_wrong(1e-8)

# %% [markdown]
# The budget notices what is larger than 8 times the rounding seen; below that it is blind, as it is to epsilon 1e-6 here. It
# is blind as well to a mistake in entries that are small beside the largest, and to whatever these inputs do not reach, such
# as padding: the mask is all true. The library's own budgets are measured like this, with more variants and inputs:
# `docs/budgets.md`.
#
# ## Exercise 09.1: keep some bits
#
# To the nearest, and without looking up: `np.frexp` gives fraction and exponent, `np.ldexp` puts them together.

# %%
def keep_bits(x, bits):                                           # x (N,), a number -> (N,)
    return None


print(check("09.1", keep_bits))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def keep_bits(x, bits):
#     fraction, exponent = np.frexp(x)
#     return np.ldexp(np.round(fraction * 2.0**bits), exponent - bits)
# ```
#
# </details>
#
# ## Exercise 09.2: a careful sum
#
# 20,000 positive float32 numbers, in float32 alone, right to 2 units of rounding (here: the step from the sum to the next
# float32). The first is so large that each of the others alone is lost beside it, so adding one by one fails, and `np.sum`
# too. A loop that also carries what each `+` lost will do.

# %%
def careful_sum(x):                                               # x (N,) float32 -> float32
    return None


print(check("09.2", careful_sum))

# %% [markdown]
# <details><summary>Solution</summary>
#
# Kahan's: `lost` is what the last addition rounded away.
#
# ```python
# def careful_sum(x):
#     total = lost = np.float32(0)
#     for value in x:
#         value = value - lost
#         larger = total + value
#         lost = (larger - total) - value
#         total = larger
#     return total
# ```
#
# </details>
#
# Next: [10, check your own loss](10_check_your_own.ipynb).
