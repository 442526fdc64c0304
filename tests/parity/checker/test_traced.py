"""Which stage is left is seen in the arrays that an implementation makes: each kind of evidence, and its absence."""

import math
import sys

import numpy as np
import pytest

from parity.checker.calling.trace import traced
from parity.checker.diagnosis.traced import follow
from parity.checker.probes import PROBES

PROBE = PROBES["single"]
V, T = PROBE.v[0], PROBE.t[0]
N, P = len(T), len(V)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ranged(s):
    return (s - s.min(1, keepdims=True)) / np.ptp(s, axis=1, keepdims=True)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def named(*arrays):
    return [(f"f.py:{k} x", np.asarray(x, dtype=float)) for k, x in enumerate(arrays)]


S = T @ V.T
H = ranged(S)
GATE = H >= 1 / P
SPARSE = np.where(GATE, H, 0)
C = SPARSE @ V
COSINE = unit(C) @ unit(T).T
Z = math.exp(PROBE.theta) * COSINE
FRONT = [S, H, SPARSE, C]
FAR = np.abs(np.subtract.outer(np.arange(N), np.arange(N))) > 2
NEAR_ALONE = np.where(FAR, -1e30, Z)
OTHER = ranged((T - T.mean(0)) @ V.T)


@pytest.mark.parametrize("stage, taken, arrays", [
    ("minmax", "", [S, S.argsort(1).argsort(1), S.argsort(1).argsort(1) / (P - 1)]),
    ("similarity", "f.py:0 x", [(T - T.mean(0)) @ V.T, S, OTHER, OTHER @ V]),
    ("weights", "", [S, H, GATE, np.where(GATE, S, 0), np.where(GATE, S, 0) @ V]),
    ("threshold", "", [S, H, GATE, np.maximum(H - 1 / P, 0), np.maximum(H - 1 / P, 0) @ V]),
    ("threshold", "", [S, H, H > 0.5, np.where(H > 0.5, H, 0), np.where(H > 0.5, H, 0) @ V]),
    ("threshold", "", [S, H, GATE, np.where(GATE, H, 0.3 * H), np.where(GATE, H, 0.3 * H) @ V]),
    ("minmax", "f.py:1 x", [S, H / 4, np.where(H / 4 >= 1 / P, H, 0), np.where(H / 4 >= 1 / P, H, 0) @ V]),
    ("grouping", "", [S, H, SPARSE, V - V.mean(0), SPARSE @ (V - V.mean(0))]),
    ("logits", "f.py:5 x", [*FRONT, Z, NEAR_ALONE, log_softmax(NEAR_ALONE), log_softmax(NEAR_ALONE.T)]),
    ("logits", "f.py:5 x", [*FRONT, Z, 9 * np.tanh(Z / 9), log_softmax(9 * np.tanh(Z / 9)), log_softmax(9 * np.tanh(Z.T / 9))]),
    ("loss", "", [*FRONT, Z, log_softmax(Z), log_softmax(Z.T), np.exp(log_softmax(Z)) ** 2]),
    ("loss", "", [*FRONT, Z, log_softmax(Z), np.exp(log_softmax(Z.T)), log_softmax(5 * unit(T) @ unit(T).T)]),
    ("loss", "", [*FRONT, Z, np.where(np.eye(N), -1e30, Z), log_softmax(np.where(np.eye(N), -1e30, Z))]),
    ("reduction", "", [*FRONT, Z, log_softmax(Z), log_softmax(Z.T), np.diagonal(log_softmax(Z))]),
    ("logits", "", [*FRONT, unit(C), unit(T), COSINE**3, log_softmax(COSINE**3)]),
])
def test_the_first_array_that_is_not_ours_tells_the_stage(stage, taken, arrays):
    seen = follow(named(*arrays), PROBE)
    assert (seen.stage, seen.taken) == (stage, taken), seen


