"""Zero-shot classification from every layout to the numbers."""

import json
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from made_sets import Knows, png, put, tar, untrained, webdataset

from sparc_ref.evaluate.classification import accuracy, classification_chance, hits
from sparc_ref.show import plots
from sparc_ref.tasks import classification as task
from sparc_ref.tasks.classification import Protocol, measure
from sparc_ref.tasks.prompts import canonical, class_vectors, templates_of, zoo
from sparc_ref.tasks.spec import open_data


def run(spec, model=None, **more):
    data, protocol = open_data(task, str(spec))
    return measure(model or Knows(), data, protocol, say=lambda *_: None, **more)


def folders(root: Path, names: list[str], numbers: list[int] | None = None, each: int = 3) -> Path:
    """Pictures of number n in the folder of class n, as the names of the folders say."""
    for n, name in zip(numbers or range(len(names)), names):
        for k in range(each):
            put(root / name / f"{k}.png", png(n))
    return root


def listed(root: Path, count: int) -> Path:
    """classnames.txt beside a set, "number n" for class n."""
    return put(root / "classnames.txt", "\n".join(f"number {n}" for n in range(count)))


WNIDS = [f"n{n:08d}" for n in range(30)]


def test_a_perfect_model_is_right_in_every_layout(tmp_path):
    names = [f"number {n}" for n in range(12)]
    samples = [("png", png(n), str(n)) for n in range(12) for _ in range(3)]
    specs = {
        "folders": folders(tmp_path / "a", [n.replace(" ", "_") for n in names]),
        "imagenet": folders(tmp_path / "b", WNIDS[:12]),
        "imagenet-v2": folders(tmp_path / "c" / "imagenetv2-top-images-format-val", [str(n) for n in range(12)]),
        "imagenet-a": folders(tmp_path / "d", WNIDS[3:9], list(range(3, 9))),
        "webdataset": webdataset(tmp_path / "e", samples, names=names),
    }
    for path in (tmp_path / "b", tmp_path / "c", tmp_path / "d"):
        listed(path, 12)
    put(tmp_path / "d" / "wnids.txt", "\n".join(WNIDS[:12]))
    for kind, path in specs.items():
        got = run(f"{kind}:{path}")
        assert got.numbers == {"top1": 1, "top5": 1, "mean_per_class": 1}, kind
        classes = 6 if kind == "imagenet-a" else 12
        assert got.examples == 3 * classes and got.chance["top1"] == pytest.approx(1 / classes), kind
        assert run(f"{kind}:{path}?prompt=ensemble7").numbers["bare_top1"] == 1, kind
    assert run(f"imagenet-v2:{specs['imagenet-v2']}").name == "ImageNet-V2 top-images"
    assert run(f"imagenet-a:{specs['imagenet-a']}?candidates=all").chance["top1"] == pytest.approx(1 / 12)
    assert "not comparable" in " ".join(run(f"imagenet-a:{specs['imagenet-a']}").notes)


def test_folders_0_to_11_are_in_the_order_of_the_numbers(tmp_path):
    """In the order of their characters, 10 and 11 would come before 2, and class 2's pictures would be class 4's."""
    listed(tmp_path, 12)
    data, _ = open_data(task, f"imagenet-v2:{folders(tmp_path / 'v2', [str(n) for n in range(12)])}")
    sources, labels = data.cells[0].list(data.counts)
    assert [Path(s.path).parent.name for s in sources] == [str(n) for n in labels.tolist()]


def test_a_blind_model_is_at_chance(tmp_path):
    path = folders(tmp_path / "a", [f"number_{n}" for n in range(12)], each=20)
    got = run(f"folders:{path}", Knows(blind=True))
    for key, chance in got.chance.items():
        assert abs(got.numbers[key] - chance) < 5 * np.sqrt(chance * (1 - chance) / 240), key


