# %% [markdown]
# # 03. The global loss
#
# Whole pictures and whole captions, a vector each. Which caption belongs to which picture? That is all that the *global
# loss* asks (eq. 1). It is the loss of CLIP (Radford et al., 2021), the first large model of this kind, and SPARC keeps it.
# What does it teach, what do temperature and batch do to it, and what does it never see? The last question is why SPARC
# exists.

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
from drawing import line, matrix, panels, show, step
from exercises import check
from sparc_ref import PRESETS, fine_grained_loss, global_loss, ops

rng = np.random.default_rng(5)

# %% [markdown]
# ## A batch
#
# Training shows B pairs at a time, the *batch*. Each picture has a *global embedding* $\bar v$, the mean of its patches;
# each caption has $\bar t$, the mean of its tokens. (With small layers about the means: tutorial 02. Here they are left out.)
#
# We make 4 pairs that are halfway learned: each caption's vector is its picture's plus noise.

# %%
B, D = 4, 8
v_bar = rng.standard_normal((B, D))                               # (B,D)
t_bar = v_bar + 1.2 * rng.standard_normal((B, D))                 # (B,D)
tau = 0.2
theta = np.log(1 / tau)                                           # what is learned is theta = log(1/tau)

v_hat, _ = ops.l2_normalize(v_bar)
t_hat, _ = ops.l2_normalize(t_bar)
cosine = v_hat @ t_hat.T                                          # (B,B)
z = cosine / tau                                                  # (B,B) logits
assert cosine.shape == (B, B) and np.abs(cosine).max() <= 1

# %% [markdown]
# Every picture is compared with every caption: (B,B), B right pairs on the diagonal, B² - B wrong ones, called *negatives*.
# Each row is a quiz for a picture, each column one for a caption:
#
# $$L_g = \frac{1}{2B} \sum_i \left[ -\log \frac{e^{z_{ii}}}{\sum_j e^{z_{ij}}}
#                                     - \log \frac{e^{z_{ii}}}{\sum_j e^{z_{ji}}} \right]$$

# %%
p = np.exp(z) / np.exp(z).sum(1, keepdims=True)                   # (B,B) rows sum to 1
q = np.exp(z) / np.exp(z).sum(0, keepdims=True)                   # (B,B) columns sum to 1
loss = -(np.log(np.diag(p)) + np.log(np.diag(q))).mean() / 2
library, trace, back = global_loss(v_bar, t_bar, theta)
assert np.isclose(library, loss) and np.allclose(trace["logits"], z)
print(f"loss {loss:.4f}")

# %% [markdown]
# ## Its gradient
#
# One row's cross-entropy is $\log \sum_k e^{z_k} - z_\text{right}$. The slope of the first part by $z_k$ is $e^{z_k} / \sum
# e^z = p_k$, that of the second is 1 at the right answer. So the gradient is *what it said minus what is right*: $p - 1$ at
# the right answer and $p$ elsewhere. Two directions and a mean:
#
# $$dz = \frac{(p - I) + (q - I)}{2B}$$
#
# Differences confirm it, entry by entry.

# %%
dz = (p + q - 2 * np.eye(B)) / (2 * B)                            # (B,B)


def loss_of(z):
    rows, columns = np.log(np.exp(z).sum(1)), np.log(np.exp(z).sum(0))
    return (rows + columns - 2 * np.diag(z)).mean() / 2


h = 1e-6
measured = np.zeros((B, B))
for i, j in np.ndindex(B, B):
    bump = np.zeros((B, B))
    bump[i, j] = h
    measured[i, j] = (loss_of(z + bump) - loss_of(z - bump)) / (2 * h)
assert np.allclose(dz, measured, atol=1e-8)

figure, axes = panels(4, 3.2)
names = [str(i) for i in range(B)]
matrix(axes[0], cosine, "cosine", names, names, signed=True)
matrix(axes[1], p, "p: softmax, rows", names, names, low=0, high=1)
matrix(axes[2], q, "q: softmax, columns", names, names, low=0, high=1)
matrix(axes[3], 2 * B * dz, "p + q - 2I", names, names, signed=True)
for ax in axes:
    ax.set_xlabel("caption")
