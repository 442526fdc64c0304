# %% [markdown]
# # 06. The fine-grained loss
#
# Tutorial 00 had one caption of two words. Now batches: captions of different lengths, with padding, and the whole gradient.
# Then what follows from where this loss takes its wrong answers: why it needs no other picture, how it can be cheated, what
# it does to two words that mean the same place, and what it costs.

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
from sparc_ref import PRESETS, align_patches, fine_grained_loss, forward, global_loss, init_params, ops

rng = np.random.default_rng(0)

# %% [markdown]
# ## A batch with padding
#
# Arrays are rectangles, captions are not. Short ones are filled up with padding, and a mask (B,L) says which tokens are real
# (tutorial 02). What stands at padding is whatever the text tower left there.

# %%
B, L, P, D = 2, 4, 6, 5
v, t = rng.standard_normal((B, P, D)), rng.standard_normal((B, L, D))
mask = np.array([[True, True, True, True], [True, True, False, False]])          # (B,L) lengths 4 and 2
lengths = mask.sum(1)
theta = np.log(1 / 0.2)

c, trace, back_align = align_patches(t, v, mask)                                 # (B,L,D)
c_hat, back_c = ops.l2_normalize(c)
t_hat, back_t = ops.l2_normalize(np.where(mask[..., None], t, 0))
z = np.exp(theta) * c_hat @ np.swapaxes(t_hat, 1, 2)                             # (B,L,L)
assert z.shape == (B, L, L)

# %% [markdown]
# Row $j$ asks: which word has group $j$? Padding must not be asked (no row), and must not be an answer (no column). Leaving
# it out means a probability of exactly 0. The way to get that is $-\infty$ *before* the exponential: $e^{-\infty} = 0$. A
# logit of 0 would not do: $e^0 = 1$, an answer as good as a real one with cosine 0. (Drawn below are the rows; the columns
# count as well.) With $p$ the softmax along rows and $q$ along columns, both over real tokens alone, eq. 6 is
#
# $$L_f = \frac{1}{B} \sum_i \frac{1}{2 L_i} \sum_{j \text{ real}} \left[ -\log p^i_{jj} - \log q^i_{jj} \right]$$

# %%
columns = mask[:, None, :]                                                       # (B,1,L)


def probabilities(z):
    """Softmax over real columns."""
    e = np.exp(np.where(columns, z - z.max(-1, keepdims=True), -np.inf))
    return e / e.sum(-1, keepdims=True)


p, q = probabilities(z), probabilities(np.swapaxes(z, 1, 2))                     # (B,L,L) both
right_p, right_q = (np.diagonal(x, axis1=1, axis2=2) for x in (p, q))            # (B,L) the right answers' probabilities
right_p, right_q = np.where(mask, right_p, 1), np.where(mask, right_q, 1)        # 1 at padding: its log is 0
each = -np.log(right_p) - np.log(right_q)                                        # (B,L) the sum of both directions
loss = (each.sum(1) / lengths).mean() / 2                                        # eq. 6
library, trace, back = fine_grained_loss(v, t, mask, theta)
assert np.isclose(library, loss)
assert np.allclose(trace["loss_vt"] + trace["loss_tv"], each)
print(f"loss {loss:.4f}")

figure, axes = panels(4, 3)
names = [f"t{l}" for l in range(L)]
for i in range(B):
    real = np.where(columns[i] & mask[i][:, None], z[i], 0)
    groups = [f"c{l}" for l in range(L)]
    matrix(axes[2 * i], real, f"caption {i}: logits", groups, names, digits=1, signed=True, reach=5, zeros="pad")
    matrix(axes[2 * i + 1], np.where(mask[i][:, None], p[i], 0), "softmax of rows", [""] * L, names, low=0, high=1,
           zeros="pad")
show(figure, "06_mask")

# %% [markdown]
# ## What goes wrong without the mask
#
# Three mistakes of public losses (`docs/survey.md` counts them): padding competes; padding has logit 0 ("masked" by
# multiplying with 0), and competes as well; the mean over all B L places. The last spoils a mean over tokens (which "Two ways
# to average" below calls "token"), so we compare it with that.