def test_corruptions_and_severities(tmp_path):
    """A model that is right at severities 1 and 2 alone, 3 to 5 being another class' pictures."""
    listed(tmp_path, 6)
    for corruption in ("fog", "snow"):
        for severity in range(1, 6):
            wrong = corruption == "fog" and severity > 2
            folders(tmp_path / "c" / corruption / str(severity), WNIDS[:6], [(n + wrong) % 6 for n in range(6)], each=1)
    got = run(f"imagenet-c:{tmp_path / 'c'}")
    want = {"top1": 0.7, "top1_snow": 1, "top1_fog": 0.4, **{f"top1_severity_{s}": 1 for s in (1, 2)},
            **{f"top1_severity_{s}": 0.5 for s in (3, 4, 5)}}
    assert {k: got.numbers[k] for k in want} == pytest.approx(want)
    assert set(want) | {"top5", "mean_per_class"} == set(got.numbers) and got.examples == 60
    assert all(x == pytest.approx(1 / 6) for k, x in got.chance.items() if k != "top5") and set(got.chance) == set(got.numbers)
    assert "without gaussian_noise" in " ".join(got.notes) and "not the mean corruption error" in " ".join(got.notes)
    (tmp_path / "c" / "snow" / "5").rename(tmp_path / "c" / "snow" / "9")
    part = run(f"imagenet-c:{tmp_path / 'c'}")
    assert part.counts["corruptions and severities that are missing"] == 1 and part.numbers["top1"] == pytest.approx(0.7)
    assert run(f"imagenet-c:{tmp_path / 'c'}", limit=9).examples == 9


def test_a_224_crop_is_not_resampled(tmp_path):
    from sparc_ref.data.images import read_image

    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    import io

    from PIL import Image
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    for how in ("squash", "crop"):
        assert np.array_equal(read_image(buffer.getvalue(), 224, how)[0], pixels)


def test_squash_and_crop_see_other_pixels(tmp_path):
    import io

    from PIL import Image
    wide = Image.new("RGB", (24, 8), (40, 0, 0))                  # number 1, but for its left third: number 3
    wide.paste((120, 0, 0), (0, 0, 8, 8))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    put(tmp_path / "a" / "number_1" / "0.png", buffer.getvalue())
    put(tmp_path / "a" / "number_3" / "0.png", png(3))
    assert run(f"folders:{tmp_path / 'a'}").numbers["top1"] == 0.5           # the corner that Knows looks at
    assert run(f"folders:{tmp_path / 'a'}?eval_resize=crop").numbers["top1"] == 1


def test_a_limit_is_spread_over_the_classes(tmp_path):
    """The first two classes alone have the right pictures: of the first 24 pictures that would be 20."""
    path = folders(tmp_path / "a", [f"number_{n:02d}" for n in range(12)], [0, 1, *range(102, 112)], each=10)
    got = run(f"folders:{path}", limit=24)
    assert got.examples == 24 and got.numbers["top1"] < 0.5 and "24 pictures, evenly spread" in " ".join(got.notes)
    right = folders(tmp_path / "b", [f"number_{n}" for n in range(6)], each=10)
    put(right / "number_0" / "0.png", b"broken")
    got = run(f"folders:{right}", limit=13)
    assert got.numbers["top1"] == 1 and "12 pictures, evenly" in got.notes[-1], "labels are those of these pictures"


def test_classes_without_a_folder_are_no_candidates(tmp_path):
    """Two folders of twelve names, and a model that guesses."""
    listed(tmp_path, 12)
    path = folders(tmp_path / "a", ["3", "7"], [3, 7], each=100)
    own, every = (run(f"imagenet-v2:{path}?candidates={c}", Knows(blind=True)) for c in ("own", "all"))
    assert abs(own.numbers["top1"] - 1 / 2) < 0.18 and abs(every.numbers["top1"] - 1 / 12) < 0.1
    assert own.chance["top1"] == 1 / 2 and every.chance["top1"] == 1 / 12


class Noisy(Knows):
    """Every text has a direction of its own, half of it its number's."""

    def texts(self, texts):
        noise = np.stack([np.random.default_rng(zlib.crc32(text.encode())).normal(size=64) for text in texts])
        return {"t_bar": super().texts(texts)["t_bar"] / 4 + noise}


@pytest.mark.parametrize("options", [{}, {"prompt": "clip7"}, {"prompt": "clip7", "combine": "similarities"},
                                     {"prompt": "filip", "candidates": "all"}, {"canonical": True}], ids=str)
