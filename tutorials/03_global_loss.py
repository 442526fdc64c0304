# %% [markdown]
# # 03. The global loss
#
# Whole pictures and whole captions, a vector each. Which caption belongs to which picture? That is all that the *global loss*
# asks (eq. 1), it is CLIP's loss, and SPARC keeps it. What does it teach, what do temperature and batch do to it, and what
# does it never see? The last question is why SPARC exists.

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
from sparc_ref import fine_grained_loss, global_loss, ops

rng = np.random.default_rng(5)

# %% [markdown]
# ## A batch
#
# Training shows B pairs at a time, the *batch*. Each picture has a *global embedding* $\bar v$, the mean of its patches (then
# two small layers: tutorial 02); each caption has $\bar t$, the mean of its tokens.
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
# From tutorial 01: the gradient of a cross-entropy with respect to its logits is *what it said minus what is right*, $p - 1$
# at the right answer and $p$ elsewhere. Two directions and a mean:
#
# $$dz = \frac{(p - I) + (q - I)}{2B}$$
#
# Exercise 03.1 asks you to derive it. Here we let differences confirm it, entry by entry.

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

figure, (a, b, c) = panels(3, 3.4)
names = [str(i) for i in range(B)]
matrix(a, cosine, "cosine", names, names, signed=True)
matrix(b, p, "softmax of rows", names, names, low=0, high=1)
matrix(c, 2 * B * dz, "2B x gradient of logits", names, names, signed=True)
a.set_ylabel("picture")
a.set_xlabel("caption")
show(figure, "03_batch")
print("sum of the gradient", f"{dz.sum():.1e}")

# %% [markdown]
# Orange is negative: a step against the gradient raises these logits. So the diagonal is pulled up, everything else pushed
# down, each by as much as it was wrong. A wrong pair with a high probability, a *hard negative*, is pushed most.
#
# The rest of the way back is tutorial 01: $z = \cos/\tau$, then a product, then the l2 norm.

# %%
dcosine = dz / tau                                                # (B,B)
dv_hat, dt_hat = dcosine @ t_hat, dcosine.T @ v_hat               # (B,D)
dv_bar = ops.l2_normalize(v_bar)[1](dv_hat)
dt_bar = ops.l2_normalize(t_bar)[1](dt_hat)
dtheta = (dz * z).sum()                                           # z = exp(theta) cos, so dz/dtheta = z
for ours, theirs in zip((dv_bar, dt_bar, dtheta), back(), strict=True):
    assert np.allclose(ours, theirs)
print("v_bar . dv_bar", np.abs((v_bar * dv_bar).sum(1)).max().round(12), "  dtheta", dtheta.round(4))

# %% [markdown]
# ## Temperature
#
# Cosines end at 1. Without dividing by a small $\tau$ even a perfect model would not be sure:

# %%
def one_row(tau):
    """Picture 0's quiz at a temperature: probabilities, and the gradient on each caption."""
    row = ops.softmax(cosine[:1] / tau)[0]
    figure, (left, right) = panels(2, 2.2)
    matrix(left, row, f"tau = {tau:g}: softmax of row 0", columns=names, low=0, high=1)
    matrix(right, row - np.eye(B)[:1], "what it said minus what is right", columns=names, signed=True, reach=1)
    return figure


for value in (1.0, 0.2, 0.05):
    show(one_row(value), f"03_tau_{value:g}")
step(one_row, tau=(0.02, 1.0, 0.02))

taus = np.geomspace(0.01, 1, 60)
sharp = [float(global_loss(v_bar, t_bar, np.log(1 / value))[0]) for value in taus]
best = taus[int(np.argmin(sharp))]
figure, (ax,) = panels(1, 3.2)
ax.plot(taus, sharp, color="black")
ax.axhline(np.log(B), color="#666666", linestyle=":")
ax.text(0.3, np.log(B) + 0.15, "guessing: log B", color="#666666")
ax.set(xscale="log", xlabel="temperature", ylabel="loss (nats)", ylim=(0, None))
ax.set_title("too warm: never sure; too cold: sure of its mistakes")
show(figure, "03_temperature")
print(f"best temperature of this batch {best:.3f}")
slopes = [float(global_loss(v_bar, t_bar, np.log(1 / value))[2]()[2]) for value in (best / 2, best * 2)]
print("dtheta at half and at twice that:", np.round(slopes, 3))
assert slopes[0] > 0 > slopes[1]

# %% [markdown]
# Nobody has to choose: $\theta = \log(1/\tau)$ is a parameter like any other. Too cold, its gradient is positive and a step
# lowers $\theta$, warming it up; too warm, the opposite. CLIP's start, 0.07, is SPARC's default here.
# SPARC's second loss divides by the same $\tau$; the two are added with fixed weights (tutorial 06).
#
# ## log B
#
# What is a *bad* loss? A model that knows nothing gives all pairs the same logit: each of B answers gets 1/B.

