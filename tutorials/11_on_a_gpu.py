# %% [markdown]
# # 11. On a GPU
#
# The reference is NumPy, and it runs on a GPU too: not a second version, the same files. How can a program that was written
# for one library run on another? What may it not say? And why is a GPU slow at small things?
#
# On a machine with an NVIDIA GPU and CuPy this notebook runs there. On any other it runs on NumPy, and says so; nothing in
# it needs the GPU.

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
import time
import warnings

import numpy as np
import torch
from array_api_compat import array_namespace, device
from drawing import line, panels, show
from exercises import check
from sparc_ref import PRESETS, align_patches, fine_grained_loss, forward, init_params
from sparc_ref.backend import get_device, to_device, to_numpy

try:
    import array_api_strict
except ImportError:
    array_api_strict = None
    print("pip install array-api-strict: without it one column of each table is missing")
rng = np.random.default_rng(0)

# %% [markdown]
# ## Is there one?

# %%
try:
    place = get_device("cuda")
except ValueError as reason:
    place = "cpu"
    print(str(reason).splitlines()[0])
print(f"this notebook runs on: {'the GPU, with CuPy' if place == 'cuda' else 'the CPU, with NumPy'}")
assert place in ("cpu", "cuda")

# %% [markdown]
# ## A function that does not know its library
#
# NumPy, CuPy, torch and others agree on a list of functions, the *array API standard*. A function written for the standard
# asks the array which library it belongs to, once, and calls that one *xp*:

# %%
def min_max(s):
    """Eq. 2, rows that are not flat.      s (L,P) of any library -> (L,P) of the same"""
    xp = array_namespace(s)
    low, high = xp.min(s, axis=-1, keepdims=True), xp.max(s, axis=-1, keepdims=True)
    return (s - low) / (high - low)


def kinds(x):
    """The same array in every library that is here."""
    out = {"NumPy": x, "torch": torch.tensor(x)}
    if array_api_strict:
        out["strict"] = array_api_strict.asarray(x, device=array_api_strict.Device("device1"))
    if torch.cuda.is_available():
        out["torch on GPU"] = torch.tensor(x, device="cuda")
    if place == "cuda":
        out["CuPy"] = to_device(x, "cuda")
    return out


s = rng.standard_normal((3, 8))
for name, x in kinds(s).items():
    y = min_max(x)
    off = np.abs(to_numpy(y) - min_max(s)).max()
    print(f"{name:13} {type(y).__module__.partition('.')[0]:17} on {device(y)!s:30} off by {off:.0e}")
    assert y.shape == (3, 8) and np.allclose(to_numpy(y), min_max(s))

# %% [markdown]
# The result lives where the input lived. *strict* is `array_api_strict`: a library that has what the standard promises and
# *nothing else*, with devices that only pretend to be devices. A GPU in your laptop, as far as mistakes go. Here are six
# lines that work with NumPy every day; one of them is right everywhere:

# %%
lines = {
    "np.max(s)": lambda s: np.max(s),
    "s.sum()": lambda s: s.sum(),
    "s * np.ones(8)": lambda s: s * np.ones(8),
    "s * integers": lambda s: s * array_namespace(s).asarray([2] * 8, device=device(s)),
    "s.T, three axes": lambda s: array_namespace(s).stack([s, s]).T,
    "xp.sum(s)": lambda s: array_namespace(s).sum(s),
}