def test_numbers_and_pictures_by_hand(tmp_path, monkeypatch, options):
    """15 of 20 names have pictures, their folders in another order; bare names beside every other prompt."""
    from sparc_ref.show import sheets

    names = [f"{'number' if n % 2 else 'The number'} {n} of-20" for n in range(20)]
    put(tmp_path / "classnames.txt", "\n".join(f"w{(7 * n) % 20:02d}\t{name}" for n, name in enumerate(names)))
    held = [n for n in range(20) if n % 4]
    for n in held:
        for k in range(3):
            put(tmp_path / "set" / f"w{(7 * n) % 20:02d}" / f"{k}.png", png(n + (k == 2)))
    asked = []
    monkeypatch.setattr(sheets, "sheet", lambda title, rows: asked.append(rows) or plots.new_figure((1, 1)))
    spec = f"imagenet:{tmp_path / 'set'}?" + "&".join(f"{k}={v}".lower() for k, v in options.items())
    got = run(spec, Noisy(), pictures=tmp_path)
    chosen = Protocol(**options)
    order = sorted(held, key=lambda n: (7 * n) % 20)
    labels = np.repeat(order, 3)
    v = Knows().directions[labels + np.tile([0, 0, 1], 15)]
    own = np.isin(np.arange(20), held) if chosen.candidates == "own" else np.ones(20, bool)
    said = tuple(map(canonical, names)) if chosen.canonical else tuple(names)
    for head, prompt in {"bare_": "bare", "": chosen.prompt}.items():
        vectors = class_vectors(Noisy(), said, templates_of(prompt), chosen.combine)
        wanted = accuracy(hits(v, vectors, labels, candidates=own), labels)
        if head and chosen.prompt == "bare":
            assert not any(key.startswith("bare_") for key in got.numbers)
            continue
        assert {key: got.numbers[head + key] for key in wanted} == pytest.approx(wanted), head
        assert {key: got.chance[head + key] for key in wanted} == classification_chance(int(own.sum()))
    assert 0.1 < wanted["top1"] < 0.95, "the case can tell"
    (rows,) = asked
    assert next(iter(rows)) == f"Right: {round(45 * wanted['top1'])} of 45 pictures"
    assert got.protocol["templates"] == len(templates_of(chosen.prompt)) and got.protocol["classes"] == own.sum()
    assert got.protocol["image_size"] == 8


def test_what_is_cut_and_unknown_is_counted_of_this_measurement_alone(tmp_path):
    """Of the prompts: a name of 14 words is cut at 12 tokens, two words are not known."""
    for name in ("red_cat", "a_dog", "_".join(["cat"] * 14)):
        put(tmp_path / "set" / name / "0.png", png(0, 16))
    model = untrained(["red", "cat"])
    for _ in range(2):
        counts = run(f"folders:{tmp_path / 'set'}", model).counts
        assert counts["prompts cut at 12 tokens"] == 1 and counts["tokens of prompts that the tokenizer does not know"] == 2


def test_a_batch_at_a_time(tmp_path):
    path = folders(tmp_path / "a", [f"number_{n}" for n in range(5)], each=4)
    put(path / "number_2" / "1.png", b"no picture")
    model = Knows(batch=7)
    got = run(f"folders:{path}", model)
    assert max(model.seen) == 7 and sum(model.seen) == got.examples == 19 and got.counts["not an image"] == 1


# ---------------------------------------------------------------------------------------------------------------- prompts


def test_the_lists_of_prompts():
    assert [len(templates_of(which)) for which in ("bare", "clip80", "clip7", "filip", "ensemble", "ensemble7")] == [
        1, 80, 7, 30, 480, 42]
    assert set(templates_of("clip7")) <= set(templates_of("clip80")) and len(set(templates_of("ensemble"))) == 480
    assert templates_of("filip")[0] == "a photo of a {c}, I like it."
    assert "a {c} in a video game, It's cute." in templates_of("ensemble7")                  # eq. 9, text after the label kept
    assert all(t.count("{c}") == 1 for which in ("clip80", "ensemble", "filip") for t in templates_of(which))
    assert all("arXiv" in part["source"] or "notebook" in part["source"] for part in zoo().values())