axes[0].set_ylabel("picture")
show(figure, "03_batch")
hardest = np.unravel_index(np.argmax(dz - 9 * np.eye(B)), dz.shape)
print(f"pushed most: picture {hardest[0]} with caption {hardest[1]}, p {p[hardest]:.2f} + q {q[hardest]:.2f}")
assert abs(dz.sum()) < 1e-12

# %% [markdown]
# Last panel: below 0 (orange), a step against the gradient raises the logit. So the diagonal is pulled up, everything else
# pushed down, each by as much as it was wrong. A wrong pair with a high probability, a *hard negative*, is pushed most.
#
# The rest of the way back is tutorial 01: $z = \cos/\tau$, then a product, then the l2 norm.

# %%
dcosine = dz / tau                                                # (B,B)
dv_hat, dt_hat = dcosine @ t_hat, dcosine.T @ v_hat               # (B,D)
dv_bar = ops.l2_normalize(v_bar)[1](dv_hat)                       # at right angles to v_bar: tutorial 01
dt_bar = ops.l2_normalize(t_bar)[1](dt_hat)
dtheta = (dz * z).sum()                                           # z = exp(theta) cos, so dz/dtheta = z
for ours, theirs in zip((dv_bar, dt_bar, dtheta), back(), strict=True):
    assert np.allclose(ours, theirs)
assert np.allclose((v_bar * dv_bar).sum(1), 0)
print("dtheta", dtheta.round(4))

# %% [markdown]
# ## Temperature
#
# Cosines end at 1. With $\tau = 1$ a perfect model of 4 pairs, cosines 1 and 0, would give its right answers no more than
# $e / (e + 3) = 0.475$. Here are two of our quizzes at three temperatures; picture 0 has its caption nearest, picture 3 does
# not:

# %%
def two_rows(tau):
    """The quizzes of pictures 0 and 3 at a temperature: probabilities, and the gradient on each caption."""
    rows = ops.softmax(cosine[[0, 3]] / tau)[0]
    figure, (left, right) = panels(2, 2.2)
    matrix(left, rows, f"tau = {tau:g}: softmax", ["picture 0", "picture 3"], names, low=0, high=1)
    matrix(right, rows - np.eye(B)[[0, 3]], "what it said minus what is right", ["", ""], names, signed=True, reach=1)
    return figure


for value in (1.0, 0.2, 0.05):
    show(two_rows(value), f"03_tau_{value:g}")
step(two_rows, tau=(0.02, 1.0, 0.02))                             # with ipywidgets: a slider; on paper nothing
assert cosine[0].argmax() == 0 and cosine[3].argmax() != 3
assert np.isclose(ops.softmax(np.eye(4)[0])[0][0], np.e / (np.e + 3))

taus = np.geomspace(0.01, 1, 60)
sharp = [float(global_loss(v_bar, t_bar, np.log(1 / value))[0]) for value in taus]
best = taus[int(np.argmin(sharp))]
figure, (ax,) = panels(1, 3.2)
ax.plot(taus, sharp, color="black")
ax.axhline(np.log(B), color="#666666", linestyle=":")
ax.text(0.3, np.log(B) + 0.15, "guessing: log B", color="#666666")
start = PRESETS["vit_b_16"].temperature_init
for at, words in ((best, "best here"), (start, f"start, {start:g}")):
    ax.plot([at], [np.interp(at, taus, sharp)], "o", color="#D55E00", markersize=10)
    ax.annotate(words, (at, np.interp(at, taus, sharp)), (at * 1.06, np.interp(at, taus, sharp) - 0.6), color="#D55E00")
ax.set(xscale="log", xlabel="temperature", ylabel="loss (nats)", ylim=(0, None))
ax.set_title("too warm: never sure; too cold: sure of its mistakes")
show(figure, "03_temperature")
print(f"best temperature of this batch {best:.3f}")
slopes = [float(global_loss(v_bar, t_bar, np.log(1 / value))[2]()[2]) for value in (best / 2, best * 2)]
print("dtheta at half and at twice that:", np.round(slopes, 3))
assert slopes[0] > 0 > slopes[1]

