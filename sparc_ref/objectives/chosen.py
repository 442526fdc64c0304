"""Which objective a model is trained with: its settings, its own parameters, its loss and its scoring rule by name.

SPARC's settings are SPARCConfig's; sparc_ref.model computes it without this file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from array_api_compat import array_namespace

from sparc_ref.backend import Array
from sparc_ref.objectives.clip import clip
from sparc_ref.objectives.filip import CHOICES as FILIP
from sparc_ref.objectives.filip import clip_filip, filip, filip_scores
from sparc_ref.objectives.flair import ATTENTION, flair, flair_scores
from sparc_ref.objectives.gloria import CHOICES as GLORIA
from sparc_ref.objectives.gloria import gloria, gloria_scores
from sparc_ref.objectives.mgca import CHOICES as MGCA
from sparc_ref.objectives.mgca import PROTOTYPES, attention_names, mgca, unit_prototypes
from sparc_ref.objectives.pacl import CHOICES as PACL
from sparc_ref.objectives.pacl import EMBEDDER, embed, pacl, pacl_scores
from sparc_ref.objectives.shared import is_temperature
from sparc_ref.objectives.siglip import BIAS, siglip

NAMES = ("sparc", "clip", "filip", "clip_filip", "pacl", "gloria", "mgca", "siglip", "flair")
LEARNED = {"theta_filip": 1 / 0.07, "theta_local": 10.0, "theta_attention": 4.0, "theta_words": 5.0, "theta_cross": 10.0}


@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective and its settings.  What SPARC's paper leaves open has the default of docs/objectives.md."""

    objective: str = "sparc"        # "sparc": eq. 7 | "clip" | "filip" | "clip_filip": both | "pacl" | "gloria" | "mgca" |
    #                                 "siglip" | "flair"
    weight_clip: float = 0.5        # of clip_filip: weight of CLIP's loss; Tables 9 and 10 do not state it
    weight_filip: float = 0.5       # of clip_filip: weight of FILIP's loss
    filip_keep: float = 0.2         # share of tokens that others see; "20 % token dropping" (D.4), Table 11 fits 0.2
    filip_drop_side: str = "gathered"  # "gathered": a sample asks with all of its tokens | "both": with those kept
    filip_select: str = "batch"     # a token is kept for its similarity to the "batch" | to its own "pair"
    pacl_embedder: str = "residual"  # a two-layer MLP on every patch, added to it | "none"
    pacl_pairs: str = "all"         # each caption weighs every picture's patches | "matched": its own alone
    pacl_values: str = "plain"      # patches are averaged as they are | "unit": as unit vectors
    pacl_weight_scale: float = 1.0  # of the softmax over patches; 10: a reproduction's
    pacl_learn_scale: bool = False  # learn that scale as well
    gloria_learn: str = "temp3"     # "temp3": both losses' temperatures | "all": those of attention and words too
    gloria_similarity: str = "scaled"  # divided by sqrt(D), "crucial" (D.3) | "dot": the public code
    gloria_double_softmax: bool = False  # a softmax over words before the one over patches: the public code
    gloria_agg: str = "sum"         # words' votes are added up | "mean": long captions are not favoured
    mgca_attention: str = "mha"     # learned projections | "paramfree": the public code
    mgca_width: int = 128           # d of these projections (D.4)
    mgca_prototypes: int = 500      # K (D.4)
    mgca_normalize: str = "word"    # attended vectors made unit: of words alone, the public code for a ViT | "both"
    mgca_lambda_ita: float = 1.0    # weight of the instance alignment (D.4)
    mgca_lambda_cta: float = 1.0    # of the token alignment (D.4)
    mgca_lambda_cpa: float = 1.0    # of the prototype alignment (D.4)
    mgca_freeze: int = 0            # updates without a gradient for the prototypes; the public code: its first epoch

    def __post_init__(self):
        choices = {"objective": NAMES, "pacl_embedder": ("residual", "none"), "gloria_learn": ("temp3", "all")}
        choices |= {f"filip_{name}": FILIP[name] for name in ("drop_side", "select")}
        choices |= {f"pacl_{name}": values for name, values in PACL.items()}
        choices |= {f"gloria_{name}": values for name, values in GLORIA.items()}
        choices |= {f"mgca_{name}": values for name, values in MGCA.items()}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in choices and value not in choices[name]:
                raise ValueError(f"{name}: expected one of {', '.join(map(str, choices[name]))}; got {value!r}")
            if field.type in (int, float) and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected at least 0, got {value}")
            if value != field.default and name != "objective" and self.objective not in self._owners(name):
                raise ValueError(f"{name}: belongs to objective {' or '.join(self._owners(name))}, got {self.objective}")
        for name in ("mgca_width", "mgca_prototypes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.filip_keep <= 1:
            raise ValueError(f"filip_keep: expected a share of tokens in (0, 1], got {self.filip_keep}")

    @staticmethod
    def _owners(name):
        head = name.partition("_")[0]
        return {"weight": ("clip_filip",), "filip": ("filip", "clip_filip")}.get(head, (head,))

    def of(self, head: str, *names: str) -> dict:
        """Settings of one objective as its function's keywords."""
        return {name: getattr(self, f"{head}_{name}") for name in names}


def loss_of(config: ObjectiveConfig, step: int = 0) -> Callable | None:
    """What model.forward_with takes: loss, parts, back = f(params, v, t, mask, v_bar, t_bar); None for SPARC itself.

    step: the number of updates before this one, for mgca_freeze.
    """
    c = config
    dropping = c.of("filip", "keep", "drop_side", "select")
    match c.objective:
        case "clip":
            return clip
        case "filip":
            return partial(filip, **dropping)
        case "clip_filip":
            return partial(clip_filip, weight_clip=c.weight_clip, weight_filip=c.weight_filip, **dropping)
        case "pacl":
            return partial(pacl, **c.of("pacl", "pairs", "values", "weight_scale"))
        case "gloria":
            return partial(gloria, **c.of("gloria", "similarity", "double_softmax", "agg"))
        case "mgca":
            settings = c.of("mgca", "attention", "normalize", "lambda_ita", "lambda_cta", "lambda_cpa")
            return partial(mgca, freeze_prototypes=step < c.mgca_freeze, **settings)
        case "siglip":
            return siglip
        case "flair":
            return flair
    return None


def scores_of(config: ObjectiveConfig) -> Callable | None:
    """The objective's own scoring rule, f(params, v, t, mask, v_bar, t_bar) -> pictures x captions for pictures that ask and
    for captions that ask; None where it is the cosine of the global embeddings: CLIP, MGCA, SigLIP, SPARC."""
    match config.objective:
        case "filip" | "clip_filip":
            return filip_scores
        case "pacl":
            return partial(pacl_scores, **config.of("pacl", "values", "weight_scale"))
        case "gloria":
            return partial(gloria_scores, **config.of("gloria", "similarity", "double_softmax", "agg"))
        case "flair":
            return flair_scores
    return None


def patches_of(config: ObjectiveConfig) -> Callable | None:
    """What the objective makes of g_v's patches before it compares them, f(params, v) -> v; None where that is nothing."""
    return (lambda params, v: embed(params, v)[0]) if config.objective == "pacl" else None


def own_shapes(config: ObjectiveConfig, embed_dim: int) -> dict[str, tuple[int, ...]]:
    """The parameters that an objective adds to the model's, and their shapes."""
    c, D, d = config, embed_dim, config.mgca_width
    match c.objective:
        case "clip_filip":
            return {"theta_filip": ()}
        case "pacl":
            weights = dict(zip(EMBEDDER, ((D, D), (D,), (D, D), (D,)))) if c.pacl_embedder == "residual" else {}
            return weights | ({"theta_pool": ()} if c.pacl_learn_scale else {})
        case "gloria":
            return dict.fromkeys(("theta_local", *("theta_attention", "theta_words") * (c.gloria_learn == "all")), ())
        case "mgca":
            def shape(name):
                if name.endswith("out.weight"):
                    return (D, d)
                return (d, D) if name.endswith("weight") else (D,) if "out" in name else (d,)

            heads = (*attention_names("word"), *attention_names("patch")) if c.mgca_attention == "mha" else ()
            shapes: dict[str, tuple[int, ...]] = {"theta_cross": ()} if c.mgca_lambda_cta else {}
            shapes |= {name: shape(name) for name in heads if c.mgca_lambda_cta}
            return shapes | ({PROTOTYPES: (c.mgca_prototypes, D)} if c.mgca_lambda_cpa else {})
        case "siglip":
            return {BIAS: ()}
        case "flair":
            return {BIAS: ()} | {name: (D, D) if name.endswith("weight") else (D,) for name in ATTENTION}
    return {}


def init_own(
    config: ObjectiveConfig, embed_dim: int, rng: np.random.Generator, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Draw them: Glorot-uniform matrices, zero biases, prototypes of length one, temperatures and SigLIP's bias where
    their papers have them."""
    params = {}
    for name, shape in own_shapes(config, embed_dim).items():
        if is_temperature(name):
            value = np.full(shape, math.log(LEARNED.get(name) or max(config.pacl_weight_scale, 1.0)))
        elif name == BIAS:
            value = np.full(shape, -10.0)
        elif name == PROTOTYPES:
            value = rng.standard_normal(shape)
            value = value / np.linalg.norm(value, axis=1, keepdims=True)
        elif len(shape) == 1:
            value = np.zeros(shape)
        else:
            value = rng.uniform(-1, 1, shape) * math.sqrt(6 / sum(shape))
        params[name] = np.asarray(value, dtype)
    return params


def after_update(params: dict[str, Array]) -> dict[str, Array]:
    """What is done to parameters after each update, outside of the gradient: prototypes become unit vectors again."""
    if PROTOTYPES not in params:
        return params
    xp = array_namespace(params[PROTOTYPES])
    return params | {PROTOTYPES: xp.asarray(unit_prototypes(params[PROTOTYPES]))}
