"""What the names of arguments hint at.  Hints only order the candidates; `convention` runs them.

A role is "v" | "t" | "v_bar" | "t_bar" | "mask" | "v_mask" | "scale" | "sigma" | "lambda" | "eps" | "size".
"""

import re
from itertools import product

VISION = {"v", "vis", "vision", "visual", "visuals", "image", "images", "img", "imgs", "vit", "picture", "pictures", "pixel",
          "pixels",
          "feature", "fmap", "im", "roi", "rois", "vb", "vg"}
PATCH = {"patch", "patches", "region", "regions", "grid", "map", "spatial"}
TEXT = {"t", "txt", "text", "texts", "lang", "language", "caption", "captions", "sentence", "sentences", "word", "words",
        "cap", "caps",
        "l", "sent", "bert", "tb", "tg"}
TOKEN = {"token", "tokens", "word", "words", "seq", "sequence", "local", "dense", "hidden", "fine", "embeddings"}
GLOBAL = {"global", "pooled", "pool", "cls", "bar", "mean", "avg", "glob", "g", "class", "sentence", "vb", "tb", "vg",
          "tg"}
MASK = {"mask", "masks", "valid", "validity", "keep", "real", "pad", "pads", "padding", "paddings", "padded", "attn",
        "attention", "is", "present", "presence", "exists", "nonpad", "ends"}
PADDED = {"pad", "pads", "padding", "paddings", "padded"}
LENGTH = {"length", "lengths", "lens", "len", "counts", "count", "nwords", "ntokens", "sizes"}
PACKING = {"owner", "owners", "cu", "seqlens", "segment", "segments", "ptr", "offsets", "splits"}  # where packed captions are
RUN = {"step": 0, "global_step": 0, "epoch": 0, "iteration": 0, "world_size": 1, "rank": 0, "local_rank": 0,
       "training": False, "is_training": False, "train": False, "deterministic": True}  # of a run, without effect as a rule
SCALE = {"scale", "logit", "temp", "temperature", "tau", "inv", "inverse", "theta", "log", "temps", "kappa"}
SIGMA = {"sigma", "threshold", "thresh", "thr", "cutoff", "sparsity", "sim"}
LAMBDA = {"lambda", "lam", "lambd", "weight", "alpha", "beta", "coef", "coeff"}
MODULE = {"encoder", "tower", "backbone", "model", "net", "network", "module", "bert", "vit", "resnet", "transformer", "visual",
          "projector", "projection", "proj", "head", "trunk", "adapter"}
DIMENSION = {"dim", "dims", "width", "hidden", "embed", "embedding", "channels", "features", "d", "model", "in", "out",
             "proj", "joint",
             "vision", "text", "image", "size", "feature", "img", "txt", "vis", "latent", "projection"}