def test_a_name_is_put_in_as_it_is():
    """No formatting: braces in a name or a template do nothing."""
    texts = []

    class Model(Knows):
        def pooled_texts(self, some):
            texts.extend(some)
            return np.ones((len(some), 3))

    class_vectors(Model(batch=2), ("{c}", "{0.__class__}"), ("a {c}.", "{x} {c}"), "embeddings")
    assert texts == ["a {c}.", "{x} {c}", "a {0.__class__}.", "{x} {0.__class__}"]
    assert canonical("Kite_(bird of prey)  St. Bernard's") == "kite bird of prey st bernards"


def test_classes_in_parts_are_the_same(tmp_path):
    names = tuple(f"number {n}" for n in range(9))
    whole, parts = (class_vectors(Knows(batch=b), names, templates_of("clip7"), "similarities") for b in (1000, 8))
    assert np.allclose(whole, parts) and whole.shape == (9, 64)


def test_two_classes_of_one_name_share_their_pictures(tmp_path):
    folders(tmp_path / "a", WNIDS[:3], [0, 0, 1])
    put(tmp_path / "classnames.txt", "number 0\nnumber 0\nnumber 1")
    got = run(f"imagenet:{tmp_path / 'a'}")
    assert got.numbers["top1"] == pytest.approx(2 / 3) and "share their pictures evenly" in " ".join(got.notes)


@pytest.mark.parametrize("content, suffix", [
    ("number 0\nnumber 1\nnumber 2\n", "txt"), ("b\tnumber 1\na\tnumber 0\nc\tnumber 2", "tsv"),
    ('{"b": "number 1", "a": "number 0", "c": "number 2"}', "json"), ('["number 0", "number 1", "number 2"]', "json"),
    ('{"0": ["c", "number 2"], "1": ["a", "number 0"], "2": ["b", "number 1"]}', "json"),
])  # fmt: skip
def test_files_of_names(tmp_path, content, suffix):
    folders(tmp_path / "a", ["a", "b", "c"])
    put(tmp_path / f"names.{suffix}", content)
    assert run(f"folders:{tmp_path / 'a'}?classnames={tmp_path / f'names.{suffix}'}").numbers["top1"] == 1


@pytest.mark.parametrize("kind", ["imagenet", "imagenet-c"])
def test_options_say_whose_names_and_which_folders_count(tmp_path, kind):
    """Files that are named come before those that lie there; wnids say the folders of the names, in whatever order."""
    order = [WNIDS[n] for n in (2, 0, 1)]                         # of names 0, 1, 2
    root = tmp_path / "set"
    for place in (root,) if kind == "imagenet" else (root / "fog" / "1", root / "own" / "2"):
        folders(place, order, [0, 1, 2], each=1)
    listed(tmp_path, 3)
    put(tmp_path / "wnids.txt", "\n".join(order))
    beside = run(f"{kind}:{root}")
    assert beside.numbers["top1"] == 1 and beside.examples == 3
    put(tmp_path / "wnids.txt", "\n".join(WNIDS[:3]))
    assert run(f"{kind}:{root}").numbers["top1"] == 0, "the case can tell"
    put(tmp_path / "classnames.txt", "number 1\nnumber 2\nnumber 0")
    assert run(f"{kind}:{root}?wnids={put(tmp_path / 'w.txt', chr(10).join(order))}").numbers["top1"] == 0, "here too"
    names = put(tmp_path / "given" / "names.txt", "\n".join(f"number {n}" for n in range(3)))
    wnids = put(tmp_path / "given" / "wnids.txt", "\n".join(order))
    got = run(f"{kind}:{root}?classnames={names}&wnids={wnids}&name=my own")
    assert got.numbers["top1"] == 1 and got.name == "my own"
    if kind == "imagenet-c":
        every = run(f"{kind}:{root}?classnames={names}&wnids={wnids}&corruptions=all")
        assert every.examples == 6 and {"top1_fog", "top1_own", "top1_severity_1", "top1_severity_2"} <= set(every.numbers)


