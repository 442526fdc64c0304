"""evaluate and explain_examples, nothing mocked, on pictures that are not square: every number computed again from the oracle.

Embeddings and alignment are parity.oracle's, the measures are loops over captions, patches and pixels, written from the
docstrings of evaluate/. Measured: the numbers agree to 1e-14; only what is drawn at random is compared with all that could be.
"""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity import oracle
from sparc_ref.data import Example, Region, WordTokenizer
from sparc_ref.model import SPARCConfig, parameter_shapes
from sparc_ref.run.examples import explain_examples
from sparc_ref.run.measure import evaluate

H, W, PATCH = 16, 24, 4
GRID = (H // PATCH, W // PATCH)
P = GRID[0] * GRID[1]
COLOURS = ("red", "grey", "green", "blue", "white", "black")
CLASSES = tuple(f"{c} box" for c in COLOURS[:5])              # "black box" is no class; nothing is ever called a grey box
SIZES = ("big", "small", "old", "new", "thin", "wide")
TOKENIZER = WordTokenizer(["a", "left", "of", "box", *SIZES, *COLOURS])
PLAIN = SPARCConfig(
    image_size=16, patch_size=PATCH, vision_width=8, vision_depth=1, vision_heads=2, text_width=6, text_depth=1, text_heads=3,
    vocab_size=TOKENIZER.vocab_size, max_tokens=9, embed_dim=7, mlp_ratio=2, temperature_init=0.5,
)  # fmt: skip
OTHER = replace(PLAIN, gelu="erf", position_resize="linear", text_positions="none", temperature="separate", reduction="token",
                sigma=0.03, similarity="cosine", threshold_on="weights")
OPTIONS = {"limit": 12, "batch": 5, "captions": 2, "upsample": "bilinear", "average": "dataset", "background": "ignore",
           "on": "touch", "grounding": 3, "shuffles": 3, "seed": 7, "shards": 2}  # fmt: skip


class Boxes:
    """Thirteen pictures of 16 x 24 pixels with two or three boxes; one to three captions, some name one twice.

    captions[i][k] is a list of (word, the region that it names or -1).
    """

    name, classes = "boxes", CLASSES

    def __init__(self):
        rng = np.random.default_rng(11)
        self.examples, self.words, bags = [], [], []
        for i in range(13):
            n = 2 + i % 2
            colours = [c for c in rng.permutation(COLOURS) if c != "grey"][:n]
            image = rng.integers(0, 256, (H, W, 3), np.uint8)
            masks = []
            for left in rng.permutation(3)[:n] * 8:
                mask = np.zeros((H, W), bool)
                top, height, width = rng.integers(0, 9), rng.integers(3, 8), rng.integers(3, 8)
                mask[top:top + height, left:left + width] = True
                masks.append(mask)
            captions = []
            while len(captions) < 1 + i % 3:
                (x, y), extra = rng.permutation(n)[:2], rng.choice(SIZES, rng.integers(1, 3))
                words = [*((e, -1) for e in extra), (colours[x], x), ("box", x)]
                if rng.random() < 0.7:
                    words += [("left", -1), ("of", -1), (colours[y], y), ("box", y)]
                if rng.random() < 0.5:
                    words += [("a", -1), (colours[x], x), ("box", x)]                 # cut where the caption is too long
                if (bag := sorted(w for w, _ in words[:PLAIN.max_tokens - 1])) not in bags:      # no two captions tie
                    bags.append(bag)
                    captions.append(words)
            spans = {r: [] for r in range(n)}
            for k, words in enumerate(captions):
                at = 0
                for word, r in words:
                    if word == "box":
                        spans[r].append((k, at - len(colours[r]) - 1, at + 3))
                    at += len(word) + 1
            regions = tuple(Region(f"{c} box", m, tuple(spans[r])) for r, (c, m) in enumerate(zip(colours, masks)))
            self.examples.append(Example(image, tuple(" ".join(w for w, _ in c) for c in captions), regions, str(i)))
            self.words.append(captions)

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]


DATA = Boxes()


def weights_of(config, seed):
    rng = np.random.default_rng(seed)
    params = {n: np.asarray(rng.standard_normal(s) * (0.5 if s else 1)) for n, s in parameter_shapes(config).items()}
    return params | {"theta": np.asarray(1.5)} | ({"theta_fine": np.asarray(0.4)} if "theta_fine" in params else {})


