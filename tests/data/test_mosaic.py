"""Mosaics: what the caption names, what the masks cover, and that a scene never changes."""

import hashlib

import numpy as np
import pytest

from sparc_ref.data import MosaicScenes, WordTokenizer
from sparc_ref.data.drawn import COLOURS
from sparc_ref.data.mosaic import MATERIALS, SURFACES, cells, pattern
from sparc_ref.data.scenes import Draws


def test_a_scene_is_a_function_of_its_key():
    """Bytes that must never change: everybody's scene 0."""
    digest = hashlib.sha256()
    for options in ({}, {"coverage": 0.5, "distractors": 1}, {"words": 2, "link": "and", "split": "test"}):
        example = MosaicScenes(**options)[3]
        digest.update(example.image.tobytes() + example.captions[0].encode())
    assert digest.hexdigest() == "19bf768785bec0325fac24b3bc931449f855b80c4b0bbe5db2f900933245a644"
    a, b = MosaicScenes(count=5)[4], MosaicScenes(count=9_000)[4]
    assert np.array_equal(a.image, b.image) and a.captions == b.captions


def test_the_whole_picture_is_named():
    for i in range(40):
        example = MosaicScenes()[i]
        owners = np.sum([r.mask for r in example.regions], axis=0)
        assert np.all(owners == 1), "every pixel belongs to exactly one named region"
        assert [example.captions[0][a:b] for r in example.regions for _, a, b in r.spans] == [r.label for r in example.regions]
        assert sorted(example.captions[0].split()) == sorted(r.label for r in example.regions)
        assert 2 <= len(example.regions) <= 5 and len({r.label for r in example.regions}) == len(example.regions)


@pytest.mark.parametrize("coverage", [0.25, 0.6])
def test_coverage_is_the_share_of_the_picture_that_has_a_name(coverage):
    whole, part = MosaicScenes(), MosaicScenes(coverage=coverage)
    for i in range(10):
        full, example = whole[i], part[i]
        assert example.captions == full.captions
        assert np.mean(sum(r.mask for r in example.regions)) == pytest.approx(coverage, abs=0.001)
        for r, outer in zip(example.regions, full.regions):
            assert np.all(outer.mask | ~r.mask), "a region shrinks within itself"
            assert np.array_equal(example.image[r.mask], full.image[r.mask])


def test_distractors_have_no_name():
    for i in range(20):
        example = MosaicScenes(distractors=2, regions=(2, 3))[i]
        assert np.mean(sum(r.mask for r in example.regions)) < 1
        assert len(example.captions[0].split()) == len(example.regions) <= 3


def test_two_words_mean_one_region():
    example = MosaicScenes(words=2, link="and", regions=(3, 3))[0]
    words = example.captions[0].split()
    assert words.count("and") == 2 and len(words) == 8
    for region in example.regions:
        (_, a, b), = region.spans
        assert example.captions[0][a:b] == region.label and len(region.label.split()) == 2


def test_splits_share_words_and_no_scene():
    train, unseen = MosaicScenes(words=2), MosaicScenes(words=2, split="unseen")
    assert not set(train.materials) & set(unseen.materials) and len(train.materials) == 40 and len(unseen.materials) == 8
    for k in (0, 1):
        assert {m[k] for m in unseen.materials} <= {m[k] for m in train.materials}
    pictures = {s: MosaicScenes(split=s)[0].image.tobytes() for s in ("train", "validation", "test", "unseen")}
    assert len(set(pictures.values())) == 4
    assert train.vocabulary() == unseen.vocabulary()


def test_the_tokenizer_knows_every_word():
    for options in ({}, {"words": 2, "link": "beside"}):
        scenes = MosaicScenes(split="unseen", regions=(2, 4), **options)
        tokenizer = WordTokenizer(scenes.vocabulary(), eos=False)
        assert all(tokenizer.unk_id not in tokenizer.encode(scenes[i].captions[0]).ids for i in range(20))


