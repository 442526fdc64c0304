"""Who carries the answer?  A trained model is measured again with one thing taken away at a time.

    true              nothing is changed
    other pictures    captions keep their words and get the picture of another caption
    grey pictures     every picture is the same grey: what is left does not look
    ground blanked    pixels that no caption names become grey
    regions blanked   pixels that a caption names become grey: what is left cannot know the words
    words permuted    each caption names its regions in another order
    no attention      no patch sees another one
    no patch positions  every patch gets the mean of all positions
    no word positions   every word gets the mean of all positions (where the text tower has any)
    ground alone      words are aligned with patches without a named pixel only
    regions alone     words are aligned with patches of which named pixels cover at least half only
"""

from dataclasses import replace

import numpy as np

from sparc_ref import optim
from sparc_ref.data import Example, Region, to_images
from sparc_ref.evaluate.grouping import patch_cover
from sparc_ref.losses import fine_grained_loss
from sparc_ref.model import encode_images, encode_texts
from sparc_ref.run.measure import evaluate

GREY = 127
SHOWN = ("fine_loss", "pointing", "choice", "miou", "i2t_r1")


class Changed:
    """A data set with a function applied to every example."""

    def __init__(self, dataset, change):
        self.name, self.classes = dataset.name, dataset.classes
        self.examples = [change(dataset[i], i) for i in range(len(dataset))]

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def interventions(params: dict, config, dataset, tokenizer, seed: int = 0) -> dict[str, dict[str, float]]:
    """Every intervention's numbers: L_f, and what else can be measured there.      -> {name: {measure: number}}"""
    def numbers(params, dataset):
        found = evaluate(params, config, dataset, tokenizer, seed=seed, shuffles=4)
        return {k: found[k] for k in (*SHOWN, "fine_loss_shuffled") if k in found}

    rng = np.random.default_rng(seed)
    out = {"true": numbers(params, dataset)}
    out["other pictures"] = {"fine_loss": out["true"].pop("fine_loss_shuffled")}
    blind = {name: np.zeros_like(x) if ".attn.out." in name and name.startswith("vision.") else x for name, x in params.items()}
    def placeless(name):
        return params | {name: np.broadcast_to(params[name].mean(0), params[name].shape).copy()}

    for name, weights, changed in (
        ("grey pictures", params, Changed(dataset, lambda e, i: blanked(e, np.ones(e.image.shape[:2], bool)))),
        ("ground blanked", params, Changed(dataset, lambda e, i: blanked(e, ~named(e)))),
        ("regions blanked", params, Changed(dataset, lambda e, i: blanked(e, named(e)))),
        ("words permuted", params, Changed(dataset, lambda e, i: permuted(e, rng))),
        ("no attention", blind, dataset),
        ("no patch positions", placeless("vision.positions"), dataset),
        *([("no word positions", placeless("text.positions"), dataset)] if "text.positions" in params else []),
    ):
        out[name] = {k: v for k, v in numbers(weights, changed).items() if k != "fine_loss_shuffled"}
    return out | parts_alone(params, config, dataset, tokenizer)


def parts_alone(params, config, dataset, tokenizer) -> dict[str, dict[str, float]]:
    """L_f where words may use some of the patches only; pictures with fewer than two such patches are left out."""
    out = {}
    for name, keep in (("ground alone", lambda cover: cover == 0), ("regions alone", lambda cover: cover >= 0.5)):
        losses = []
        for i in range(len(dataset)):
            example = dataset[i]
            here = keep(patch_cover(named(example)[None], config.grid)[0])        # (P,)
            if here.sum() < 2 or len(example.regions) < 2:
                continue
            v = encode_images(params, to_images([example.image]), config)["v"][:, here]
            tokens, mask = tokenizer.batch([example.captions[0]], config.max_tokens)
            t = encode_texts(params, tokens, mask, config)["t"]
            theta = params.get("theta_fine", params["theta"])
            losses.append(float(fine_grained_loss(v, t, mask, theta, **config.align_options)[0]))
        if losses:
            out[name] = {"fine_loss": float(np.mean(losses)), "pictures": float(len(losses))}
    return out


def named(example: Example) -> np.ndarray:
    """(H,W) bool: the pixels of which the caption speaks."""
    return np.any([r.mask for r in example.regions], axis=0)


def blanked(example: Example, where: np.ndarray) -> Example:
    return replace(example, image=np.where(where[..., None], np.uint8(GREY), example.image))


def permuted(example: Example, rng: np.random.Generator) -> Example:
    """The same names in another order, a space between two."""
    labels = [example.regions[r] for r in rng.permutation(len(example.regions))]
    starts = np.cumsum([0, *(len(r.label) + 1 for r in labels)])
    regions = tuple(Region(r.label, r.mask, ((0, int(a), int(a) + len(r.label)),)) for r, a in zip(labels, starts))
    return replace(example, captions=(" ".join(r.label for r in labels),), regions=regions)


def blind(patches: int, words: int = 40, width: int = 64, updates: int = 300, seed: int = 0) -> tuple[float, float]:
    """How low L_f gets without a picture: patches (P,D) that never change, and word embeddings (K,D), are all that is learned.

    -> L_f before, and after `updates` (mean of the last 20); captions of 2-5 of the words, as in the mosaics
    """
    rng, batch = np.random.default_rng(seed), 64
    params = {name: rng.normal(size=(n, width)).astype(np.float32) for name, n in (("v.weight", patches), ("t.weight", words))}
    params["theta"] = np.asarray(-np.log(0.07), np.float32)
    state, losses = optim.adamw_init(params), []
    for _ in range(updates):
        tokens = np.argsort(rng.random((batch, words)), axis=1)[:, :5]            # (B,5), all different
        mask = np.arange(5) < rng.integers(2, 6, batch)[:, None]
        v = np.repeat(params["v.weight"][None], batch, axis=0)                    # the same in every picture
        loss, _, back = fine_grained_loss(v, params["t.weight"][tokens], mask, params["theta"])
        dv, dt, dtheta = back()
        grads = {"v.weight": dv.sum(0), "t.weight": np.zeros_like(params["t.weight"]), "theta": dtheta}
        np.add.at(grads["t.weight"], tokens, dt)
        params, state = optim.adamw_step(params, grads, state, 1e-2, weight_decay=0.0)
        params = optim.clamp_theta(params)
        losses.append(float(loss))
    return losses[0], float(np.mean(losses[-20:]))
