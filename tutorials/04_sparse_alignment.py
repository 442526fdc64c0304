# %% [markdown]
# # 04. Sparse alignment
#
# Which patches does a word mean? Eqs. 2-5 of SPARC, this time for any sizes, with their gradient: through the minimum,
# through the maximum, and through both uses of the patches. Then the puzzle: what does the threshold do?

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
from dataclasses import replace
from drawing import matrix, panels, show, step
from exercises import check
from sparc_ref import PRESETS, align_patches, forward, init_params

rng = np.random.default_rng(57)

# %% [markdown]
# ## Forward
#
# One word `t` and P patches; the library does all words of all captions at once. Five lines:

# %%
P, D = 6, 3
t, v = rng.standard_normal(D), rng.standard_normal((P, D))        # (D,), (P,D)
sigma = 1 / P


def forward_row(t, v, sigma):
    s = v @ t                                                     # (P,)   t . v_p
    s_hat = (s - s.min()) / (s.max() - s.min())                   # (P,)   eq. 2
    s_til = np.where(s_hat >= sigma, s_hat, 0)                    # (P,)   eq. 3
    a = s_til / s_til.sum()                                       # (P,)   eq. 4
    return s, s_hat, s_til, a, a @ v                              # c (D,) eq. 5


s, s_hat, s_til, a, c = forward_row(t, v, sigma)
library, trace, back = align_patches(t[None, None], v[None])      # (1,1,D), (1,P,D)
for name, ours in (("similarity", s), ("minmax", s_hat), ("sparse", s_til), ("weights", a)):
    assert np.allclose(trace[name][0, 0], ours)
assert library.shape == (1, 1, D) and np.allclose(library[0, 0], c)


def stages(sigma):
    """The row's stages at a threshold."""
    figure, axes = panels(4, 2.1)
    for ax, x, title in zip(axes, forward_row(t, v, sigma), ("similarity", "min-max", f"kept, sigma {sigma:.2f}", "weights")):
        cut = "cut" if sigma > 0 and ("kept" in title or title == "weights") else None
        matrix(ax, x.reshape(2, 3), title, signed=title == "similarity", low=0, high=1, zeros=cut)
    return figure


for value in (0.0, 1 / P, 0.5, 0.9):
    show(stages(value), f"04_sigma_{value:.2f}")
step(stages, sigma=(0.0, 1.0, 0.05))                              # with ipywidgets: a slider; on paper nothing

# %% [markdown]
# First line patches 0, 1, 2, second line 3, 4, 5; "cut" is what lies below sigma. With sigma 0 nothing does: the 0.00 is the
# minimum, kept with the value 0.
#
# ## Backward, step by step
#
# Upstream comes `dc`. Through the five lines, the last first. The average; **v is used twice**, here as what is averaged
# (*value*) and above as what is compared (*key*), so it will get two gradients and we add them at the end.

# %%
dc = rng.standard_normal(D)
da = v @ dc                                                       # (P,)  c = sum_p a_p v_p
dv_value = np.outer(a, dc)                                        # (P,D) v as value

# %% [markdown]
# Eq. 4 is a division by a sum, like the second half of a softmax:

# %%
total = s_til.sum()
ds_til = da / total - (da * s_til).sum() / total**2               # in steps: numerator, denominator
assert np.allclose(ds_til, (da - (da * a).sum()) / total)         # on paper

# %% [markdown]
# Eq. 3 lets through what it kept. The decision itself has no gradient: it is flat nearly everywhere, with jumps.

# %%
keep = s_hat >= sigma
ds_hat = np.where(keep, ds_til, 0)

# %% [markdown]
# Eq. 2, $\hat s = (s - m)/w$ with $w = M - m$. Every $\hat s_p$ depends on its own $s_p$, on the minimum $m$ and on the
# maximum $M$:
#
# $$\frac{\partial \hat s_p}{\partial s_p} = \frac1w \qquad
#   \frac{\partial \hat s_p}{\partial M} = -\frac{\hat s_p}{w} \qquad
#   \frac{\partial \hat s_p}{\partial m} = \frac{\hat s_p - 1}{w}$$
#
# The minimum's gradient goes to the patch that *is* the minimum, the maximum's to the one that is the maximum.

# %%
low, high = s.argmin(), s.argmax()
width = s[high] - s[low]
ds = ds_hat / width
ds_direct = ds.copy()
ds[low] += (ds_direct * (s_hat - 1)).sum()                        # through the minimum
ds[high] -= (ds_direct * s_hat).sum()                             # through the maximum
print("ds sums to", f"{ds.sum():.1e}", "  ds . s", f"{ds @ s:.1e}")
assert abs(ds.sum()) < 1e-12 and abs(ds @ s) < 1e-12

