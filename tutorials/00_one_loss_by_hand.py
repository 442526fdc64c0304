# %% [markdown]
# # 00. One picture, one caption, one loss
#
# SPARC (Bica et al., 2024, arXiv 2401.09865) learns from pictures with captions which part of a picture each word means,
# though nobody ever says so. It does that with one of its two losses. Here is that one, whole, on numbers so small that you
# can check each of them with a pencil.
#
# You need NumPy and a little school algebra. Most blocks end with an `assert`: change a number, and the line that no longer
# holds stops.

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
from drawing import matrix, panels, show, step
from exercises import check
from matplotlib.patches import Rectangle
from sparc_ref import align_patches, fine_grained_loss, global_loss

# %% [markdown]
# ## The picture and its caption
#
# A picture is cut into squares, called *patches*. Ours has 4. An encoder turns each patch into a vector, its *patch
# embedding*. Ours are as short as can be: 2 numbers, which we may call how red and how blue. The caption has 2 words, which
# the encoder calls *tokens*; each has a vector too, its *token embedding*.
#
# | symbol | here | what |
# | --- | --- | --- |
# | P | 4 | patches of the picture |
# | L | 2 | tokens of the caption |
# | D | 2 | numbers in each vector, the *joint width*: pictures and words live in one space |
# | v | (P,D) | patch embeddings |
# | t | (L,D) | token embeddings |

# %%
patches = ["red", "purple", "blue", "ground"]
words = ["'red'", "'blue'"]
v = np.array([[6.0, 0.0], [2.0, 4.0], [2.0, 8.0], [-2.0, -2.0]])  # (P,D)
t = np.array([[1.0, 0.0], [0.0, 1.0]])                            # (L,D)
P, D = v.shape
L = len(t)

