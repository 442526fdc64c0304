"""Wallpaper mosaics: every pixel belongs to a picture that the caption names, and a mosaic never changes."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from sparc_ref.data import WallpaperScenes, WordTokenizer
from sparc_ref.data.wallpaper import paper


@pytest.fixture
def pictures(tmp_path):
    """A zip of twelve discs, each of one colour, and one picture of two words."""
    y, x = np.mgrid[:20, :20]
    names = [f"disc{chr(97 + n)}" for n in range(12)] + ["two words"]
    with zipfile.ZipFile(tmp_path / "discs.zip", "w") as archive:
        for n, name in enumerate(names):
            pixels = np.zeros((20, 20, 4), np.uint8)
            pixels[(y - 9.5) ** 2 + (x - 9.5) ** 2 < 81] = (20 * n, 255 - 20 * n, 60, 255)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            archive.writestr(f"{name}.png", stream.getvalue())
    return tmp_path / "discs.zip"


def test_every_pixel_is_named_and_papered(pictures):
    scenes = WallpaperScenes(pictures, kinds=8, size=40, period=10)
    for i in range(20):
        example = scenes[i]
        assert np.all(np.sum([r.mask for r in example.regions], axis=0) == 1)
        assert [example.captions[0][a:b] for r in example.regions for _, a, b in r.spans] == [r.label for r in example.regions]
        assert sorted(example.captions[0].split()) == sorted(r.label for r in example.regions)
        for r in example.regions:
            shown = {tuple(p) for p in example.image[r.mask].tolist()}
            assert shown <= {tuple(p) for p in scenes.papers[r.label].reshape(-1, 3).tolist()}, "its own paper alone"


def test_coverage_leaves_ground_and_keeps_the_caption(pictures):
    whole, part = (WallpaperScenes(pictures, kinds=8, size=40, coverage=c) for c in (1.0, 0.4))
    for i in range(10):
        full, example = whole[i], part[i]
        assert example.captions == full.captions
        assert np.mean(sum(r.mask for r in example.regions)) == pytest.approx(0.4, abs=0.002)
        assert all(np.array_equal(example.image[r.mask], full.image[r.mask]) for r in example.regions)


def test_splits_share_pictures_and_no_mosaic(pictures):
    splits = [WallpaperScenes(pictures, split=s, kinds=8, size=32) for s in ("train", "validation", "test")]
    assert len({d.classes for d in splits}) == 1 and len({d[0].image.tobytes() for d in splits}) == 3
    assert splits[0][5].image.tobytes() == WallpaperScenes(pictures, kinds=8, size=32, count=6)[5].image.tobytes()
    assert splits[0].digest() != WallpaperScenes(pictures, kinds=9, size=32).digest()


def test_names_are_tokens(pictures):
    joined = WallpaperScenes(pictures, kinds=12, one_word=False)
    tokenizer = WordTokenizer(joined.vocabulary(), eos=False)
    assert all(len(tokenizer.encode(name).ids) == 1 and tokenizer.unk_id not in tokenizer.encode(name).ids
               for name in joined.classes)
    assert all(name.isalpha() for name in WallpaperScenes(pictures, kinds=8).classes)


def test_a_copy_lies_in_the_middle_of_white_paper():
    picture = np.zeros((3, 4, 4), np.uint8)
    picture[1, 1:3] = (10, 20, 30, 255)
    out = paper(picture, 8)
    assert np.argwhere((out != 255).any(-1)).tolist() == [[3, 3], [3, 4]] and out[3, 3].tolist() == [10, 20, 30]


@pytest.mark.parametrize(("options", "words"), [
    ({"split": "unseen"}, "split: expected train, validation or test"),
    ({"regions": (0, 3)}, "regions: expected a range within 1..8"),
    ({"coverage": 0.0}, "coverage: expected a share in"),
    ({"kinds": 3}, "kinds: expected at least 5, got 3"),
    ({"kinds": 50}, "kinds: expected at most"),
    ({"period": 2}, "period: expected at least 4"),
])  # fmt: skip
def test_wrong_options_are_named(pictures, options, words):
    with pytest.raises(ValueError, match=words):
        WallpaperScenes(pictures, **options)


def test_emoji_on_the_command_line(samples):
    from sparc_ref.run.sources import open_source

    scenes = open_source(f"wallpaper:{samples}/emoji/noto.zip?names={samples}/emoji/emoji.jsonl&coverage=0.5", 40, split="test")
    assert (len(scenes.classes), scenes.split, scenes.coverage) == (40, "test", 0.5) and "violin" in scenes.classes
    assert len({p.tobytes() for p in scenes.papers.values()}) == 40


def test_regions_and_names_of_several_words_are_those_that_are_asked_for(pictures):
    for regions in ((3, 3), (6, 7)):
        counts = {len(WallpaperScenes(pictures, kinds=8, regions=regions)[i].regions) for i in range(20)}
        assert counts == set(range(regions[0], regions[1] + 1))
    assert "two-words" in WallpaperScenes(pictures, kinds=13, one_word=False).classes
    assert len(WallpaperScenes(pictures, kinds=12).classes) == 12