# ------------------------------------------------------------------------------------------- everything once more, by hand


def embedded(params, config, pictures, captions=None):
    """v, segment (N,P,D), v_bar (N,D) of pictures; t, t_bar, mask, region, owner of their captions (at most so many)."""
    p = {n: torch.tensor(x) for n, x in params.items()}
    x = np.stack([DATA[i].image for i in pictures]).transpose(0, 3, 1, 2) * np.float32(1 / 127.5) - np.float32(1)
    f_v = oracle.vision(p, torch.tensor(x, dtype=torch.float64), config)
    rows = [(n, words) for n, i in enumerate(pictures) for words in DATA.words[i][:captions]]
    t, t_bar, mask, region = texts(p, config, [words for _, words in rows])
    return SimpleNamespace(
        v=oracle.linear(f_v, p["g_v.weight"], p["g_v.bias"]), segment=oracle.image_head(p, f_v, config),
        v_bar=oracle.image_head(p, f_v.mean(1), config), t=t, t_bar=t_bar, mask=mask, region=region,
        owner=np.array([n for n, _ in rows]), theta=p.get("theta_fine", p["theta"]),
    )


def texts(p, config, captions):
    """Lists of (word, region): cut, EOS at the end, padded."""
    kept = [words[:config.max_tokens - 1] for words in captions]
    longest = max(map(len, kept)) + 1
    tokens, mask = np.zeros((len(kept), longest), int), np.zeros((len(kept), longest), bool)
    region = np.full((len(kept), longest), -1)
    for m, words in enumerate(kept):
        tokens[m, :len(words)] = [TOKENIZER.index[w] for w, _ in words]
        tokens[m, len(words)] = TOKENIZER.eos_id
        region[m, :len(words)] = [r for _, r in words]
        mask[m, :len(words) + 1] = True
    mask = torch.tensor(mask)
    f_t = oracle.text(p, torch.tensor(tokens), mask, config)
    t = oracle.linear(f_t, p["g_t.weight"], p["g_t.bias"])
    pooled = oracle.masked_mean(f_t, None if config.text_pool == "all" else mask)
    return t, oracle.linear(pooled, p["g_t.weight"], p["g_t.bias"]), mask, region


def aligned(e, config):
    options = {name: getattr(config, name) for name in oracle.ALIGN}
    return oracle.align_stages(e.t, e.v[e.owner], e.mask, **options)[1]


def retrieval(e):
    s = (oracle.unit(e.v_bar) @ oracle.unit(e.t_bar).T).numpy()                       # (N,M)
    N, M = s.shape
    own = [np.flatnonzero(e.owner == n) for n in range(N)]
    out = {"images": N, "captions": M}
    for k in (1, 5, 10):
        out[f"i2t_r{k}"] = np.mean([any(m in np.argsort(-s[n])[:k] for m in own[n]) for n in range(N)])
        out[f"t2i_r{k}"] = np.mean([e.owner[m] in np.argsort(-s[:, m])[:k] for m in range(M)])
        out[f"i2t_r{k}_chance"] = np.mean([1 - math.comb(M - len(o), k) / math.comb(M, k) for o in own])
        out[f"t2i_r{k}_chance"] = k / N
    return out


def patches_of(mask):
    return mask.reshape(GRID[0], PATCH, GRID[1], PATCH).mean((1, 3)).ravel()


def grouping(e, config, pictures, on="cover"):
    weights, rows = aligned(e, config)["weights"].numpy(), []
    for m, n in enumerate(e.owner):
        cover = np.stack([patches_of(r.mask) for r in DATA[pictures[n]].regions])     # (R,P)
        for r in sorted(set(e.region[m]) - {-1}):
            a = weights[m][e.region[m] == r].mean(0)
            a = a / a.sum()
            target = cover[r] if on == "cover" else cover[r] > 0
            near = a >= a.max() / 2
            overlap = cover[r][near].sum()
            per_pixel = [c @ a / c.sum() for c in cover]
            rows.append({
                "mass": a @ cover[r], "pointing": target[a.argmax()], "best": cover[r].max(),
                "iou": overlap / (near.sum() + cover[r].sum() - overlap), "choice": np.argmax(per_pixel) == r,
                "mass_chance": cover[r].mean(), "pointing_chance": target.mean(), "iou_chance": cover[r].mean(),
                "choice_chance": 1 / len(cover),
            })
    out = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    out |= {f"{k}_lift": out[k] / out[f"{k}_chance"] for k in ("mass", "pointing", "iou", "choice")}
    return out | {"objects": len(rows)}