# %%
def cross_entropies(z):
    """(B,L): both directions, padding and all."""
    down = np.log(np.exp(z).sum(-1)) + np.log(np.exp(z).sum(-2))
    return down - 2 * np.diagonal(z, axis1=1, axis2=2)


noise = np.where(mask[..., None], t, rng.standard_normal(t.shape))               # what a tower leaves at padding
c_all, _, _ = align_patches(noise, v)
z_all = np.exp(theta) * ops.l2_normalize(c_all)[0] @ np.swapaxes(ops.l2_normalize(noise)[0], 1, 2)
both = columns & mask[..., None]
per_token = each.sum() / mask.sum() / 2
faults = {                                                                       # (wrong, right)
    "padding competes": ((np.where(mask, cross_entropies(z_all), 0).sum(1) / lengths).mean() / 2, loss),
    "padding has logit 0": ((np.where(mask, cross_entropies(np.where(both, z, 0)), 0).sum(1) / lengths).mean() / 2, loss),
    "mean over all places": (each.mean() / 2, per_token),
}
for name, (value, right) in faults.items():
    print(f"{name:22} {value:.4f} instead of {right:.4f}   {100 * (value / right - 1):+.0f} %")
assert all(abs(value / right - 1) > 0.1 for value, right in faults.values())

# %% [markdown]
# The right loss does not care what padding holds, nor does its gradient:

# %%
wild = np.where(mask[..., None], t, 1e6)
value, _, back_wild = fine_grained_loss(v, wild, mask, theta)
assert value == library
assert np.all(back_wild()[1][~mask] == 0) and np.allclose(back_wild()[0], back()[0])

# %% [markdown]
# ## The gradient
#
# All parts are known. Each token's two cross-entropies count $1/(2 B L_i)$; the gradient of a cross-entropy is *said minus
# right* (tutorial 03); then cosine, l2 norm, and `align_patches`' own back (tutorial 04). **t is used twice too**: it asks
# (through the alignment) and it answers (in the logits).

# %%
share = mask / lengths[:, None] / B                                              # (B,L)
eye = np.eye(L)
said_minus_right = (share[..., None] * (p - eye)) + np.swapaxes(share[..., None] * (q - eye), 1, 2)
dz = np.where(both, said_minus_right, 0) / 2                                     # (B,L,L)
dtheta = (dz * z).sum()
dcosine = np.exp(theta) * dz
dt_asks, dv = back_align(back_c(dcosine @ t_hat))                                # through c
dt_answers = back_t(np.swapaxes(dcosine, 1, 2) @ c_hat)                          # through the logits
dt = dt_asks + np.where(mask[..., None], dt_answers, 0)
for ours, theirs in zip((dv, dt, dtheta), back(), strict=True):
    assert np.allclose(ours, theirs)
asks, answers = np.linalg.norm(dt_asks), np.linalg.norm(dt_answers)
print(f"|dt| as the one who asks {asks:.3f}, as an answer {answers:.3f}")

# %% [markdown]
# ## Two ways to average
#
# Eq. 6 averages over each caption's tokens, then over captions: each *caption* counts alike (`reduction="sample"`). The
# paper's pseudo-code divides the sum over all tokens by their number: each *token* counts alike (`"token"`). With equal
# lengths it is the same. The choice is called the *reduction*; the library's default is eq. 6's.

# %%
lengths_seen = (1, 2, 4, 8)
long_mask = np.arange(8) < np.array(lengths_seen)[:, None]                       # (4,8)
counts = {"sample": long_mask / long_mask.sum(1, keepdims=True) / 4, "token": long_mask / long_mask.sum()}
figure, axes = panels(2, 2.8)
for ax, (name, x) in zip(axes, counts.items()):
    rows = [f"length {n}" for n in lengths_seen]
    matrix(ax, x, f'"{name}": weight of each token\'s loss', rows, low=0, high=0.25, digits=4, zeros="")
    for words in ax.texts:
        words.set_fontsize(10)