def words(name: str) -> list[str]:
    """clipLogitScale2 and clip_logit_scale_2 -> [clip, logit, scale]"""
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def hints(name: str, annotation: str = "") -> dict[str, float]:
    """Role -> how much the name speaks for it, 0 to 4; {} where it says nothing."""
    said = set(words(last_of(name)))
    whole = set(words(name))
    if re.fullmatch(r"I_\w", name):                       # I_f and T_f of CLIP's paper
        said.add("image")
    said |= {w[1:] for w in said if w[1:] in ("img", "image", "txt", "text", "cap")}  # zimg, etext
    found: dict[str, float] = {}
    if name in RUN:
        return {"run": 4.0}
    if is_packing(name):
        return {"v_mask": 4.0} if said & (VISION | PATCH | {"k"}) and not said & TEXT else {"mask": 3.0}
    if not said & (VISION | PATCH | TEXT | TOKEN) and not said & (MASK | LENGTH | SCALE):
        said |= whole                                     # text[0] (x): the whole says more than its part
    patch, vision = len(said & PATCH), len(said & VISION)
    text, token, pooled = len(said & TEXT), len(said & TOKEN), len(said & GLOBAL)
    if said & {"id", "ids", "label", "labels", "target", "targets", "index", "idx"}:
        return {}
    if size_of(name) in ("P", "L", "B"):                  # n_words: one number, or one per caption
        return {"size": 3.0} | ({"mask": 3.0} if said & {"tokens", "words"} else {})
    if said & {"eps", "epsilon"}:
        return {"eps": 4}
    masked = said & {"mask", "masks", "valid", "validity", *PADDED}
    if masked and whole & (VISION | PATCH) and not whole & TEXT:
        return {"v_mask": 4}
    if masked or (said & MASK and said & {"attn", "attention", "key"}):
        found["mask"] = 4
    elif said & LENGTH:
        found["mask"] = 3
    elif said & MASK:
        found["mask"] = 2
    if said & {"tau", "temp", "temperature", "temps", "theta"} or {"logit",
                                                                   "scale"} <= said or ("inv" in said or "inverse" in said):
        found["scale"] = 4
    elif said & (SCALE - {"log"}):
        found["scale"] = 2.5
    if said & (SIGMA - {"sim"}):
        found["sigma"] = 4
        found.pop("scale", None)
    if said & LAMBDA and not found:
        found["lambda"] = 3
    if found:
        return found
    if last_of(name) in ("m", "k", "n", "ms", "ns"):
        return {"mask": 1.5}
    if last_of(name) in ("q", "query", "queries", "key", "keys"):
        return {"t": 1.0, "v": 0.25} if last_of(name)[0] == "q" else {"v": 1.0, "t": 0.25}
    if name in ("s", "T"):
        return {"scale": 1.5, "t": 0.5} if name == "T" else {"scale": 1.5}
    if patch or vision:
        found["v"] = 2 * bool(patch) + bool(vision) + 0.5 * bool(token) - 2 * bool(pooled) + 0.5
        found["v_bar"] = bool(vision) + 3 * bool(pooled) - 2 * bool(patch) - 0.5 * bool(token)
    if text or (token and not (patch or vision)):
        found["t"] = 1.5 * bool(text) + 1.5 * bool(token) - 2 * bool(pooled and not token) + 0.5
        found["t_bar"] = bool(text) + 3 * bool(pooled) - 2 * bool(token)
    if last_of(name) == "t":                              # tokens, or a temperature beside them
        found["scale"] = 1.0
    if patch and said & TOKEN and not vision:             # patch_tokens
        found.pop("t", None)
    sides: dict[str, float] = {role: 0.25 for role in ("v", "t") if role in found}  # a name alone never rules a side out
    return {role: max(score, sides.get(role, 0)) for role, score in found.items() if score > 0 or role in sides}


def last_of(name: str) -> str:
    """The part of a place that names it: batch['image']['v'] -> v, text[0] (t) -> t."""
    if name.endswith(")"):
        return name.rpartition("(")[2][:-1]
    return name.removesuffix("']").rpartition("['")[2].rpartition(".")[2] if name.endswith("']") or "." in name else name


def is_packing(name: str) -> bool:
    """Whether a name says where packed captions begin, or whose each token is."""
    listed = words(last_of(name))
    said = set(listed)
    whose = said & {"batch", "sample", "segment", "caption"} and said & {"index", "idx", "ids", "id", "of"}
    return bool(said & PACKING or whose or (listed[1:] and listed[-1] == "batch" and said & (TEXT | TOKEN)))


def unknown(params: list[dict]) -> list[str]:
    """Required arguments that no role is left for, by their names."""
    needed = [p["name"] for p in params if "default" not in p]
    said = {name: hints(name) for name in needed}
    silent = [name for name, roles in said.items() if not roles]
    claimed = {max(roles, key=lambda r: roles[r]) for roles in said.values() if roles and max(roles.values()) >= 1}
    free = [role for role in ("v", "t", "mask", "scale") if role not in claimed]
    return silent[len(free) :] if len(silent) > len(free) else []


def scale_kinds(name: str) -> list[str]:
    """The kinds of temperature that a name allows, most likely first."""
    said = set(words(name))
    if said & {"inv", "inverse"}:
        return ["theta", "scale", "tau", "log_tau"] if "log" in said else ["scale", "theta", "tau", "log_tau"]
    if "theta" in said or ("log" in said and "tau" not in said and "temperature" not in said):
        return ["theta", "scale", "log_tau", "tau"]
    if said & {"tau", "temp", "temperature", "temps"} or name == "T":
        return ["tau", "log_tau", "scale", "theta"] if "log" not in said else ["log_tau", "theta", "tau", "scale"]
    return ["scale", "theta", "tau", "log_tau"]


def mask_forms(name: str, annotation: str = "") -> list[str]:
    """Words for the forms of a mask, most likely first."""
    said = set(words(last_of(name)))
    if said & {"end", "ends", "last", "eos"} and not said & {"mask", "masks"}:
        return ["ends", "lengths", "mask"]
    if (said & LENGTH or size_of(name) == "L" or last_of(name) in ("n", "ns")) and not said & {"mask", "masks"}:
        return ["lengths", "mask", "mask_float", "mask_int", "lengths_list"]
    plain = ["mask", "mask_float", "mask_int"]
    if said & {"bias", "additive"} or "extended" in said:
        plain.append("additive")
    if said & {"ignore", *PADDED}:
        return ["padding", *plain, "padding_float", "padding_int", "lengths"]
    return [*plain, "padding", "padding_float", "lengths", "additive"]


