# %% [markdown]
# # 08. The family
#
# SPARC is one answer to a question that others have answered too: how to compare *parts* of a picture with *words*, though
# training knows pairs only. CLIP does not ask. FILIP, PACL, GLoRIA and MGCA do. Their papers have five notations; here they
# stand behind one function, on the same towers. We look at what each compares with what, which patches a word gets, what is
# trained, and what it costs.

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
from functools import partial

import numpy as np
from drawing import GREY, heat, line, matrix, panels, show, step
from exercises import check
from matplotlib.figure import Figure
from sparc_ref import PRESETS, align_patches, ops
from sparc_ref.cost import BATCHES, PAPER_DEVICES, TABLE_11, step_cost
from sparc_ref.objectives import clip, filip, gloria, mgca, pacl, sparc
from sparc_ref.objectives.chosen import ObjectiveConfig

# %% [markdown]
# ## One signature
#
# An *objective* is a loss with its own parameters. All take the same: patches `v`, words `t`, the mask, and one vector for
# each whole picture and caption, `v_bar` and `t_bar`.
#
# ```
# loss, parts, back = objective(params, v, t, mask, v_bar, t_bar)         back() -> gradients by name
# ```
#
# | objective | a picture i and a caption j fit if |
# | --- | --- |
# | CLIP | the whole vectors have a large cosine |
# | FILIP | each patch has a word of a large cosine, and each word a patch (the mean of the maxima): *late interaction* |
# | PACL | the caption is like the mean of the patches, weighted by how much each is like the caption |
# | GLoRIA | each word is like the mean of the patches that it attends to (the words' votes are added up); plus CLIP |
# | MGCA | CLIP; plus, inside a pair, words are like patches that *they* attend to (softmax), patches like their words |
# | SPARC | CLIP; plus, inside a pair, each word is most like *its* group (min-max, threshold: eqs. 2-6); patches do not ask |
#
# (MGCA has a third part, *prototypes*: both whole vectors must choose the same of K learned directions. The words' votes of
# GLoRIA are exponentials of cosines; the log of their sum is the score. Below, `keep=1.0` means all of FILIP's tokens,
# "paramfree" MGCA without learned projections, and temperatures are chosen by us. `docs/objectives.md` has the papers'
# choices.)

# %%
B, P, L, D = 3, 4, 3, 8
rng = np.random.default_rng(4)
v, t = rng.standard_normal((B, P, D)), rng.standard_normal((B, L, D))            # (B,P,D), (B,L,D)
mask = np.ones((B, L), bool)
v_bar, t_bar = v.mean(1) + 0.1 * rng.standard_normal((B, D)), t.mean(1)          # (B,D)
params = {"theta": np.asarray(np.log(1 / 0.2)), "theta_local": np.asarray(np.log(10.0)),
          "theta_cross": np.asarray(np.log(10.0)), "mgca.prototypes": ops.l2_normalize(rng.standard_normal((5, D)))[0]}
family = {"CLIP": clip, "FILIP": partial(filip, keep=1.0), "PACL": pacl, "GLoRIA": gloria,
          "MGCA": partial(mgca, attention="paramfree"), "SPARC": sparc}
for name, objective in family.items():
    loss, parts, back = objective(params, v, t, mask, v_bar, t_bar)
    print(f"{name:7} loss {float(loss):6.3f}   gradients of {', '.join(sorted(set(back()) - {'v', 't', 'v_bar', 't_bar'}))}")
    assert loss.shape == () and back()["v"].shape == (B, P, D) and back()["t_bar"].shape == (B, D)

# %% [markdown]
# The losses are no measure of anything between objectives: other sums, other temperatures.
#
# ## What is compared with what
#
# We need not believe the table; we can *measure* it. Two vectors are compared if moving one changes the gradient of the
# other. So: move a word a little, and see which patches get another gradient.

