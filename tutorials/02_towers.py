# %% [markdown]
# # 02. A vision tower and a text tower
#
# Where do patch and token embeddings come from? From two *transformers*, one for pictures (a ViT) and one for captions. Each
# is a *tower*: a picture in, one vector for each patch out; a caption in, one vector for each token out. We build them from
# the operations of tutorial 01 and one more (GELU), forward and backward, and assert at each floor that the library has the
# same.

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
from dataclasses import replace

import numpy as np
from drawing import matrix, panels, show
from exercises import check
from sparc_ref import PRESETS, encode_images, forward, init_params, ops
from sparc_ref.encoders import block, part, text_tower, vision_tower

rng = np.random.default_rng(0)

# %% [markdown]
# ## A tower small enough to look at
#
# Real sizes are in `PRESETS["vit_b_16"]`. Ours: pictures of 8 x 8 pixels in patches of 4 x 4, width 6, one block, two heads.
# Parameters are one flat dict, names as in torch. We draw all of them at random, gains and biases too: initial values hide
# mistakes (tutorial 01).

# %%
config = replace(
    PRESETS["tiny"], image_size=8, patch_size=4, vision_width=6, vision_depth=1, vision_heads=2,
    text_width=6, text_depth=1, text_heads=2, vocab_size=10, max_tokens=5, embed_dim=4,
)
params = {name: 0.5 * rng.standard_normal(np.shape(x)) for name, x in init_params(config, rng, "float64").items()}
params["theta"] = np.asarray(np.log(1 / 0.2))                     # log of 1 over the temperature
for name in list(params)[:9]:
    print(f"{name:36}", params[name].shape)
p = part(params, "vision.")                                       # the part of one tower, prefix cut off
C, H, P = config.vision_width, config.vision_heads, 4
assert p["patch.weight"].shape == (C, 3 * 4 * 4)

# %% [markdown]
# ## Patches
#
# Cut the picture into squares, lay each out as one long row of numbers, and map all rows by one linear layer. Then add a
# *position embedding*, a learned vector for each place: without it the rest of the tower would not notice if patches were
# exchanged (shown below).

# %%
images = rng.random((1, 3, 8, 8))                                 # (B,3,H,W)
cut = images.reshape(1, 3, 2, 4, 2, 4).transpose(0, 2, 4, 1, 3, 5).reshape(1, P, 3 * 4 * 4)  # (B,P,48)
x, back_patch = ops.patch_embedding(images, p["patch.weight"], p["patch.bias"], 4)           # (B,P,C)
assert np.allclose(x, ops.linear(cut, p["patch.weight"], p["patch.bias"])[0])
x = x + p["positions"]
assert x.shape == (1, P, C)

figure, axes = panels(3, 3.2)
axes[0].imshow(images[0].transpose(1, 2, 0))
axes[0].axhline(3.5, color="white", linewidth=4)
axes[0].axvline(3.5, color="white", linewidth=4)
axes[0].set_axis_off()
axes[0].set_title("a picture in 4 patches")
widths = [str(i) for i in range(C)]
matrix(axes[1], x[0] - p["positions"], "patch embedding", [f"patch {i}" for i in range(P)], widths, signed=True, digits=1,
       reach=4)
matrix(axes[2], x[0], "with positions (P,C)", columns=widths, signed=True, digits=1, reach=4)
show(figure, "02_patches")

# %% [markdown]
# ## Attention
#
# So far each patch knows itself alone. In *attention* each place asks all places, itself included. Three linear maps of its
# vector give a *query* $q_i$ (what it asks), a *key* $k_i$ (what it offers) and a *value* $v_i$ (what it says). Query times
# key is a score; a softmax over the keys turns a place's scores into weights; its output is the mean of all values with them:
#
# $$z_{ij} = q_i \cdot k_j / \sqrt{w} \qquad a_{ij} = e^{z_{ij}} \Big/ \sum_m e^{z_{im}} \qquad o_i = \sum_j a_{ij} v_j$$
#
# The width is split into parts of $w$ numbers, and each *head* does this in its own part, with its own weights. The inner
# product of two vectors of $w$ random numbers is about $\sqrt w$ large; divided by that, scores keep their size whatever the
# width. ($v_i$ here is a value; from "Into the joint space" on, $v$ is a patch embedding again, as in tutorial 00.)
#
# Here random numbers stand for queries, keys and values:

# %%
qkv = rng.standard_normal((1, P, 3 * C))                          # queries, keys, values side by side
library, back_attention = ops.attention(qkv, H)                   # (1,P,C)
q, k, v = np.split(qkv[0], 3, axis=1)                             # (P,C) each
width = C // H                                                    # of a head: w above


def head(i):
    """Weights (P,P) and output (P,C/H) of one head."""
    mine = slice(i * width, (i + 1) * width)
    z = q[:, mine] @ k[:, mine].T / np.sqrt(width)                # (P,P)
    a, _ = ops.softmax(z)                                         # each row sums to 1
    return a, a @ v[:, mine]


assert np.allclose(np.concatenate([head(i)[1] for i in range(H)], axis=1), library[0])


figure, axes = panels(H, 3)
names = [f"patch {n}" for n in range(P)]
for i, ax in enumerate(axes):
    matrix(ax, head(i)[0], f"head {i}: the weights a", names if i == 0 else [""] * P, names, low=0, high=1)
show(figure, "02_heads")

# %% [markdown]
# A row says how much its patch takes from the column's. Backwards, one head: a product, a softmax, a product, each line
# taking back one of the formulas, the last first.

# %%
dy = rng.standard_normal((1, P, C))
dq, dk, dv = (np.zeros((P, C)) for _ in range(3))
for i in range(H):
    mine = slice(i * width, (i + 1) * width)
    a, do = head(i)[0], dy[0][:, mine]
    da = do @ v[:, mine].T                                        # o = a v
    dv[:, mine] = a.T @ do
    dz = a * (da - (a * da).sum(1, keepdims=True))                # a = softmax(z)
    dq[:, mine] = dz @ k[:, mine] / np.sqrt(width)                # z = q k^T / sqrt(w)
    dk[:, mine] = dz.T @ q[:, mine] / np.sqrt(width)
assert np.allclose(np.concatenate([dq, dk, dv], axis=1), back_attention(dy)[0])

# %% [markdown]
# A surprise: add one and the same vector to every key.

# %%
shifted = np.concatenate([q, k + rng.standard_normal(C), v], axis=1)[None]
assert np.allclose(ops.attention(shifted, H)[0], library)
print("the output moves by", f"{np.abs(ops.attention(shifted, H)[0] - library).max():.0e}")

# %% [markdown]
# That is why the library has no bias for keys. It would add the same number to a whole row of scores, and softmax
# takes that out again. Its gradient would be zero, always.
#
# ## One block
#
# A block does two things, each as a *residual*: `x + f(x)`, so that f only has to say what to change.
#
# 1. x1 = x + out(attention(qkv(norm1(x)))): look around;
# 2. y = x1 + down(gelu(up(norm2(x1)))): think about it, each place for itself.
#
# `out` is a linear layer that mixes the heads, `up` one to 4 times the width, `down` one back. Between them stands a GELU,
# applied to each number: a smooth version of max(0, x). Its slope is one factor for each number, and `ops.gelu` knows it.
#
# Forward is a list of calls. Backward is the same list read upwards.

# %%
def my_block(p, x):
    qkv_weight = np.concatenate([p[f"attn.{n}.weight"] for n in ("query", "key", "value")])
    qkv_bias = np.concatenate([p["attn.query.bias"], np.zeros(C), p["attn.value.bias"]])
    h, back_norm1 = ops.layer_norm(x, p["norm1.weight"], p["norm1.bias"])
    h, back_qkv = ops.linear(h, qkv_weight, qkv_bias)             # (B,P,3C)
    h, back_attention = ops.attention(h, H)                       # (B,P,C)
    h, back_out = ops.linear(h, p["attn.out.weight"], p["attn.out.bias"])
    x1 = x + h
    h, back_norm2 = ops.layer_norm(x1, p["norm2.weight"], p["norm2.bias"])
    h, back_up = ops.linear(h, p["mlp.up.weight"], p["mlp.up.bias"])
    h, back_gelu = ops.gelu(h)                                    # (B,P,4C)
    h, back_down = ops.linear(h, p["mlp.down.weight"], p["mlp.down.bias"])
    y = x1 + h

    def back(dy):
        dh = back_down(dy)[0]                                     # [0]: the gradient of x alone, for shortness
        dh = back_up(back_gelu(dh))[0]
        dx1 = dy + back_norm2(dh)[0]                              # around, and through
        dh = back_out(dx1)[0]
        dh = back_qkv(back_attention(dh))[0]
        return dx1 + back_norm1(dh)[0]                            # around, and through

    return y, back