def packed_forms(name: str) -> list[str]:
    """Words for what says where packed captions are, most likely first."""
    said = set(words(name))
    ends = said & {"cu", "seqlens", "ptr", "offsets"}
    first = "lengths" if said & (LENGTH | {"splits"}) else "cu_seqlens" if ends else "owner"
    return [first, *(w for w in ("owner", "cu_seqlens", "lengths") if w != first)]


def patch_mask_forms(name: str) -> list[str]:
    """Words for the forms of a mask of patches, most likely first."""
    forms = ["v_mask", "v_mask_float", "v_mask_int", "v_padding", "v_padding_float", "v_padding_int"]
    return [*forms[3:], *forms[:3]] if set(words(name)) & {"ignore", *PADDED} else forms


def is_module(p: dict) -> bool:
    """Whether a constructor's argument is a tower or another module, by its name or its annotation."""
    said = set(words(p["name"]))
    return "Module" in p.get("annotation", "") or (bool(said & MODULE) and size_of(p["name"]) is None)


def size_of(name: str) -> str | None:
    """A size of the probe that a constructor's or function's number stands for: "P", "L", "D", "B"."""
    said = words(last_of(name))
    if name in ("batch_size", "bsz", "bs", "B", "num_images", "n_images"):
        return "B"
    if set(said) & {"patch", "patches", "regions"} and set(said) & {"num", "n", "max", "number"}:
        return "P"
    if set(said) & {"tokens", "words", "len", "length", "seq"} and set(said) & {"num", "n", "max", "number", "context"}:
        return "L"
    if {"dim", "dims", "width", "channels", "embed"} & set(said) and set(said) <= DIMENSION:
        return "D"
    return None


def assignments(params: list[dict], most: int = 48) -> list[tuple[float, dict[str, str]]]:
    """Roles for the arguments, best hints first.      -> [(score, {argument: role}), ...]

    Every argument without a default gets one; one with a default only a role that its name says.  Each role is given once; an
    image side and a text side are always there.
    """
    choices: list[list[tuple[str, str | None, float]]] = []
    for p in params:
        said = hints(p["name"], p.get("annotation", ""))
        needed = "default" not in p
        if needed:
            size = size_of(p["name"])
            options: list[tuple[str, str | None, float]] = [(p["name"], role, score) for role, score in said.items()]
            if (size == "D" and not set(said) & {"v", "t"}) or size == "B":
                options = [(p["name"], "size", 3.0)]
            known = {role for role, score in said.items() if score >= (2 if role in ("mask", "scale") else 3)}
            if not known:
                options += [(p["name"], role, 0.0) for role in ("v", "t", "mask", "scale") if role not in said]
                options += [(p["name"], role, -0.5) for role in ("v_bar", "t_bar") if role not in said]
            choices.append(options)
        else:
            arrays = p["default"] is None or p["default"] == "None"
            given = {r: s for r, s in said.items() if r in ("mask", "scale") or (arrays and r in ("v", "t", "v_bar", "t_bar"))}
            if isinstance(p["default"], bool) or (isinstance(p["default"], str) and not arrays):
                given = {}
            choices.append([(p["name"], None, 0.0), *((p["name"], role, score) for role, score in given.items())])
    while len(choices) and _count(choices) > 60_000:
        widest = max(range(len(choices)), key=lambda i: len(choices[i]))
        choices[widest] = sorted(choices[widest], key=lambda c: -c[2])[: len(choices[widest]) - 1]
    found = []
    for picked in product(*choices):
        roles = [role for _, role, _ in picked if role is not None]
        once = [r for r in roles if r not in ("lambda", "eps", "size", "run")]
        sides = {"v", "t"} <= set(roles) or {"v_bar", "t_bar"} <= set(roles)
        if len(set(once)) < len(once) or not sides or ({"v_bar", "t_bar"} & set(roles)
                                                       and len({"v_bar", "t_bar"} & set(roles)) == 1
                                                       and "v" not in roles):
            continue
        score = sum(s for _, _, s in picked) + 0.25 * ({"v", "t"} <= set(roles))
        found.append((score, {name: role for name, role, _ in picked if role is not None}))
    return sorted(found, key=lambda pair: -pair[0])[:most]


def _count(choices):
    n = 1
    for c in choices:
        n *= len(c)
    return n