def test_a_published_set_has_its_own_split_prompts_name_and_counts(tmp_path):
    """Of every shard what is left out is counted; the set's own prompts are those that "data" asks for."""
    names, own = [f"number {n}" for n in range(4)], ["one {c}", "{c} of four"]
    samples = [("png", png(n), str(n)) for n in range(4)]
    root = webdataset(tmp_path / "set", samples, names=names, templates=own)
    webdataset(root, [("png", png((n + 1) % 4), str(n)) for n in range(4) for _ in range(2)], split="train", names=names,
               templates=own)
    for shard in (0, 1):
        with tarfile.open(root / "test" / f"{shard}.tar", "a") as file:
            file.addfile(tarfile.TarInfo("alone.cls"))
    test, train = run(f"webdataset:{root}"), run(f"webdataset:{root}?split=train&name=mine")
    assert (test.examples, test.numbers["top1"], test.name) == (4, 1, "set")
    assert (train.examples, train.numbers["top1"], train.name) == (8, 0, "mine")
    assert test.counts == {"label without a picture": 2}
    data, _ = open_data(task, f"webdataset:{root}")
    assert data.templates == tuple(own) == templates_of("data", data.templates)
    assert run(f"webdataset:{root}?prompt=data").protocol["templates"] == 2


def test_numbered_names_of_a_json_are_in_the_order_of_their_numbers(tmp_path):
    path = folders(tmp_path / "a", WNIDS[:12])
    names = put(tmp_path / "names.json", json.dumps({str(n): [WNIDS[n], f"number {n}"] for n in reversed(range(12))}))
    spec = f"folders:{path}?classnames={names}"
    assert open_data(task, spec)[0].classes == tuple(f"number {n}" for n in range(12)) and run(spec).numbers["top1"] == 1


