"""Batches repeat to the last bit, also from the middle of an epoch; tokens find the regions that they name."""

import json
from contextlib import nullcontext

import numpy as np
import pytest

from sparc_ref.data import (
    Batches,
    DrawnScenes,
    Example,
    Joined,
    Limited,
    Region,
    UnigramTokenizer,
    WordTokenizer,
    to_images,
    word_regions,
)

DATA = DrawnScenes(count=50, size=16, captions=3)
WORDS = WordTokenizer(DATA.vocabulary())


class Few:
    """A data set of given examples that counts how often it is asked."""

    name, classes = "few", ()

    def __init__(self, examples):
        self.examples, self.asked = examples, []

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        self.asked.append(i)
        return self.examples[i]


def grey(value, size=4, captions=("a",)):
    return Example(np.full((size, size, 3), value, np.uint8), captions)


def same(a, b):
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("images", "tokens", "mask", "index", "caption"))


def test_a_batch_is_what_the_data_set_holds():
    batches = Batches(DATA, WORDS, 8, seed=3, max_tokens=40)
    for _ in range(7):
        batch = next(batches)
        assert batch.images.shape == (8, 3, 16, 16) and batch.images.dtype == np.float32 and batch.images.flags.c_contiguous
        assert batch.tokens.dtype == batch.index.dtype == batch.caption.dtype == np.int64 and batch.mask.dtype == bool
        for n, (i, k) in enumerate(zip(batch.index, batch.caption)):
            example = DATA[int(i)]
            np.testing.assert_allclose(batch.images[n], (example.image.transpose(2, 0, 1) / 255 - 0.5) / 0.5, atol=1e-6)
            assert tuple(batch.tokens[n][batch.mask[n]]) == WORDS.encode(example.captions[k]).ids


def test_an_epoch_shows_each_image_once_and_the_next_another_order():
    batches = Batches(DATA, WORDS, 8, seed=0, max_tokens=40)
    assert batches.per_epoch == 6
    epochs = [[next(batches).index for _ in range(6)] for _ in range(20)]
    flat = [np.concatenate(epoch) for epoch in epochs]
    assert all(len(set(order.tolist())) == 48 for order in flat)
    assert len({order.tobytes() for order in flat}) == 20
    assert set(np.concatenate(flat).tolist()) == set(range(50)), "who is left out changes"


def test_all_captions_are_drawn_evenly():
    batches = Batches(DATA, WORDS, 50, seed=0, max_tokens=40)
    drawn = np.concatenate([next(batches).caption for _ in range(60)])
    assert np.bincount(drawn, minlength=3).min() > 900 and drawn.max() == 2


@pytest.mark.parametrize("steps", [0, 1, 5, 6, 7, 13])
def test_restore_goes_on_as_if_nothing_had_happened(steps):
    whole = Batches(DATA, WORDS, 8, seed=1, max_tokens=40)
    for _ in range(steps):
        next(whole)
    state = json.loads(json.dumps(whole.state()))
    resumed = Batches(DATA, WORDS, 8, seed=1, max_tokens=40, memory_mb=0)
    next(resumed)
    resumed.restore(state)
    for _ in range(10):
        assert same(next(whole), next(resumed))
    assert whole.state() == resumed.state() and (whole.epoch, whole.position) != (0, 0)


def test_seeds_differ_and_equal_seeds_do_not():
    first = [next(Batches(DATA, WORDS, 8, seed=s, max_tokens=40)) for s in (0, 0, 1)]
    assert same(first[0], first[1]) and not same(first[0], first[2])


def test_a_foreign_state_is_refused():
    batches = Batches(DATA, WORDS, 8, seed=1, max_tokens=40)
    for change in ({"seed": 2}, {"examples": 49}, {"batch_size": 4}, {"position": 7}, {"position": -1}, {"epoch": -1},
                   {"epoch": 1.5}, {"epoch": None}):
        with pytest.raises(ValueError, match="expected"):
            batches.restore({**batches.state(), **change})
    with pytest.raises(ValueError, match="expected"):
        batches.restore({})
    assert same(next(batches), next(Batches(DATA, WORDS, 8, seed=1, max_tokens=40)))