def test_surfaces_differ_by_more_than_a_shift():
    """No surface is another one moved: each has its own rows and columns."""
    seen = {}
    for surface in SURFACES:
        p = pattern(surface, 64, 0, 0)
        seen[surface] = (p.any(), len({r.tobytes() for r in p}), len({c.tobytes() for c in p.T}), round(float(p.mean()), 2))
    assert len(set(seen.values())) == len(SURFACES), seen
    assert all(sum(pair[0] == c for pair in MATERIALS) == len(SURFACES) for c in {c for c, _ in MATERIALS})


def test_regions_are_those_of_the_draw_whose_smallest_is_largest():
    """Of sixty at most, the first that is good enough ends them; each pixel belongs to the nearest site."""
    y, x = np.mgrid[:16, :16]
    ended = set()
    for seed in range(12):
        count, draws, best, least = 3 + seed % 6, Draws(seed, 5), None, -1
        tried = 0
        while tried < 60:
            tried += 1
            sites = [(draws.below(16), draws.below(16)) for _ in range(count)]
            owner = np.argmin([(y - a) ** 2 + (x - b) ** 2 for a, b in sites], axis=0)
            smallest = np.bincount(owner.ravel(), minlength=count).min()
            if smallest > least:
                best, least = owner, smallest
            if 12 * smallest >= 256:
                break
        ended.add(tried == 60)
        assert np.array_equal(cells(Draws(seed, 5), count, 16, 1.0), best), seed
    assert ended == {True, False}, "the case can tell"


@pytest.mark.parametrize(("options", "words"), [
    ({"split": "heldout"}, "split: expected train, validation, test or unseen"),
    ({"regions": (0, 3)}, "regions: expected a range within 1..8"),
    ({"coverage": 0.0}, "coverage: expected a share in"),
    ({"coverage": float("nan")}, "coverage: expected a share in"),
    ({"words": 3}, "words: expected 1 or 2"),
    ({"split": "unseen", "regions": (2, 8), "distractors": 2}, "expected at most 8 in all"),
    ({"size": 8}, "size: expected at least 16"),
    ({"link": "&"}, "link: expected words"),
])  # fmt: skip
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        MosaicScenes(**options)


def test_named_on_the_command_line():
    from sparc_ref.run.sources import open_source

    scenes = open_source("mosaic?coverage=0.5&words=2&regions=3,4", 32, split="validation")
    assert (scenes.coverage, scenes.words, scenes.regions, scenes.size, scenes.split) == (0.5, 2, (3, 4), 32, "validation")
    with pytest.raises(ValueError, match="expected mosaic, without a path"):
        open_source("mosaic:here", 32)


def test_the_digest_is_that_of_the_options_and_draws_nothing(monkeypatch):
    """The start of a run hashes its data: drawing 10,000 mosaics for that took half a minute."""
    first = MosaicScenes().digest()
    monkeypatch.setattr(MosaicScenes, "__getitem__", None)
    assert MosaicScenes().digest() == first
    others = [MosaicScenes(seed=1), MosaicScenes(split="test"), MosaicScenes(count=9), MosaicScenes(coverage=0.5)]
    assert len({first, *(data.digest() for data in others)}) == 5


def test_the_ground_is_that_of_the_seed_and_the_split():
    """Where no mosaic has a region, and without noise."""
    ways = [{}, {"seed": 1}, {"split": "test"}]
    made = [MosaicScenes(coverage=0.3, grain=0, **how)[0] for how in ways]
    bare = ~np.any([r.mask for e in made for r in e.regions], axis=0)
    assert bare.mean() > 0.2
    grounds = [e.image[bare].astype(int) for e in made]
    assert all(np.abs(a - b).mean() > 3 for n, a in enumerate(grounds) for b in grounds[:n])


def test_every_mask_is_painted_in_the_colour_of_its_name():
    """Without noise: two tones of one colour at most, the brighter one near that of the word."""
    for i in range(12):
        made = MosaicScenes(grain=0, distractors=i % 3, seed=5)
        example = made[i]
        assert example.key == f"mosaic-train-5-{i}" and made.describe()["classes"] == len(made.classes) == 40
        for r in example.regions:
            pixels = example.image[r.mask].astype(int)
            assert len(np.unique(pixels, axis=0)) <= 2
            assert np.abs(pixels.max(0) - COLOURS[r.label.partition("-")[0]]).max() <= 11, r.label