# %% [markdown]
# Both are 0, as with layer norm in tutorial 01, and for the same reason: adding a number to the row changes nothing in
# $\hat s$ (so `ds` sums to 0), nor does stretching it (so `ds` is at right angles to `s`). Last, $s_p = t \cdot v_p$:

# %%
dt = ds @ v                                                       # (D,)
dv_key = np.outer(ds, t)                                          # (P,D) v as key
dv = dv_key + dv_value
dt_library, dv_library = back(dc[None, None])
assert np.allclose(dt, dt_library[0, 0]) and np.allclose(dv, dv_library[0])

figure, axes = panels(3, 3.6)
patches = [f"patch {p}" for p in range(P)]
for ax, x, title in zip(axes, (dv_value, dv_key, dv), ("v as value", "v as key", "dv: their sum")):
    matrix(ax, x, title, patches if ax is axes[0] else [""] * P, signed=True, reach=float(np.abs(dv).max()))
show(figure, "04_both_uses")
print("cut patches:", [p for p in range(P) if not keep[p]], " minimum:", low, " maximum:", high)
assert not keep[[2, 3]].any() and low == 2 and not dv[3].any() and dv[2].any()

# %% [markdown]
# A patch that is cut gets no gradient as a value. Patch 2, the minimum, cut like patch 3, still gets one as a key, through
# eq. 2: it says where zero is. Patch 3, cut and not the minimum, gets nothing at all: three zeros in each panel.
#
# How much is each path worth? Leave one out, and see how far the gradient is off, over many random rows:

# %%
def gradient(t, v, dc, sigma, without=None):
    """dt and dv of one row, with a path left out."""
    s, s_hat, s_til, a, _ = forward_row(t, v, sigma)
    da = v @ dc
    ds_hat = np.where(s_hat >= sigma, (da - (da * a).sum()) / s_til.sum(), 0)
    ds = ds_hat / np.ptp(s)
    direct = ds.copy()
    if without != "minimum":
        ds[s.argmin()] += (direct * (s_hat - 1)).sum()
    if without != "maximum":
        ds[s.argmax()] -= (direct * s_hat).sum()
    dv = (0 if without == "v as key" else np.outer(ds, t)) + (0 if without == "v as value" else np.outer(a, dc))
    return np.concatenate([ds @ v, dv.ravel()])


off = {}
for without in ("minimum", "maximum", "v as key", "v as value"):
    errors = []
    for _ in range(200):
        t1, v1, dc1 = rng.standard_normal(16), rng.standard_normal((49, 16)), rng.standard_normal(16)
        right, wrong = gradient(t1, v1, dc1, 1 / 49), gradient(t1, v1, dc1, 1 / 49, without)
        errors.append(np.linalg.norm(wrong - right) / np.linalg.norm(right))
    off[without] = float(np.median(errors))
    print(f"without {without:10}  off by {100 * off[without]:5.1f} %")
figure, (ax,) = panels(1, 2.8)
ax.barh(list(off), [100 * x for x in off.values()], color="#0072B2")
ax.set_xlabel("error of the gradient, % of its length (median of 200 rows)")
ax.invert_yaxis()
show(figure, "04_paths")
assert abs(ds_hat @ s_hat) < 1e-12                                # of the row above: the maximum's share
assert off["maximum"] < 1e-10 and min(off[path] for path in off if path != "maximum") > 0.1

# %% [markdown]
# A surprise: the path through the maximum is worth *nothing*. Look at eq. 4: it divides by the row's sum, so it does not
# matter by how much eq. 2 stretched the row. The maximum only says how far, therefore its gradient cancels. On paper: what
# goes through it is $-\langle d\hat s, \hat s\rangle / w$, and with $T$ the row's sum, $\tilde s = T a$ and eq. 4's
# gradient, $\langle d\hat s, \hat s\rangle = \langle d\tilde s, \tilde s\rangle = \langle da - \langle a, da\rangle,\,
# a\rangle = \langle a, da\rangle - \langle a, da\rangle = 0$, since $a$ sums to 1. (It still decides, with the threshold,
# who is cut; but decisions have no gradient.) The minimum says where zero is, and that matters.
#
# None of the other three may be dropped. A loss that "looks right" trains with a wrong gradient if someone treats one as a
# constant (in torch: detaches it).
#
# ## What does not matter
#
# `c` is normalised later (eq. 6 takes cosines). So whatever stretches `c` without turning it changes nothing. The sum of eq.
# 4 and the range of eq. 2 are such factors: both can be left out.

