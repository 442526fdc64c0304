# %% [markdown]
# # 12. To full scale
#
# The reference teaches and decides what is right. The paper's models are too large for it, and its pairs too many. That
# takes another program: torch, many GPUs, half the bits. `parity.trainer` is that program. It shares *no line of
# mathematics* with the reference. So: what changes when one batch lies on many machines? How do we know that the fast
# program computes the same? And what would a B/16 run cost?

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
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from drawing import GREY, LINES, line, matrix, panels, show
from exercises import check
from parity.ladder import climb
from parity.ladder.rungs.setup import Side, trainer_side
from parity.trainer.meters import PEAKS
from parity.trainer.ranks import cases_over_ranks
from sparc_ref import PRESETS, SPARCConfig, fine_grained_loss, forward, global_loss, init_params, ops
from sparc_ref.cost import step_cost
from sparc_ref.objectives.chosen import ObjectiveConfig

torch.set_num_threads(1)
rng = np.random.default_rng(0)

# %% [markdown]
# ## Two ranks, by hand
#
# A *rank* is one process with one GPU. W ranks hold a part of the batch each, b of B pairs, and the same parameters; each
# computes a gradient, the gradients are *averaged over the ranks*, and all take the same step. For a loss that is a mean over
# pairs that is all there is to say, if all hold equally many (otherwise a rank returns its sum times W/B). The fine-grained
# loss is one (tutorial 06). The global loss is not: its wrong answers are on the other ranks.

# %%
B, W, D = 8, 2, 16
b = B // W
v_bar, t_bar = rng.standard_normal((B, D)), rng.standard_normal((B, D))          # (B,D)
theta = np.log(1 / 0.2)
whole, _, back = global_loss(v_bar, t_bar, theta)
whole_dv, _, _ = back()

alone = [float(global_loss(v_bar[r * b : (r + 1) * b], t_bar[r * b : (r + 1) * b], theta)[0]) for r in range(W)]
print(f"the batch of {B}: {float(whole):.4f}   each rank for itself: {np.round(alone, 4)}, mean {np.mean(alone):.4f}")
assert not np.isclose(np.mean(alone), whole)

# %% [markdown]
# So each rank sends its vectors to all others, 2 b D numbers, which is called *gather*. Then a rank makes what belongs to
# its own pairs: their rows of the logits (its pictures against all captions) and their columns (its captions against all
# pictures). Nobody needs the whole (B,B).

# %%
v_hat, t_hat = (ops.l2_normalize(x)[0] for x in (v_bar, t_bar))
z = np.exp(theta) * v_hat @ t_hat.T                                              # (B,B), nobody has it


def rank_loss(r):
    """The loss that rank r returns: its rows and columns, so that the MEAN over ranks is the batch's."""
    mine = slice(r * b, (r + 1) * b)
    own = np.diag(z)[mine]
    rows = np.log(np.exp(z[mine]).sum(1)) - own                                  # (b,) its pictures ask
    columns = np.log(np.exp(z[:, mine]).sum(0)) - own                            # (b,) its captions ask
    return (rows + columns).sum() * W / (2 * B)


each = [float(rank_loss(r)) for r in range(W)]
print("each rank", np.round(each, 4), f" mean {np.mean(each):.4f}")
assert np.isclose(np.mean(each), whole)

held = np.zeros((B, B))
held[:b] += 1
held[:, :b] += 2
figure, axes = panels(2, 4.4)
pictures, captions = [f"picture {i}" for i in range(B)], [str(j) for j in range(B)]
matrix(axes[0], held, "what rank 0 makes of the logits", pictures, captions, digits=0, low=0, high=5, zeros="")
for text, value in zip(axes[0].texts, held.ravel()):
    text.set_text({0: "", 1: "row", 2: "col", 3: "both"}[int(value)])
matrix(axes[1], z, "logits", [""] * B, captions, digits=0, signed=True)
for ax in axes:
    ax.axhline(b - 0.5, color=GREY, linewidth=3)
    ax.axvline(b - 0.5, color=GREY, linewidth=3)
    ax.set_xlabel("caption")
show(figure, "12_ranks")
assert (held > 0).sum() == 2 * b * B - b * b

# %% [markdown]
# ## The classic fault
#
# Gathered vectors of other ranks are inputs of *this* rank's loss too, so they get a gradient here, which has to travel
# back to the rank that made them. If gather forgets that (`torch.distributed.all_gather` does; `torch.distributed.nn` has one
# that does not), each picture learns only from its own rank's rows and columns:

