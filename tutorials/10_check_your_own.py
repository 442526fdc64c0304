# %% [markdown]
# # 10. Check your own loss
#
# Nobody has published the official code of SPARC, so people write the loss from the paper, and so might you. A wrong loss
# does not crash. It goes down, the model learns something, and the table in the report says that the method does not work.
#
# Here we write it once more, in torch this time, and make three mistakes that are often made. Each time first by hand: is
# there a number that gives it away? Then with the tool of this library, which is told nothing of what we did.

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
from textwrap import fill

import numpy as np
import parity
import torch
import torch.nn.functional as F
from drawing import matrix, panels, show
from exercises import check
from parity.checker.diagnosis.deviations import DEVIATIONS
from sparc_ref import fine_grained_loss

torch.set_num_threads(1)

# %% [markdown]
# ## A loss from the paper
#
# Three functions: the groups (eqs. 2-5), the quiz in both directions, the mean (eq. 6). Gradients come from torch's
# autograd, which applies the chain rule to whatever we write: a mistake in the formula, and it differentiates the mistake.
# (`.mT` exchanges the last two axes; `masked_fill` writes a number where a mask is true.)

# %%
def group(v, t):
    """v (B,P,D), t (B,L,D) -> c (B,L,D)"""
    s = t @ v.mT                                                  # (B,L,P)
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s_hat = (s - low) / (high - low)                              # eq. 2
    s_til = torch.where(s_hat >= 1 / v.shape[1], s_hat, 0.0)      # eq. 3
    a = s_til / s_til.sum(-1, keepdim=True)                       # eq. 4
    return a @ v                                                  # eq. 5


def quiz(c, t, mask, scale):
    """Both cross-entropies of each token.      c, t (B,L,D), mask (B,L) -> (B,L)"""
    z = scale * F.normalize(c, dim=-1) @ F.normalize(t, dim=-1).mT
    real = mask[:, None, :]                                       # (B,1,L)
    rows = z.masked_fill(~real, -torch.inf).log_softmax(-1)
    columns = z.mT.masked_fill(~real, -torch.inf).log_softmax(-1)
    return -(rows + columns).diagonal(dim1=1, dim2=2)


def mean(each, mask):
    """The mean over real tokens, then over captions; both directions count half.      (B,L) -> ()"""
    return (torch.where(mask, each, 0.0).sum(1) / mask.sum(1)).mean() / 2


def mine(patches, tokens, mask, scale):
    return mean(quiz(group(patches, tokens), tokens, mask, scale), mask)


# %% [markdown]
# The obvious test: one batch, random numbers, beside the library. `errors` gives the error of the loss and of the gradient,
# as shares of the right ones.

# %%
def batch(seed, lengths=(5, 3, 4), P=12, D=8, unit=False):
    """v (B,P,D), t (B,L,D), mask (B,L): random, patches of length 1 where unit is true."""
    rng = np.random.default_rng(seed)
    v, t = rng.standard_normal((len(lengths), P, D)), rng.standard_normal((len(lengths), max(lengths), D))
    v = v / np.linalg.norm(v, axis=-1, keepdims=True) if unit else v
    return v, t, np.arange(max(lengths)) < np.array(lengths)[:, None]


def errors(loss, v, t, mask, tau=0.2):
    """(error of the loss, error of the gradient with respect to v and t), relative"""
    right, _, back = fine_grained_loss(v, t, mask, np.log(1 / tau))
    wanted = np.concatenate([x.ravel() for x in back()[:2]])
    leaves = [torch.tensor(x, requires_grad=True) for x in (v, t)]
    value = loss(*leaves, torch.tensor(mask), torch.tensor(1 / tau))
    got = np.concatenate([x.numpy().ravel() for x in torch.autograd.grad(value, leaves)])
    return abs(value.item() / float(right) - 1), np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


off = errors(mine, *batch(0))
print(f"loss off by {off[0]:.0e}, gradient by {off[1]:.0e}")
assert max(off) < 1e-10

# %% [markdown]
# ## First mistake: patches made unit vectors
#
# Everybody who comes from CLIP does it: normalise first, then multiply. The *later* step does take cosines; the similarity
# of eq. 2 does not (tutorial 04).

