"""evaluate and explain_examples, with the real model on a small data set made here, and with a model that knows the answer."""

from dataclasses import replace

import numpy as np
import pytest

from sparc_ref.data import Example, Region, WordTokenizer
from sparc_ref.model import PRESETS, init_params
from sparc_ref.run import measure
from sparc_ref.run.examples import explain_caption, explain_examples
from sparc_ref.run.measure import evaluate

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
TOKENIZER = WordTokenizer(["a", "left", "of", "box", *COLOURS])
SMALL = replace(PRESETS["tiny"], image_size=16, patch_size=4, vision_width=16, text_width=16, vision_depth=1,
                text_depth=1, embed_dim=12, vocab_size=TOKENIZER.vocab_size, max_tokens=12)


class Boxes:
    """Two boxes side by side on black: the left one covers 4x4 of 16x16 pixels, the right one 8x8."""

    name, classes = "boxes", tuple(f"{c} box" for c in COLOURS)

    def __len__(self):
        return 12

    def __getitem__(self, i):
        if not 0 <= i < 12:
            raise IndexError(i)
        a, b = [(x, y) for x in COLOURS for y in COLOURS if x != y][i]
        image = np.zeros((16, 16, 3), np.uint8)
        masks = np.zeros((2, 16, 16), bool)
        masks[0, 4:8, 0:4] = masks[1, 8:16, 8:16] = True
        for colour, mask in zip((a, b), masks):
            image[mask] = COLOURS[colour]
        captions = (f"a {a} box left of a {b} box", f"{b} box")
        at = captions[0].rindex(b)
        regions = (Region(f"{a} box", masks[0], ((0, 2, 2 + len(a) + 4),)),
                   Region(f"{b} box", masks[1], ((0, at, at + len(b) + 4), (1, 0, len(b) + 4))))
        return Example(image, captions, regions, key=str(i))


class Plain(Boxes):
    """The same pictures, captions only."""

    classes = ()

    def __getitem__(self, i):
        return replace(super().__getitem__(i), regions=())


@pytest.fixture(scope="module")
def params():
    return init_params(SMALL, np.random.default_rng(0))


RETRIEVAL = {f"{way}_r{k}{end}" for way in ("i2t", "t2i") for k in (1, 5, 10) for end in ("", "_chance")}


def test_every_number_that_the_data_supports(params):
    got = evaluate(params, SMALL, Boxes(), TOKENIZER, batch=5)
    grouping = {f"{m}{end}" for m in ("mass", "pointing", "iou", "choice") for end in ("", "_chance", "_lift")}
    grouping |= {"best", "objects"}
    gap = {"grounding_gap", "grounding_gap_sd", "fine_loss", "fine_loss_shuffled"}
    mious = {f"miou{p}{f}{end}" for p in ("", "_caption") for f in ("", "_foreground") for end in ("", "_chance")}
    assert got.keys() == RETRIEVAL | grouping | gap | mious | {"images", "captions"}
    assert all(type(x) is float and np.isfinite(x) for x in got.values())
    assert got["images"] == 12 and got["captions"] == 24 and got["objects"] == 36
    assert got["mass_chance"] == pytest.approx((12 * 16 + 24 * 64) / 36 / 256)
    assert got["t2i_r1_chance"] == pytest.approx(1 / 12)
    assert got["grounding_gap"] == pytest.approx(got["fine_loss_shuffled"] - got["fine_loss"])


def test_the_batch_changes_rounding_only_and_a_seed_repeats(params):
    a, b, c = (evaluate(params, SMALL, Boxes(), TOKENIZER, batch=n) for n in (3, 12, 12))
    assert b == c
    for key in a:
        if "_chance" not in key or "r" in key:                    # the random classes are drawn batch by batch
            assert a[key] == pytest.approx(b[key], abs=2e-5), key


def test_captions_alone_and_limits(params):
    got = evaluate(params, SMALL, Plain(), TOKENIZER, limit=5, captions=1)
    gap = {"grounding_gap", "grounding_gap_sd", "fine_loss", "fine_loss_shuffled"}
    assert got.keys() == RETRIEVAL | gap | {"images", "captions"}
    assert got["images"] == got["captions"] == 5
    assert "grounding_gap" not in evaluate(params, SMALL, Plain(), TOKENIZER, limit=1)
    assert evaluate(params, SMALL, Plain(), TOKENIZER, limit=99)["images"] == 12


@pytest.mark.parametrize("change", [{"align": "softmax"}, {"reduction": "token"}, {"temperature": "separate"},
                                    {"similarity": "cosine"}, {"lambda_f": 0.0}, {"h_v": "none"}])
def test_every_kind_of_model(change):
    config = replace(SMALL, **change)
    params = init_params(config, np.random.default_rng(1))
    got = evaluate(params, config, Boxes(), TOKENIZER, limit=4, batch=3)
    assert {"mass", "miou", "grounding_gap"} <= got.keys()
    assert explain_examples(params, config, Boxes(), TOKENIZER, [0])[0].weights.shape == (8, 16)


def test_a_cut_caption_keeps_its_tokens_and_names_apart(params):
    config = replace(SMALL, max_tokens=4)
    params = init_params(config, np.random.default_rng(1))
    a = explain_examples(params, config, Boxes(), TOKENIZER, [0])[0]
    assert a.words == ("a", "red", "box") and a.objects.tolist() == [-1, 0, 0]      # the fourth is the end token
    assert evaluate(params, config, Boxes(), TOKENIZER)["objects"] == 24


