# %% [markdown]
# # 05. Why not softmax?
#
# Everybody who sees eqs. 2-4 asks it. Attention has used softmax for years to turn similarities into weights; why stretch and
# cut instead? The paper's appendix A answers with softmax's gradient: it vanishes at the start, later the *winner takes all*.
# We look at real gradients, of the real loss, and count. We also look at what min-max does less well.

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
from drawing import GREY, heat, line, matrix, panels, show, step
from exercises import check
from sparc_ref import align_patches, fine_grained_loss, ops

KINDS = ("minmax", "softmax")

# %% [markdown]
# ## A small world in which we know the answer
#
# A picture of 16 patches shows 4 objects of 4 patches, one in each quarter. Each word names one. Patches of an object
# resemble each other: a common vector plus noise. `scale` makes all vectors longer or shorter, since nobody knows how long
# they are at the start of training.

# %%
P, L, D = 16, 4, 16
quarter = (np.arange(4)[:, None] // 2 * 2 + np.arange(4)[None, :] // 2).ravel()  # (P,) which object a patch belongs to


def world(seed, scale):
    """v (1,P,D), and t (1,L,D) that knows nothing yet."""
    rng = np.random.default_rng(seed)
    objects = rng.standard_normal((L, D))
    v = objects[quarter] + 0.6 * rng.standard_normal((P, D))
    return scale * v[None], scale * rng.standard_normal((1, L, D))


v, t = world(0, 1.0)
mask = np.ones((1, L), bool)
theta = np.log(1 / 0.2)
assert v.shape == (1, P, D) and t.shape == (1, L, D)
print(quarter.reshape(4, 4))

# %% [markdown]
# ## The gradient of softmax weights
#
# From tutorial 01: $ds_p = a_p (da_p - \langle a, da\rangle)$. Read it twice.
#
# * Each patch's gradient is multiplied by its own weight $a_p$. All weights equal, with P patches: a factor of 1/P for all.
# * What has nearly no weight gets nearly no gradient, right or wrong.
#
# With min-max it is $1/w$, with $w$ the range of the row (tutorial 04): the same factor for all patches that are kept, and
# larger where similarities are close together.

# %%
rng = np.random.default_rng(1)
s_row, da_row = rng.standard_normal(8), rng.standard_normal(8)
eye = np.eye(8)[None]                                             # patches are unit vectors, so s = t, and dt = ds


def row_gradient(scale, align):
    """Weights and ds of one row of similarities, scale * s_row, with da upstream."""
    _, trace, back = align_patches((scale * s_row)[None, None], eye, align=align)
    return trace["weights"][0, 0], back(da_row[None, None])[0][0, 0]


def both(scale):
    figure, axes = panels(4, 1.9)
    for ax, (kind, part) in zip(axes, [(kind, part) for kind in KINDS for part in (0, 1)]):
        x = row_gradient(scale, kind)[part].reshape(2, 4)
        matrix(ax, x, f"{kind}: {('weights', 'gradient of s')[part]}", digits=2, signed=part == 1, low=0, high=1)
    figure.suptitle(f"similarities times {scale:g}", x=0.01, ha="left")
    return figure


for scale in (0.1, 1.0, 10.0):
    show(both(scale), f"05_row_{scale:g}")
step(both, scale=(0.1, 10.0))
a, ds = row_gradient(1.0, "softmax")
assert np.allclose(ds, a * (da_row - a @ da_row))

# %% [markdown]
# ## Vanishing at the start, saturated at the end
#
# Now the whole loss, eq. 6, in our world. How strongly does it ask a word to *look elsewhere*? That is the gradient which
# reaches
# `t` through the weights. `align_patches` gives just that part, since inside it `t` is used for similarities alone. We
# multiply it with the length of `t`: how much the loss changes if `t` turns by a given angle. That can be compared between
# scales.

# %%
def looking(scale, align, seed):
    """Spread of the similarities, and for each word |t| times the gradient of the loss that comes through the weights."""
    v, t = world(seed, scale)
    _, trace, back_align = align_patches(t, v, align=align)
    c_hat, back_c = ops.l2_normalize(trace["weights"] @ v)
    t_hat, _ = ops.l2_normalize(t)
    z = np.exp(theta) * c_hat[0] @ t_hat[0].T
    dz = (ops.softmax(z)[0] + ops.softmax(z.T)[0].T - 2 * np.eye(L)) / (2 * L)
    dt, _ = back_align(back_c(np.exp(theta) * (dz @ t_hat[0])[None]))
    return trace["similarity"].std(), (np.linalg.norm(dt, axis=-1) * np.linalg.norm(t, axis=-1))[0]  # (L,)


scales = np.geomspace(0.02, 6, 15)
spread = [np.mean([looking(scale, "minmax", seed)[0] for seed in range(20)]) for scale in scales]
found = {kind: np.array([[looking(scale, kind, seed)[1] for seed in range(20)] for scale in scales]) for kind in KINDS}
assert found["softmax"].shape == (15, 20, L)
figure, (ax,) = panels(1, 3.8)
for i, kind in enumerate(KINDS):
    line(ax, i, spread, np.median(found[kind], axis=(1, 2)), kind)
ax.set(xscale="log", yscale="log", xlabel="spread of the similarities", ylabel="gradient through weights", ylim=(1e-6, 2))
ax.legend(loc="lower left", bbox_to_anchor=(0.3, 0))
ax.set_title("the median word: softmax looks elsewhere only in between")
show(figure, "05_three_regimes")
for at in (0, 7, 14):
    print(f"spread {spread[at]:8.4f}: softmax, median word {np.median(found['softmax'][at]):.5f}"
          f"   largest {found['softmax'][at].max():.2f}   min-max, median word {np.median(found['minmax'][at]):.5f}")
middle = np.median(found["softmax"], axis=(1, 2))
assert np.allclose(found["minmax"], found["minmax"][0])           # the same for every scale
assert middle[0] < middle.max() / 10 and middle[-1] < middle.max() / 10

# %% [markdown]
# The min-max line is flat: stretching cancels the scale, exactly. Softmax depends on it. With small similarities all weights
# are nearly equal, whichever way the word turns: *vanishing at initialisation*. With large ones it comes back to nothing,
# since the winner stays the winner if the word turns a little: *saturation*. One may choose a temperature for the softmax to
# start in between. But similarities are inner products of vectors that grow in training, so it will not stay there.
#
# ## Winner takes all
#
# Train it: steps down the gradient of eq. 6, words and patches free. An object has 4 patches. How many does a word use? We
# count with $1/\sum_p a_p^2$: 4 equal weights give 4, one weight gives 1. (Exercise 05.1.)

# %%
def train(align, scale, seed, steps=200, rate=0.3):
    """Losses, patches used, and the last weights (L,P)."""
    v, t = world(seed, scale)
    losses, used = [], []
    for _ in range(steps + 1):
        loss, trace, back = fine_grained_loss(v, t, mask, theta, align=align)
        dv, dt, _ = back()
        v, t = v - rate * dv, t - rate * dt
        losses.append(float(loss))
        used.append((1 / (trace["weights"] ** 2).sum(-1)).mean())
    return losses, used, trace["weights"][0]


starts, seeds = (0.1, 1.0, 3.0), range(3)
runs = {(kind, start): [train(kind, start, seed) for seed in seeds] for kind in KINDS for start in starts}
figure, axes = panels(2, 3.6)
for ax, kind in zip(axes, KINDS):
    for i, start in enumerate(starts):
        used = np.mean([run[1] for run in runs[kind, start]], axis=0)
        line(ax, i, range(len(used)), used, f"start {start:g}", markevery=40)
    ax.axhline(4, color="#666666", linewidth=1)
    ax.set(ylim=(0, 17), xlabel="step", title=kind)
axes[0].set_ylabel("patches used (of 16)")
axes[1].legend(loc="center right")
show(figure, "05_patches_used")

print(f"{'':20} patches used     loss               weight on the best quarter")
for (kind, start), results in runs.items():
    first, last = (np.mean([run[1][at] for run in results]) for at in (0, -1))
    share = np.mean([[max(row[quarter == o].sum() for o in range(4)) for row in run[2]] for run in results])
    before, after = (np.mean([run[0][at] for run in results]) for at in (0, -1))
    print(f"{kind:8} start {start:3g}:   {first:5.2f} to {last:5.2f}   {before:.3f} to {after:.4f}   {100 * share:.0f} %")
ends = {key: np.mean([run[1][-1] for run in results]) for key, results in runs.items()}
assert ends["softmax", 3.0] < 1.2 < 12 < ends["softmax", 0.1]
assert all(4 < ends["minmax", start] < 12 for start in starts)

# %% [markdown]
# The grey line is the object's 4 patches. Softmax's count is decided by the length of the vectors at the start: from short
# ones it hardly leaves "everything", from long ones it ends at a *single* patch of the four. Both have a low loss, so the
# loss will not repair it: the one patch that was ahead has nearly all the weight, the others get nearly no gradient, and it
# stays ahead. Min-max starts from the same weights at each scale, and ends between.

# %%
def maps(kind, start):
    """Where the words of the first world look after training."""
    figure, axes = panels(4, 2.7)
    for l, ax in enumerate(axes):
        heat(ax, runs[kind, start][0][2][l].reshape(4, 4), f"word {l}", low=0)
        ax.axhline(1.5, color=GREY, linewidth=2)
        ax.axvline(1.5, color=GREY, linewidth=2)
    figure.suptitle(f"{kind}, start {start:g}", x=0.01, ha="left")
    return figure


for kind, start in (("softmax", 3.0), ("softmax", 0.1), ("minmax", 1.0)):
    show(maps(kind, start), f"05_maps_{kind}_{start:g}")
step(maps, kind=KINDS, start=starts)
assert runs["minmax", 1.0][0][2].shape == (L, P)

# %% [markdown]
# Each map is the picture, dark is a large weight, grey lines part the four objects.
#
# ## What min-max does less well
#
# Look at the last column of the table. Where softmax starts with long vectors, nearly all its weight lies in one quarter;
# min-max's is spread over others too. It cannot do otherwise: after stretching, a patch halfway between least and most
# similar keeps the weight of a half, and the threshold 1/P cuts nearly nothing (tutorial 04). "Few patches, all of the
# object, and no other" is reached by neither here. What can be said is that min-max does not depend on the scale, and keeps
# its gradient. The paper's ablation (its Table 8) found softmax worse on large data; this small world does not show that, it
# shows why the gradients differ.
#
# Does a larger threshold help?

# %%
for sigma in (1 / P, 0.3, 0.6):
    results = []
    for seed in seeds:
        v, t = world(seed, 1.0)
        for _ in range(200):
            _, trace, back = fine_grained_loss(v, t, mask, theta, sigma=sigma)
            dv, dt, _ = back()
            v, t = v - 0.3 * dv, t - 0.3 * dt
        weights = trace["weights"][0]
        share = np.mean([max(row[quarter == o].sum() for o in range(4)) for row in weights])
        results.append(((1 / (weights**2).sum(-1)).mean(), share))
    used, share = np.mean(results, axis=0)
    print(f"sigma {sigma:.3f}: {used:5.2f} patches used, {100 * share:.0f} % of the weight in one quarter")
assert used < ends["minmax", 1.0] and share > 0.5

# %% [markdown]
# ## Exercise 05.1: how many patches
#
# A number that is P for P equal weights, 1 for a single one, and in between in between: $1/\sum a^2$.

# %%
def patches_used(a):                                              # a (P,) -> a number
    return None


print(check("05.1", patches_used))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def patches_used(a):
#     return 1 / (a * a).sum()
# ```
#
# </details>
#
# ## Exercise 05.2: tune a softmax
#
# A softmax can use 4 patches too, with the right factor $k$ in softmax(k s). Find it for a given row. How different are the
# factors that the three rows of `check` need?

# %%
def factor_for_four(s):                                           # s (16,) -> k
    return None


print(check("05.2", factor_for_four))

# %% [markdown]
# <details><summary>Solution</summary>
#
# A larger factor uses fewer patches, so halve an interval. The rows differ in scale by 3000, and so do the factors.
#
# ```python
# def factor_for_four(s):
#     low, high = 0.0, 1000 / s.std()
#     for _ in range(100):
#         k = (low + high) / 2
#         e = np.exp(k * (s - s.max()))
#         a = e / e.sum()
#         low, high = (k, high) if 1 / (a * a).sum() > 4 else (low, k)
#     return k
# ```
#
# </details>
#
# Next: [06, the fine-grained loss](06_fine_grained_loss.ipynb).
