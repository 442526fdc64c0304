"""Random inputs of the objectives: captions of unequal length, vectors of unequal length, every parameter that one may have."""

import numpy as np

B, L, P, D, WIDTH, K = 4, 5, 6, 7, 3, 9
LENGTHS = (5, 2, 4, 1)
EMBEDDINGS = ("v", "t", "v_bar", "t_bar")
THETAS = {"theta": 1.3, "theta_filip": 1.1, "theta_pool": 0.7, "theta_local": 0.9, "theta_words": 0.8, "theta_attention": 0.6,
          "theta_cross": 1.2, "theta_fine": 1.4, "logit_bias": -1.7}


def embeddings(rng, lengths=LENGTHS, tokens=L, patches=P):
    """{v, t, mask, v_bar, t_bar} in float64."""
    batch = len(lengths)
    mask = np.arange(tokens) < np.array(lengths)[:, None]
    x = {"v": rng.standard_normal((batch, patches, D)), "t": rng.standard_normal((batch, tokens, D)), "mask": mask,
         "v_bar": rng.standard_normal((batch, D)), "t_bar": rng.standard_normal((batch, D))}
    return x | {name: x[name] * rng.uniform(0.5, 2, (*x[name].shape[:-1], 1)) for name in EMBEDDINGS}


def parameters(rng, *names):
    """Random parameters by name, or by the first part of a name: "theta", "pacl", "mgca"."""
    shapes = {"pacl.up.weight": (D, D), "pacl.up.bias": (D,), "pacl.down.weight": (D, D), "pacl.down.bias": (D,),
              "mgca.prototypes": (K, D)}
    shapes |= {f"flair.{part}.weight": (WIDTH, D) for part in ("query", "key", "value")}
    shapes |= {"flair.query.bias": (WIDTH,), "flair.out.weight": (D, WIDTH), "flair.out.bias": (D,)}
    for side in ("word", "patch"):
        shapes |= {f"mgca.{side}.{part}.weight": (WIDTH, D) for part in ("query", "key", "value")}
        shapes |= {f"mgca.{side}.{part}.bias": (WIDTH,) for part in ("query", "value")}
        shapes |= {f"mgca.{side}.out.weight": (D, WIDTH), f"mgca.{side}.out.bias": (D,)}
    drawn = {n: np.asarray(x) for n, x in THETAS.items()} | {n: rng.standard_normal(shape) / 2 for n, shape in shapes.items()}
    drawn["mgca.prototypes"] /= np.linalg.norm(drawn["mgca.prototypes"], axis=1, keepdims=True)
    return {n: x for n, x in drawn.items() if any(n == name or n.startswith(f"{name}.") for name in names)}