@pytest.fixture
def knowing(monkeypatch):
    """Embeddings that hold the answer: a patch and a word point along their colour's axis."""
    axis = {c: i for i, c in enumerate(COLOURS)}

    def images_of(params, config, examples, shards=1):
        v = np.zeros((len(examples), 16, 12))
        for n, e in enumerate(examples):
            for region in e.regions:
                on = region.mask.reshape(4, 4, 4, 4).all((1, 3)).ravel()
                v[n, on, axis[region.label.split()[0]]] = 1
        return {"v": v, "v_bar": v.mean(1), "segment": v}

    def texts_of(params, config, tokens, mask, shards=1):
        t = np.zeros((*tokens.shape, 12))
        for c, i in axis.items():
            t[..., i] = tokens == TOKENIZER.encode(c).ids[0]
        box = tokens == TOKENIZER.encode("box").ids[0]                        # "box" means what the word before it means
        t[:, 1:][box[:, 1:]] = t[:, :-1][box[:, 1:]]
        t[..., 4] = mask & ~np.any(t, axis=-1)
        return {"t": t, "t_bar": (t * (np.arange(12) < 4)).sum(1)}

    for module in ("measure", "examples"):
        monkeypatch.setattr(f"sparc_ref.run.{module}.images_of", images_of)
        monkeypatch.setattr(f"sparc_ref.run.{module}.texts_of", texts_of)


def test_a_model_that_knows_scores_one(knowing, params):
    got = evaluate(params, SMALL, Boxes(), TOKENIZER, batch=5)
    assert got["mass"] == got["pointing"] == got["iou"] == got["choice"] == got["best"] == pytest.approx(1)
    assert got["miou_foreground"] == got["miou_caption_foreground"] == 1
    assert got["miou"] < 1                                        # background patches tie, and are false positives
    assert got["grounding_gap"] != 0
    a = explain_examples(params, SMALL, Boxes(), TOKENIZER, [3, 0])[1]
    assert a.words == ("a", "red", "box", "left", "of", "a", "green", "box")
    assert a.objects.tolist() == [-1, 0, 0, -1, -1, -1, 1, 1]
    assert a.similarity.shape == a.minmax.shape == a.sparse.shape == a.weights.shape == (8, 16)
    assert a.weights[1].reshape(4, 4)[1, 0] == 1 and a.grid == (4, 4)
    assert np.array_equal(a.predicted[a.truth >= 0], a.truth[a.truth >= 0])
    assert a.classes[a.truth[5, 1]] == "red box" and a.truth[0, 0] == -1


def test_unnamed_and_unknown_classes(knowing, params):
    class Some(Boxes):
        classes = ("red box", "green box", "grey box")            # two labels are no class, one class is never named

    got = evaluate(params, SMALL, Some(), TOKENIZER)
    assert got["miou_foreground"] == got["miou_caption_foreground"] == 1
    assert measure.truth_of(Some()[11], Some.classes)[5, 1] == 255    # a white box


def test_explain_caption_with_the_real_model(params):
    image = Boxes()[0].image
    a = explain_caption(params, SMALL, TOKENIZER, image, "a red box")
    assert a.words == ("a", "red", "box") and a.predicted is None and a.truth is None
    assert a.weights.sum(-1) == pytest.approx(np.ones(3)) and a.minmax.max() == 1
    with pytest.raises(ValueError, match="at least one word"):
        explain_caption(params, SMALL, TOKENIZER, image, " ")


def test_refuses(params):
    for change in ({"limit": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="at least one example"):
            evaluate(params, SMALL, Boxes(), TOKENIZER, **change)
    with pytest.raises(ValueError, match="prompts: expected one of"):
        evaluate(params, SMALL, Boxes(), TOKENIZER, prompts=("photo",))

    class Bare(Plain):
        def __getitem__(self, i):
            return replace(super().__getitem__(i), captions=() if i == 2 else ("a box",))

    with pytest.raises(ValueError, match="a caption for every picture, got none for 2"):
        evaluate(params, SMALL, Bare(), TOKENIZER)

    class Sizes(Plain):
        def __getitem__(self, i):
            return replace(super().__getitem__(i), image=np.zeros((16 + 4 * (i % 2), 16, 3), np.uint8))

    with pytest.raises(ValueError, match="pictures of one size"):
        evaluate(params, SMALL, Sizes(), TOKENIZER)


def test_the_head_decides_which_patches_are_looked_at(params):
    """Under "g_v" both localise by g_v, under "h_v" both through h_v; "paper" takes one for each. Retrieval knows no head."""
    got = {head: evaluate(params, SMALL, Boxes(), TOKENIZER, batch=5, head=head) for head in ("paper", "g_v", "h_v")}
    assert got["paper"]["pointing"] == got["g_v"]["pointing"] and got["paper"]["mass"] != got["h_v"]["mass"]
    assert got["paper"]["miou"] == got["h_v"]["miou"] and got["paper"]["iou"] == got["g_v"]["iou"]
    assert len({got[head]["i2t_r1"] for head in got}) == 1
    with pytest.raises(ValueError, match="head: expected"):
        evaluate(params, SMALL, Boxes(), TOKENIZER, head="g_t")