# %%
def direction(x):
    return x / np.linalg.norm(x)


g = ((s - s.min()) * keep) @ v                                    # no division at all
assert np.allclose(direction(g), direction(c))

grouped = lambda t, v, **options: direction(align_patches(t[None, None], v[None], **options)[0][0, 0])  # noqa: E731
unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)  # noqa: E731
uneven = v * np.array([1, 1, 1, 1, 3, 1])[:, None]                # patch 4 three times longer
changes = {
    "the word is 5 times longer": grouped(5 * t, v),
    "all patches are 5 times longer": grouped(t, 5 * v),
    "every patch is given length 1": grouped(t, unit(v)),
}
for what, now in changes.items():
    print(f"{what:32} direction of c moves by {np.degrees(np.arccos(min(1, now @ direction(c)))):6.2f} degrees")
now = grouped(t, unit(uneven)) @ grouped(t, uneven)
print(f"the same where patch 4 was 3 times longer     moves by {np.degrees(np.arccos(now)):6.2f} degrees")
assert np.degrees(np.arccos(now)) > 10
assert np.allclose(changes["the word is 5 times longer"], direction(c))
assert np.allclose(changes["all patches are 5 times longer"], direction(c))
assert not np.allclose(changes["every patch is given length 1"], direction(c))

# %% [markdown]
# Giving patches length 1 changes the direction: by 1.5 degrees here, where all six have similar lengths (1.3 to 1.6), by 20
# where one is three times longer. Similarity is a plain inner product: a long patch attracts the word more where it is
# positive (and tends to be the row's minimum where it is negative), and it weighs more in the average. 5 of the 23 public
# implementations counted in `docs/survey.md` normalise patches first.
#
# ## The threshold's puzzle
#
# The idea of eq. 3 is sparsity: a word means few patches. How many does it cut? With as many patches as a real model has,
# on random rows (Gaussian; an untrained model follows below). "As written" is eq. 3, on the min-max values; "on the
# weights" cuts after eq. 4 instead:

# %%
def removed(P, on, rows=2000):
    """Patches cut in each row, and the share of the weight that they had, on average."""
    v = np.random.default_rng(P).standard_normal((1, P, 32))
    t = np.random.default_rng(P + 1).standard_normal((1, rows, 32))
    _, trace, _ = align_patches(t, v, threshold_on=on)
    _, full, _ = align_patches(t, v, align="no_threshold")
    gone = trace["sparse"] == 0
    return gone.sum(-1).mean(), np.where(gone, full["weights"], 0).sum(-1).mean()


counts = {}
for size in (49, 196, 256):
    counts[size] = [removed(size, on) for on in ("minmax", "weights")]
    (n1, w1), (n2, w2) = counts[size]
    print(f"P {size:3}:  as written {n1:6.2f} patches with {100 * w1:.4f} % of the weight"
          f"   on the weights {n2:6.2f} patches with {100 * w2:.1f} %")
assert all(1 <= as_written[0] < 1.5 for as_written, _ in counts.values())

# %% [markdown]
# **About one patch**, and one of them is always the minimum, whose weight is 0 anyway. As written, the threshold
# does next to nothing: a value below 1/P after min-max lies within 1/196 = 0.5 % of the range above the minimum (for 196
# patches), and hardly any patch is there.
#
# The paper's prose gives a reason for 1/P, in our words: 1/P is what each patch has when all are equally similar. That is
# true of weights that *sum to one*: 196 equal ones are 1/196 each. It is not true of min-max values; equal similarities
# give 0/0 there. If the threshold is put where that sentence is true, after eq. 4, it cuts everything below average, about
# half. With $a$ of eq. 4 made from $\hat s$ itself, uncut:
#
# $$\tilde a_{lp} = a_{lp} \text{ if } a_{lp} \ge 1/P \text{, else } 0 \qquad
#   \text{weights: } \tilde a_{lp} \Big/ \sum_r \tilde a_{lr}$$

# %%
v196 = np.random.default_rng(3).standard_normal((1, 196, 32))
t196 = np.random.default_rng(4).standard_normal((1, 1, 32))
figure, axes = panels(2, 3.4)
for ax, on, title in zip(axes, ("minmax", "weights"), ("as written: min-max values", "as the prose says: weights")):
    _, plain, _ = align_patches(t196, v196, align="no_threshold")
    values = plain["minmax" if on == "minmax" else "weights"][0, 0]
    ax.hist(values, 30, color="#BBBBBB")
    ax.axvline(1 / 196, color="#D55E00", linewidth=3)
    ax.set_xlim(-0.04 * values.max(), None)
    ax.text(1 / 196 + 0.02 * values.max(), 0.9 * ax.get_ylim()[1], "1/P", color="#D55E00", fontsize=16)
    ax.set_title(f"{title}\n{int((values < 1 / 196).sum())} of 196 below 1/P")
    ax.set_xlabel("min-max value" if on == "minmax" else "weight")
