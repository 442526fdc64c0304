"""Every measure that a data set supports, for one model, in one pass over its pictures.

Protocols, fixed here because they move the numbers:
    captions      all of a picture's captions (at most `captions` of them), cut at config.max_tokens
    grouping      weights of eq. 4 for the whole caption; the tokens of an object's name are those that overlap its span
    segmentation  patches through h_v and g_v (D.7). The class embeddings, under two protocols, each under its own key:
                  "name"     miou            the pooled text embedding of the bare class name, as in D.7
                  "caption"  miou_caption    token embeddings of the name inside the captions, each of length one,
                                             averaged over all mentions in the evaluated set; unnamed classes are out
    grounding     the first caption of the first `grounding` pictures
"""

import numpy as np
from array_api_compat import array_namespace

from sparc_ref.backend import like, to_numpy
from sparc_ref.evaluate.check import chosen, unit
from sparc_ref.evaluate.grounding import grounding_gap
from sparc_ref.evaluate.grouping import queries, summary
from sparc_ref.evaluate.retrieval import retrieval, retrieval_chance, retrieval_of_scores
from sparc_ref.evaluate.segmentation import IGNORE, intersections, mean_iou, segment
from sparc_ref.losses import fine_grained_loss
from sparc_ref.model import SPARCConfig, encode_images, encode_texts, own_params
from sparc_ref.objectives.chosen import ObjectiveConfig, patches_of, scores_of


def evaluate(
    params: dict, config: SPARCConfig, dataset, tokenizer, limit: int | None = None, batch: int = 64, *,
    captions: int | None = None, prompts: tuple[str, ...] = ("name", "caption"), upsample: str = "nearest",
    average: str = "per_image", background: str = "in_union", on: str = "cover", head: str = "paper", grounding: int = 512,
    shuffles: int = 4, seed: int = 0, shards: int = 1, objective: ObjectiveConfig | None = None,
) -> dict[str, float]:
    """All numbers that the data set supports, as a flat dict of floats; what cannot be measured has no key.

    The first `limit` examples, `batch` pictures at a time. captions: how many of a picture's captions at most.
    Always: i2t_r1, i2t_r5, i2t_r10, t2i_r1, t2i_r5, t2i_r10, each with _chance (a constant embedding), images, captions.
    From 2 pictures on: grounding_gap, fine_loss (true pictures), fine_loss_shuffled, grounding_gap_sd (over `shuffles`).
    With regions and spans: mass, pointing, iou, choice, each with _chance and _lift; best, objects (grouping.py; on).
    head: which patch embeddings localisation uses: "paper": g_v for the alignment, h_v then g_v for segmentation (D.7);
    "g_v" or "h_v": that one for both.  A path that was never trained says nothing: compare models under their best heads.
    With regions and classes: for each of `prompts` miou or miou_caption, with _chance (a random class per patch) and
    _foreground (background pixels left out); see segmentation.py for upsample, average and background.
    objective: what the model was trained with. Where it has a scoring rule of its own, the six recalls come once more under
    native_i2t_r1, ...; where it embeds g_v's patches once more (PACL), localisation through g_v reads what comes of them.
    seed draws the shuffles and the random classes. params may live on any device. ValueError: nothing to evaluate.
    """
    for prompt in prompts:
        chosen("prompts", prompt, ("name", "caption"))
    chosen("head", head, ("paper", "g_v", "h_v"))
    aligned, labelled = {"paper": ("v", "segment"), "g_v": ("v", "v"), "h_v": ("segment", "segment")}[head]
    indices = range(len(dataset) if limit is None else min(limit, len(dataset)))
    if not indices or batch < 1:
        raise ValueError(f"expected at least one example and a batch of 1, got limit={limit}, batch={batch}")
    rng = np.random.default_rng(seed)
    named = class_embeddings(params, config, dataset, tokenizer, indices, prompts, batch, shards)
    classes = tuple(dataset.classes)
    K = len(classes)
    scores = scores_of(objective) if objective else None
    own = own_arrays(params, config)

    v_bar, t_bar, owners = [], [], []
    patch_rows, words_of = [], []                                 # v, (t, mask) of everything, for `scores`
    grouped: list[dict] = []
    counts: dict[tuple[str, str], list] = {}
    fine = []                                                     # (v, t, mask) of the pictures for the grounding gap
    for a in range(0, len(indices), batch):
        examples = [dataset[i] for i in indices[a:a + batch]]
        image = images_of(params, config, examples, shards)
        texts, of = captions_of(examples, captions)
        tokens, mask = tokenizer.batch(texts, config.max_tokens)
        text = texts_of(params, config, tokens, mask, shards)
        v_bar.append(image["v_bar"])
        t_bar.append(text["t_bar"])
        owners.append(a + of)
        if scores:
            patch_rows.append(image["v"])
            words_of.append((text["t"], mask))
        if a < grounding:
            first = np.searchsorted(of, np.arange(min(len(examples), grounding - a)))
            fine.append((image["v"][:len(first)], text["t"][first], mask[first]))

        image["v"] = as_compared(params, config, image["v"], objective)
        grid = grid_of(config, examples)
        region = regions_of(config, tokenizer, examples, texts, of, mask)
        if np.any(region >= 0):
            weights = align(params, config, text["t"], image[aligned][of], mask)["weights"]
            masks = stack([[r.mask for r in e.regions] for e in examples], examples[0].image.shape[:2])
            grouped.append(queries(weights, region, masks[of], grid, on=on))
        if K and any(e.regions for e in examples):
            truth = np.stack([truth_of(e, classes) for e in examples])
            patches = image[labelled]
            random = segment(rng.normal(size=(*patches.shape[:2], K)), np.eye(K), grid, truth.shape[1:])
            predicted = {name: segmented(patches, emb, grid, truth.shape[1:], upsample)
                         for name, emb in named.items()}
            for name, labels in ({"chance": random} | predicted).items():
                for how in ("in_union", "ignore"):
                    counts.setdefault((name, how), []).append(
                        intersections(labels, truth, K, background=how, ignore=ignore_label(K)))

    owner = np.concatenate(owners)
    out = {"images": float(len(indices)), "captions": float(len(owner))}
    out |= retrieval(np.concatenate(v_bar), np.concatenate(t_bar), owner)
    out |= {f"{k}_chance": x for k, x in retrieval_chance(owner, len(indices)).items()}
    if scores:
        i2t, t2i = scored(
            scores, own, np.concatenate(patch_rows), words_of, np.concatenate(v_bar), np.concatenate(t_bar))
        out |= {f"native_{k}": x for k, x in retrieval_of_scores(i2t, t2i, owner).items()}
        out |= {f"native_{k}_chance": x for k, x in retrieval_chance(owner, len(indices)).items()}
    out |= gap_of(params, config, fine, rng, shuffles, batch)
    if grouped:
        out |= summary({k: np.concatenate([g[k] for g in grouped]) for k in grouped[0]})
    means = {key: mean_iou(*(np.concatenate(x) for x in zip(*parts)), average=average) for key, parts in counts.items()}
    for name in named:
        key, other = {"name": "miou", "caption": "miou_caption"}[name], "ignore"
        if (name, background) in means:
            out |= {key: means[name, background], f"{key}_chance": means["chance", background],
                    f"{key}_foreground": means[name, other], f"{key}_foreground_chance": means["chance", other]}
    return {k: x for k, x in out.items() if np.isfinite(x)}


