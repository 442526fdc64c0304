"""Drawn scenes: what the caption says is what the image shows, and both never change."""

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparc_ref.data import DrawnScenes, WordTokenizer
from sparc_ref.data.drawn import COLOURS, PAIRS, draw
from sparc_ref.data.scenes import POSITION_WORDS, Draws, place, position, relation
from sparc_ref.data.shapes import SHAPES, TEXTURES

OPTIONS = [{}, {"style": "short"}, {"fused": True}, {"clutter": False, "textures": False}, {"captions": 3, "size": 48}]


def digest(example):
    h = hashlib.sha256(example.image.tobytes() + json.dumps(example.captions).encode())
    for region in example.regions:
        h.update(region.label.encode() + region.mask.tobytes() + repr(region.spans).encode())
    return h.hexdigest()


def grown(mask, by=4):
    out = mask.copy()
    for shift in itertools.product(range(-by, by + 1), repeat=2):
        out |= np.roll(mask, shift, (0, 1))
    return out


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("split", ["train", "unseen"])
def test_an_example_is_what_the_contract_says(split, options):
    ds = DrawnScenes(split, count=30, **options)
    json.dumps(ds.describe())
    words = set(ds.vocabulary())
    for i in range(len(ds)):
        example = ds[i]
        assert example.image.shape == (ds.size, ds.size, 3) and example.image.dtype == np.uint8
        assert len(example.captions) == ds.captions and 1 <= len(example.regions) <= 4
        assert len({r.label for r in example.regions}) == len(example.regions)
        for text in example.captions:
            assert set(text.split()) <= words
        for region in example.regions:
            assert region.label in ds.classes and region.mask.dtype == bool and region.mask.shape == example.image.shape[:2]
            assert [k for k, _, _ in region.spans] == list(range(ds.captions))
            for k, start, end in region.spans:
                phrase = example.captions[k][start:end].split()
                assert " ".join(phrase).endswith(region.label)
                assert set(phrase[:-len(region.label.split())]) <= {"small", "large", *TEXTURES}
        masks = np.array([r.mask for r in example.regions])
        assert masks.sum(0).max() <= 1, "masks overlap"
    with pytest.raises(IndexError):
        ds[30]


def test_a_scene_does_not_depend_on_count_order_or_earlier_scenes():
    a, b = DrawnScenes(count=10), DrawnScenes(count=10_000)
    forwards = [digest(a[i]) for i in range(10)]
    assert [digest(b[i]) for i in reversed(range(10))] == forwards[::-1]
    others = [DrawnScenes(seed=1), DrawnScenes("validation"), DrawnScenes("test")]
    assert len({forwards[3], *(digest(ds[3]) for ds in others)}) == 4


def test_scenes_never_change_on_any_machine_or_in_any_process():
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from test_drawn import digest, DrawnScenes\n"
            "print(digest(DrawnScenes('test', count=99, seed=5)[42]), digest(DrawnScenes('unseen', size=100, fused=True)[7]))")
    out = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=True)
    frozen = ["1202436e972b8c3e54459a8129c2bd586c5dd32bb9cffaabbf53a5903fbe8e1e",
              "f6fd1d076d98467633ba3dded54d66f78b20fd5e03123dc4c275c9cfd4475f95"]
    assert out.stdout.split() == frozen
    assert [digest(DrawnScenes("test", seed=5)[42]), digest(DrawnScenes("unseen", size=100, fused=True)[7])] == frozen


def test_unseen_pairs_are_disjoint_and_every_word_of_them_is_known():
    train, unseen = DrawnScenes(), DrawnScenes("unseen")
    assert len(train.classes) == 48 and len(unseen.classes) == 16 and not set(train.classes) & set(unseen.classes)
    assert train.classes == DrawnScenes("validation").classes == DrawnScenes("test").classes
    assert {c for c, _ in unseen.pairs} == set(COLOURS) and {s for _, s in unseen.pairs} == set(SHAPES)
    for part in (0, 1):                                           # each colour and each shape is held out equally often
        counts = [sum(pair[part] == word for pair in unseen.pairs) for word in (COLOURS, SHAPES)[part]]
        assert counts == [2] * 8
    shown = {r.label for i in range(300) for r in train[i].regions}
    assert len(shown) == 48 and not shown & set(unseen.classes)
    assert len({r.label for i in range(100) for r in unseen[i].regions}) == 16
    assert len(PAIRS) == 64