# %%
def compared(objective, h=1e-4):
    """How much moving a column (whole caption, its words) changes the gradient of a row (whole picture, its patches)."""
    given = {"v": v, "t": t, "v_bar": v_bar, "t_bar": t_bar}

    def gradient(**moved):
        x = given | moved
        g = objective(params, x["v"], x["t"], mask, x["v_bar"], x["t_bar"])[2]()
        return np.concatenate([g["v_bar"][:, None], g["v"]], axis=1).reshape(B * (1 + P), D)

    columns = []
    for j in range(B):
        for l in range(-1, L):
            name, place = ("t_bar", (j,)) if l < 0 else ("t", (j, l))
            bump = np.zeros_like(given[name])
            bump[place] = h * np.random.default_rng(7).standard_normal(D)
            change = gradient(**{name: given[name] + bump}) - gradient(**{name: given[name] - bump})
            columns.append(np.linalg.norm(change, axis=1) / (2 * h))
    return np.where(np.stack(columns, axis=1) < 1e-9, 0, np.stack(columns, axis=1))  # (B(1+P), B(1+L))


touched = {name: compared(objective) for name, objective in family.items()}
figure = Figure(figsize=(11, 8.4), layout="constrained")
for ax, (name, x) in zip(figure.subplots(2, 3).ravel(), touched.items()):
    heat(ax, (x / x.max()) ** 0.3, name, low=0, high=1)
    ax.set_aspect("auto")
    for k in range(1, B):
        ax.axhline(k * (1 + P) - 0.5, color=GREY, linewidth=2)
        ax.axvline(k * (1 + L) - 0.5, color=GREY, linewidth=2)
    ax.set_xticks([k * (1 + L) for k in range(B)], ["whole"] * B)
    ax.set_yticks([k * (1 + P) for k in range(B)], ["whole"] * B if name in ("CLIP", "GLoRIA") else [""] * B)
    ax.tick_params(length=0)
figure.supxlabel("captions 0, 1, 2: the whole, then its words")
figure.supylabel("pictures 0, 1, 2: the whole, then its patches")
show(figure, "08_compared")

words = np.arange(B * (1 + L)) % (1 + L) > 0
patches = np.arange(B * (1 + P)) % (1 + P) > 0
same = np.arange(B * (1 + P))[:, None] // (1 + P) == np.arange(B * (1 + L)) // (1 + L)
for name, x in touched.items():
    cells, whole = x[patches][:, words], x[~patches][:, ~words]
    own, other = (cells[same[patches][:, words] == which] > 0 for which in (True, False))
    print(f"{name:7} patch with word: own pair {100 * own.mean():3.0f} %, other pairs {100 * other.mean():3.0f} %"
          f"   patch with whole caption {100 * (x[patches][:, ~words] > 0).mean():3.0f} %"
          f"   whole with whole {100 * (whole > 0).mean():3.0f} %")
    assert other.any() == (name in ("FILIP", "GLoRIA")) and (whole > 0).all() == (name not in ("FILIP", "PACL"))

# %% [markdown]
# Dark is strongly compared, the palest not at all; weak ones are drawn darker than they are, each panel up to its own largest.
# The first row and column of a block are the whole. Three blocks on the diagonal are the pairs.
#
# * CLIP sees the whole alone. PACL compares patches, but with the whole caption.
# * FILIP and GLoRIA compare words with the patches of *every* picture. (FILIP's maxima leave a few cells out: a word that is no
#   patch's best in a picture, and a patch that is the best of no word of that caption, do not meet.)
# * MGCA and SPARC have blocks on the diagonal: words and patches of *one* pair. Between pairs they have CLIP's comparison of
#   whole with whole. That is the difference which decides what a loss costs.
#
# ## Which patches does a word get?
#
# The same word, the same 16 patches: an object in each quarter of the picture, and the word means the first. How does each
# objective weigh the patches?