def images_of(params, config, examples, shards=1):
    """encode_images of examples, as NumPy."""
    return pixels_of(params, config, [e.image for e in examples], shards)


def pixels_of(params, config, pictures, shards=1):
    """encode_images of (H,W,3) uint8 pictures, as NumPy."""
    from sparc_ref.data import to_images

    shapes = sorted({picture.shape for picture in pictures})
    if len(shapes) > 1:
        raise ValueError(f"expected pictures of one size, got {shapes}; open the data set with size={config.image_size}")
    x = like(to_images(pictures), params["theta"])
    return {k: to_numpy(y) for k, y in encode_images(own_params(params, config), x, config, shards).items()}


def texts_of(params, config, tokens, mask, shards=1):
    """encode_texts of host arrays, as NumPy."""
    xp = array_namespace(params["theta"])
    tokens, mask = like(tokens, params["theta"], xp.int64), like(mask, params["theta"], xp.bool)
    return {k: to_numpy(x) for k, x in encode_texts(own_params(params, config), tokens, mask, config, shards).items()}


def scored(scores, own, v, words, v_bar, t_bar, pictures=64):
    """An objective's scores of every picture and caption, some pictures at a time.      -> (N,M), (N,M) as NumPy"""
    longest = max(t.shape[1] for t, _ in words)
    t = np.concatenate([np.pad(t, ((0, 0), (0, longest - t.shape[1]), (0, 0))) for t, _ in words])
    mask = np.concatenate([np.pad(m, ((0, 0), (0, longest - m.shape[1]))) for _, m in words])
    rows = [scores(own, v[a:a + pictures], t, mask, v_bar[a:a + pictures], t_bar) for a in range(0, len(v), pictures)]
    i2t, t2i = (np.concatenate(each) for each in zip(*rows))
    return i2t, t2i


def own_arrays(params, config):
    """The parameters that an objective adds to the model's, as NumPy."""
    models = own_params(params, config)
    return {name: to_numpy(p) for name, p in params.items() if name not in models}


def as_compared(params, config, v, objective):
    """g_v's patches as an objective compares them: embedded once more where it does so (PACL).      (N,P,D) -> (N,P,D)"""
    embedded = patches_of(objective) if objective else None
    return embedded(own_arrays(params, config), v) if embedded else v


def align(params, config, t, v, mask):
    """align_patches of host arrays under the model's options: its trace, as NumPy."""
    from sparc_ref.alignment import align_patches

    _, trace, _ = align_patches(t, v, mask, **config.align_options)
    return {k: to_numpy(x) for k, x in trace.items()}


