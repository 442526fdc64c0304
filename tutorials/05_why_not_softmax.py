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
# A picture of 16 patches shows 4 objects of 4 patches, one in each quarter, and has 4 words. Nobody tells which word is which
# object: the loss only wants words to differ, so any assignment is right, best one object to each. Patches of an object
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
# Side by side, from tutorials 01 and 04, with `da` what comes from above:
#
# $$\text{softmax: } ds_p = a_p \, (da_p - \langle a, da\rangle) \qquad
#   \text{min-max: } ds_p = \frac{1}{W} \, (da_p - \langle a, da\rangle), \quad W = \sum_{r \text{ kept}} (s_r - \min s)$$
#
# (min-max: for the patches that are kept; the minimum gets minus the sum of the others, a cut patch that is not the minimum
# nothing. 04's three lines give it: divide by the sum, then by the range, and the maximum's path is 0.) The brackets are
# alike. The factors:
#
# * Softmax multiplies each patch's gradient by its own weight. What has nearly no weight gets nearly no gradient, right or
#   wrong. And where similarities shrink, the factor stays at 1/P.
# * Min-max has one factor for all that are kept, and $1/W$ grows as similarities shrink.
#
# To compare scales we multiply `ds` by the scale: what happens if similarities change by a given *share* of their size.

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
        x = row_gradient(scale, kind)[part].reshape(2, 4) * (scale if part else 1)
        matrix(ax, x, f"{kind}: {('weights', 'scale x ds')[part]}", digits=2, signed=part == 1, low=0, high=1, reach=0.16)
    figure.suptitle(f"similarities times {scale:g}", x=0.01, ha="left")
    return figure


for scale in (0.1, 1.0, 10.0):
    show(both(scale), f"05_row_{scale:g}")
step(both, scale=(0.1, 10.0))                                     # with ipywidgets: a slider; on paper nothing
a, ds = row_gradient(1.0, "softmax")
assert np.allclose(ds, a * (da_row - a @ da_row))
a, ds = row_gradient(1.0, "minmax")
kept = a > 0
W = (s_row[kept] - s_row.min()).sum()
assert np.allclose(ds[kept], (da_row - a @ da_row)[kept] / W) and np.isclose(ds.sum(), 0)

# %% [markdown]
# Purple is positive, orange negative, darkest at 0.16 and beyond. Min-max is three times the same. Softmax is not: with small
# similarities it says next to nothing; with large ones two patches in front, nearly tied in this row, fight each other, and
# nearly all others get nothing. (Were one clearly ahead, all would get nothing.)
#
# ## Vanishing at the start, saturated at the end
#
# Now the whole loss, eq. 6, in our world. How strongly does it ask a word to *look elsewhere*? That is the gradient which
# reaches `t` through the weights. `align_patches` gives just that part, since inside it `t` is used for similarities alone;
# the rest of eq. 6 is written out, so that `t` as an answer of the quiz stays out. Of that gradient we take the part at
# right angles to `t`, times the length of `t`: how much the loss changes if `t` turns by a given angle. That can be compared
# between scales. The spread of similarities is their standard deviation.

# %%
def looking(scale, align, seed):
    """Spread of the similarities; for each word how strongly the loss, through the weights, asks it to turn."""
    v, t = world(seed, scale)
    _, trace, back_align = align_patches(t, v, align=align)
    c_hat, back_c = ops.l2_normalize(trace["weights"] @ v)
    t_hat, _ = ops.l2_normalize(t)
    z = np.exp(theta) * c_hat[0] @ t_hat[0].T
    dz = (ops.softmax(z)[0] + ops.softmax(z.T)[0].T - 2 * np.eye(L)) / (2 * L)
    dt, _ = back_align(back_c(np.exp(theta) * (dz @ t_hat[0])[None]))
    turns = dt - (dt * t_hat).sum(-1, keepdims=True) * t_hat      # without the part that makes t longer
    return trace["similarity"].std(), (np.linalg.norm(turns, axis=-1) * np.linalg.norm(t, axis=-1))[0]  # (L,)


scales = np.geomspace(0.02, 6, 15)
spread = [np.mean([looking(scale, "minmax", seed)[0] for seed in range(20)]) for scale in scales]
found = {kind: np.array([[looking(scale, kind, seed)[1] for seed in range(20)] for scale in scales]) for kind in KINDS}
assert found["softmax"].shape == (15, 20, L)
figure, (ax,) = panels(1, 3.8)
for i, kind in enumerate(KINDS):
    line(ax, i, spread, np.median(found[kind], axis=(1, 2)), f"{kind}, the median word")