# %% [markdown]
# Colder, picture 0 becomes sure and right, picture 3 sure and wrong: the loss of all four has its lowest point between.
# Nobody has to choose it: $\theta = \log(1/\tau)$ is a parameter like any other. Too cold, its gradient is positive and a
# step lowers $\theta$, warming it up; too warm, the opposite. Only where it starts is chosen: at 0.07, as CLIP did. SPARC's
# second loss divides by the same $\tau$; the two are added with fixed weights (tutorial 06).
#
# ## log B
#
# What is a *bad* loss? A model that knows nothing gives all pairs the same logit: each of B answers gets 1/B.

# %%
sizes = [2, 8, 32, 128, 512]
guess, halfway = [], []
for size in sizes:
    same = np.ones((size, D))
    guess.append(float(global_loss(same, same, theta)[0]))
    drawn = []
    for _ in range(max(3, 1000 // size)):                         # the mean of many batches: one of 2 pairs says little
        v_many = rng.standard_normal((size, D))
        t_many = v_many + 1.2 * rng.standard_normal((size, D))    # the same recipe as above
        drawn.append(float(global_loss(v_many, t_many, theta)[0]))
    halfway.append(np.mean(drawn))
for size, a, b in zip(sizes, guess, halfway):
    print(f"B {size:4}   knows nothing {a:.3f} = log B {np.log(size):.3f}   halfway learned {b:.3f}, below by {a - b:.3f}")
figure, (ax,) = panels(1, 3.2)
line(ax, 0, sizes, guess, "knows nothing: log B")
line(ax, 1, sizes, halfway, "halfway learned, the same for each B")
ax.set(xscale="log", xlabel="batch size B", ylabel="loss (nats)")
ax.set_xticks(sizes, [str(n) for n in sizes])
ax.legend()
show(figure, "03_log_b")
assert np.allclose(guess, np.log(sizes)) and np.all(np.diff(halfway) > 0)

# %% [markdown]
# The loss of *one and the same* recipe grows with the batch: more wrong answers, a harder quiz. Losses of different batch
# sizes cannot be compared. How far a loss is below log B is fairer, but it grows with B as well, and settles only for large
# B.
#
# ## Why the batch matters
#
# A bigger batch is not only a harder quiz: the loss is not a mean of numbers that each pair has by itself, since every term
# contains all pairs. Split the batch in two, and it changes. The fine-grained loss does not: there each caption is its own
# quiz. (8 random pairs of P patches and L tokens, all of them real.)

# %%
size, P, L = 8, 5, 3
v, t = rng.standard_normal((size, P, D)), rng.standard_normal((size, L, D))
mask = np.ones((size, L), bool)
v_bar8, t_bar8 = v.mean(1), t.mean(1)                             # (8,D)


def halves(loss, *arrays):
    """(the loss of the batch, the mean of the losses of its halves)"""
    first, second = ([x[part] for x in arrays] for part in (slice(None, 4), slice(4, None)))
    return float(loss(*arrays, theta)[0]), float(loss(*first, theta)[0] + loss(*second, theta)[0]) / 2


whole_g, split_g = halves(global_loss, v_bar8, t_bar8)
whole_f, split_f = halves(fine_grained_loss, v, t, mask)
print(f"global        whole {whole_g:.4f}   two halves {split_g:.4f}")
print(f"fine-grained  whole {whole_f:.4f}   two halves {split_f:.4f}")
assert not np.isclose(whole_g, split_g) and np.isclose(whole_f, split_f)

# %% [markdown]
# (Random vectors at this temperature are sure and wrong, so worse than guessing: log 8 = 2.08, log 4 = 1.39 for halves. The
# fine-grained loss is low, guessing were log 3 = 1.10, although nothing was learned: each group was chosen by its word, so it
# resembles it already.)
#
# That is why CLIP is trained with tens of thousands of pairs at once (32,768 in its paper) over many machines, which must all
# exchange their vectors, and why adding up the gradients of several small batches does not give a big batch's gradient.
#
# And two captions that mean the same? They are each other's wrong answer and share the probability, so log 2 is the least that
# either can have. We print the pictures' half of the loss (the rows), so cold that all other wrong answers count nothing:

# %%
twins_v, twins_t = v_bar.copy(), v_bar.copy()                     # a perfect model ...
twins_v[1], twins_t[1] = twins_v[0], twins_t[0]                   # ... of a batch in which pairs 0 and 1 are alike
_, trace, _ = global_loss(twins_v, twins_t, np.log(1 / 0.01))
print("loss of each picture", np.abs(trace["loss_image"]).round(4), " log 2 =", np.log(2).round(4))
assert np.allclose(trace["loss_image"], [np.log(2), np.log(2), 0, 0], atol=1e-6)

# %% [markdown]
# ## What it forgets
#
# Before the quiz, all patches that come out of the tower are averaged. Suppose it says of each patch just its colour, and
# here are two pictures: one with a red half and a blue half, and one that is purple all over. The average is the same, so the
# loss is the same number, whatever the captions say.

# %%
halves_picture = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])   # (P,D): red, blue, red, blue
purple_picture = np.full((4, 2), 0.5)                                         # (P,D): purple everywhere
captions = rng.standard_normal((2, 2))                                        # its own and another one, whatever they say
other = rng.standard_normal(2)                                                # another picture of the batch
both = [float(global_loss(np.stack([picture.mean(0), other]), captions, theta)[0])
        for picture in (halves_picture, purple_picture)]