def test_an_error_in_the_data_leaves_the_state():
    few = Few([grey(1), grey(2), grey(3, captions=())])
    batches = Batches(few, WORDS, 3, seed=0, max_tokens=4)
    state = batches.state()
    with pytest.raises(ValueError, match="expected at least one caption"):
        next(batches)
    assert batches.state() == state


def test_the_cache_keeps_to_its_budget():
    for budget, asked in ((4 * 48 / 2**20, 4 + 2 * 3), (1, 6), (0, 18)):
        few = Few([grey(i) for i in range(6)])
        batches = Batches(few, WORDS, 6, seed=0, max_tokens=4, memory_mb=budget)
        for _ in range(3):
            values = next(batches)
            assert np.array_equal(np.rint((values.images[:, 0, 0, 0] + 1) * 127.5), values.index)
        assert len(few.asked) == asked


def test_what_cannot_work_is_a_clear_error():
    with pytest.raises(ValueError, match="batch_size: expected at most 50, the examples of drawn-train, got 51"):
        Batches(DATA, WORDS, 51, seed=0, max_tokens=9)
    for option in ({"batch_size": 0}, {"seed": -1}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected at least"):
            Batches(DATA, WORDS, **{"batch_size": 4, "seed": 0, "max_tokens": 9, **option})
    mixed = Few([grey(1, 4), grey(2, 6)])
    with pytest.raises(ValueError, match=r"of one size.*set image_size"):
        next(Batches(mixed, WORDS, 2, seed=0, max_tokens=4))
    batch = next(Batches(mixed, WORDS, 2, seed=0, max_tokens=4, image_size=5))
    assert batch.images.shape == (2, 3, 5, 5)


def test_to_images():
    images = to_images([np.zeros((2, 4, 3), np.uint8), np.full((2, 4, 3), 255, np.uint8)])
    assert images.shape == (2, 3, 2, 4) and images.dtype == np.float32
    assert (images[0] == -1).all() and np.allclose(images[1], 1)
    for bad in ([np.zeros((2, 2, 3))], [np.zeros((2, 2), np.uint8)], [np.zeros((2, 2, 4), np.uint8)], []):
        with pytest.raises(ValueError, match="images: expected"):
            to_images(bad)


def test_word_regions_by_hand():
    example = DrawnScenes(objects=(2, 2), seed=0)[3]
    text = example.captions[0]
    encoding = WORDS.encode(text)
    found = word_regions(encoding.offsets, example.regions, 0, 20)
    assert found.shape == (20,) and (found[len(encoding.ids) - 1:] == -1).all(), "EOS and padding name nothing"
    for (a, b), r in zip(encoding.offsets, found):
        naming = [n for n, region in enumerate(example.regions) for _, s, e in region.spans if s <= a < b <= e]
        assert naming == ([r] if r >= 0 else [])
    assert (word_regions(encoding.offsets, example.regions, 1, 20) == -1).all(), "no such caption"
    assert word_regions(encoding.offsets, example.regions, 0, 2).tolist() == found[:2].tolist()


def test_word_regions_with_unigrams_name_the_same_words():
    ds = DrawnScenes(captions=2)
    tokenizer = UnigramTokenizer.train([ds[i].captions[0] for i in range(100)], 60)
    for i in range(30):
        example = ds[i]
        for k, text in enumerate(example.captions):
            encoding = tokenizer.encode(text)
            found = word_regions(encoding.offsets, example.regions, k, 99)
            for r, region in enumerate(example.regions):
                pieces = [text[a:b] for (a, b), at in zip(encoding.offsets, found) if at == r]
                (start, end), = [(s, e) for c, s, e in region.spans if c == k]
                assert "".join(pieces) == text[start:end].replace(" ", "")


def test_a_token_over_two_spans_goes_to_the_larger_share():
    mask = np.ones((2, 2), bool)
    regions = [Region("x", mask, ((0, 0, 2),)), Region("y", mask, ((0, 2, 7), (1, 0, 3)))]
    assert word_regions([(0, 5), (5, 7), (7, 9), (9, 9)], regions, 0, 4).tolist() == [1, 1, -1, -1]
    assert word_regions([(0, 2), (2, 4)], regions, 1, 3).tolist() == [1, 1, -1]
    assert word_regions([(0, 4)], regions, 0, 1).tolist() == [0], "the first of equals"


def test_limited_and_joined():
    a, b = Limited(DATA, 3), DrawnScenes("unseen", count=2, size=16)
    both = Joined(a, b)
    assert len(a) == 3 and len(both) == 5 and len(Limited(DATA, 999)) == 50
    assert [both[i].key for i in range(5)] == [DATA[0].key, DATA[1].key, DATA[2].key, b[0].key, b[1].key]
    assert len(both.classes) == 64 and both.name == "drawn-train+drawn-unseen"
    json.dumps(both.describe())
    assert a.describe()["limited_to"] == 3
    for ds, i in ((a, 3), (a, -1), (both, 5), (both, -1)):
        with pytest.raises(IndexError):
            ds[i]
    for bad in (lambda: Limited(DATA, 0), lambda: Joined()):
        with pytest.raises(ValueError, match="expected at least"):
            bad()


# --- pixels that were met ------------------------------------------------------------------------------------------------


def replaced(few, i, value):
    few.examples[i] = grey(value)


def test_every_example_that_was_met_is_met_again_with_the_same_pixels():
    """More than the 64 that a resumed run compares before it starts; without a cache, so that each is decoded anew."""
    few = Few([grey(n) for n in range(100)])
    batches = Batches(few, WORDS, 10, seed=1, max_tokens=5, memory_mb=0)
    first = [next(batches) for _ in range(4)]
    state = json.loads(json.dumps(batches.state()))
    met, new = int(first[0].index[0]), int(batches.order[-1])
    for change, message in ((met, rf"few: example {met} .*: its pixels are not those that this run met before"), (new, None)):
        other = Few([grey(n) for n in range(100)])
        replaced(other, change, 200)
        resumed = Batches(other, WORDS, 10, seed=1, max_tokens=5, memory_mb=0)
        resumed.restore(state)
        assert resumed.state() == batches.state()
        with pytest.raises(ValueError, match=message) if message else nullcontext():
            for _ in range(16):
                next(resumed)


def test_a_picture_that_changes_while_a_run_trains():
    few = Few([grey(n) for n in range(6)])
    batches = Batches(few, WORDS, 3, seed=1, max_tokens=5, memory_mb=0)
    next(batches), next(batches)
    replaced(few, 2, 99)
    before = batches.state()
    with pytest.raises(ValueError, match="few: example 2 : its pixels are not those"):
        next(batches), next(batches)
    assert batches.state()["pixels"] == before["pixels"]


@pytest.mark.parametrize("pixels", ["!", "AAAA", 3, ["x"]], ids=repr)
def test_hashes_that_no_run_wrote(pixels):
    batches = Batches(Few([grey(n) for n in range(6)]), WORDS, 3, seed=1, max_tokens=5)
    with pytest.raises(ValueError, match="state: expected"):
        batches.restore(batches.state() | {"pixels": pixels})
    old = {name: value for name, value in batches.state().items() if name != "pixels"}
    batches.restore(old)                                          # what an earlier version wrote
    next(batches)


def test_each_batch_of_an_epoch_draws_its_own_captions():
    batches = Batches(DATA, WORDS, 10, seed=3, max_tokens=12)
    drawn = {tuple(next(batches).caption.tolist()) for _ in range(batches.per_epoch)}
    assert len(drawn) == batches.per_epoch == 5


def test_equal_pictures_of_a_batch_are_counted_each():
    batches = Batches(Few([grey(7), grey(7), grey(7), grey(9)]), WORDS, 4, seed=0, max_tokens=3)
    for n in (1, 2):
        next(batches)
        assert batches.duplicates == 3 * n