# %%
def gradient(gather_passes_it):
    """The mean loss over ranks, and its gradient by v_bar, with or without what comes back from other ranks."""
    value, total = 0.0, torch.zeros(B, D, dtype=torch.float64)
    for r in range(W):
        leaf = torch.tensor(v_bar, requires_grad=True)
        mine = slice(r * b, (r + 1) * b)
        here = torch.zeros(B, 1, dtype=torch.bool)
        here[mine] = True
        v_all = leaf if gather_passes_it else torch.where(here, leaf, leaf.detach())
        logits = np.exp(theta) * F.normalize(v_all, dim=1) @ torch.tensor(t_hat).T
        own = torch.arange(r * b, (r + 1) * b)
        loss = F.cross_entropy(logits[mine], own, reduction="sum") + F.cross_entropy(logits.T[mine], own, reduction="sum")
        share = loss * W / (2 * B) / W
        share.backward()
        value, total = value + share.item(), total + leaf.grad
    return value, total.numpy()


(loss_right, right), (loss_forgets, forgets) = gradient(True), gradient(False)
assert np.allclose(right, whole_dv) and np.isclose(loss_right, whole) and loss_forgets == loss_right
off = np.linalg.norm(forgets - right) / np.linalg.norm(right)
print(f"loss {loss_right:.6f} and {loss_forgets:.6f}; the gradient is off by {100 * off:.0f} % of its length")
assert off > 0.1

# %% [markdown]
# No loss curve shows it. That is why the proof compares *gradients*, over real processes.
#
# ## Real processes
#
# Two processes, as two machines would be, that talk over *gloo* (torch's way to talk between CPUs). Each runs the trainer on
# its part of 7 pairs, 4 and 3. Beside them the reference, in NumPy, on all 7 at once. The logits are made in three ways: all of
# them on each rank, own rows and columns, or these some columns at a time. Errors are of each tensor's largest entry.

# %%
config = SPARCConfig(image_size=8, patch_size=4, vision_width=8, vision_depth=1, vision_heads=2, text_width=8, text_depth=1,
                     text_heads=2, vocab_size=11, max_tokens=5, embed_dim=6)
params = {name: 0.5 * rng.standard_normal(np.shape(x)) for name, x in init_params(config, rng, "float64").items()}
images, tokens = rng.standard_normal((7, 3, 8, 8)), rng.integers(0, 11, (7, 5))
mask = np.arange(5) < rng.integers(2, 6, 7)[:, None]
wanted, _, back = forward(params, images, tokens, mask, config)
gradients = back()
cases = {"plain: all logits on each": {"form": "plain"}, "gathered: own rows, columns": {"form": "gathered"},
         "chunked: some columns at once": {"form": "chunked", "chunk": 3}}
cases = {name: {"sizes": [4, 3]} | case for name, case in cases.items()}
found = cases_over_ranks(config, params, images, tokens, mask, 2, cases)
for name, (loss, theirs) in found.items():
    off = max(np.abs(theirs[n] - g).max() / np.abs(g).max() for n, g in gradients.items())
    print(f"{name:30} loss {loss:.12f}   worst of {len(theirs)} gradients off by {off:.0e}")
    assert np.isclose(loss, float(wanted), rtol=1e-12) and off < 1e-9 and theirs.keys() == gradients.keys()
print(f"{'the reference, one process':30} loss {float(wanted):.12f}")

# %% [markdown]
# Two programs without a common line of mathematics, one and two processes, three ways to make the logits: the same to rounding.
#
# ## What the ladder proves
#
# That was one model, one batch. `make ladder` is the same question many times, in an order: single operations, then
# losses, towers, all gradients, ten updates, several processes, compiled, 16 bits, ... A *ladder*: each *rung* compares
# by name, tensor after tensor, and stops at the first that leaves its *budget* (measured: tutorial 09). Here are two
# rungs.

# %%
climbed = climb.run("quick", rungs=["losses", "gradients"])
for rung in climbed["rungs"]:
    closest = max((r for r in rung["rows"] if r["proves"]), key=lambda r: r["error"] / r["budget"])
    print(f"{rung['name']:10} {rung['status']}: {rung['compared']} comparisons, of which {rung['blind']} prove nothing")
    used = 100 * closest["error"] / closest["budget"]
    print(f"{'':10} closest to its budget: {closest['name']}, {closest['dtype']}, {used:.0f} %")
assert climbed["passed"] and all(rung["compared"] > 100 for rung in climbed["rungs"])