def test_the_vector_of_a_class_by_hand():
    """Of several prompts the mean of their directions, made unit, or left as it is: the mean of cosines."""
    model, names, prompts = Noisy(batch=5), ("number 3", "number 8", "number 1"), ("a {c}", "b {c}.")
    for how in ("embeddings", "similarities"):
        vectors = class_vectors(model, names, prompts, how)
        for got, name in zip(vectors, names, strict=True):
            t = model.pooled_texts([prompt.replace("{c}", name) for prompt in prompts])
            mean = np.mean(t / np.linalg.norm(t, axis=1, keepdims=True), axis=0)
            assert 0.1 < np.linalg.norm(mean) < 0.95, "the case can tell"
            np.testing.assert_allclose(got, mean / np.linalg.norm(mean) if how == "embeddings" else mean, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------- bad input


def bad(root: Path, which: str) -> str:
    """A set that something is wrong with.      -> its spec"""
    good = [f"number {n}" for n in range(3)]
    samples = [("png", png(n), str(n)) for n in range(3)]
    a = root / "a"
    match which:
        case "no folder":
            return f"folders:{root / 'nothing'}"
        case "a file":
            return f"folders:{put(root / 'x.txt')}"
        case "no classes":
            put(root / "a" / "1.png", png(0))
        case "no pictures":
            put(root / "a" / "x" / "readme.txt", "x")
        case "one level too high":
            folders(a / "val", ["x", "y"])
        case "all broken":
            put(a / "number_0" / "1.png", b"x")
        case "no names":
            return f"imagenet:{folders(a, WNIDS[:3])}"
        case "too few names":
            listed(root, 2)
            return f"imagenet:{folders(a, WNIDS[:3])}"
        case "names and wnids differ":
            listed(root, 3)
            put(root / "wnids.txt", "\n".join(WNIDS[:2]))
            return f"imagenet:{folders(a, WNIDS[:3])}"
        case "a wnid twice":
            listed(root, 3)
            put(root / "wnids.txt", "\n".join([WNIDS[0], *WNIDS[:2]]))
            return f"imagenet:{folders(a, WNIDS[:3])}"
        case "an empty line":
            put(root / "classnames.txt", "number 0\n\nnumber 2")
            return f"imagenet:{folders(a, WNIDS[:2])}"
        case "a folder without a name":
            put(root / "names.json", json.dumps({"x": "number 0"}))
            return f"folders:{folders(a, ['x', 'y'])}?classnames={root / 'names.json'}"
        case "names nested":
            put(root / "names.json", "[" * 100_000)
            return f"folders:{folders(a, ['x', 'y'])}?classnames={root / 'names.json'}"
        case "names of another form":
            put(root / "names.json", '{"x": 1}')
            return f"folders:{folders(a, ['x', 'y'])}?classnames={root / 'names.json'}"
        case "names in latin-1":
            put(root / "classnames.txt", "é".encode("latin-1"))
            return f"imagenet:{folders(a, WNIDS[:1])}"
        case "one number twice":
            return f"folders:{folders(a, ['1', '01'])}"
        case "no corruption":
            return f"imagenet-c:{folders(a / 'x' / 'y', ['z'])}"
        case "another class in a corruption":
            listed(root, 2)
            folders(a / "fog" / "1", WNIDS[:2])
            return f"imagenet-c:{folders(a / 'fog' / '2', WNIDS[1:3]).parents[1]}"
        case "no nshards":
            webdataset(a, samples, names=good, split="train")
            return f"webdataset:{a}"
        case "nshards is no number":
            put(webdataset(a, samples, names=good) / "test" / "nshards.txt", "many")
        case "nshards is huge":
            put(webdataset(a, samples, names=good) / "test" / "nshards.txt", "9" * 5000)
        case "a shard too few":
            put(webdataset(a, samples, names=good) / "test" / "nshards.txt", "4")
        case "no classnames":
            (webdataset(a, samples, names=good) / "classnames.txt").unlink()
        case "labels out of range":
            webdataset(a, [("png", png(0), "3"), ("png", png(0), "-1"), ("png", png(0), "one")], names=good)
        case "no labels":
            tar(webdataset(a, samples, names=good, shards=1) / "test" / "0.tar", {"1.png": png(0), "2.jpg": png(0)})
        case "a template without a place":
            webdataset(a, samples, names=good, templates=["a photo of {}"])
        case "retrieval":
            webdataset(a, samples)
    return f"{'webdataset' if (a / 'classnames.txt').exists() or (a / 'test').exists() else 'folders'}:{a}"


BAD = {
    "no folder": "expected a folder", "a file": "expected a folder",
    "no classes": "expected a folder for each class, found none",
    "no pictures": "expected pictures in its 1 folders, found none: 1 files that are no pictures. See",
    "one level too high": "name the folder of one split",
    "all broken": "none of 1 could be read: 1 not an image",
    "no names": "expected the classes' names: put classnames.txt beside",
    "too few names": "has 2 names, and here are 3 folders", "names and wnids differ": "a folder for each of the 3 names",
    "a wnid twice": "expected each folder once, got 'n00000000' twice", "an empty line": "got an empty line 2",
    "a folder without a name": "1 of its folders have no name in .*names.json: y",
    "names nested": "expected JSON, .*RecursionError",
    "names of another form": "expected names, as lines, a list", "names in latin-1": "expected text in UTF-8",
    "one number twice": "two of one number, such as 1 and 01", "no corruption": "expected folders such as gaussian_noise",
    "another class in a corruption": "expected the 2 classes of fog/1, differs in n00000000, n00000002",
    "no nshards": "found no such file; there are the splits train", "nshards is no number": "expected one number, 1 to 100,000",
    "nshards is huge": "expected one number", "a shard too few": "2 are missing: 2.tar, 3.tar",
    "no classnames": "classnames.txt: expected a file, found no such file", "labels out of range": "expected labels 0..2",
    "no labels": "each with a .cls of its name, found none: 2 picture without a label",
    "a template without a place": r"expected \{c\} in every line", "retrieval": "expected classification, got 'retrieval'",
}  # fmt: skip


@pytest.mark.parametrize("which", BAD)
def test_bad_input_is_named(tmp_path, which):
    spec = bad(tmp_path, which)
    with pytest.raises(ValueError, match=BAD[which]) as error:
        run(spec)
    assert str(tmp_path) in str(error.value)


def test_options_are_checked(tmp_path):
    path = folders(tmp_path / "a", ["number_0", "number_1"])
    for option, words in (("prompt=nope", "prompt: expected one of"), ("combine=max", "combine: expected"),
                          ("eval_resize=pad", "expected one of 'squash', 'crop'"), ("promt=bare", "did you mean prompt"),
                          ("prompt=data", "templates of the data set's own")):
        with pytest.raises(ValueError, match=words):
            run(f"folders:{path}?{option}")


def test_what_is_left_out_is_counted(tmp_path):
    path = folders(tmp_path / "a", ["number_0", "number_1", "number_2"])
    put(path / "number_0" / "notes.txt", "x")
    put(tmp_path / "outside.png", png(1))
    (path / "number_0" / "link.png").symlink_to(tmp_path / "outside.png")
    (path / "number_1" / "own.png").symlink_to(path / "number_1" / "0.png")
    for k in range(3):
        (path / "number_2" / f"{k}.png").unlink()
    got = run(f"folders:{path}")
    assert got.counts == {"files that are no pictures": 1, "path leaves the folder": 1,
                          "folders of classes without a picture": 1}
    assert got.examples == 7 and got.chance["top1"] == pytest.approx(1 / 3) and "number_2" in got.notes[0]


def test_a_label_of_many_digits_costs_its_picture_alone(tmp_path):
    labels = ["1", "0" * 5000 + "1", "0000000001234", "9" * 5000, "2"]
    path = webdataset(tmp_path, [("png", png(1), label) for label in labels], names=[f"number {n}" for n in (0, 1, 1)])
    got = run(f"webdataset:{path}")
    assert got.examples == 3 and got.counts == {"label that is no number of a class": 2}
    assert got.notes == ("1 names are another class' too: such classes tie, and share their pictures evenly",)


# ---------------------------------------------------------------------------------------------------------------- real data


def pack(path: Path, root: Path) -> Path:
    """Folders of classes as a webdataset."""
    classes = sorted(p.name for p in path.iterdir())
    samples = [(f.suffix[1:], f.read_bytes(), str(k)) for k, name in enumerate(classes)
               for f in sorted((path / name).iterdir())]
    return webdataset(root, samples, shards=3, names=[name.replace("_", " ") for name in classes])


@pytest.mark.parametrize("which", ["pets", "emoji"])
def test_real_pictures_in_two_layouts(tmp_path, sample_data, which):
    if which == "pets":
        rows = [json.loads(line) for line in (sample_data / "pets" / "pets.jsonl").read_text().splitlines()][::20]
        for r in rows:
            file = sample_data / "pets" / r["file"]
            put(tmp_path / "a" / r["breed"].replace(" ", "_") / file.name, file.read_bytes())
    else:
        rows = [json.loads(line) for line in (sample_data / "emoji" / "emoji.jsonl").read_text().splitlines()][::40]
        with zipfile.ZipFile(sample_data / "emoji" / "noto.zip") as archive:
            for r in rows:
                if f"{r['id']}.png" in archive.namelist():
                    put(tmp_path / "a" / r["group"].replace(" ", "_") / f"{r['id']}.png", archive.read(f"{r['id']}.png"))
    classes = sorted(p.name.replace("_", " ") for p in (tmp_path / "a").iterdir())
    model = untrained(" ".join(classes).lower().split())
    first = run(f"folders:{tmp_path / 'a'}?prompt=clip7", model, pictures=tmp_path)
    second = run(f"webdataset:{pack(tmp_path / 'a', tmp_path / 'w')}?prompt=clip7", model)
    assert first.numbers == second.numbers and first.examples == second.examples > 20
    assert first.chance["top1"] == pytest.approx(1 / len(classes)) and not set(first.counts) - {
        "tokens of prompts that the tokenizer does not know", "prompts cut at 12 tokens"}
    assert first.pictures == ("predictions.png", "confusions.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in first.pictures)


def test_the_protocol_is_all_there():
    with pytest.raises(ValueError, match="candidates"):
        Protocol(candidates="some")