def captions_of(examples, most=None):
    """All captions (at most `most` of each picture) and the row of each one's picture.         -> list, (M,) int"""
    pairs = [(c, n) for n, e in enumerate(examples) for c in e.captions[:most]]
    bare = [e.key or str(n) for n, e in enumerate(examples) if not e.captions[:most]]
    if bare:
        raise ValueError(f"expected a caption for every picture, got none for {', '.join(bare[:5])}")
    return [c for c, _ in pairs], np.asarray([n for _, n in pairs])


def grid_of(config, examples):
    H, W = examples[0].image.shape[:2]
    return H // config.patch_size, W // config.patch_size


def regions_of(config, tokenizer, examples, texts, of, mask):
    """Which region of its picture each token names.                                -> (M,L) int, -1 for none and padding"""
    from sparc_ref.data import word_regions

    rows = []
    for m, (text, n) in enumerate(zip(texts, of)):
        offsets = tokenizer.encode(text, config.max_tokens).offsets
        rows.append(word_regions(offsets, examples[n].regions, m - int(np.searchsorted(of, n)), mask.shape[1]))
    return np.stack(rows)


def stack(masks, size):
    """Lists of masks, padded with empty ones to the longest list.                   -> (N,R,H,W) bool"""
    out = np.zeros((len(masks), max(map(len, masks)), *size), bool)
    for n, row in enumerate(masks):
        for r, mask in enumerate(row):
            if mask.shape != tuple(size):
                raise ValueError(f"region mask: expected the picture's size {tuple(size)}, got {mask.shape}")
            out[n, r] = mask
    return out


def ignore_label(K):
    return IGNORE if K <= IGNORE else K


def truth_of(example, classes):
    """The class of every pixel; -1 background; a region whose label is no class is ignored.         -> (H,W) int"""
    truth = np.full(example.image.shape[:2], -1, np.int64)
    for region in example.regions:
        truth[region.mask] = classes.index(region.label) if region.label in classes else ignore_label(len(classes))
    return truth


def segmented(patches, class_emb, grid, size, upsample):
    """segment with those classes only that have an embedding (a row of zeros is none)."""
    known = np.flatnonzero(np.any(class_emb != 0, axis=1))
    return known[segment(patches, class_emb[known], grid, size, upsample=upsample)]


def class_embeddings(params, config, dataset, tokenizer, indices, prompts, batch=64, shards=1):
    """{prompt: (K,D)} for the data set's classes; a class that no caption names is a row of zeros under "caption"."""
    out, classes = {}, tuple(dataset.classes)
    if "name" in prompts and classes:
        tokens, mask = tokenizer.batch(list(classes), config.max_tokens)
        out["name"] = unit(texts_of(params, config, tokens, mask, shards)["t_bar"])
    if "caption" in prompts and classes:
        total = np.zeros((len(classes), config.embed_dim))
        for a in range(0, len(indices), batch):
            examples = [dataset[i] for i in indices[a:a + batch]]
            if not any(r.spans for e in examples for r in e.regions):
                continue
            texts, of = captions_of(examples)
            tokens, mask = tokenizer.batch(texts, config.max_tokens)
            t = unit(texts_of(params, config, tokens, mask, shards)["t"])
            region = regions_of(config, tokenizer, examples, texts, of, mask)
            for m, l in np.argwhere(region >= 0):
                label = examples[of[m]].regions[region[m, l]].label
                if label in classes:
                    total[classes.index(label)] += t[m, l]
        if np.any(total):
            out["caption"] = unit(total)
    return out


def gap_of(params, config, parts, rng, shuffles, batch):
    """The grounding gap under the model's own loss options, in batches; {} for a single picture."""
    if sum(len(v) for v, _, _ in parts) < 2:
        return {}
    longest = max(t.shape[1] for _, t, _ in parts)
    v = np.concatenate([v for v, _, _ in parts])
    t = np.concatenate([np.pad(t, ((0, 0), (0, longest - t.shape[1]), (0, 0))) for _, t, _ in parts])
    mask = np.concatenate([np.pad(m, ((0, 0), (0, longest - m.shape[1]))) for _, _, m in parts])
    theta = to_numpy(params.get("theta_fine", params["theta"]))

    def fine_loss(v, t, mask):
        total = count = 0.0
        for a in range(0, len(v), batch):
            part = slice(a, a + batch)
            loss, _, _ = fine_grained_loss(v[part], t[part], mask[part], theta, reduction=config.reduction,
                                           **config.align_options)
            n = len(v[part]) if config.reduction == "sample" else int(mask[part].sum())
            total, count = total + n * float(loss), count + n
        return total / count

    got = grounding_gap(fine_loss, v, t, mask, rng, shuffles)
    names = {"gap": "grounding_gap", "true": "fine_loss", "shuffled": "fine_loss_shuffled", "shuffled_sd": "grounding_gap_sd"}
    return {names[k]: x for k, x in got.items()}