axes[0].set_ylabel("patches")
show(figure, "04_puzzle")

# %% [markdown]
# The two histograms are one and the same row, on the right divided by its sum; only where 1/P falls differs. Which one is
# SPARC? The equations and the paper's own pseudo-code agree with each other, so the library computes them:
# `threshold_on="minmax"`; the other reading is one keyword away, `threshold_on="weights"`. What it changes:

# %%
kept = {on: align_patches(t196, v196, threshold_on=on) for on in ("minmax", "weights")}
cos = direction(kept["minmax"][0][0, 0]) @ direction(kept["weights"][0][0, 0])
print(f"the two groups of this word: cosine {cos:.3f}")
for on, (_, trace, _) in kept.items():
    w = np.sort(trace["weights"][0, 0])[::-1]
    print(f"{on:8} largest weight {w[0]:.4f} = {196 * w[0]:.1f} times average; the 20 largest hold {100 * w[:20].sum():.0f} %")
assert cos < 0.9999
assert np.isclose(kept["weights"][1]["weights"].sum(), 1)

# %% [markdown]
# Is it different with a real model? An untrained one, of the size `tiny`, on noise of 64 x 64 pixels in patches of 8 x 8:
# rows that come out of two towers (tutorial 02).

# %%
config = replace(PRESETS["tiny"], vocab_size=50)
params = init_params(config, rng, "float64")
images, tokens = rng.standard_normal((8, 3, 64, 64)), rng.integers(0, 50, (8, 12))
_, trace, _ = forward(params, images, tokens, np.ones((8, 12), bool), config)
cut = (trace["sparse"] == 0).sum(-1)                              # (B,L)
print(f"P {trace['weights'].shape[-1]}: {cut.mean():.2f} patches cut a word, at most {cut.max()}")
assert cut.min() >= 1

# %% [markdown]
# ## When all patches are alike
#
# Then eq. 2 is 0/0. The paper is silent. The library's default is the one that is finite and favours nobody: uniform
# weights, and no gradient through the similarity. "zero" makes the group the zero vector, which is what a small number added
# to the range would give; "nan" is what eq. 2 says, literally, and what 11 of the 23 in `docs/survey.md` return.

# %%
flat = np.ones((1, 4, D))
for choice in ("uniform", "zero", "nan"):
    with np.errstate(invalid="ignore"):
        _, trace, _ = align_patches(t[None, None], flat, flat=choice)
    print(f"{choice:8}", trace["weights"][0, 0])
_, trace, back = align_patches(t[None, None], flat)
dt, dv = back(dc[None, None])
assert np.allclose(trace["weights"], 1 / 4)
assert not dt.any() and np.allclose(dv[0], np.outer(np.full(4, 1 / 4), dc))  # as a value alone
print("gradient of the word:", dt[0, 0])

# %% [markdown]
# ## Exercise 04.1: back through min-max
#
# One row without ties. Do not forget the two extrema.

# %%
def min_max_back(s, ds_hat):                                      # (P,), (P,) -> ds (P,)
    return None


print(check("04.1", min_max_back))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def min_max_back(s, ds_hat):
#     low, high = s.argmin(), s.argmax()
#     width = s[high] - s[low]
#     s_hat = (s - s[low]) / width
#     direct = ds_hat / width
#     ds = direct.copy()
#     ds[low] += (direct * (s_hat - 1)).sum()
#     ds[high] -= (direct * s_hat).sum()
#     return ds
# ```
#
# </details>
#
# ## Exercise 04.2: no division
#
# A vector with the direction of `c`, from `t`, `v` and `sigma`, without dividing anything by anything.
# (`check` sees the direction alone; that nothing is divided is up to you.)

# %%
def group_direction(t, v, sigma):                                 # (D,), (P,D), a number -> (D,)
    return None


print(check("04.2", group_direction))

# %% [markdown]
# <details><summary>Solution</summary>
#
# $\hat s \ge \sigma$ means $s - m \ge \sigma w$.
#
# ```python
# def group_direction(t, v, sigma):
#     above = v @ t - (v @ t).min()
#     return (above * (above >= sigma * above.max())) @ v
# ```
#
# </details>
#
# Next: [05, why not softmax](05_why_not_softmax.ipynb).