def test_options_do_what_they_say():
    counts = [len(DrawnScenes(objects=(2, 3))[i].regions) for i in range(60)]
    assert set(counts) == {2, 3}
    assert {len(DrawnScenes()[i].regions) for i in range(60)} == {1, 2, 3, 4}
    plain = " ".join(DrawnScenes(textures=False)[i].captions[0] for i in range(60))
    assert not any(t in plain for t in ("striped", "dotted", "checked"))
    for option in ({"split": "tset"}, {"size": 15}, {"objects": (0, 2)}, {"objects": (3, 2)}, {"objects": (1, 5)},
                   {"style": "long"}, {"count": 0}, {"seed": -1}, {"captions": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected"):
            DrawnScenes(**option)


@pytest.mark.parametrize("fused", [False, True])
def test_the_vocabulary_covers_every_split_and_style(fused):
    tokenizers = {WordTokenizer(DrawnScenes(s, fused=fused, style=y).vocabulary()).hash
                  for s in ("train", "unseen") for y in ("full", "short")}
    assert len(tokenizers) == 1
    tokenizer = WordTokenizer(DrawnScenes(fused=fused).vocabulary())
    for split in ("train", "unseen"):
        tokenizer.batch([DrawnScenes(split, fused=fused)[i].captions[0] for i in range(50)], 64)
    assert tokenizer.unknown == 0 and tokenizer.counts.texts == 100
    assert set(POSITION_WORDS) < set(DrawnScenes().vocabulary())


def test_masks_are_exactly_what_is_painted():
    """One plain object on a flat ground: the coverage read back from the colours says the same as the mask."""
    checked = 0
    for i in range(40):
        example = DrawnScenes(objects=(1, 1), clutter=False, textures=False, count=40)[i]
        mask, image = example.regions[0].mask, example.image.astype(float)
        ground = image[~mask][np.argsort(np.abs(image[~mask] - np.median(image[~mask], 0)).sum(-1))[0]]
        tone = np.median(image[mask], 0)
        cover = (image - ground) @ (tone - ground) / ((tone - ground) ** 2).sum()
        sure = np.abs(cover - 0.5) > 0.02                         # rounding to uint8
        assert np.array_equal(cover[sure] > 0.5, mask[sure])
        assert (~sure).sum() <= 8 and ((cover > 0.1) & (cover < 0.9)).any(), "edges are antialiased"
        checked += sure.sum()
        colour = COLOURS[example.regions[0].label.split()[0]]
        assert np.abs(tone - colour).max() <= 8
    assert checked > 40 * 4000


def test_masks_hold_only_visible_pixels_and_all_of_them():
    overlaps = inners = 0
    for i in range(150):
        example = DrawnScenes(objects=(3, 4), clutter=False, textures=False)[i]
        image = example.image.astype(float)
        masks = [r.mask for r in example.regions]
        ground = np.median(image[~np.any(masks, 0)], 0)
        near = [grown(mask) for mask in masks]                    # where edges and thin tips blend
        for k, (region, mask) in enumerate(zip(example.regions, masks)):
            inner = mask & ~grown(~mask, 2) & ~np.any([np.zeros_like(mask), *near[:k], *near[k + 1:]], 0)
            if inner.any():
                inners += 1
                assert np.abs(image[inner] - np.array(COLOURS[region.label.split()[0]])).max() <= 9
        assert np.abs(image[~np.any(near, 0)] - ground).max() <= 1
        edges = [np.roll(a, s, axis) & b for a, b in itertools.combinations(masks, 2) for s in (-1, 1) for axis in (0, 1)]
        overlaps += np.any(edges)
    assert inners > 200
    assert overlaps > 10, "some scenes have objects that touch, or this tests nothing"


@pytest.mark.parametrize(("size", "least"), [(32, 10), (64, 45), (224, 550)])
def test_every_object_stays_visible(size, least):
    for split in ("train", "unseen"):
        ds = DrawnScenes(split, size=size, objects=(4, 4))
        assert min(r.mask.sum() for i in range(100) for r in ds[i].regions) >= least


def test_relations_and_places_hold_in_the_image():
    said = set()
    for i in range(300):
        example = DrawnScenes(clutter=False)[i]
        text = example.captions[0]
        centre = {}
        for region in example.regions:
            y, x = np.nonzero(region.mask)
            centre[region.spans[0][1:]] = (x.mean(), y.mean())
        order = sorted(centre)
        for n, (a, b) in enumerate(zip(order, [*order[1:], (len(text) + 3, 0)])):
            link = text[a[1]:b[0] - 2].strip()
            if not link:                                          # the second of a pair ends the caption
                assert n == len(order) - 1 and n % 2 == 1
                continue
            said.add(link)
            (ax, ay), (bx, by) = centre[a], centre.get(b, (0, 0))
            if link.startswith(("at", "on", "in")):
                assert n == len(order) - 1 and n % 2 == 0
                assert ("left" in link) <= (ax < 26) and ("right" in link) <= (ax > 38)
                assert ("top" in link) <= (ay < 26) and ("bottom" in link) <= (ay > 38)
                assert ("middle" in link) <= (18 < ax < 46 and 18 < ay < 46)
            elif link != "and":
                assert {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}[link], (i, text)
    assert len(said) >= 4 + 8, said


def test_sizes_are_told_apart():
    area = {"small": [], "large": []}
    for i in range(200):
        example = DrawnScenes(objects=(1, 1))[i]
        r = example.regions[0]
        y, x = np.nonzero(r.mask)
        area[example.captions[0].split()[1]].append(max(np.ptp(x), np.ptp(y)) + 1)
    assert max(area["small"]) < min(area["large"]) and min(map(len, area.values())) > 50


def test_relation_and_position_of_known_points():
    assert [relation((10, 10), p) for p in ((20, 12), (0, 5), (11, 30), (9, 1), (20, 20))] == [
        "left of", "right of", "above", "below", "left of"]
    assert position((5, 5), 64) == "at the top left" and position((32, 60), 64) == "at the bottom"
    assert position((63.9, 32), 64) == "on the right" and position((64, 64), 64) == "at the bottom right"


def test_silhouettes_are_distinct_when_small():
    """Every two shapes at 7 pixels radius differ in at least a fifth of their union."""
    masks = {}
    for name, shape in SHAPES.items():
        image = np.zeros((20, 20, 3), np.float32)
        masks[name] = draw(image, shape, None, np.array([255, 0, 0], np.float32), (10.0, 10.0), 7.0, (1.0, 0.0))
        assert 0.15 < masks[name].sum() / (np.pi * 49) <= 1.0
    for a, b in itertools.combinations(masks, 2):
        iou = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
        assert iou < 0.8, (a, b, iou)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_lies_in_the_unit_circle_and_is_symmetric(shape):
    y, x = np.mgrid[-1.5:1.5:61j, -1.5:1.5:61j]
    d = SHAPES[shape](x, y)
    assert (d[x * x + y * y > 1.02] > 0).all() and (d < 0).any()
    mirrored = SHAPES[shape](x, -y) if shape == "moon" else SHAPES[shape](-x, y)
    np.testing.assert_allclose(mirrored, d, atol=1e-12)


def test_textures_change_the_paint_and_not_the_mask():
    def scene(texture):
        image = np.full((40, 40, 3), 100, np.float32)
        tone = np.array([200, 100, 50], np.float32)
        return image, draw(image, SHAPES["square"], TEXTURES[texture], tone, (20.0, 20.0), 14.0, (1.0, 0.0))
    plain, mask = scene("plain")
    outside = plain[..., 0] == 100
    seen = [plain]
    for name in ("striped", "dotted", "checked"):
        image, same = scene(name)
        assert np.array_equal(mask, same) and np.array_equal(image[outside], plain[outside])
        share = (image[mask] < 0.75 * plain[mask]).all(-1).mean()
        assert 0.2 < share < 0.6, (name, share)
        assert all(np.abs(image - other).max() > 50 for other in seen)
        seen.append(image)


def test_colours_are_distinct_from_each_other():
    assert min(np.linalg.norm(np.subtract(a, b)) for a, b in itertools.combinations(COLOURS.values(), 2)) > 80


@pytest.mark.parametrize("size", [16, 64, 224])
def test_places_keep_discs_inside_and_apart(size):
    for i in range(200):
        draws = Draws(i)
        radii = [size * (0.25, 0.22, 0.13, 0.11)[draws.below(4)] for _ in range(4)]
        centres = place(draws, radii, size)
        for (x, y), r in zip(centres, radii):
            assert r <= x <= size - r and r <= y <= size - r
        for (a, r), (b, q) in itertools.combinations(zip(centres, radii), 2):
            assert np.hypot(a[0] - b[0], a[1] - b[1]) >= 0.85 * (r + q) - 1e-9


def test_draws_are_uniform_and_do_not_run_out():
    draws = Draws(0, 1, 2)
    counts = np.bincount([draws.below(7) for _ in range(7000)], minlength=7)
    assert counts.min() > 850 and counts.max() < 1150
    assert {draws.between(3, 5) for _ in range(100)} == {3, 4, 5}
    assert sorted(draws.shuffled(9)) == list(range(9)) and len({tuple(draws.shuffled(3)) for _ in range(99)}) == 6
    assert len(draws.bytes(13)) == 13