# %%
sizes = [2, 8, 32, 128, 512]
guess, halfway = [], []
for size in sizes:
    v_many = rng.standard_normal((size, D))
    t_many = v_many + 1.2 * rng.standard_normal((size, D))
    same = np.ones((size, D))
    guess.append(float(global_loss(same, same, theta)[0]))
    halfway.append(float(global_loss(v_many, t_many, theta)[0]))
for size, a, b in zip(sizes, guess, halfway):
    print(f"B {size:4}   knows nothing {a:.3f} = log B {np.log(size):.3f}   the same halfway model {b:.3f}")
figure, (ax,) = panels(1, 3.2)
line(ax, 0, sizes, guess, "knows nothing: log B")
line(ax, 1, sizes, halfway, "the same halfway model")
ax.set(xscale="log", xlabel="batch size B", ylabel="loss (nats)")
ax.set_xticks(sizes, [str(n) for n in sizes])
ax.legend()
show(figure, "03_log_b")
assert np.allclose(guess, np.log(sizes)) and np.all(np.diff(halfway) > 0)

# %% [markdown]
# The loss of *one and the same* model grows with the batch: more wrong answers, a harder quiz. Losses of different batch
# sizes cannot be compared. What can is how far a loss is below log B.
#
# ## Why the batch matters
#
# A bigger batch is not only a harder quiz: the loss is no mean over pairs at all. Split the batch in two, and it changes. The
# fine-grained loss does not: there each caption is its own quiz.

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
# That is why CLIP is trained with tens of thousands of pairs at once over many machines, which must all exchange their
# vectors, and why accumulating gradients over small batches does not give a big batch's gradient.
#
# It also shows what happens with two captions that mean the same. They are each other's wrong answer, and nothing can be
# right:

# %%
twins_v, twins_t = v_bar.copy(), v_bar.copy()                     # a perfect model ...
twins_v[1], twins_t[1] = twins_v[0], twins_t[0]                   # ... of a batch in which pairs 0 and 1 are alike
_, trace, _ = global_loss(twins_v, twins_t, np.log(1 / 0.01))
print("loss of each picture", np.asarray(trace["loss_image"]).round(4), " log 2 =", np.log(2).round(4))
assert np.allclose(trace["loss_image"], [np.log(2), np.log(2), 0, 0], atol=1e-6)

# %% [markdown]
# ## What it forgets
#
# Before the quiz, all patches that come out of the tower are averaged. Here are two pictures: one with a red half and a blue
# half, and one that is
# purple all over. The average is the same, so the global loss cannot tell them apart, whatever the caption says.

# %%
halves_picture = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])   # (P,D): red red blue blue
purple_picture = np.full((4, 2), 0.5)                                         # (P,D): purple everywhere
pooled = [ops.masked_mean(picture[None])[0] for picture in (halves_picture, purple_picture)]
assert np.allclose(*pooled)

figure, axes = panels(3, 2.6)
matrix(axes[0], halves_picture, "two halves", columns=["red", "blue"], low=0, high=1)
matrix(axes[1], purple_picture, "purple", columns=["red", "blue"], low=0, high=1)
matrix(axes[2], pooled[0], "the mean of either", columns=["red", "blue"], low=0, high=1)
show(figure, "03_forgets")

# %% [markdown]
# And backwards? The mean hands its gradient to all patches in equal shares:

# %%
pictures = rng.standard_normal((B, P, D))                         # (B,P,D)
mean, back_mean = ops.masked_mean(pictures)                       # (B,D)
_, _, back = global_loss(mean, t_bar, theta)
dv = back_mean(back()[0])                                         # (B,P,D)
print("largest difference between the gradients of a picture's patches:", np.ptp(dv, axis=1).max())
assert dv.shape == (B, P, D) and np.ptp(dv, axis=1).max() == 0

# %% [markdown]
# Every patch of a picture is told the same. If the caption says "red", the ground is moved towards red just like the apple.
# The tower below may sort this out, since it can pass on the gradient unequally, but nothing in *this* loss asks it to.
# SPARC's second loss does: [04, the alignment](04_sparse_alignment.ipynb).
#
# ## Exercise 03.1: the gradient of the logits
#
# Derive it from log-softmax (exercise 01.1) and write it down.

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
# Every row is $1/\tau$ once and 0 for the other B - 1. (Wrong pairs could have cosine -1 when B is 2; with many pairs they
# cannot all be opposite.)
#
# ```python
# def least_loss(B, tau):
#     return np.log(1 + (B - 1) * np.exp(-1 / tau))
# ```
#
# </details>