@pytest.mark.parametrize("stage, weights", [
    ("minmax", S.argsort(1).argsort(1) / (P - 1)), ("minmax", np.exp(S - S.max(1, keepdims=True))),
    ("threshold", np.where(H >= 0.4, H, 0)), ("threshold", np.where(GATE, H, 0.3 * H)),
    ("threshold", np.where(np.sort(H, 1)[:, -4:-3] <= H, H, 0)),
    ("threshold", np.maximum(H - 1 / P, 0)), ("weights", SPARSE**2), ("weights", np.log1p(SPARSE)),
])
def test_weights_are_had_back_from_the_groups_that_they_made(stage, weights):
    """Where all steps are inside one line."""
    seen = follow(named(S, weights @ V / weights.sum(1, keepdims=True)), PROBE)
    assert (seen.stage, seen.sure) == (stage, True)


def test_what_no_weights_make_is_another_grouping():
    longest = (SPARSE[:, :, None] * V).max(1)
    assert follow(named(S, longest), PROBE).stage == follow(named(S, H, SPARSE, longest, unit(T)), PROBE).stage == "grouping"
    assert follow(named(S, unit(T), T - T.mean(0)), PROBE).stage == "minmax"  # of tokens alone: no groups were seen


@pytest.mark.parametrize("patches, recorded", [(V[1:], True), (V[1:], False), (V[:8].reshape(4, 2, -1).mean(1), True)])
def test_similarities_with_other_patches_than_were_given(patches, recorded):
    seen = follow(named(*[patches] * recorded, T @ patches.T), PROBE)
    assert (seen.stage, seen.many, seen.where) == ("similarity", len(patches), f"f.py:{int(recorded)} x")
    assert follow(named(T[:4], T @ T[:4].T, V[:8].reshape(4, 2, -1).mean(1)), PROBE) is None  # tokens with tokens


def test_no_softmax_among_all_steps_is_another_loss():
    """Hinges on cosines; where only variables are seen, a softmax may have been inside a line."""
    hinge = np.maximum(0, 0.2 + COSINE - np.diagonal(COSINE)[:, None])
    seen = [*named(*FRONT, unit(C), unit(T), COSINE), ("f.py:9 relu()", hinge)]
    assert follow(seen, PROBE).stage == "loss" and follow(seen[:-1], PROBE).stage == "logits"
    assert follow(seen, PROBE).where == "f.py:6 x"


SOURCE = """
import numpy as np
def double(x):
    return 2 * x
def loss(v):
    return double(v + 1).sum() + double(v * 3 + 0).sum()
"""


def test_what_one_function_hands_to_another_is_seen(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text(SOURCE)
    scope: dict = {}
    exec(compile(SOURCE, str(path), "exec"), scope)
    v = np.arange(3.0)
    with traced([str(path)], "numpy") as records:
        scope["loss"](v)
    made = [x.tolist() for _, x in records]
    assert (v + 1).tolist() in made and (3 * v).tolist() in made
    assert v.tolist() not in made                         # an input is none that it makes


def test_jax_shows_what_is_made_inside_a_line(tmp_path):
    jax = pytest.importorskip("jax")
    from parity.checker.calling.bridge_jax import stages

    path = tmp_path / "theirs_jax.py"
    path.write_text("import jax, jax.numpy as jnp\ndef loss(v):\n    s = v @ v.T\n"
                    "    return jnp.where(jax.nn.softmax(s - 1) > 0.2, s * 3, 0.0).sum()\n")
    scope: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    v = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    made = stages(scope["loss"], [v], {}, [str(path)])
    s = v @ v.T
    found = [(where, x) for where, x in made if x.shape == s.shape and np.allclose(x, jax.nn.softmax(s - 1), rtol=1e-5)]
    assert [where.split()[0] for where, _ in found] == ["theirs_jax.py:4"] and found[0][0].endswith("()")
    assert any(where == "theirs_jax.py:3 s" and np.allclose(x, s, rtol=1e-5) for where, x in made)
    assert any(np.allclose(x, np.where(np.asarray(jax.nn.softmax(s - 1)) > 0.2, 3 * s, 0), rtol=1e-5)
               for _, x in made if x.shape == s.shape)
    assert "theirs_jax" not in sys.modules