show(figure, "06_reductions")
print("a caption's share:", {name: x.sum(1).round(3).tolist() for name, x in counts.items()})
losses = {name: float(fine_grained_loss(v, t, mask, theta, reduction=name)[0]) for name in counts}
print({name: round(value, 4) for name, value in losses.items()})
assert np.isclose(losses["token"], each.sum() / mask.sum() / 2)
single = fine_grained_loss(v, t, np.arange(L) < np.array([[1], [1]]), theta)[0]
assert single == 0                                                               # one token: one answer, always right
nothing = fine_grained_loss(v, t, np.zeros((B, L), bool), theta)                 # padding alone
assert nothing[0] == 0 and not nothing[2]()[1].any()

# %% [markdown]
# A caption of one token has one possible answer, the right one: its loss is 0. A caption of padding alone has no quiz; the
# library gives it 0 as well, and no gradient.
#
# ## Both losses together
#
# $L = \lambda_g L_g + \lambda_f L_f$ (eq. 7). Both losses use the same embeddings and, by default, the same temperature,
# whose gradient is then the sum of both. The paper sets $\lambda_g$ and tries several $\lambda_f$ without saying which one
# it took.

# %%
config = PRESETS["tiny"]
params = init_params(config, rng, "float64")
tokens, real = rng.integers(0, config.vocab_size, (3, 5)), np.arange(5) < np.array([[5], [3], [2]])
total, trace, back_model = forward(params, rng.standard_normal((3, 3, 64, 64)), tokens, real, config)
loss_g, _, back_g = global_loss(trace["v_bar"], trace["t_bar"], params["theta"])
loss_f, _, back_f = fine_grained_loss(trace["v"], trace["t"], real, params["theta"])
print(f"temperature: {config.temperature}, tau {np.exp(-params['theta']):.2f}")
print(f"{config.lambda_g} x {loss_g:.3f} + {config.lambda_f} x {loss_f:.3f} = {total:.3f}")
assert np.isclose(total, config.lambda_g * loss_g + config.lambda_f * loss_f)
assert np.isclose(back_model()["theta"], config.lambda_g * back_g()[2] + config.lambda_f * back_f()[2])

# %% [markdown]
# ## Why no other picture is needed
#
# Every quiz has its wrong answers in its own caption. So a pair's loss is its own affair: compute the pairs one by one, and
# you get the batch's loss. No vector has to travel between machines. (That is so with "sample". With "token" they must tell
# each other how many tokens they have.)

# %%
alone = [float(fine_grained_loss(v[i : i + 1], t[i : i + 1], mask[i : i + 1], theta)[0]) for i in range(B)]
print("one by one", np.round(alone, 4), " mean", round(float(np.mean(alone)), 4), " batch", round(float(library), 4))
assert np.isclose(np.mean(alone), library)
tokens_alone = np.average(alone, weights=lengths)                                # with "token": weighted by lengths
assert np.isclose(tokens_alone, losses["token"]) and not np.isclose(np.mean(alone), losses["token"])

# %% [markdown]
# ## How it can be cheated
#
# That has a price. No wrong answer comes from another picture, so it is not asked whether the words are true of *this*
# picture. Take four pictures of four objects each, in different places, and captions that name them in another order. An
# *honest* model says of patches and words which object they are. A *cheating* one says nothing but where they stand: patch
# $l$ and word $l$ carry the same code, whatever is there.

# %%
codes, full = np.eye(8), np.ones((4, 4), bool)
shown = np.stack([rng.permutation(8)[:4] for _ in range(4)])                     # (4,4) which objects, in places 0..3
named = np.stack([rng.permutation(row) for row in shown])                        # (4,4) the same in the caption's order
noise = lambda: 0.02 * rng.standard_normal((4, 4, 8))  # noqa: E731
models = {
    "honest": (codes[shown] + noise(), codes[named] + noise()),
    "cheating": (codes[[[0, 1, 2, 3]] * 4] + noise(), codes[[[0, 1, 2, 3]] * 4] + noise()),
}
gap, among = {}, {}
for name, (pictures, captions) in models.items():
    true_loss = float(fine_grained_loss(pictures, captions, full, theta)[0])
    shuffled_loss = float(fine_grained_loss(pictures[[1, 2, 3, 0]], captions, full, theta)[0])
    gap[name], among[name] = shuffled_loss - true_loss, float(global_loss(pictures.mean(1), captions.mean(1), theta)[0])
    print(f"{name:9} true pictures {true_loss:.4f}   shuffled pictures {shuffled_loss:.4f}   grounding gap {gap[name]:+.4f}"
          f"   global loss {among[name]:.2f}")
    assert true_loss < 0.1