def refused(text, x):
    """The error of a line, or nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lines[text](x)
    except Exception as error:
        return type(error).__name__
    return ""


for text in lines:
    said = {name: refused(text, x) for name, x in kinds(s).items()}
    print(f"{text:16}", "; ".join(f"{name}: {error}" for name, error in said.items() if error) or "fine everywhere")
assert not any(refused(text, s) for text in lines)                # NumPy takes them all
if array_api_strict:
    assert [text for text in lines if not refused(text, kinds(s)["strict"])] == ["xp.sum(s)"]

# %% [markdown]
# `np.max` calls the wrong library; `.sum()` is a method that the standard does not have; `np.ones` is born on the CPU;
# integers times floats mix types, about which libraries differ; `.T` is for two axes in the standard (for the last two of more
# there is `.mT`). torch lets four of these five pass, so it is not enough to try torch. All tests of this library's
# mathematics run under strict, on a pretended device.
#
# ## The same file
#
# The whole fine-grained loss with its gradients: one source, every library that is here, in float64 against NumPy.

# %%
B, P, L, D = 4, 49, 8, 32
v, t = rng.standard_normal((B, P, D)), rng.standard_normal((B, L, D))
mask = np.arange(L) < rng.integers(3, L + 1, B)[:, None]
theta = np.log(1 / 0.07)
wanted, _, back = fine_grained_loss(v, t, mask, theta)
wanted_dv, wanted_dt, _ = back()
for name in kinds(v):
    loss, trace, back = fine_grained_loss(kinds(v)[name], kinds(t)[name], kinds(mask)[name], theta)
    dv, dt, _ = back()
    off = [abs(float(loss) - float(wanted)) / float(wanted), np.abs(to_numpy(dv) - wanted_dv).max() / np.abs(wanted_dv).max(),
           np.abs(to_numpy(dt) - wanted_dt).max() / np.abs(wanted_dt).max()]
    print(f"{name:13} loss off by {off[0]:.0e}, dv by {off[1]:.0e}, dt by {off[2]:.0e}")
    assert dv.shape == (B, P, D) and type(dv) is type(kinds(v)[name]) and max(off) < 1e-11

# %% [markdown]
# In torch not the same bits: sums are taken in another order (tutorial 09). strict is off by exactly 0, for it computes with
# NumPy underneath; its row proves that nothing forbidden is called, and nothing about numbers. What the standard has no
# function for (adding up rows of one index for the table of tokens, the error function in GELU) is in one file, `backend.py`,
# the only one that names CuPy.
#
# ## A step of the model, there and back
#
# What is trained goes to the device once and stays there; a batch goes over each time; one number comes back.

# %%
config = PRESETS["tiny"]
params = init_params(config, rng)
images = rng.standard_normal((8, 3, 64, 64)).astype(np.float32)
tokens, real = rng.integers(0, config.vocab_size, (8, 12)), np.ones((8, 12), bool)
there = to_device(params, place)                                  # a dict of arrays; on "cpu" nothing is moved
loss, _, back = forward(there, *to_device((images, tokens, real), place), config)
gradients = back()
assert gradients.keys() == params.keys()
assert all(device(g) == device(there[name]) for name, g in gradients.items())

moved = {"parameters, once": sum(x.nbytes for x in params.values()), "a batch": images.nbytes + tokens.nbytes + real.nbytes,
         "the loss": to_numpy(loss).nbytes}
for name, size in moved.items():
    print(f"{name:18} {size:10,} bytes")
wide = {name: x.astype(np.float64) for name, x in params.items()}
loss64, _, back64 = forward(wide, images.astype(np.float64), tokens, real, config)
off = max(np.abs(to_numpy(gradients[n]) - g).max() / max(np.abs(g).max(), 1e-12) for n, g in back64().items())
print(f"loss {float(loss):.6f}, in float64 on the CPU {float(loss64):.6f}; gradients off by {off:.0e} at most")
assert abs(float(loss) / float(loss64) - 1) < 1e-4 and off < 1e-3

# %% [markdown]
# `float(loss)` looks harmless. On a GPU it is the line at which everything stops: the program runs ahead and queues its
# operations, and only who *asks for a number* must wait for all of them. A timing without such a question measures the
# queueing. In the next cell `float(...)` stands inside of the clock.
#
# ## Why small things are slow
#
# Each operation has a fixed price, calling it, before it computes anything. On a GPU it is higher, because it is a message
# to another chip. Here: one call of the loss, forward and back, for more and more pairs at once.

# %%
def seconds(pairs, repeats=15):
    """The best of several runs, a number asked for in each."""
    v, t = (rng.standard_normal((pairs, n, 32)).astype(np.float32) for n in (49, 8))
    x = to_device((v, t, np.ones((pairs, 8), bool)), place)
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        _, _, back = fine_grained_loss(*x, theta)
        float(array_namespace(x[0]).sum(back()[0]))
        taken.append(time.perf_counter() - began)
    return min(taken)


seconds(8)                                                        # the first call pays for what comes once: not counted
sizes = [1, 4, 16, 64, 256]
times = np.array([seconds(n) for n in sizes])
figure, (ax,) = panels(1, 3.4)
line(ax, 0, sizes, 1e6 * times / sizes, "measured")
ax.plot(sizes, 1e6 * times[0] / np.array(sizes), color="#666666", linestyle=":", label="if only calling cost anything")
ax.set(xscale="log", yscale="log", xlabel="pairs in one call", ylabel="microseconds a pair")
ax.set_xticks(sizes, [str(n) for n in sizes])
ax.minorticks_off()
ax.legend()
ax.set_title(f"forward and back on {'a GPU' if place == 'cuda' else 'a CPU'}")
show(figure, "11_time")
print("microseconds a pair:", (1e6 * times / sizes).round(1).tolist())
cheapest = (times / sizes).argmin()
print(f"{sizes[cheapest]} pairs take {times[cheapest] / times[0]:.1f} times as long as one")
assert sizes[cheapest] > 1 and times[cheapest] / sizes[cheapest] < times[0] / 2

# %% [markdown]
# The nearer the line to the dots, the less more pairs cost: near them the time is all calls. Where it leaves them, arithmetic
# and memory begin to count, and with very many a pair may get dearer again. On a GPU calls cost more and arithmetic less, so it
# wants large batches, and few, large operations, which is why the reference has no loop over pairs or words. (On an H200, of
# `docs/gpu`, torch needs 0.34 of CuPy's time for an update of a ViT-B/32, and 0.08 for one of the preset `small`.)
#
# ## Fewer bits, by default
#
# GPUs round inputs of float32 products to TF32 when they are allowed to (tutorial 09), and then nothing in your program
# looks different. `rounded` pretends: patches and words to 11 bits, as the GPU's product unit would. (It does so in
# products alone; we round the inputs of the alignment, once.)

# %%
def rounded(x, bits):
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.round(np.ldexp(fraction, bits)), exponent - bits)


exact, tf32 = (align_patches(f(t), f(v))[1]["weights"] for f in (lambda x: x, lambda x: rounded(x, 11)))
single = align_patches(t.astype(np.float32), v.astype(np.float32))[1]["weights"]
off32, off_tf32 = (np.abs(x - exact).max() / exact.max() for x in (single, tf32))
print(f"weights off: float32 {off32:.0e}, inputs rounded as for TF32 {off_tf32:.0e}: {off_tf32 / off32:.0f} times as much")
assert off_tf32 / off32 > 100

# %% [markdown]
# (Less than the $2^{13}$ between 24 bits and 11, for float32 rounds its sums too.) CuPy leaves it off unless asked; torch has
# its own switch. A comparison must say which was in force, and the library's GPU check *fails* if it cannot see the difference
# when TF32 is on. What was measured on a real GPU, with which versions, is in `docs/gpu`; `make gpu-check` measures yours.
#
# ## Exercise 11.1: centred rows, anywhere
#
# Subtract from each row its mean, and divide by its largest absolute value. For arrays of any library, on any device.

# %%
def centred(x):                                                   # x (N,C) of any library -> (N,C) of the same
    return None


print(check("11.1", centred))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# from array_api_compat import array_namespace
#
#
# def centred(x):
#     xp = array_namespace(x)
#     y = x - xp.mean(x, axis=1, keepdims=True)
#     return y / xp.max(xp.abs(y), axis=1, keepdims=True)
# ```
#
# </details>
#
# ## Exercise 11.2: born in the right place
#
# The own place of each word: an identity matrix (L,L) of the dtype of `z`, in its library, on its device. (For eq. 6's
# labels.)

# %%
def own_places(z):                                                # z (L,L) of any library -> (L,L)
    return None


print(check("11.2", own_places))

# %% [markdown]
# <details><summary>Solution</summary>
#
# Whatever is made from nothing must be told where to live.
#
# ```python
# from array_api_compat import array_namespace, device
#
#
# def own_places(z):
#     return array_namespace(z).eye(z.shape[0], dtype=z.dtype, device=device(z))
# ```
#
# </details>
#
# Next: [12, to full scale](12_to_full_scale.ipynb).