def class_names(params, config, pictures):
    p = {n: torch.tensor(x) for n, x in params.items()}
    words = [[(w, -1) for w in name.split()] for name in CLASSES]
    by_name = texts(p, config, words)[1]
    e, total = embedded(params, config, pictures), torch.zeros(len(CLASSES), config.embed_dim, dtype=torch.float64)
    for m, l in np.argwhere(e.region >= 0):
        label = DATA[pictures[e.owner[m]]].regions[e.region[m, l]].label
        if label in CLASSES:
            total[CLASSES.index(label)] += oracle.unit(e.t[m, l])
    named = [k for k in range(len(CLASSES)) if bool((total[k] != 0).any())]
    assert CLASSES.index("grey box") not in named and len(named) == 4
    return {"name": (by_name, list(range(len(CLASSES)))), "caption": (total[named], named)}


def labelled(segment, embeddings, upsample):
    """(N,P,D) -> (N,H,W), the nearest class of every pixel"""
    emb, known = embeddings
    s = oracle.unit(segment) @ oracle.unit(emb).T                                     # (N,P,K)
    s = s.mT.reshape(len(s), len(known), *GRID)
    mode = {"mode": "bilinear", "align_corners": False} if upsample == "bilinear" else {"mode": "nearest"}
    return np.array(known)[F.interpolate(s, (H, W), **mode).argmax(1).numpy()]


def truths_of(pictures):
    truth = np.full((len(pictures), H, W), -1)
    for n, i in enumerate(pictures):
        for r in DATA[i].regions:
            truth[n][r.mask] = CLASSES.index(r.label) if r.label in CLASSES else 255
    return truth


def mean_iou(labels, truth, average, background):
    counted = (truth != 255) & ((truth != -1) | (background == "in_union"))
    parts = np.zeros((len(truth), len(CLASSES), 3))                                   # intersection, union, area
    for n, k in np.ndindex(parts.shape[:2]):
        a, b = (x[n][counted[n]] == k for x in (labels, truth))
        parts[n, k] = (a & b).sum(), (a | b).sum(), b.sum()
    if average == "dataset":
        parts = parts.sum(0, keepdims=True)
    return np.mean([np.mean([i / u for i, u, area in row if area]) for row in parts if row[:, 2].any()])


def segmentation(params, config, e, pictures, upsample="nearest", average="per_image", background="in_union"):
    """The numbers, and for the random classes the mean and spread over many draws."""
    truth, rng, out, chance = truths_of(pictures), np.random.default_rng(0), {}, {}
    hows = {"": background, "_foreground": "ignore"}
    draws = []
    for _ in range(20):
        labels = rng.integers(0, len(CLASSES), (len(pictures), *GRID)).repeat(PATCH, 1).repeat(PATCH, 2)
        draws.append([mean_iou(labels, truth, average, how) for how in hows.values()])
    for prompt, emb in class_names(params, config, pictures).items():
        key = {"name": "miou", "caption": "miou_caption"}[prompt]
        labels = labelled(e.segment, emb, upsample)
        for (end, how), mean, sd in zip(hows.items(), np.mean(draws, 0), np.std(draws, 0, ddof=1)):
            out[key + end] = mean_iou(labels, truth, average, how)
            chance[f"{key}{end}_chance"] = mean, sd
    return out, chance


def fine_losses(e, config, pictures):
    """fine_loss(order): L_f of each picture's first caption, the picture of caption n being order[n]."""
    first = [int(np.flatnonzero(e.owner == n)[0]) for n in range(pictures)]
    options = {name: getattr(config, name) for name in oracle.ALIGN}
    t, mask = e.t[first], e.mask[first]

    def loss(order):
        return float(oracle.fine_grained_loss(e.v[list(order)], t, mask, e.theta, config.reduction, **options))

    return loss


@pytest.fixture(scope="module")
def plain():
    """Everything at its default, on all pictures."""
    params = weights_of(PLAIN, 3)
    return params, evaluate(params, PLAIN, DATA, TOKENIZER), embedded(params, PLAIN, range(13))