print(f"guessing {np.log(4):.4f}")
assert gap["honest"] > 0.5 and abs(gap["cheating"]) < 0.01
assert among["honest"] < 1 and np.isclose(among["cheating"], np.log(4), atol=0.05)  # all four means are alike: guessing

# %% [markdown]
# The cheat's loss is as low, and nobody looked at a picture: with the pictures exchanged it stays as low. The difference,
# loss with shuffled minus loss with true pictures, is the *grounding gap*. At 0 the words are not about the picture,
# however low the loss. Measure it always; `sparc-ref evaluate` does. The global loss sees through this cheat: four
# pictures of the same codes have the same mean, and it stays at guessing, log 4 = 1.39. (Not every cheat is so bare:
# tutorial 07.)
#
# ## Two words, one region
#
# "A **red** **circle**". Both words mean the same patches. But in the quiz, they are each other's wrong answer. If both find
# the right region, their groups are equal, and nobody can tell them apart: log 2 = 0.693 for each. We start both words there,
# with a little noise (equal words would stay equal), and let the words learn:

# %%
objects = 3 * np.eye(8)[:3]                                                      # (3,8)
where = np.repeat(np.arange(3), 4)                                               # (12,) 3 objects of 4 patches
pv = (objects[where] + 0.3 * rng.standard_normal((12, 8)))[None]                 # (1,12,8)
three = np.ones((1, 3), bool)
apart = objects[None] / 3                                                        # three words, three objects
shared = objects[None, [0, 0, 1]] / 3 + 0.01 * rng.standard_normal((1, 3, 8))    # two words, one object


def descend(t, steps=400, rate=0.1):
    """Losses, the weight of each word on object 0, and the last weights, while the words alone learn."""
    losses, on_object = [], []
    for _ in range(steps + 1):
        loss, trace, back = fine_grained_loss(pv, t, three, theta)
        losses.append(float(loss))
        on_object.append(trace["weights"][0][:, where == 0].sum(1))
        t = t - rate * back()[1]
    return losses, np.array(on_object), trace["weights"][0]


for name, words in (("three words, three objects", apart), ("two words share one", shared)):
    losses, _, _ = descend(words, steps=0)
    _, trace, _ = fine_grained_loss(pv, words, three, theta)
    print(f"{name:28} loss at the right answer {losses[0]:.3f}; of each word {np.round(trace['loss_vt'][0], 3)}")
    assert name != "two words share one" or np.allclose(trace["loss_vt"][0, :2], np.log(2), atol=0.02)
losses, on_object, last = descend(shared)
print(f"after training: loss {losses[-1]:.3f}; weight of both words on their object "
      f"{on_object[0][:2].round(2)} -> {on_object[-1][:2].round(2)}")
assert losses[-1] < losses[0] and on_object[-1][:2].min() < on_object[0][:2].min() - 0.1
ends = []
for seed in range(8):                                                            # other noise
    other = objects[None, [0, 0, 1]] / 3 + 0.01 * np.random.default_rng(seed).standard_normal((1, 3, 8))
    ends.append(descend(other)[1][-1][:2])
ends = np.array(ends)
gone = int(np.argmin(on_object[-1][:2]))                                         # who went, and where to
print("it went to object", np.argmax([last[gone][where == o].sum() for o in range(3)]))
assert np.argmax([last[gone][where == o].sum() for o in range(3)]) == 2
print("eight times: the lower weight", np.sort(ends)[:, 0].round(2), " the higher", np.sort(ends)[:, 1].round(2))
print("'red' is the one that goes in", int((ends[:, 0] < ends[:, 1]).sum()), "of 8")
assert np.sort(ends)[:, 0].max() < 0.4 < 0.6 < np.sort(ends)[:, 1].min()


def weights_at(step):
    """The weights of the three words after so many steps."""
    figure, (ax,) = panels(1, 2.5)
    names = ["'red'    (object 0)", "'circle' (object 0)", "'dog'    (object 1)"]
    matrix(ax, descend(shared, step)[2], f"weights after {step} steps", names, [str(o) for o in where], low=0, high=0.3)
    ax.set_xlabel("the object of each patch")
    return figure