mine, theirs = my_block(part(p, "blocks.0."), x), block(part(p, "blocks.0."), x, None, H, "tanh", 1e-6)  # no mask
dy = rng.standard_normal((1, P, C))
assert np.allclose(mine[0], theirs[0])
assert np.allclose(mine[1](dy), theirs[1](dy)[0])
names = sorted(theirs[1](dy)[1])
print(len(names), "parameters with a gradient, of 8 layers; a bias is missing:", [n for n in names if "key" in n])
assert len(names) == 2 * 8 - 1

# %% [markdown]
# ## The whole tower
#
# Blocks, one after the other, and a last layer norm. A picture of 4 patches becomes 4 vectors. (Other ViTs add one for the
# whole picture; here a mean does that, below.) And what do the positions do? Exchange the halves of the picture: without
# positions the outputs are exchanged too, and nothing else happens.

# %%
options = {"patch": 4, "grid": (2, 2), "heads": H, "gelu": "tanh", "eps": 1e-6, "resize": "bicubic"}
# heads as above; which formula of GELU; layer norm's eps; how positions are resized for other picture sizes
f_v, _ = vision_tower(p, images, **options)                       # (B,P,C)
by_hand = ops.layer_norm(my_block(part(p, "blocks.0."), x)[0], p["norm.weight"], p["norm.bias"])[0]
assert f_v.shape == (1, P, C) and np.allclose(f_v, by_hand)

swapped = images[..., [4, 5, 6, 7, 0, 1, 2, 3]]                   # left and right half exchanged
without = p | {"positions": np.zeros_like(p["positions"])}
moved = {name: vision_tower(some, swapped, **options)[0][:, [1, 0, 3, 2]] - vision_tower(some, images, **options)[0]
         for name, some in (("without positions", without), ("with positions", p))}
for name, change in moved.items():
    print(f"{name:18} outputs of the exchanged picture, exchanged back, differ by {np.abs(change).max():.0e}")
assert np.allclose(moved["without positions"], 0) and not np.allclose(moved["with positions"], 0)

# %% [markdown]
# ## The text tower
#
# The same blocks. Only the entrance differs: a token is a number, and its row of a table, plus a position embedding as for
# patches, is its first vector. Every token sees all others, before and after it (a language model's would see only those
# before).
#
# Captions differ in length; short ones are filled up with a dummy token, here 0: *padding*. A *mask* is true where a token
# is real. Padding is left out as a key: its score becomes $-\infty$ before the exponential, and $e^{-\infty} = 0$, so that
# no real token gives it any weight. Places of padding get vectors too; nobody reads them, since every later mean and loss
# uses the mask:

# %%
tokens = np.array([[3, 1, 4, 0, 0], [5, 9, 2, 6, 5]])             # (B,L)
mask = np.array([[True] * 3 + [False] * 2, [True] * 5])           # (B,L)
p_t = part(params, "text.")
f_t, back_text = text_tower(p_t, tokens, mask, heads=2, gelu="tanh", eps=1e-6)      # (B,L,C)
other = np.where(mask, tokens, 7)                                 # another token at padding
f_other, _ = text_tower(p_t, other, mask, heads=2, gelu="tanh", eps=1e-6)
assert f_t.shape == (2, 5, 6) and np.allclose(f_t[mask], f_other[mask])
backwards, _ = text_tower(p_t, tokens[:, ::-1], mask[:, ::-1], heads=2, gelu="tanh", eps=1e-6)
assert not np.allclose(backwards[1, ::-1], f_t[1])                # word order matters: positions

table = back_text(rng.standard_normal(f_t.shape) * mask[..., None])["embedding.weight"]  # (V,C)
used = np.abs(table).sum(1) > 0
print("tokens in the captions", sorted(set(tokens[mask].tolist())), "  rows with a gradient", np.flatnonzero(used).tolist())
assert set(np.flatnonzero(used)) == set(tokens[mask])