@pytest.fixture(scope="module")
def other():
    """No option at its default."""
    params = weights_of(OTHER, 3)
    return params, evaluate(params, OTHER, DATA, TOKENIZER, **OPTIONS), embedded(params, OTHER, range(12), 2)


def agree(got, wanted):
    for name, value in wanted.items():
        assert got[name] == pytest.approx(float(value), rel=1e-12, abs=1e-13), name


def test_no_number_goes_unchecked(plain, other):
    known = {*retrieval(plain[2]), *grouping(plain[2], PLAIN, range(13))}
    known |= {f"miou{c}{f}{end}" for c in ("", "_caption") for f in ("", "_foreground") for end in ("", "_chance")}
    known |= {"grounding_gap", "fine_loss", "fine_loss_shuffled", "grounding_gap_sd"}
    assert plain[1].keys() == other[1].keys() == known


def test_the_case_can_tell(plain, other):
    """Numbers that could be exchanged differ; a caption is cut, a picture has several, a name is said twice."""
    for got, alike in ((plain[1], ()), (other[1], ("_foreground",))):
        numbers = [x for k, x in got.items() if not k.endswith(("_lift", "_chance", "images", *alike))]
        assert len(numbers) == len(set(numbers))
    assert any(len(words) >= PLAIN.max_tokens for words in itertools.chain(*DATA.words))
    assert {*map(len, DATA.words)} == {1, 2, 3}
    named = [(i, r) for i in range(13) for words in DATA.words[i] for w, r in words if w == "box"]
    assert len(named) > len(set(named)) and GRID[0] != GRID[1]


def test_what_is_not_said_is_as_the_docstring_has_it(plain):
    params, got, _ = plain
    assert got == evaluate(
        params, PLAIN, DATA, TOKENIZER, None, 64, captions=None, prompts=("name", "caption"), upsample="nearest",
        average="per_image", background="in_union", on="cover", head="paper", grounding=512, shuffles=4, seed=0, shards=1,
        objective=None)


def test_retrieval(plain, other):
    agree(plain[1], retrieval(plain[2]))
    agree(other[1], retrieval(other[2]))


def test_localisation(plain, other):
    agree(plain[1], grouping(plain[2], PLAIN, range(13)))
    agree(other[1], grouping(other[2], OTHER, range(12), "touch"))


def test_segmentation(plain, other):
    how = {k: OPTIONS[k] for k in ("upsample", "average", "background")}
    for (params, got, e), config, pictures, options in ((plain, PLAIN, range(13), {}), (other, OTHER, range(12), how)):
        wanted, chance = segmentation(params, config, e, pictures, **options)
        agree(got, wanted)
        for name, (mean, sd) in chance.items():
            assert abs(got[name] - mean) < 5 * sd, name


def test_pixels_of_the_background_are_left_out_of_numbers_and_chance_alike(plain, other):
    params, got, _ = plain
    left_out = evaluate(params, PLAIN, DATA, TOKENIZER, background="ignore")
    for key in ("miou", "miou_caption"):
        for end in ("", "_chance"):
            assert left_out[key + end] == left_out[f"{key}_foreground{end}"] == got[f"{key}_foreground{end}"] > got[key + end]
        assert got["miou_chance"] == got[f"{key}_chance"] and other[1]["miou_chance"] == other[1][f"{key}_foreground_chance"]


def test_the_grounding_gap_of_all_pictures(plain):
    _, got, e = plain
    loss = fine_losses(e, PLAIN, 13)
    agree(got, {"fine_loss": loss(range(13)), "grounding_gap": got["fine_loss_shuffled"] - got["fine_loss"]})
    shifted = [loss(np.roll(range(13), s)) for s in range(1, 13)]                     # every wrong pair once
    spread = np.std(shifted, ddof=1)
    assert abs(got["fine_loss_shuffled"] - np.mean(shifted)) < 5 * spread / 4**0.5 and 0 < got["grounding_gap_sd"] < 4 * spread


def test_the_grounding_gap_of_pictures_that_end_within_a_batch(plain):
    params, _, e = plain
    agree(evaluate(params, PLAIN, DATA, TOKENIZER, batch=5, grounding=7), {"fine_loss": fine_losses(e, PLAIN, 7)(range(7))})