# %%
def group_of_unit_patches(v, t):
    s = t @ F.normalize(v, dim=-1).mT                             # the mistake
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s_hat = (s - low) / (high - low)
    s_til = torch.where(s_hat >= 1 / v.shape[1], s_hat, 0.0)
    return s_til / s_til.sum(-1, keepdim=True) @ v


def first(patches, tokens, mask, scale):
    return mean(quiz(group_of_unit_patches(patches, tokens), tokens, mask, scale), mask)


for name, given in (("patches of any length", batch(0)), ("patches of length 1", batch(0, unit=True))):
    off = errors(first, *given)
    print(f"{name:22} loss off by {100 * off[0]:6.2f} %, gradient by {100 * off[1]:6.2f} %")
assert off[0] < 1e-10 < 0.1 < off[1]

# %% [markdown]
# The loss is off by a tenth. Would you have noticed, with nothing to compare? And whoever draws *unit* patches for the test
# sees no error of the loss at all; the gradient alone knows that a length was taken away.
#
# Now the tool. `parity.check` takes the function itself. It works out how to call it (which argument is what, whether the
# scale is $\tau$ or $1/\tau$), puts many small batches to it, and looks for what would explain the answers. That may take
# half a minute each time. Its verdict is one of: *eq6*, equal; *conditional*, equal where a condition holds; *explained*,
# different, by deviations with names; *unexplained*, different, cause unknown.

# %%
report = parity.check(first)
print(report)
assert report.verdict == "explained" and report.deviations[0] == "similarity.cosine"

# %% [markdown]
# Read it from the top; the first three parts will do. The *verdict*; one sentence; how it was called, *and how sure that is*;
# then each *deviation*, a place where the loss leaves the paper: what it is, how much it alone moves, what it does in
# training, and the lines that mend it. The table says on which kind of batch one sees how much.
#
# It found more than we planned. We come back to the other points.
#
# ## Second mistake: padding competes
#
# The mask is used in the mean. It looks masked.

# %%
def quiz_with_padding(c, t, mask, scale):
    z = scale * F.normalize(c, dim=-1) @ F.normalize(t, dim=-1).mT
    return -(z.log_softmax(-1) + z.mT.log_softmax(-1)).diagonal(dim1=1, dim2=2)  # the mistake: no mask in the softmax


def second(patches, tokens, mask, scale):
    return mean(quiz_with_padding(group(patches, tokens), tokens, mask, scale), mask)


for name, given in (("with padding", batch(0)), ("without", batch(0, lengths=(4, 4, 4)))):
    off = errors(second, *given)
    print(f"{name:22} loss off by {100 * off[0]:6.2f} %, gradient by {100 * off[1]:6.2f} %")
assert max(off) < 1e-10

report = parity.check(second)
print(fill(report.headline, 110))
print(report.verdict, report.conditions)
assert report.verdict == "conditional" and "no padding" in report.conditions
assert "logits.padding_not_masked" in report.deviations

# %% [markdown]
# The verdict is *conditional*. It equals eq. 6 as long as nothing is padded (and no row is flat: below). A test without padding
# would be green for ever.
#
# ## Third mistake: weights without a gradient
#
# "The weights only say where to look, no need to differentiate them." Saves memory, too.

# %%
def group_detached(v, t):
    s = (t @ v.mT).detach()                                       # the mistake
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    s_hat = (s - low) / (high - low)
    s_til = torch.where(s_hat >= 1 / v.shape[1], s_hat, 0.0)
    return s_til / s_til.sum(-1, keepdim=True) @ v


def third(patches, tokens, mask, scale):
    return mean(quiz(group_detached(patches, tokens), tokens, mask, scale), mask)


off = errors(third, *batch(0))
print(f"loss off by {off[0]:.0e}, gradient by {100 * off[1]:.0f} %")
assert off[0] < 1e-10 < 0.1 < off[1]

report = parity.check(third)
print(fill(report.headline, 110))
assert report.verdict == "explained" and report.deviations[0] == "similarity.detached"

# %% [markdown]
# Every digit of the loss is right, on every batch, and nothing teaches a word where to look: that is what the weights'
# gradient is for (tutorial 04). Comparing losses can never find this; one has to compare gradients. (The tool says that
# detaching the weights instead, `weights.detached`, would give the same numbers.)
#
# ## Which batch would have shown it?
#
# Errors of the three on five kinds of batch, median of 20 draws each:

# %%
kinds = {
    "padded": {}, "no padding": {"lengths": (4, 4, 4)}, "one length, padded": {"lengths": (4, 4, 4)},
    "unit patches": {"unit": True}, "unit patches, no padding": {"unit": True, "lengths": (4, 4, 4)},
}
table = np.zeros((2, len(kinds), 3))                              # loss and gradient, kind of batch, mistake
for k, (kind, options) in enumerate(kinds.items()):
    for i, loss in enumerate((first, second, third)):
        found = []
        for seed in range(20):
            v, t, mask = batch(seed, **options)
            if "one length" in kind:                              # one more place, of padding, in every caption
                t, mask = np.concatenate([t, t[:, :1] + 1], axis=1), np.pad(mask, ((0, 0), (0, 1)))
            found.append(errors(loss, v, t, mask))
        table[:, k, i] = np.median(found, axis=0)
figure, axes = panels(2, 4)
mistakes = ["patches\nnormalised", "padding\ncompetes", "weights\ndetached"]
for ax, x, title in zip(axes, 100 * table, ("error of the loss, %", "error of the gradient, %")):
    matrix(ax, np.where(x < 1e-8, 0, x), title, list(kinds) if ax is axes[0] else [""] * 5, mistakes, digits=0, low=0, high=100,
           zeros="none")
show(figure, "10_which_batch")
assert table.shape == (2, 5, 3)
assert table[0, 0, 2] < 1e-10 and table[:, 1, 1].max() < 1e-10 and table[0, 3, 0] < 1e-10  # the columns' blind spots
assert all((table[0, k] < 1e-10).any() for k in range(5))         # no kind of batch shows all three in the loss
assert [k for k in range(5) if (table[1, k] < 1e-10).any()] == [1, 4]  # in the gradient: whatever has padding does

# %% [markdown]
# "none" is no error at all. No row of the left table sees all three. On the right each row with padding does; what hides there
# is that padding is missing. So compare *gradients*, on a batch with *padding*. Patches of unequal length cost nothing and show
# the first mistake in the loss as well. The nicer a test's inputs, the more it hides.
#
# ## Mended, and what is left
#
# We take all three mistakes out, which is `mine` from the start. Remember that it agreed with the library to the last digit.

# %%
report = parity.check(mine)
print(fill(report.headline, 110))
for point in ("similarity.cosine", "logits.padding_not_masked", "similarity.detached", "minmax.nan_on_flat"):
    print(f"{point:26} in {DEVIATIONS[point].seen:2} of 23 public losses")
print("the largest count of all:", max(line.seen for line in DEVIATIONS.values()))
assert report.verdict == "conditional" and "minmax.nan_on_flat" in report.deviations

# %% [markdown]
# There are two more mistakes, which nobody planned: 0/0 where all patches are alike (tutorial 04), and a mean over no tokens.
# Random numbers never show the first; a black picture will, and then the whole update is NaN. No mistake was seen more often
# than that one. The second needs a caption of padding alone, which our batches had not.
#
# The report gives the lines. `flat` rows get equal weights; a caption without a token divides by 1. There is a trap in
# torch: `where` sends a gradient of 0 into the branch that was not taken, and 0 times infinity is NaN. So the *inputs* of
# the division must be mended, not its result.

# %%
def group_mended(v, t):
    s = t @ v.mT
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    flat = high == low                                            # mended: every patch alike
    s_hat = torch.where(flat, 1.0, (s - low) / torch.where(flat, 1.0, high - low))
    s_til = torch.where(s_hat >= 1 / v.shape[1], s_hat, 0.0)
    return s_til / s_til.sum(-1, keepdim=True) @ v


def mended(patches, tokens, mask, scale):
    tokens = torch.where(mask[..., None], tokens, 1.0)            # mended: padding may hold zeros, which have no direction
    c = group_mended(patches, tokens)
    z = scale * F.normalize(c, dim=-1) @ F.normalize(tokens, dim=-1).mT
    shut = torch.finfo(z.dtype).min                               # mended: a row of -inf alone would be NaN
    rows, columns = (x.masked_fill(~mask[:, None, :], shut).log_softmax(-1) for x in (z, z.mT))
    each = torch.where(mask, -(rows + columns).diagonal(dim1=1, dim2=2), 0.0)
    return (each.sum(1) / mask.sum(1).clamp_min(1)).mean() / 2    # mended: a caption of padding alone