# %% [markdown]
# Only rows of tokens that occur get a gradient; token 5 occurs twice, and its row gets the sum of both.
#
# ## Into the joint space
#
# Towers have widths of their own. An *adapter*, one linear layer, takes each into the joint space: $v = g_v(f_v)$ and $t =
# g_t(f_t)$ for every patch and token. For the whole picture, *pooling*: the mean of $f_v$ over patches, one more layer $h_v$
# (C to C) with a GELU, then the same adapter. For a whole caption: the mean of $f_t$ over its real tokens, then the adapter
# $g_t$; no further layer. (The paper gives $h_v$ without a reason. Without it, as $g_v$ is linear, $\bar v$ would be just the
# mean of the $v$.) SPARC's loss is $\lambda_g$ times the global loss plus $\lambda_f$ times the fine-grained one:

# %%
pictures = rng.random((2, 3, 8, 8))
loss, trace, back = forward(params, pictures, tokens, mask, config)
features = trace["image_features"]                                # (B,P,C)
v, _ = ops.linear(features, params["g_v.weight"], params["g_v.bias"])
hidden, _ = ops.gelu(ops.linear(features.mean(1), params["h_v.weight"], params["h_v.bias"])[0])
v_bar, _ = ops.linear(hidden, params["g_v.weight"], params["g_v.bias"])
assert np.allclose(trace["v"], v) and np.allclose(trace["v_bar"], v_bar)
mean_t = (trace["text_features"] * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
assert np.allclose(trace["t"], ops.linear(trace["text_features"], params["g_t.weight"], params["g_t.bias"])[0])
assert np.allclose(trace["t_bar"], ops.linear(mean_t, params["g_t.weight"], params["g_t.bias"])[0])
assert np.allclose(encode_images(params, pictures, config)["v"], v)
for name in ("image_features", "v", "v_bar", "text_features", "t", "t_bar", "weights", "grouped", "logits", "logits_vt"):
    print(f"{name:15} {trace[name].shape}")
assert np.isclose(loss, config.lambda_g * trace["loss_global"] + config.lambda_f * trace["loss_fine"])

# %% [markdown]
# ## Everything at once
#
# `forward` returned the loss, every stage, and `back`, which gives a gradient for every parameter. Is it right? One
# direction through *all* parameters at once (tutorial 01). The loss has jumps, but a step of 1e-5 hardly ever meets one.

# %%
gradients = back()
assert gradients.keys() == params.keys()
u = {name: rng.standard_normal(np.shape(x)) for name, x in params.items()}
h = 1e-5
up, down = (float(forward({n: x + sign * h * u[n] for n, x in params.items()}, pictures, tokens, mask, config)[0])
            for sign in (1, -1))
measured, claimed = (up - down) / (2 * h), sum(float((gradients[name] * u[name]).sum()) for name in params)
print(f"{sum(x.size for x in params.values())} numbers: differences {measured:.8f}   back {claimed:.8f}")
assert np.isclose(measured, claimed, rtol=1e-5)

parts = ("vision.patch", "vision.positions", "vision.blocks", "h_v", "g_v", "text.embedding", "text.blocks", "g_t")
sizes = [np.sqrt(sum((gradients[n] ** 2).sum() for n in params if n.startswith(name))) for name in parts]
figure, (ax,) = panels(1, 3.6)
ax.barh(parts, sizes, color="#0072B2")
ax.invert_yaxis()
ax.set_xlabel("length of the loss's gradient with respect to these parameters")
ax.set_title("every part learns: no bar is 0")
show(figure, "02_gradients")
assert min(sizes) > 0

# %% [markdown]
# ## Exercise 02.1: around and through
#
# `y = x + f(x)`, and `back_f` takes the gradient through f. What is `dx`?

# %%
def residual_back(dy, back_f):                                    # (N,C), a function -> dx (N,C)
    return None


print(check("02.1", residual_back))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def residual_back(dy, back_f):
#     return dy + back_f(dy)
# ```
#
# </details>
#
# ## Exercise 02.2: one head with padding
#
# `mask` says which places are real. They must not look at the others.

# %%
def one_head(q, k, v, mask):                                      # (L,C) each, (L,) bool -> (L,C)
    return None


print(check("02.2", one_head))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def one_head(q, k, v, mask):
#     z = np.where(mask, q @ k.T / np.sqrt(q.shape[1]), -np.inf)
#     e = np.exp(z - z.max(1, keepdims=True))
#     return e / e.sum(1, keepdims=True) @ v
# ```
#
# </details>
#
# Next: [03, the global loss](03_global_loss.ipynb).