line(ax, 2, spread, found["softmax"].mean((1, 2)), "softmax, mean")
ax.set(xscale="log", yscale="log", xlabel="spread of the similarities", ylabel="gradient through weights", ylim=(1e-6, 2))
ax.legend(loc="lower left", bbox_to_anchor=(0.25, 0))
ax.set_title("the median word: softmax looks elsewhere only in between")
show(figure, "05_three_regimes")
for at in (0, 7, 14):
    print(f"spread {spread[at]:8.4f}: softmax, median word {np.median(found['softmax'][at]):.1e}"
          f"   mean {found['softmax'][at].mean():.4f}   largest {found['softmax'][at].max():.2f}"
          f"   min-max, median word {np.median(found['minmax'][at]):.4f}")
print(f"with the largest spread {100 * (found['softmax'][-1] > 0.1).mean():.0f} % of the words get more than 0.1")
middle = np.median(found["softmax"], axis=(1, 2))
assert np.allclose(found["minmax"], found["minmax"][0])           # the same for every scale
assert middle[0] < middle.max() / 10 and middle[-1] < middle.max() / 10
assert 0 < (found["softmax"][-1] > 0.1).mean() < 0.2

# %% [markdown]
# The min-max line is flat: stretching cancels the scale, exactly. Softmax depends on it. With small similarities all
# weights are nearly equal, whichever way the word turns: *vanishing at initialisation*. With large ones most words get
# nothing, since the winner stays the winner if the word turns a little: *saturation*. A few, whose first two patches are
# nearly tied, get a huge gradient instead (largest 19), so that the mean stays up; the median is off the axis. One may
# choose a temperature for the softmax to start in between. But similarities are inner products of vectors that grow in
# training, so it will not stay there.
#
# ## Winner takes all
#
# Train it: steps down the gradient of eq. 6, words and patches free. Vectors 3 times longer turn 9 times less in a step of the
# same rate (the gradient is 3 times smaller, and a step turns a longer vector 3 times less), so the rate is multiplied by the
# square of the scale; what differs between starts is then the weights alone. An object has 4 patches. How many does a word
# use? We count with $1/\sum_p a_p^2$: 4 equal weights give 4, one weight gives 1. (Exercise 05.1.)

# %%
def train(align, scale, seed, steps=200, rate=0.3, **options):
    """Losses, patches used, and the last weights (L,P)."""
    v, t = world(seed, scale)
    losses, used = [], []
    for _ in range(steps + 1):
        loss, trace, back = fine_grained_loss(v, t, mask, theta, align=align, **options)
        dv, dt, _ = back()
        v, t = v - rate * scale**2 * dv, t - rate * scale**2 * dt
        losses.append(float(loss))
        used.append((1 / (trace["weights"] ** 2).sum(-1)).mean())
    return losses, used, trace["weights"][0]


def share(weights):
    """The share of a word's weight in the quarter that has most of it, mean over words."""
    return np.mean([max(row[quarter == o].sum() for o in range(4)) for row in weights])


starts, seeds = (0.1, 1.0, 3.0), range(3)
runs = {(kind, start): [train(kind, start, seed) for seed in seeds] for kind in KINDS for start in starts}
figure, axes = panels(2, 3.6)
for ax, kind in zip(axes, KINDS):
    for i, start in enumerate(starts):
        used = np.mean([run[1] for run in runs[kind, start]], axis=0)
        line(ax, i, range(len(used)), used, f"start {start:g}", markevery=40)
    ax.axhline(4, color="#666666", linewidth=1)
    ax.text(200, 4.3, "an object has 4", color="#666666", ha="right", fontsize=13)
    ax.set(ylim=(0, 17), xlabel="step", title=kind)
axes[0].set_ylabel("patches used (of 16)")
axes[1].legend(loc="center right", bbox_to_anchor=(1, 0.62))
show(figure, "05_patches_used")