for at in (0, 50, 400):
    show(weights_at(at), f"06_two_words_{at}")
step(weights_at, step=(0, 400, 10))                                              # with ipywidgets: a slider
figure, (ax,) = panels(1, 3)
for i, name in enumerate(("'red'", "'circle'")):
    line(ax, i, range(len(on_object)), on_object[:, i], name, markevery=50)
ax.set(xlabel="step", ylabel="weight on object 0", ylim=(0, 1))
ax.set_title("of two words that share a region one is driven off")
ax.legend()
show(figure, "06_two_words_curves")

# %% [markdown]
# They started at the right answer, and the loss drove one of them off; chance decides which. (First both change, to differ at
# all; when one has gone, the other takes some of its weight back.) It goes where no other word is, here to object 2. (Even at
# the right answer some weight lies elsewhere: the threshold cuts little, tutorial 04.) This is no mistake of an
# implementation; eq. 6 asks for it. The lesson for data: name each region with one token, if you can, and do not take a word's
# map for the truth.
#
# ## What it costs
#
# Count multiplications, forward (backwards is about twice as many). Per pair: similarities take L P D, averages L P D, logits
# L² D. It does not grow with the batch. The global loss: B D a pair, so B² D in all. A loss that compares every word with every
# patch of every picture of the batch, such as FILIP (Yao et al., 2021): B L P D a pair on one device, where one matrix serves
# both directions; twice that over several (08).

# %%
L_real, P_real, D_real = 55, 196, 512                                            # the paper's sizes with a ViT-B/16
fine = 2 * L_real * P_real * D_real + L_real**2 * D_real
batches = [2**k for k in (6, 8, 10, 12, 14, 16)]
whole = [size * D_real for size in batches]
figure, (ax,) = panels(1, 3.2)
line(ax, 0, batches, whole, "global loss: B D")
line(ax, 1, batches, [fine] * len(batches), "fine-grained loss: 2 L P D + L² D")
line(ax, 2, batches, [size * L_real * P_real * D_real for size in batches], "every word with every patch: B L P D")
ax.set(xscale="log", yscale="log", xlabel="batch size B", ylabel="multiplications a pair", ylim=(1e4, 1e17))
ax.legend()
show(figure, "06_cost")
print(f"fine-grained {fine / 1e6:.1f} million a pair, forward; equal to the global loss's at B = {fine / D_real:.0f}")
C = 768                                                                          # its width; a block: 4 C² (attention) + 8 C²,
tower = 12 * (12 * C**2 * P_real + 2 * P_real**2 * C)                            # and attention's scores and averages
print(f"the vision tower's 12 blocks, forward: {tower / 1e6:.0f} million; the loss is {100 * fine / tower:.2f} % of it")
print(f"largest tensor of a pair: L P = {L_real * P_real} similarities; all pictures with all captions: B times that")
assert fine == (2 * P_real + L_real) * L_real * D_real

# %% [markdown]
# Beside a tower it is next to nothing. FILIP pays for every word with every patch of *every picture of the batch*; SPARC
# needs its own picture's alone.
#
# ## Exercise 06.1: the loss of a padded caption

# %%
def masked_loss(z, mask):                                                        # (L,L), (L,) bool -> a number
    return None


print(check("06.1", masked_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# Cutting padding off is the same as masking it, for one caption.
#
# ```python
# def masked_loss(z, mask):
#     real = z[mask][:, mask]
#     rows = np.log(np.exp(real).sum(1)) - np.diag(real)
#     columns = np.log(np.exp(real).sum(0)) - np.diag(real)
#     return (rows + columns).mean() / 2
# ```
#
# </details>
#
# ## Exercise 06.2: what a token counts
#
# For both reductions, so that the loss is the sum of tokens' losses times their shares. (A token's loss is the mean of its
# two directions.)

# %%
def shares(mask, reduction):                                                     # (B,L) bool, "sample" or "token" -> (B,L)
    return None


print(check("06.2", shares))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def shares(mask, reduction):
#     if reduction == "token":
#         return mask / mask.sum()
#     return mask / mask.sum(1, keepdims=True) / len(mask)
# ```
#
# </details>
#
# Next: [07, train it](07_train_it.ipynb).
