"""The order of samples: the reference's; dealt so that none is lost or comes twice, to any ranks, after any changes of them."""

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from made_shards import member, shards

from parity.trainer.data import order as module
from parity.trainer.data.order import Deal, Order, sizes_of
from parity.trainer.data.shards import ShardData
from parity.trainer.data.stream import Stream, restore
from sparc_ref.data import Batches, DrawnScenes, Joined, WordTokenizer

SCENES = DrawnScenes(size=16, count=23)
TOKENIZER = WordTokenizer(SCENES.vocabulary())


@given(some.lists(some.integers(0, 9), min_size=1, max_size=8), some.integers(1, 4), some.lists(some.integers(1, 5), min_size=1,
       max_size=4), some.randoms(use_true_random=False))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_sample_comes_once_whatever_the_ranks(sizes, together, worlds, random):
    """Several worlds in a row, each stopped anywhere, the last one to the end."""
    order = Order(np.array(sizes), 3, together)
    assert sorted(np.concatenate([items for items, _ in order.blocks(5)] or [[]])) == list(range(sum(sizes)))
    seen, deals, draws = [], [], {}
    for turn, world in enumerate(worlds):
        used = []
        for rank in range(world):
            hand = list(order.hand(5, deals, rank, world))
            take = len(hand) if turn == len(worlds) - 1 else random.randint(0, len(hand))
            seen += [item for item, _ in hand[:take]]
            draws |= dict(hand)
            used.append(take)
            assert list(order.hand(5, deals, rank, world, take)) == hand[take:]
        deals.append(Deal(tuple(used)))
    assert sorted(seen) == list(range(sum(sizes)))
    assert draws == {item: draw for items, d in order.blocks(5) for item, draw in zip(items.tolist(), d.tolist())}


def batches(world: int, workers: int = 0, size: int = 6, count: int = 5, at: tuple | None = None, **options):
    """The first batches of all ranks, put together."""
    streams = [Stream(SCENES, TOKENIZER, Order(sizes_of(SCENES), 4), size // world, image_size=16, max_tokens=9, rank=rank,
                      world=world, workers=workers, **options) for rank in range(world)]
    for stream in streams if at else ():
        restore(stream, *at)
    out = []
    for _ in range(count):
        if not min(list(map(Stream.ready, streams))):
            for s in streams:
                s.next_epoch()
            assert min(list(map(Stream.ready, streams)))
        out.append([s.take() for s in streams])
    return out, streams


def test_the_batches_are_the_references():
    reference = Batches(SCENES, TOKENIZER, 6, seed=4, max_tokens=9)
    for got, want in zip(batches(1)[0], reference):
        assert got[0].items == want.index.tolist()
        np.testing.assert_array_equal(got[0].tokens, want.tokens)
        np.testing.assert_array_equal(got[0].mask, want.mask)


def test_workers_and_ranks_change_no_batch_and_padding_alone_differs():
    alone = [b[0].items for b in batches(1)[0]]
    assert [b[0].items for b in batches(1, workers=2, pad=True)[0]] == alone
    assert [sorted(b[0].items + b[1].items) for b in batches(2)[0]] == [sorted(items) for items in alone]
    assert batches(1, pad=True)[0][0][0].tokens.shape == (6, 9)


def test_resuming_in_the_middle_of_an_epoch():
    whole, _ = batches(2, count=7)
    _, streams = batches(2, count=2)
    went_on, _ = batches(2, count=5, workers=2, at=(0, [], [s.used for s in streams]))
    assert [[b.items for b in step] for step in went_on] == [[b.items for b in step] for step in whole[2:]]
    first = {i for step in whole[:2] for b in step for i in b.items}
    on_three, streams = batches(3, count=1, at=(0, [], [s.used for s in streams]))
    then = [i for b in on_three[0] for i in b.items]
    assert len(set(then)) == 6 and not first & set(then)
    on_one, _ = batches(1, count=1, size=4, at=(0, [[6, 6], [s.used for s in streams]], [0]))
    assert not (first | set(then)) & set(on_one[0][0].items)


def test_bad_samples_are_left_out_counted_and_strict_stops(tmp_path):
    paths = shards(tmp_path / "data", [5, 6])
    with tarfile.open(paths[0], "a") as tar:
        for info, content in (member("bad.png", b"no picture"), member("bad.txt", b"words")):
            tar.addfile(info, io.BytesIO(content))
    data = ShardData(paths, 16, tmp_path / "index")
    tokenizer = WordTokenizer(["red"])
    stream = Stream(data, tokenizer, Order(data.sizes, 0, 2), 3, image_size=16, max_tokens=5, workers=2)
    items = []
    while stream.ready():
        items += stream.take().items
    stream.next_epoch()
    assert len(items) == 9 == len(set(items)) and 5 not in items
    assert stream.skipped == {"not an image": 1} and "000.tar/bad" in stream.names["not an image"][0]
    strict = Stream(data, tokenizer, Order(data.sizes, 0, 2), 3, image_size=16, max_tokens=5, strict=True)
    with pytest.raises(ValueError, match=r"not an image .*\(strict\)"):
        while strict.ready():
            strict.take()
        strict.next_epoch()


def test_shards_beside_other_data_are_shuffled_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PSEUDO", 10)
    joined = Joined(ShardData(shards(tmp_path / "data", [5, 6]), 16, tmp_path / "index"), SCENES)
    assert sizes_of(joined).tolist() == [5, 6, 10, 10, 3] and sizes_of(Joined(SCENES, SCENES)).tolist() == [46]