print("loss with the two halves, with purple:", np.round(both, 6))
assert both[0] == both[1]

figure, axes = panels(5, 2.6, [0.8, 1, 0.8, 1, 1])
colours = {"red": (0.9, 0.3, 0.3), "blue": (0.35, 0.5, 1.0), "purple": (0.62, 0.4, 0.65)}
red, blue, purple = colours.values()
for ax, picture, title in ((axes[0], [[red, blue], [red, blue]], "two halves"), (axes[2], [[purple] * 2] * 2, "purple")):
    ax.imshow(picture)
    ax.set_axis_off()
    ax.set_title(title)
    for i in range(4):
        ax.text(i % 2, i // 2, str(i), ha="center", va="center")
rows = [str(i) for i in range(4)]
matrix(axes[1], halves_picture, "its patches", rows, ["red", "blue"], low=0, high=1)
matrix(axes[3], purple_picture, "its patches", rows, ["red", "blue"], low=0, high=1)
matrix(axes[4], halves_picture.mean(0)[None], "mean of either", columns=["red", "blue"], low=0, high=1)
show(figure, "03_forgets")

# %% [markdown]
# And backwards? The mean hands its gradient to all patches in equal shares:

# %%
pictures = rng.standard_normal((B, P, D))                         # (B,P,D)
mean, back_mean = ops.masked_mean(pictures)                       # (B,D): no mask given, so of all
_, _, back = global_loss(mean, t_bar, theta)
dv = back_mean(back()[0])                                         # (B,P,D)
print("largest difference between the gradients of a picture's patches:", np.ptp(dv, axis=1).max())
assert dv.shape == (B, P, D) and np.ptp(dv, axis=1).max() == 0

# %% [markdown]
# Every patch that comes out of the tower is told the same. If the caption says "red", the patch of the ground is moved
# towards red just like that of the red ball. So this loss tells the patches of one picture nothing apart. The layers inside
# the tower may pass the gradient on unequally, but nothing in *this* loss asks them to. SPARC's second loss does: [04, the
# alignment](04_sparse_alignment.ipynb).
#
# ## Exercise 03.1: the gradient of the logits
#
# Without looking up: derive it from log-softmax (exercise 01.1) and write it down.

# %%
def my_dlogits(z):                                                # z (B,B) -> dz (B,B)
    return None


print(check("03.1", my_dlogits))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The upstream gradient of log p is $-I/(2B)$; its rows sum to $-1/(2B)$. Log-softmax's back gives $(p - I)/(2B)$; the columns
# give the same with $q$.
#
# ```python
# def my_dlogits(z):
#     p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
#     q = np.exp(z) / np.exp(z).sum(0, keepdims=True)
#     return (p + q - 2 * np.eye(len(z))) / (2 * len(z))
# ```
#
# </details>
#
# ## Exercise 03.2: as good as it gets
#
# All right pairs have cosine 1, all wrong ones 0. Which loss remains, for B pairs at temperature tau?

# %%
def least_loss(B, tau):
    return None


print(check("03.2", least_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# Every row is $1/\tau$ once and 0 for the other B - 1.
#
# ```python
# def least_loss(B, tau):
#     return np.log(1 + (B - 1) * np.exp(-1 / tau))
# ```
#
# </details>
#
# Next: [04, sparse alignment](04_sparse_alignment.ipynb).