report = parity.check(mended)
print(report.summary)
print(fill(report.headline, 110))
assert report.verdict == "eq6" and report.exit_code == 0

# %% [markdown]
# ## Yours
#
# A file or a name will do, in torch, JAX, NumPy and more; nothing of it has to be changed for the check:
#
# ```
# $ sparc-ref check my_loss.py            # prints the report, writes a page with the stages side by side
# $ sparc-ref check my_package.losses:SparcLoss
# ```
#
# and as a test of your own repository, so that it stays right: `assert parity.check(my_loss).verdict == "eq6"`.
#
# How far can it be trusted? It says a sentence only where a measurement of the same run supports it; the last line of a
# report counts them. What it cannot explain it calls *unexplained*, with the first stage at which the numbers part. And it
# knows eq. 6 (and eq. 1), not your data: a loss may be right and the padding mask that you feed it wrong. Of 40
# losses by strangers that it had never seen it judged or placed 28 rightly; most of the rest were called in a way that it
# did not know (`docs/checker.md`).

# %%
facts = report.to_dict()                                          # what --json writes
print("sentences", report.sentences, "  calls", report.calls)
assert facts["verdict"] == report.verdict and report.calls > 10

# %% [markdown]
# ## Exercise 10.1: a batch that hides
#
# Make a batch on which `first`, the mistake with unit patches, has the right *loss*, and `second`, padding, has not. Two
# pictures at least. `seed` is for your random numbers.

# %%
def hiding_batch(seed):                                           # -> v (B,P,D), t (B,L,D), mask (B,L) bool
    return None


print(check("10.1", hiding_batch))

# %% [markdown]
# <details><summary>Solution</summary>
#
# Patches of one length hide the first; padding that differs from the words shows the second. (All patches of one *common*
# length will do: the loss does not change if all patches are stretched alike.)
#
# ```python
# def hiding_batch(seed):
#     rng = np.random.default_rng(seed)
#     v, t = rng.standard_normal((2, 6, 4)), rng.standard_normal((2, 3, 4))
#     v = v / np.linalg.norm(v, axis=-1, keepdims=True)
#     return v, t, np.array([[True, True, True], [True, True, False]])
# ```
#
# </details>
#
# ## Exercise 10.2: weights that are never NaN
#
# Eqs. 2-4 for similarities `s` (L,P), of which some rows may be flat. NumPy will do.

# %%
def safe_weights(s):                                              # s (L,P) -> a (L,P)
    return None


print(check("10.2", safe_weights))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def safe_weights(s):
#     low, high = s.min(1, keepdims=True), s.max(1, keepdims=True)
#     flat = low == high
#     s_hat = np.where(flat, 1.0, (s - low) / np.where(flat, 1.0, high - low))
#     s_til = np.where(s_hat >= 1 / s.shape[1], s_hat, 0)
#     return s_til / s_til.sum(1, keepdims=True)
# ```
#
# </details>
#
# ## Exercise 10.3: name the mistake
#
# `check` gives you logits `z` (L,L) of one caption without padding, and the number that somebody's loss returned for them.
# Say which of these it is: "right", "rows only" (one direction used twice), "sum" (no mean over the words), "no half" (the
# two directions added, not averaged).

# %%
def name_it(z, value):                                            # z (L,L), a number -> one of the four
    return None


print(check("10.3", name_it))

# %% [markdown]
# <details><summary>Solution</summary>
#
# Compute all four and look. That is what the tool does, with a longer list and more than one batch.
#
# ```python
# def name_it(z, value):
#     rows = np.log(np.exp(z).sum(1)) - np.diag(z)
#     columns = np.log(np.exp(z).sum(0)) - np.diag(z)
#     both = (rows + columns).mean()
#     guesses = {"right": both / 2, "rows only": rows.mean(), "sum": both * len(z) / 2, "no half": both}
#     return min(guesses, key=lambda name: abs(guesses[name] - value))
# ```
#
# </details>
#
# Next: [11, on a GPU](11_on_a_gpu.ipynb).