# %%
size = 16
quarter = (np.arange(4)[:, None] // 2 * 2 + np.arange(4)[None, :] // 2).ravel()  # (16,)


def weights_of(length, seed=3):
    """Weights (16,) of one word under each objective; all vectors about `length` long."""
    g = np.random.default_rng(seed)
    objects = g.standard_normal((4, size))
    pv = length * (objects[quarter] + 0.6 * g.standard_normal((16, size)))       # (16,D)
    word = length * (objects[0] + 0.6 * g.standard_normal(size))                 # (D,)
    s = pv @ word
    cosine = s / np.linalg.norm(pv, axis=1) / np.linalg.norm(word)
    return {
        "CLIP: a mean": np.full(16, 1 / 16),
        "FILIP: the best": (cosine == cosine.max()).astype(float),
        "PACL: softmax of cos": ops.softmax(cosine)[0],
        "GLoRIA: softmax of 4 s/√D": ops.softmax(4 * s / np.sqrt(size))[0],
        "MGCA: softmax of 10 cos": ops.softmax(cosine / 0.1)[0],
        "SPARC: min-max": align_patches(word[None, None], pv[None])[1]["weights"][0, 0],
    }


def weights_at(length):
    figure, axes = panels(6, 2.6)
    for ax, (name, a) in zip(axes, weights_of(length).items()):
        head, _, how = name.partition(": ")
        heat(ax, a.reshape(4, 4), head, low=0)
        ax.set_xlabel(how, fontsize=13)
        ax.axhline(1.5, color=GREY, linewidth=2)
        ax.axvline(1.5, color=GREY, linewidth=2)
    figure.suptitle(f"all vectors times {length:g}", x=0.01, ha="left")
    return figure


for length in (0.3, 1.0):
    show(weights_at(length), f"08_weights_{length:g}")
step(weights_at, length=(0.1, 2.0, 0.1))
print(f"{'':28}  weight in its quarter       patches used (1 / sum of squares)")
for name in weights_of(1.0):
    rows = [weights_of(length)[name] for length in (0.3, 1.0)]
    print(f"{name:28}" + "".join(f"{100 * a[quarter == 0].sum():7.0f} %" for a in rows) + " " * 12
          + "".join(f"{1 / (a * a).sum():7.1f}" for a in rows))
pacl_weights = weights_of(1.0)["PACL: softmax of cos"]
assert pacl_weights.max() / pacl_weights.min() < np.exp(2)
assert all(np.isclose(a.sum(), 1) for a in weights_of(1.0).values())
assert np.allclose(weights_of(0.3)["SPARC: min-max"], weights_of(1.0)["SPARC: min-max"])

# %% [markdown]
# (Two columns each: short vectors, long vectors; n equal weights count as n patches. MGCA as in its public code, without
# learned projections. CLIP and PACL have no weights of a *word*: a mean, and PACL's rule with the word for the caption.) PACL's
# cosines lie between -1 and 1 and nothing sharpens them, so its weights differ by a factor of $e^2$ at most: nearly a mean.
# GLoRIA's depend on how long the vectors are. MGCA's and SPARC's do not: MGCA has a temperature that its authors chose, SPARC
# stretches. SPARC's 52 % is little as well, for another reason: a patch halfway between least and most similar keeps half a
# weight. What it gets for that is a gradient in all patches that are kept, at every scale (tutorial 05).
#
# ## By hand, and by the library
#
# Each score in one line or a few, for all pairs, next to what the library returns.

# %%
v_hat, t_hat = (ops.l2_normalize(x)[0] for x in (v, t))
bar_v, bar_t = (ops.l2_normalize(x)[0] for x in (v_bar, t_bar))


def cosines(x, y):
    return (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


def parts_of(name):
    return family[name](params, v, t, mask, v_bar, t_bar)[1]


every = np.einsum("ipd,jld->ijpl", v_hat, t_hat)                                 # (B,B,P,L) all patches, all words
assert np.allclose(parts_of("CLIP")["logits"], bar_v @ bar_t.T / 0.2)
assert np.allclose(parts_of("FILIP")["scores_image"], every.max(3).mean(2))      # a picture asks: best word of each patch
assert np.allclose(parts_of("FILIP")["scores_text"], every.max(2).mean(2).T)     # a caption asks: best patch of each word

a = ops.softmax(np.einsum("ipd,jd->ijp", v_hat, bar_t))[0]                       # (B,B,P) PACL: the whole caption weighs
assert np.allclose(parts_of("PACL")["scores"], cosines(np.einsum("ijp,ipd->ijd", a, v), t_bar))

a = ops.softmax(4 * np.einsum("ipd,jld->ijlp", v, t) / np.sqrt(D))[0]            # (B,B,L,P) GLoRIA: each word weighs
votes = np.exp(5 * cosines(np.einsum("ijlp,ipd->ijld", a, v), t))                # (B,B,L)
assert np.allclose(parts_of("GLoRIA")["scores"], np.log(votes.sum(-1)))


def own_place(z):
    """Mean of both cross-entropies, own place right.      (B,N,N) -> ()"""
    log_p = [ops.log_softmax(x)[0] for x in (z, np.swapaxes(z, 1, 2))]
    return -sum(np.diagonal(x, axis1=1, axis2=2).mean() for x in log_p) / 2


own = v_hat @ np.swapaxes(t_hat, 1, 2)                                           # (B,P,L) MGCA: own pair
of_words = ops.l2_normalize(ops.softmax(np.swapaxes(own, 1, 2) / 0.1)[0] @ v_hat)[0]  # (B,L,D) patches that a word sees
of_patches = ops.softmax(own / 0.1)[0] @ t_hat                                   # (B,P,D) words that a patch sees
by_hand = sum(own_place(10 * x @ np.swapaxes(y, 1, 2)) for x, y in ((t_hat, of_words), (v_hat, of_patches)))
assert np.isclose(parts_of("MGCA")["loss_cta"], by_hand)

groups = ops.l2_normalize(align_patches(t, v)[0])[0]                             # (B,L,D) SPARC: eqs. 2-5
assert np.isclose(parts_of("SPARC")["loss_fine"], own_place(t_hat @ np.swapaxes(groups, 1, 2) / 0.2))
print("all equal the library's (of MGCA its token part, of SPARC its fine-grained one)")

# %% [markdown]
# ## What is trained
#
# Which of the four embeddings does each objective itself give a gradient?

# %%
names = ("v", "t", "v_bar", "t_bar")
sizes = np.array([[np.linalg.norm(objective(params, v, t, mask, v_bar, t_bar)[2]()[n]) for n in names]
                  for objective in family.values()])                             # (6,4)
sizes = sizes / sizes.max(1, keepdims=True)                                      # of the objective's longest
figure, (ax,) = panels(1, 4)
given = ["patches v", "words t", "picture v_bar", "caption t_bar"]
matrix(ax, sizes, "length of the gradient, of the objective's longest", list(family), given, zeros="none")
show(figure, "08_trained")
assert sizes.shape == (6, 4)
assert not sizes[0, :2].any() and not sizes[1, 2:].any() and not sizes[2, 1:3].any() and sizes[3:].all()

# %% [markdown]
# CLIP asks nothing of single patches and words, FILIP nothing of the pooled embeddings, PACL nothing of words. GLoRIA, MGCA and
# SPARC train all four. This is seen from the objective; the model before it may share. In tutorial 07 there is no $h_v$: the
# whole vector is the mean of the patches, so CLIP's gradient reached each of them in equal shares, which is how the global loss
# alone came to point at all. With an $h_v$ in between, the patch embeddings themselves get none, and whoever reads them reads
# what no loss has looked at. So does who retrieves by FILIP's pooled embeddings: it has a score of its own.
#
# ## What it costs
#
# `sparc_ref.cost` counts the products of a step by formulas. Here for the paper's B/16 on the paper's 256 devices. The paper's
# Table 11 reports the FLOPs and the memory of a step on one device; the rings are its FLOPs.

# %%
config = PRESETS["vit_b_16"]
keys = {"CLIP": "clip", "FILIP": "filip", "PACL": "pacl", "GLoRIA": "gloria", "MGCA": "mgca", "SPARC": "sparc"}
alone = {size: step_cost(config, ObjectiveConfig("clip"), size, PAPER_DEVICES).flops for size in BATCHES}
figure, (ax,) = panels(1, 4.4)
for i, (name, key) in enumerate(keys.items()):
    total = [step_cost(config, ObjectiveConfig(key), size, PAPER_DEVICES).flops / alone[size] for size in BATCHES]
    line(ax, i, BATCHES, total, name)
    reported = TABLE_11[key][0]
    shown = [x / y for x, y in zip(reported, TABLE_11["clip"][0])]
    ax.plot(BATCHES[: len(shown)], shown, "o", color=ax.lines[-1].get_color(), markersize=15, fillstyle="none")
    print(f"{name:7} FLOPs / CLIP's: predicted {np.round(total, 2).tolist()}   reported {np.round(shown, 2).tolist()}")
ax.set(xscale="log", yscale="log", xlabel="batch", ylabel="FLOPs of a step, over CLIP's")
ax.set_xticks(BATCHES, [str(size) for size in BATCHES])
ax.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
ax.minorticks_off()
ax.legend(ncols=2)
ax.set_title("lines: counted; rings: reported. CLIP, MGCA and SPARC share the lowest line")
show(figure, "08_cost")

mine = {n: [step_cost(config, ObjectiveConfig(key), size, PAPER_DEVICES).loss_flops for size in (8192, 16384)]
        for n, key in keys.items()}
print("each of 256 devices, batch 8192 to 16384, the loss's products:", {n: f"x {b / a:.1f}" for n, (a, b) in mine.items()})
step_sparc, step_clip = (step_cost(config, ObjectiveConfig(key), 16384, PAPER_DEVICES) for key in ("sparc", "clip"))
print(f"SPARC's step at 16384: {step_sparc.flops / 1e12:.2f} TFLOP a device, CLIP's {step_clip.flops / 1e12:.2f}")
print(f"received and sent for the loss: SPARC {step_sparc.gathered / 1e6:.0f} MB, FILIP "
      f"{step_cost(config, ObjectiveConfig('filip'), 16384, PAPER_DEVICES).gathered / 1e6:.0f} MB a device")
assert mine["FILIP"][1] / mine["FILIP"][0] > 3 and mine["SPARC"][1] / mine["SPARC"][0] < 2.2
assert step_sparc.flops / step_clip.flops < 1.01 and step_sparc.gathered == step_clip.gathered

# %% [markdown]
# SPARC and MGCA lie on CLIP's line: what they add grows with the batch just as the towers do. What FILIP, PACL and GLoRIA add
# grows faster, in the end with its square; and FILIP's words and patches must travel, 25 times SPARC's bytes. (CLIP's own
# matrix of logits grows so too, hence SPARC's 2.1; it is so small beside the towers that nobody notices. Of GLoRIA the paper
# reports two batches.) The rings lie above the lines where memory is short and a part may be computed twice: our reading, not
# the paper's (`docs/objectives.md`).
#
# What is *not* said here: which one learns best. The library trains each in the same loop (`sparc-ref train --objective
# filip`). The library has two more objectives, SigLIP and FLAIR (`docs/objectives.md`), and a comparison of all in small worlds
# (`docs/experiments/family.md`); the paper's needed 256 devices.
#
# ## Exercise 08.1: late interaction
#
# FILIP's score of one picture that asks one caption: for each patch the best word by cosine; the mean of these.

# %%
def picture_asks(v, t):                                                          # (P,D), (L,D) -> a number
    return None


print(check("08.1", picture_asks))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def picture_asks(v, t):
#     v = v / np.linalg.norm(v, axis=1, keepdims=True)
#     t = t / np.linalg.norm(t, axis=1, keepdims=True)
#     return (v @ t.T).max(1).mean()
# ```
#
# </details>
#
# ## Exercise 08.2: nearly a mean
#
# A softmax of `k` times cosines, as PACL's with `k` = 1. By which factor can the largest weight be larger than the least, at
# most? How large must `k` be so that a patch of cosine 1 may weigh 1000 times one of cosine -1?

# %%
def most_and_k(k):                                                               # -> (largest factor at k, the k for 1000)
    return None


print(check("08.2", most_and_k))

# %% [markdown]
# <details><summary>Solution</summary>
#
# $e^{k}/e^{-k} = e^{2k}$, and $e^{2k} = 1000$.
#
# ```python
# def most_and_k(k):
#     return np.exp(2 * k), np.log(1000) / 2
# ```
#
# </details>
#
# ## Exercise 08.3: when does it hurt?
#
# A tower takes `tower` multiplications a pair. A loss compares each of a pair's L words with each patch of all B pictures of
# the batch, in both directions: 2 B L P D multiplications a pair. (Over several devices: each compares its pictures with all
# captions, and its captions with all pictures. On one device the same matrix serves both: tutorial 06's B L P D.) From which
# batch on does the loss cost as much as the tower? And for a loss inside the pair, 2 L P D + L² D?

# %%
def batch_where_equal(tower, L, P, D):                                           # -> (B of the first, B of the second)
    return None


print(check("08.3", batch_where_equal))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The second does not depend on the batch: if it is less than the tower, it stays less. Say infinity.
#
# ```python
# def batch_where_equal(tower, L, P, D):
#     return tower / (2 * L * P * D), np.inf
# ```
#
# </details>
#
# Next: [09, numbers that agree](09_numbers_that_agree.ipynb).