figure, (ax,) = panels(1, 3.8)
for i, dtype in enumerate(("float64", "float32")):
    rows = [r for rung in climbed["rungs"] for r in rung["rows"] if r["dtype"] == dtype and r["proves"] and r["error"] > 0]
    ax.plot([r["budget"] for r in rows], [r["error"] for r in rows], LINES[i][2], color=LINES[i][0], label=dtype, alpha=0.6)
edge = np.geomspace(1e-16, 1e-3, 2)
ax.plot(edge, edge, color=GREY)
ax.text(2e-15, 1e-10, "above: has left its budget", color=GREY)
ax.set(xscale="log", yscale="log", xlabel="budget", ylabel="error", title="each point: a tensor, its worst comparison")
ax.legend()
show(figure, "12_ladder")

# %% [markdown]
# "Prove nothing" is said of budgets so wide that a number wrong by 10 % would pass. A ladder that cannot fall is worth nothing
# either, so we plant a fault in the trainer: unit patches, as in tutorial 10's first mistake, but everywhere, in the average
# too:

# %%
sound = trainer_side()


def planted(v, t, mask, theta, **options):
    return sound.loss.fine_grained_loss(v / v.norm(dim=-1, keepdim=True), t, mask, theta, **options)


faulty = Side(sound.modules | {"loss": SimpleNamespace(**(vars(sound.loss) | {"fine_grained_loss": planted}))})
fallen = climb.run("quick", rungs=["losses"], trainer=faulty, wanted=lambda case: case.startswith("fine"))
failure = fallen["failure"]
print(f"passed: {fallen['passed']}; the first tensor off is {failure['row']['name']}\n  {failure['row']['where']}")
print(" ", failure["verdict"])
assert not fallen["passed"] and failure["row"]["name"].endswith("similarity")

# %% [markdown]
# It says *where*: the first stage in the order of the computation. What the ladder does not say: that the method works; that
# data are read rightly at scale (other tests do); and nothing about what was not run, which it lists. What has run on which
# machine is in `docs/trainer.md` and `docs/gpu`.
#
# ## What a B/16 run costs
#
# The paper's B/16: batch 16,384, 200,000 updates, on 256 chips. Count.

# %%
paper, sparc = PRESETS["vit_b_16"], ObjectiveConfig("sparc")
batch, updates = 16384, 200_000
step = step_cost(paper, sparc, batch, 256)
run_flops = step.flops * 256 * updates
print(f"pairs seen: {batch * updates:.2e}")
print(f"one update, one chip of 256: {step.flops / 1e12:.2f} TFLOP, the loss {100 * step.loss_flops / step.flops:.1f} % of it")
print(f"the run: {run_flops:.1e} operations")
peak = PEAKS["H100"][0]                                                          # bf16, operations a second, by the data sheet
share = 0.4                                                                      # of the peak that is reached: an assumption
for gpus in (1, 8, 64):
    days = run_flops / (gpus * peak * share) / 86400
    print(f"{gpus:3} H100 at {100 * share:.0f} % of {peak / 1e12:.0f} TFLOP/s: {days:6.1f} days")
assert 1e20 < run_flops < 1e21 and step.loss_flops < 0.02 * step.flops

# %% [markdown]
# The days are no measurement. The operations are counted by formulas with one number fitted to CLIP's row of the paper's Table
# 11; for SPARC that reports 9.19 TFLOP. How much of the peak a run reaches depends on the machine: 40 % is a guess that you
# should replace by your own `mfu` (*model FLOP utilisation*, which the trainer logs). On one H200, a batch of 1,024, it was 38
# %, and an update of SPARC took 1.010 times the time and 1.006 times the memory of the global loss alone (`docs/gpu`). Talk
# between the GPUs is not in it; and where the batch does not fit (next), activations are computed twice, about a third more
# operations.
#
# Does it fit? Memory of one chip, for fewer and fewer of them:

# %%
chips = [8, 16, 32, 64, 128, 256]
costs = [step_cost(paper, sparc, batch, n) for n in chips]
parts = {"parameters, moments": [c.static / 1e9 for c in costs], "towers' activations": [c.activations / 1e9 for c in costs],
         "loss": [c.loss_memory / 1e9 for c in costs]}
figure, (ax,) = panels(1, 3.6)
for i, (name, values) in enumerate((parts | {"total": [c.memory / 1e9 for c in costs]}).items()):
    line(ax, i, chips, values, name)