figure, (ax1, ax2, ax3) = panels(3, 3.2, [0.8, 1.2, 1.2])
ax1.imshow([[[0.9, 0.3, 0.3], [0.7, 0.4, 0.8]], [[0.35, 0.5, 1.0], [0.85, 0.85, 0.85]]])
for p, name in enumerate(patches):
    ax1.text(p % 2, p // 2, f"{p}\n{name}", ha="center", va="center")
ax1.set_axis_off()
ax1.set_title("the picture")
matrix(ax2, v, "patches v (P,D)", [f"{p} {n}" for p, n in enumerate(patches)], ["red", "blue"], digits=0, signed=True)
matrix(ax3, t, "words t (L,D)", words, ["red", "blue"], digits=0, signed=True)
show(figure, "00_picture")
assert v.shape == (P, D) == (4, 2) and t.shape == (L, D) == (2, 2)

# %% [markdown]
# Purple is above 0, orange below. Each panel has its own scale, so compare colours within a panel.
#
# ## Similarity
#
# How much does word $l$ look like patch $p$? Their *similarity* is the inner product of their vectors:
#
# $$s_{lp} = t_l \cdot v_p$$
#
# One row for each word, one column for each patch. It is *signed*, and nobody has divided by lengths: this is no cosine.

# %%
s = t @ v.T                                                       # (L,P)
print(s)
assert s.shape == (L, P)
assert s[0].tolist() == [6, 2, 2, -2]                             # 'red':  1*6 + 0*0 = 6, ...
assert s[1].tolist() == [0, 4, 8, -2]                             # 'blue'

# %% [markdown]
# ## Stretch: min-max (eq. 2)
#
# Rows of different words have different scales. So each row is stretched until its smallest entry is 0 and its largest is 1,
# which is called *min-max* (the numbers of equations are the paper's):
#
# $$\hat s_{lp} = \frac{s_{lp} - \min_r s_{lr}}{\max_r s_{lr} - \min_r s_{lr}}$$
#
# The least similar patch always gets 0, the most similar 1, whatever the numbers were; a word twice as long has the same row.
# (A row of equal numbers would be 0/0: tutorial 04.)
#
# 'red': the minimum is -2, the range 6 - (-2) = 8, so 2 becomes (2 + 2) / 8 = 0.5. 'blue': the range is 10, so 0 becomes 0.2.

# %%
low, high = s.min(1, keepdims=True), s.max(1, keepdims=True)      # (L,1)
s_hat = (s - low) / (high - low)                                  # (L,P)
print(s_hat)
twice = 2 * t @ v.T                                               # words twice as long
assert np.allclose((twice - twice.min(1, keepdims=True)) / np.ptp(twice, axis=1, keepdims=True), s_hat)
assert np.allclose(s_hat, [[1, 0.5, 0.5, 0], [0.2, 0.6, 1, 0]])

# %% [markdown]
# ## Cut: the threshold (eq. 3)
#
# A word should mean a few patches, not a bit of everything. What is below the *threshold* $\sigma = 1/P$ becomes 0; the rest
# stays:
#
# $$\tilde s_{lp} = \hat s_{lp} \text{ where } \hat s_{lp} \ge \sigma, \text{ else } 0$$
#
# With 4 patches $\sigma$ = 0.25. The 0.2 between 'blue' and the red patch goes. 1/P is the paper's choice: the share of each
# patch if all were alike. How well that fits values that do not sum to 1 is asked in tutorial 04.

# %%
sigma = 1 / P
s_til = np.where(s_hat >= sigma, s_hat, 0.0)                      # (L,P)
print(s_til)
assert np.allclose(s_til, [[1, 0.5, 0.5, 0], [0, 0.6, 1, 0]])

# %% [markdown]
# ## Weights (eq. 4)
#
# Each row divided by its sum, so that it sums to 1: the *alignment weights*, how much of word $l$ is patch $p$.
#
# $$a_{lp} = \tilde s_{lp} \Big/ \sum_r \tilde s_{lr}$$

# %%
a = s_til / s_til.sum(1, keepdims=True)                           # (L,P)
print(a)
assert np.allclose(a, [[1 / 2, 1 / 4, 1 / 4, 0], [0, 3 / 8, 5 / 8, 0]])
assert np.allclose(a.sum(1), 1)

# %% [markdown]
# ## Group (eq. 5)
#
# For each word, the average of the patches with these weights: the *language-grouped vision embedding*, in short the word's
# *group*. It is what the picture has to say about that word.
#
# $$c_l = \sum_p a_{lp} v_p$$
#
# 'red': 1/2 (6, 0) + 1/4 (2, 4) + 1/4 (2, 8) = (4, 3).

# %%
c = a @ v                                                         # (L,D)
print(c)
assert np.allclose(c, [[4, 3], [2, 6.5]])

# %%
def strip(word):
    """The five stages of one word, side by side."""
    figure, axes = panels(5, 2.3)
    at = words.index(word)
    cells = (s, "similarity"), (s_hat, "min-max"), (s_til, "threshold"), (a, "weights")
    for ax, (x, title) in zip(axes, cells):
        cut = "cut" if title in ("threshold", "weights") else None
        digits = 3 if title == "weights" else 1
        signed = title == "similarity"
        matrix(ax, x[at].reshape(2, 2), title, digits=digits, signed=signed, reach=signed * 8 or None, low=0, high=1,
               zeros=cut)
    matrix(axes[4], c[at], "group", columns=["red", "blue"], digits=1, signed=True, reach=8)
    figure.suptitle(word, x=0.01, ha="left")
    return figure


for word in words:
    show(strip(word), f"00_stages_{word[1:-1]}")
step(strip, word=words)                                           # with ipywidgets: a menu; on paper nothing

# %% [markdown]
# The four numbers of a stage stand where their patches stand in the picture. First and last panel: purple above 0, orange
# below, both up to 8. The three between go from 0 to 1, darker is more. "cut" is below the threshold, as the minimum, which
# was 0 already, always is.
#
# ## The library says the same
#
# `align_patches` computes eqs. 2-5 for many pairs at once: one more axis in front, B pairs of a picture and a caption; here
# B is 1. Beside the result it returns a *trace*, every stage by name, and a function `back` that we leave alone until the
# next tutorial.

# %%
grouped, trace, _ = align_patches(t[None], v[None])               # t (B,L,D), v (B,P,D)
for name, ours in (("similarity", s), ("minmax", s_hat), ("sparse", s_til), ("weights", a)):
    assert np.allclose(trace[name][0], ours), name
    print(f"{name:10} {trace[name].shape}  equal")
assert np.allclose(grouped[0], c)

# %% [markdown]
# ## Logits
#
# Now a quiz for each word: here are all groups of this picture; which one is yours? To compare directions we use the
# *cosine*, $\phi(x,y) = x \cdot y / (|x||y|)$, and divide it by a *temperature* $\tau$. The smaller $\tau$, the more a small
# difference counts. These scores are called *logits*:
#
# $$z_{jk} = \phi(c_j, t_k) / \tau$$
#
# $|c|$ of 'red' is $\sqrt{4^2 + 3^2} = 5$, so its cosines are 4/5 and 3/5. With $\tau = 1/5$ its logits are 4 and 3.

# %%
tau = 0.2
c_hat = c / np.linalg.norm(c, axis=1, keepdims=True)              # (L,D)
t_hat = t / np.linalg.norm(t, axis=1, keepdims=True)              # (L,D)
z = c_hat @ t_hat.T / tau                                         # (L,L)
print(z.round(3))
assert z.shape == (L, L) and np.allclose(z[0], [4, 3])

# %% [markdown]
# ## Loss (eq. 6)
#
# A *softmax* turns a row of logits into probabilities: $q_k = e^{z_k} / \sum_m e^{z_m}$. The right answer of row $j$ is
# column $j$, so its *cross-entropy* is $-\log q_j$ (the natural logarithm; its unit is the nat): 0 when the quiz is won for
# sure, and $\log 2$ when two answers look the same. Once along the rows (each group looks for its word), once along the
# columns (each word for its group), and the mean of all:
#
# $$\mathcal L_f = \frac{1}{2L} \sum_j \left[ -\log \frac{e^{z_{jj}}}{\sum_k e^{z_{jk}}}
#                                      - \log \frac{e^{z_{jj}}}{\sum_k e^{z_{kj}}} \right]$$
#
# Rows of z are groups, columns are words. The first row: $-\log (e^4 / (e^4 + e^3)) = \log(1 + e^{-1}) = 0.313$.
#
# The library takes the temperature as $\log(1/\tau)$, which is the number that training changes (whatever it becomes, $\tau$
# stays above 0), and a table (B,L) that says which places of a caption hold a real token: here all.

# %%
rows = np.log(np.exp(z).sum(1)) - np.diag(z)                      # (L,)  a group looks for its word
columns = np.log(np.exp(z).sum(0)) - np.diag(z)                   # (L,)  a word looks for its group
loss = (rows + columns).mean() / 2
print("rows", rows.round(4), "columns", columns.round(4), f"loss {loss:.4f}", f"guessing {np.log(L):.4f}")
assert np.isclose(rows[0], np.log(1 + np.exp(-1)))

mask = np.ones((1, L), bool)                                      # (B,L): both are real tokens
library, _, _ = fine_grained_loss(v[None], t[None], mask, np.log(1 / tau))
assert np.isclose(library, loss)

# %%
figure, (ax1, ax2, ax3) = panels(3, 3)
p_rows = np.exp(z) / np.exp(z).sum(1, keepdims=True)
p_columns = np.exp(z) / np.exp(z).sum(0, keepdims=True)
groups = ["group 'red'", "group 'blue'"]
matrix(ax1, z, "logits z", groups, words, low=0)
matrix(ax2, p_rows, "a group picks a word\n(each row sums to 1)", ["", ""], words, low=0, high=1)
matrix(ax3, p_columns, "a word picks a group\n(each column sums to 1)", ["", ""], words, low=0, high=1)
for ax in (ax2, ax3):
    for j in range(L):                                            # the right answers
        ax.add_patch(Rectangle((j - 0.47, j - 0.47), 0.94, 0.94, fill=False, edgecolor="#D55E00", linewidth=4))
show(figure, "00_quiz")
assert np.allclose(p_rows.sum(1), 1) and np.allclose(p_columns.sum(0), 1)

# %% [markdown]
# The loss is the mean of $-\log$ of the four framed entries. Why does the group of 'red' do worse in its row than that of
# 'blue'? It is (4, 3): a quarter of the purple patch and a quarter of the blue one bring blue, 4/4 + 8/4 = 3, against 4 of
# red.
#
# ## What would make the loss smaller?
#
# Pull the purple patch towards blue, away from red: we change one number, how red patch 1 is, and look.

# %%
steps = np.linspace(-2, 6, 801)
losses = []
for red in steps:
    moved = v.copy()
    moved[1, 0] = red
    losses.append(float(fine_grained_loss(moved[None], t[None], mask, np.log(1 / tau))[0]))
figure, (ax,) = panels(1, 3.2)
gaps = np.abs(np.diff(losses))
at = gaps.argmax() + 1                                            # nan: a gap in the line where the loss jumps
ax.plot(np.insert(steps, at, np.nan), np.insert(losses, at, np.nan), color="black")
ax.plot([2], [loss], "o", color="#D55E00", markersize=12)
ax.annotate("here we are", (2, loss), (2.1, loss - 0.016), color="#D55E00")
ax.set_xlabel("how red the purple patch is")
ax.set_ylabel("loss (nats)")
ax.set_ylim(0, None)
show(figure, "00_one_number_moves")
slope = (losses[401] - losses[399]) / (steps[401] - steps[399])
print(f"slope at 2: {slope:+.4f}; jump of {gaps.max():.4f} between {steps[at - 1]:.2f} and {steps[at]:.2f}")
assert slope > 0 and np.isclose(losses[400], loss) and np.isclose(steps[at], 0)

# %% [markdown]
# The slope is positive: a little less red is better. Training takes small steps down such slopes, for all numbers of the
# encoders at once. The curve has a *jump*, at red = 0: there (0 + 2) / 8 is just 1/4, and with less the purple patch falls
# below the threshold of 'red' and leaves its group. The threshold decides; it has no slope of its own,
# so the gradient never sees the jump: it describes the curve on the side where we stand.
#
# ## And the other loss?
#
# SPARC adds a *global loss* that compares whole pictures with whole captions, each one vector. It asks which caption of the
# *batch*, the pairs that are looked at together, belongs to this picture. With one picture there is nothing to choose from:

# %%
alone, _, _ = global_loss(v.mean(0)[None], t.mean(0)[None], np.log(1 / tau))
print(f"global loss of one pair: {float(alone):.4f}")
assert alone == 0

# %% [markdown]
# That is the difference to remember. The global loss needs other pictures. The *fine-grained loss*, this tutorial's, gets
# its wrong answers from the *same* caption. SPARC trains on a weighted sum of both (06). (The plain averages stand for what
# tutorial 02 computes.)
#
# ## Exercise 00.1: eqs. 2-4 for one row
#
# For any number of patches. `check` compares with the library.

# %%
def my_weights(s):                                                # s (P,) -> a (P,)
    return None


print(check("00.1", my_weights))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_weights(s):
#     s_hat = (s - s.min()) / (s.max() - s.min())
#     s_til = np.where(s_hat >= 1 / len(s), s_hat, 0)
#     return s_til / s_til.sum()
# ```
#
# </details>
#
# ## Exercise 00.2: the loss from the logits
#
# One caption, `z` (L,L), both directions.

# %%
def my_loss(z):                                                   # z (L,L) -> a number
    return None


print(check("00.2", my_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_loss(z):
#     rows = np.log(np.exp(z).sum(1)) - np.diag(z)
#     columns = np.log(np.exp(z).sum(0)) - np.diag(z)
#     return (rows + columns).mean() / 2
# ```
#
# </details>
#
# ## In one breath
#
# Inner products; each word's row stretched to 0..1; what is below 1/P cut; divided by its sum; patches averaged with it; and
# then each word must recognise its own average among its caption's. Next: [01, the gradients](01_gradients_by_hand.ipynb).