def test_batches_change_nothing_but_what_is_drawn_for_them(plain, other):
    """Batches hold unequal numbers of captions and tokens, and some classes are named in one of them alone."""
    drawn = {f"miou{c}{f}_chance" for c in ("", "_caption") for f in ("", "_foreground")}
    params, got, _ = plain
    agree(evaluate(params, PLAIN, DATA, TOKENIZER, batch=4, shards=3), {k: x for k, x in got.items() if k not in drawn})
    params, config = other[0], replace(OTHER, text_positions="learned")
    params = params | {"text.positions": np.random.default_rng(5).standard_normal((config.max_tokens, config.text_width))}
    got = evaluate(params, config, DATA, TOKENIZER, batch=4)
    agree(got, {"fine_loss": fine_losses(embedded(params, config, range(13)), config, 13)(range(13))})
    agree(got, {k: x for k, x in evaluate(params, config, DATA, TOKENIZER).items() if k not in drawn})


def test_the_grounding_gap_of_three_pictures_over_three_shuffles(other):
    """Three pictures can be shuffled in two ways, so the mean over shuffles is one of four numbers; both ways occurred."""
    _, got, e = other
    loss = fine_losses(e, OTHER, 3)
    agree(got, {"fine_loss": loss(range(3))})
    a, b = loss((1, 2, 0)), loss((2, 0, 1))
    mixed = {j: [a] * j + [b] * (3 - j) for j in (1, 2)}
    j = min(mixed, key=lambda j: abs(np.mean(mixed[j]) - got["fine_loss_shuffled"]))
    agree(got, {"fine_loss_shuffled": np.mean(mixed[j]), "grounding_gap_sd": np.std(mixed[j], ddof=1),
                "grounding_gap": np.mean(mixed[j]) - loss(range(3))})


def test_the_seed_draws_shuffles_and_random_classes(plain):
    params, got, _ = plain
    again, others = (evaluate(params, PLAIN, DATA, TOKENIZER, seed=s) for s in (0, 1))
    assert again == got
    drawn = {name for name in got if others[name] != got[name]}
    assert drawn == {"grounding_gap", "fine_loss_shuffled", "grounding_gap_sd",
                     *(f"miou{c}{f}_chance" for c in ("", "_caption") for f in ("", "_foreground"))}


@pytest.mark.parametrize("config, seed, prompt, upsample", [(PLAIN, 1, "name", "nearest"), (OTHER, 2, "caption", "bilinear")])
def test_what_is_shown_of_single_examples(config, seed, prompt, upsample):
    params, shown = weights_of(config, seed), [4, 0, 9]
    seen = explain_examples(params, config, DATA, TOKENIZER, shown, prompt=prompt, upsample=upsample)
    e = embedded(params, config, shown)
    stages = aligned(e, config)
    labels = labelled(e.segment, class_names(params, config, range(13))["name"] if prompt == "name" else
                      mentions(params, config, shown), upsample)
    for n, (i, x) in enumerate(zip(shown, seen)):
        m = int(np.flatnonzero(e.owner == n)[0])
        words = DATA.words[i][0][:config.max_tokens - 1]
        assert np.array_equal(x.image, DATA[i].image) and x.caption == DATA[i].captions[0] and x.grid == GRID
        assert x.words == tuple(w for w, _ in words) and x.objects.tolist() == [r for _, r in words] and x.key == str(i)
        for name in ("similarity", "minmax", "sparse", "weights"):
            np.testing.assert_allclose(getattr(x, name), stages[name][m, :len(words)].numpy(), atol=1e-12, err_msg=name)
        assert np.array_equal(x.truth, truths_of([i])[0]) and np.array_equal(x.predicted, labels[n]) and x.classes == CLASSES


def mentions(params, config, pictures):
    """Class embeddings from the captions of these pictures alone."""
    e, total = embedded(params, config, pictures), torch.zeros(len(CLASSES), config.embed_dim, dtype=torch.float64)
    for m, l in np.argwhere(e.region >= 0):
        label = DATA[pictures[e.owner[m]]].regions[e.region[m, l]].label
        if label in CLASSES:
            total[CLASSES.index(label)] += oracle.unit(e.t[m, l])
    named = [k for k in range(len(CLASSES)) if bool((total[k] != 0).any())]
    return total[named], named