ax.set_title("memory of one chip")
ax.axhline(80, color=GREY)
ax.text(140, 92, "80 GB", color=GREY)
ax.set(xscale="log", yscale="log", xlabel="chips that share a batch of 16,384", ylabel="GB on each", ylim=(0.05, 6000))
ax.set_xticks(chips, [str(n) for n in chips])
ax.minorticks_off()
ax.legend(loc="upper right", ncols=2)
show(figure, "12_memory")
for n, c in zip(chips, costs):
    print(f"{n:3} chips, {batch // n:4} pairs each: {c.memory / 1e9:6.1f} GB   sent and received for the loss"
          f" {c.gathered / 1e6:4.0f} MB, for the parameters {c.reduced / 1e6:5.0f} MB")
fits = min(n for n, c in zip(chips, costs) if c.memory < 80e9)
print("fits in 80 GB from so many chips on:", fits)
assert costs[-1].memory < 80e9 < costs[0].memory

# %% [markdown]
# (For the loss: the vectors of all B pairs, 2 B D numbers in float32, and their gradients the way back.) With fewer chips,
# something has to give, and the trainer has a switch for each: activations are computed twice instead of kept
# (`--checkpoint-activations`), the batch comes in parts (`--accumulate`; for the global loss that needs its own care, as its
# wrong answers are in the other parts), the logits come in chunks (`--form chunked`). None may change the gradient, and
# there is a rung of the ladder for each.
#
# ```
# $ torchrun --nproc-per-node 8 -m parity.trainer --preset vit_b_16 --data "shards:/data/{00000..01242}.tar" --out runs/b16
# ```
#
# `docs/recipes` has whole commands for public data sets, what each assumes, and what the paper does not say.
#
# One more time the difference of the two losses: the fine-grained one sends nothing to anybody.

# %%
P, L = 9, 4
v, t, real = rng.standard_normal((B, P, D)), rng.standard_normal((B, L, D)), np.ones((B, L), bool)
parts = [float(fine_grained_loss(v[r * b : (r + 1) * b], t[r * b : (r + 1) * b], real[:b], theta)[0]) for r in range(W)]
print(f"fine-grained, the batch {float(fine_grained_loss(v, t, real, theta)[0]):.6f}, mean of the ranks {np.mean(parts):.6f}")
assert np.isclose(np.mean(parts), fine_grained_loss(v, t, real, theta)[0])
more = [step_cost(paper, ObjectiveConfig(name), batch, 256).gathered / 1e6 for name in ("clip", "sparc", "filip")]
print("MB gathered for the loss: CLIP {:.0f}, SPARC {:.0f}, FILIP {:.0f}".format(*more))
assert more[0] == more[1] < more[2]

# %% [markdown]
# ## Exercise 12.1: what a rank returns
#
# Rank r of W holds the pairs from `start` on: `rows` (b,B) are its pictures against all captions, `columns` (b,B) its
# captions against all pictures. Return its loss, so that the *mean over ranks* is eq. 1 of the whole batch.

# %%
def my_rank_loss(rows, columns, start, W):                                       # (b,B), (b,B) -> a number
    return None


print(check("12.1", my_rank_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The right answer of its i-th row is at start + i. W/B times the sum, for the mean over ranks divides by W.
#
# ```python
# def my_rank_loss(rows, columns, start, W):
#     b, B = rows.shape
#     own = rows[np.arange(b), start + np.arange(b)]
#     each = np.log(np.exp(rows).sum(1)) + np.log(np.exp(columns).sum(1)) - 2 * own
#     return each.sum() * W / (2 * B)
# ```
#
# </details>
#
# ## Exercise 12.2: how many days?
#
# `flops` operations of one update on one GPU of `gpus`, that many `updates`, a `peak` of operations a second on each, of
# which a `share` is reached.

# %%
def days(flops, gpus, updates, peak, share):                                     # -> days
    return None


print(check("12.2", days))

# %% [markdown]
# <details><summary>Solution</summary>
#
# All GPUs work at the same time, so their number is in `flops` already.
#
# ```python
# def days(flops, gpus, updates, peak, share):
#     return flops * updates / (peak * share) / 86400
# ```
#
# </details>
#
# ## Exercise 12.3: the logits' memory
#
# Bytes of the global loss's logits on one rank, in float32, for a batch of B on W ranks: if each rank makes all of them, and
# if it makes its own rows and its own columns (as two matrices: the corner of own with own is made twice).

# %%
def logit_bytes(B, W):                                                           # -> (all of them, own rows and columns)
    return None


print(check("12.3", logit_bytes))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def logit_bytes(B, W):
#     return 4 * B * B, 4 * 2 * (B // W) * B
# ```
#
# </details>
#
# That was the last one. Take your own data ([the recipes](../docs/recipes/cc12m.md)), check your own loss
# ([10](10_check_your_own.ipynb)), or read the source in the order of [ARCHITECTURE.md](../ARCHITECTURE.md).
