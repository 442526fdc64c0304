"""Image-text retrieval from every layout to the numbers."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_sets import Knows, caption_layouts, captions_of, png, put, tar, untrained, webdataset

from sparc_ref.evaluate.retrieval import retrieval_of_scores
from sparc_ref.objectives.chosen import scores_of
from sparc_ref.tasks import retrieval as task
from sparc_ref.tasks.retrieval import measure
from sparc_ref.tasks.spec import open_data

NUMBERS = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]


def run(spec, model=None, **more):
    data, protocol = open_data(task, str(spec))
    return measure(model or Knows(), data, protocol, say=lambda *_: None, **more)


@pytest.fixture
def layouts(tmp_path):
    """20 pictures with 2 captions each, the last with 3, in every layout."""
    return caption_layouts(tmp_path / "sets", [(f"{n:03d}.png", png(n)) for n in range(20)], captions_of(20))


def test_a_perfect_model_is_right_in_every_layout(layouts):
    for kind, spec in layouts.items():
        got = run(spec)
        assert got.numbers == dict.fromkeys(NUMBERS, 1.0), kind
        assert got.examples == 20 and got.counts["captions"] == 41, kind
        assert got.chance["t2i_r5"] == pytest.approx(5 / 20) and set(got.chance) == set(NUMBERS)
    assert run(layouts["karpathy"]).name == run(layouts["flickr30k"]).name == "Flickr30k"
    assert "has 5,000 pictures: not comparable" in run(layouts["coco"]).notes[-1]
    got = run(layouts["karpathy"])
    assert "split of Flickr30k has 1,000 pictures" in got.notes[-1]
    assert "test 20" in got.notes[0] and "read: test" in got.notes[0]
    assert (got.protocol["image_size"], got.protocol["max_tokens"], got.protocol["ks"]) == (8, 99, [1, 5, 10])
    assert run(layouts["coco"]).name == "COCO" and run(layouts["captions"] + "?name=mine").name == "mine"


def test_a_blind_model_is_at_chance_and_equal_in_every_layout(tmp_path):
    specs = caption_layouts(tmp_path, [(f"{n:03d}.png", png(n)) for n in range(300)], captions_of(300, 5))
    got = {kind: run(spec, Knows(blind=True)) for kind, spec in specs.items()}
    first = next(iter(got.values()))
    for key in NUMBERS:
        chance = first.chance[key]
        assert abs(first.numbers[key] - chance) < 5 * np.sqrt(chance * (1 - chance) / 300), key
    assert all(x.numbers == first.numbers for x in got.values())


def test_captions_are_cut_to_as_many_as_asked_for(layouts):
    assert run(layouts["coco"] + "?captions=2").counts["captions"] == 40
    got = run(layouts["coco"] + "?captions=1&ks=1,3")
    assert got.counts["captions"] == 20 and got.counts["captions beyond the first of a picture"] == 21
    assert set(got.numbers) == {"i2t_r1", "i2t_r3", "t2i_r1", "t2i_r3"}
    assert run(layouts["coco"] + "?captions=0").counts["captions"] == 41


def test_a_batch_at_a_time_and_a_limit(layouts):
    model = Knows(batch=6)
    assert run(layouts["webdataset"], model).examples == 20 and model.seen == [6, 6, 6, 2]
    got = run(layouts["captions"], limit=5)
    assert got.numbers == dict.fromkeys(NUMBERS, 1.0), "the captions are those of these pictures"
    assert got.examples == 5 and got.chance["t2i_r1"] == 0.2
    assert "5 of 20 pictures: a smaller gallery is easier" in got.notes[-1]


@pytest.mark.parametrize("kind", ["karpathy", "flickr30k", "coco", "captions"])
def test_pictures_may_lie_elsewhere(layouts, tmp_path, kind):
    (tmp_path / "sets" / "images").rename(tmp_path / "elsewhere")
    got = run(f"{layouts[kind]}?images={tmp_path / 'elsewhere'}")
    assert got.examples == 20 and got.numbers == dict.fromkeys(NUMBERS, 1.0)


def test_a_split_of_shards(tmp_path):
    root = caption_layouts(tmp_path, [("0.png", png(0))], [["of number 0"]])["webdataset"].partition(":")[2]
    webdataset(Path(root), [("png", png(n), f"of number {n}") for n in (1, 2, 3)], split="train")
    data, _ = open_data(task, f"webdataset:{root}?split=train")
    assert data.captions == [("of number 1",), ("of number 2",), ("of number 3",)]
    assert open_data(task, f"webdataset:{root}")[0].captions == [("of number 0",)]


def test_what_is_cut_is_counted_of_this_measurement_alone(tmp_path):
    words = ["a", "red", "cat"]
    spec = caption_layouts(tmp_path, [(f"{n}.png", png(n)) for n in range(3)], [["a red cat"], ["a red cat " * 5], ["a " * 30]])
    model = untrained(words)
    for _ in range(2):
        assert run(spec["captions"], model).counts["captions cut at 12 tokens"] == 2


def test_captions_with_commas_and_quotes(tmp_path):
    put(tmp_path / "images" / "1.png", png(1))
    put(tmp_path / "images" / "2.png", png(2))
    lines = ['1.png,"a ""red"" cat, of number 1"', "1.png,two, of number 1", "", "2.png,of number 2", "3.png,of number 3",
             "2.png,", "nonsense"]
    data, _ = open_data(task, f"flickr30k:{put(tmp_path / 'flickr30k_test_karpathy.txt', chr(10).join(lines))}")
    assert data.captions == [('a "red" cat, of number 1', "two, of number 1"), ("of number 2",)]
    assert data.counts == {"image missing": 1, "captions of skipped images": 1, "caption empty": 1,
                           "line without a picture and a caption": 1}


def test_karpathy_reads_the_test_split_unless_told(layouts):
    assert run(layouts["karpathy"]).examples == 20
    data, _ = open_data(task, layouts["karpathy"] + "?split=train")
    assert len(data.pictures) == 1 and data.captions == [("not read",)]
    with pytest.raises(ValueError, match="split: expected one of test, train"):
        open_data(task, layouts["karpathy"] + "?split=validation")


@pytest.mark.parametrize("objective", ["filip", "pacl", "gloria", "flair", "sparc"])
def test_native_scores_in_blocks_are_those_of_the_whole(tmp_path, objective):
    """Captions of different lengths, in blocks that end anywhere, against one call over everything."""
    words = ["a", "red", "blue", "cat", "dog", "of", "big"]
    rng = np.random.default_rng(3)
    captions = [[" ".join(rng.choice(words, rng.integers(1, 8))) for _ in range(3)] for _ in range(13)]
    spec = caption_layouts(tmp_path, [(f"{n}.png", png(11 * n)) for n in range(13)], captions)["webdataset"]
    model = untrained(words, objective)
    got = run(spec, model)
    if objective == "sparc":
        assert set(got.numbers) == set(NUMBERS)
        return
    data, protocol = open_data(task, spec)
    store = task.Store(tmp_path)
    found = task.embed(model, data, protocol, None, Counter(), store)
    scores = scores_of(model.objective)
    t, mask = store.tokens(0, 39)
    i2t, t2i = scores(model.params, store.patches(0, 13), t, mask, found.v_bar, found.t_bar)
    blocks = task.native(lambda *a: scores(model.params, *a), store, found, tmp_path, images=5, texts=7)
    assert np.allclose(blocks[0], i2t, atol=1e-6) and np.allclose(blocks[1], t2i, atol=1e-6)
    whole = retrieval_of_scores(i2t, t2i, found.owner)
    assert {k: got.numbers[f"native_{k}"] for k in whole} == pytest.approx(whole)
    assert set(run(spec + "?scores=cosine", model).numbers) == set(NUMBERS)
    again = run(spec + "?ks=2,3", model)
    assert set(again.numbers) == {f"{head}{way}_r{k}" for head in ("", "native_") for way in ("i2t", "t2i") for k in (2, 3)}


# ---------------------------------------------------------------------------------------------------------------- bad input


def bad(root: Path, which: str) -> str:
    match which:
        case "nothing there":
            return f"karpathy:{root / 'dataset_coco.json'}"
        case "no splits":
            put(root / "images" / "1.png", png(0))
            return f"karpathy:{put(root / 'c.json', json.dumps([{'image': '1.png', 'caption': 'x'}]))}"
        case "pictures are not there":
            return f"coco:{put(root / 'c.json', json.dumps([{'image': '1.png', 'caption': 'x'}]))}"
        case "pictures are broken":
            put(root / "1.png", b"x")
            return f"captions:{put(root / 'c.json', json.dumps([{'image': '1.png', 'caption': 'x'}]))}"
        case "flickr without pictures":
            return f"flickr30k:{put(root / 'f.txt', 'image,caption' + chr(10) + '1.jpg,x')}"
        case "images is no folder":
            return f"flickr30k:{put(root / 'f.txt', '1.jpg,x')}?images={root / 'nowhere'}"
        case "classification":
            return f"webdataset:{webdataset(root / 'w', [('png', png(0), '0')], shards=1, names=['x'])}"
        case "no captions":
            tar(webdataset(root / "w", [("png", png(0), "x")], shards=1) / "test" / "0.tar", {"1.png": png(0)})
        case "empty captions":
            webdataset(root / "w", [("png", png(0), " \n ")], shards=1)
        case "another split":
            webdataset(root / "w", [("png", png(0), "x")], shards=1, split="train")
    return f"webdataset:{root / 'w'}"


BAD = {"nothing there": "found nothing there", "no splits": "expected Karpathy's splits",
       "pictures are not there": "image missing",
       "pictures are broken": "none of 1 could be read: 1 not an image", "flickr without pictures": "image missing",
       "images is no folder": "images: expected a folder", "classification": "expected retrieval, got 'classification'",
       "no captions": "1 picture without a caption", "empty captions": "expected a caption in the .txt",
       "another split": "there are the splits train"}


@pytest.mark.parametrize("which", BAD)
def test_bad_input_is_named(tmp_path, which):
    with pytest.raises(ValueError, match=BAD[which]):
        run(bad(tmp_path, which))


@pytest.mark.parametrize("option, words", [("captions=-1", "captions: expected at least 1"), ("ks=0", "ks: expected positive"),
                                           ("scores=own", "scores: expected one of"), ("eval_resize=no", "eval_resize")])
def test_options_are_checked(layouts, option, words):
    with pytest.raises(ValueError, match=words):
        run(f"{layouts['coco']}?{option}")


def test_pictures_that_cannot_be_read_take_their_captions_with_them(layouts, tmp_path):
    put(tmp_path / "sets" / "images" / "007.png", b"broken")
    got = run(layouts["captions"])
    assert got.examples == 19 and got.counts == {"captions": 39, "not an image": 1}
    assert got.numbers["i2t_r1"] == got.numbers["t2i_r1"] == 1


# ---------------------------------------------------------------------------------------------------------------- real data


def test_photos_in_every_layout(tmp_path, sample_data):
    """Real photos and captions: the same numbers from five layouts, to the last bit."""
    content = json.loads((sample_data / "coco" / "captions.json").read_text())
    images = content["images"][:10]
    captions = [[" ".join(a["caption"].split()) for a in content["annotations"] if a["image_id"] == i["id"]] for i in images]
    pictures = [(i["file_name"], (sample_data / "coco" / "images" / i["file_name"]).read_bytes()) for i in images]
    model = untrained(sorted({w for some in captions for c in some for w in c.lower().split()})[:500])
    specs = caption_layouts(tmp_path, pictures, captions)
    got = {kind: run(spec, model, pictures=tmp_path if kind == "coco" else None) for kind, spec in specs.items()}
    assert len({json.dumps(x.numbers) for x in got.values()}) == 1 and len(got) == 5
    assert all(x.examples == 10 and x.counts["captions"] == 50 for x in got.values())
    assert got["coco"].pictures == ("pictures-ask.png", "captions-ask.png")


@pytest.mark.slow
def test_5_000_pictures_and_25_000_captions_in_bounded_memory():
    """Random embeddings of COCO's size in a process of its own; bench/retrieval.py prints time and peak."""
    import subprocess
    import sys

    file = Path(__file__).parents[2] / "bench" / "retrieval.py"
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
    peak = float(done.stdout.split("peak ")[1].split(" MiB")[0])
    assert peak < 1500, done.stdout