print(f"{'':20} patches used     loss               weight in the quarter that has most of it")
for (kind, start), results in runs.items():
    first, last = (np.mean([run[1][at] for run in results]) for at in (0, -1))
    most = np.mean([share(run[2]) for run in results])
    before, after = (np.mean([run[0][at] for run in results]) for at in (0, -1))
    print(f"{kind:8} start {start:3g}:   {first:5.2f} to {last:5.2f}   {before:.3f} to {after:.4f}   {100 * most:.0f} %")
ends = {key: np.mean([run[1][-1] for run in results]) for key, results in runs.items()}
assert ends["softmax", 3.0] < 1.2 < 12 < ends["softmax", 0.1]
assert all(4 < ends["minmax", start] < 12 for start in starts) and np.ptp([ends["minmax", start] for start in starts]) < 1e-6

# %% [markdown]
# Softmax's count is decided by the length of the vectors at the start. From short ones it stays at "everything", and the loss
# at 0.97 (guessing: log 4 = 1.39). From long ones it starts with a *single* patch of the four and stays there. The loss, 0.14,
# fell with that one patch, so little asks for repair; and the one that was ahead has nearly all the weight, the others get
# nearly no gradient, so it stays ahead. Min-max does the same from each scale, and ends between.

# %%
def maps(kind, start):
    """Where the words of the first world look after training."""
    figure, axes = panels(4, 2.7)
    for l, ax in enumerate(axes):
        row = runs[kind, start][0][2][l]
        heat(ax, row.reshape(4, 4), f"word {l}: {1 / (row @ row):.1f} patches", low=0, high=0.25)
        ax.axhline(1.5, color=GREY, linewidth=2)
        ax.axvline(1.5, color=GREY, linewidth=2)
    figure.suptitle(f"{kind}, start {start:g}", x=0.01, ha="left")
    return figure


for kind, start in (("softmax", 3.0), ("softmax", 0.1), ("minmax", 1.0)):
    show(maps(kind, start), f"05_maps_{kind}_{start:g}")
step(maps, kind=KINDS, start=starts)                              # with ipywidgets: a menu; on paper nothing
assert runs["minmax", 1.0][0][2].shape == (L, P)

# %% [markdown]
# Each map is the picture, grey lines part the four objects, the darkest is a weight of 1/4 or more. The best map would be one
# quarter dark, another one for each word. In some worlds two words end at one object.
#
# ## What min-max does less well
#
# Look at the last column of the table. Where softmax starts at 1 or 3, nearly all its weight lies in one quarter; min-max's is
# spread over others too. It cannot do otherwise: after stretching, a patch halfway between least and most similar keeps the
# weight of a half, and the threshold 1/P cuts nearly nothing (tutorial 04). Its loss is not the lowest either: softmax from
# start 1 ends at 0.028, min-max at 0.052. "Few patches, all of the object, and no other" is reached by neither here. What can
# be said is that min-max does not depend on the scale, and keeps its gradient. The paper's ablation (its Table 8) found
# softmax worse on large data; this small world does not show that, it shows why the gradients differ.
#
# Does a larger threshold help?

# %%
for sigma in (1 / P, 0.3, 0.6):
    results = [train("minmax", 1.0, seed, sigma=sigma) for seed in seeds]
    used, most = np.mean([run[1][-1] for run in results]), np.mean([share(run[2]) for run in results])
    print(f"sigma {sigma:.3f}: {used:5.2f} patches used, {100 * most:.0f} % of the weight in one quarter,"
          f" loss {np.mean([run[0][-1] for run in results]):.4f}")
assert used < ends["minmax", 1.0] and most > 0.7

# %% [markdown]
# Here it does: with 0.6 a word uses 4.6 patches and has 82 % of its weight in one quarter. Whether it would on real data is
# another matter: what is cut gets no gradient as a value, and the loss has more jumps.

# %% [markdown]
# ## Exercise 05.1: how many patches
#
# A number that is P for P equal weights, 1 for a single one, and otherwise between the two: $1/\sum a^2$, above.

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
# A softmax can use 4 patches too, with the right factor $k$ in softmax(k s). Find it for a given row: there is no formula, so
# search, for instance by halving an interval. `check` gives you rows at three scales, 0.01, 1 and 30. How different are the
# factors?

# %%
def factor_for_four(s):                                           # s (16,) -> k
    return None


print(check("05.2", factor_for_four))

# %% [markdown]
# <details><summary>Solution</summary>
#
# A larger factor uses fewer patches, so halve an interval. The largest scale is 3000 times the smallest, and so are the
# factors: only k times s counts.
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
