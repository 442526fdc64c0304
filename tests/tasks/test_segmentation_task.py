"""Zero-shot segmentation end to end: layouts, choices, damage; perfect and random models; real masks."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sparc_ref.data import PictureScenes, WordTokenizer
from sparc_ref.data.images import resize
from sparc_ref.evaluate.segmentation import miou, segment
from sparc_ref.model import PRESETS, init_params
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run.measure import truth_of
from sparc_ref.tasks import segmentation as task
from sparc_ref.tasks.embedder import Embedder
from sparc_ref.tasks.segmentation_layouts import CONTEXT, VOC, read_names
from sparc_ref.tasks.spec import open_data

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
NAMES = ("cat", "dog", "bus")


class Painted:
    """A model that sees colours: a patch is its mean colour, a name the colour of its class. h_v swaps two of them."""

    config = SimpleNamespace(image_size=32, patch_size=8, h_v="dense_gelu", embed_dim=3, max_tokens=8)
    objective, params, name, batch = ObjectiveConfig(), {}, "painted", 3

    def images(self, pictures):
        x = np.stack(pictures).astype(np.float64)
        n, H, W, _ = x.shape
        v = x.reshape(n, H // 8, 8, W // 8, 8, 3).mean((2, 4)).reshape(n, -1, 3)
        return {"segment": v, "v": v[..., [1, 0, 2]]}

    def pooled_texts(self, texts):
        return np.array([next((COLOURS[k] for k, n in enumerate(NAMES) if n in t), [200, 200, 200]) for t in texts], np.float64)


def paint(where, truths, suffix=".png"):
    """Pictures whose colours are their classes (background grey), and masks; label k + 1, 0 background, 255 ignored."""
    for folder in ("images", "masks"):
        (where / folder).mkdir(parents=True, exist_ok=True)
    for i, truth in enumerate(truths):
        colours = np.vstack([COLOURS, [[200, 200, 200]]])[np.where(truth == 255, 0, truth)]      # -1 is the last row
        Image.fromarray(colours.astype(np.uint8)).save(where / "images" / f"{i}{suffix}")
        Image.fromarray(np.where(truth == 255, 255, truth + 1).astype(np.uint8)).save(where / "masks" / f"{i}.png")
    (where / "classes.json").write_text(json.dumps({"1": "cat", "2": "dog", "3": "bus"}))
    return where


def blocks(rng, n, labels=(-1, 0, 1, 2)):
    """Truths of 64 x 64 that change where patches do."""
    return [np.kron(rng.choice(labels, (4, 4)), np.ones((16, 16), np.int64)) for _ in range(n)]


def measured(spec, **options):
    data, protocol = open_data(task, spec)
    return task.measure(options.pop("model", Painted()), data, protocol, say=lambda line: None, **options)


def test_a_perfect_embedding_scores_one(tmp_path, rng):
    where = paint(tmp_path / "toy", blocks(rng, 7, (0, 1, 2, 255)))
    r = measured(f"folder:{where}")
    assert {k: x for k, x in r.numbers.items() if k != "miou_g_v"} == dict.fromkeys(
        ["miou", "per_image_in_union", "dataset_in_union", "per_image_ignore", "dataset_ignore"], 1.0)
    assert r.numbers["miou_g_v"] < 0.5 and r.examples == 7 and r.counts == {"classes": 3} and r.name == "toy"
    with_ground = paint(tmp_path / "ground", blocks(rng, 7))
    assert measured(f"folder:{with_ground}?background=ignore").numbers["miou"] == 1
    assert measured(f"folder:{with_ground}?background=class").numbers["miou"] == 1
    assert measured(f"folder:{with_ground}").numbers["miou"] < 1


class Blind(Painted):
    """Patches that say nothing."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def images(self, pictures):
        v = self.rng.normal(size=(len(pictures), (pictures[0].shape[0] // 8) ** 2, 3))
        return {"segment": v, "v": v}


@pytest.mark.parametrize("choice", ["", "background=class", "average=dataset", "classes=present", "background=ignore"])
def test_a_random_embedding_scores_the_computed_chance(tmp_path, rng, choice):
    where = paint(tmp_path, blocks(rng, 8))
    runs = [measured(f"folder:{where}?{choice}", model=Blind(seed)) for seed in range(6)]
    scores = [r.numbers["miou"] for r in runs]
    assert np.mean(scores) == pytest.approx(runs[0].chance["miou"], abs=4 * np.std(scores) / 6**0.5 + 0.01)
    assert 0.02 < runs[0].chance["miou"] < 0.6


def tiny(classes, size=32):
    config = replace(PRESETS["tiny"], image_size=size, vision_width=16, vision_depth=1, text_width=16, text_depth=0)
    tokenizer = WordTokenizer([w for name in classes for w in name.split()])
    config = replace(config, vocab_size=tokenizer.vocab_size)
    return Embedder(init_params(config, np.random.default_rng(3)), config, tokenizer, ObjectiveConfig(), "tiny", 4, 1)


def test_a_real_model_by_hand(tmp_path, rng):
    """The numbers are those of segment() and miou() called directly on the model's patches."""
    truths = blocks(rng, 5, (-1, 0, 1, 2, 255))
    where = paint(tmp_path, truths)
    model = tiny(NAMES)
    pictures = [resize(Image.open(where / "images" / f"{i}.png"), 32) for i in range(5)]
    emb, truth = model.pooled_texts(NAMES), np.stack(truths)
    for head, key in (("miou", "segment"), ("miou_g_v", "v")):
        pred = segment(model.images(pictures)[key], emb, (4, 4), (64, 64))
        readings = {f"{a}_{b}": pytest.approx(miou(pred, truth, 3, average=a, background=b))
                    for a in ("per_image", "dataset") for b in ("in_union", "ignore")}
        for average in ("per_image", "dataset"):
            for background in ("in_union", "ignore"):
                r = measured(f"folder:{where}?average={average}&background={background}", model=model)
                expected = miou(pred, truth, 3, average=average, background=background)
                assert r.numbers[head] == pytest.approx(expected)
                if head == "miou":                                # under their own names, whatever is chosen
                    assert {name: r.numbers[name] for name in readings} == readings


def test_chance_is_that_of_the_average_and_the_background_that_are_chosen(tmp_path, rng):
    """A class on background costs nothing where that is left out; pictures of few classes weigh more in one average."""
    where = paint(tmp_path, [*blocks(rng, 3), *blocks(rng, 2, (-1, 0))])
    found = {(a, b): measured(f"folder:{where}?average={a}&background={b}").chance
             for a in ("per_image", "dataset") for b in ("in_union", "ignore")}
    for (a, b), chance in found.items():
        assert chance["miou"] == chance["miou_g_v"] == chance[f"{a}_{b}"]
    assert len({round(chance["miou"], 6) for chance in found.values()}) == 4
    assert all(found[a, "in_union"]["miou"] < found[a, "ignore"]["miou"] for a in ("per_image", "dataset"))


class Noisy(Painted):
    """Patches and texts of which half is noise, the same for the same input."""

    def images(self, pictures):
        v = super().images(pictures)["segment"]
        return dict.fromkeys(("segment", "v"), v + 150 * np.random.default_rng(0).normal(size=v.shape))

    def pooled_texts(self, texts):
        x = super().pooled_texts(texts)
        return x + [np.random.default_rng(len(text)).normal(size=3) * 60 for text in texts]


def test_every_choice_moves_the_number(tmp_path, rng):
    where = paint(tmp_path, [*blocks(rng, 4, (-1, 0, 1, 2, 255)), *blocks(rng, 1, (0, 1))])
    scores = {c: measured(f"folder:{where}?{c}", model=Noisy()).numbers["miou"] for c in (
        "", "upsample=bilinear", "size=64", "classes=present", "prompt=clip7", "average=dataset", "background=ignore",
        "background=class", "resolution=9")}
    assert len(set(scores.values())) == len(scores), scores


def test_the_path_that_was_not_trained_is_left_out_where_there_is_one_only(tmp_path, rng):
    where = paint(tmp_path, blocks(rng, 2))
    model = tiny(NAMES)
    config = replace(model.config, h_v="none")
    model = replace(model, config=config, params=init_params(config, np.random.default_rng(0)))
    assert "miou_g_v" not in measured(f"folder:{where}", model=model).numbers


def test_classes_that_are_present_and_pictures_that_have_none(tmp_path):
    truths = [np.full((16, 16), k) for k in (0, 1, -1)]
    r = measured(f"folder:{paint(tmp_path, truths)}?classes=present", model=Blind(0))
    assert r.numbers["per_image_in_union"] == r.numbers["dataset_in_union"] == 1 and r.examples == 3
    assert r.chance["miou"] == 1, "there is nothing else to draw"
    with pytest.raises(ValueError, match="expected a class in some picture, found background alone in 2"):
        measured(f"folder:{paint(tmp_path / 'none', truths[2:] * 2)}")


def test_the_background_is_called_as_it_is_asked_for(tmp_path):
    asked = []

    class Listening(Painted):
        def pooled_texts(self, texts):
            asked.extend(texts)
            return super().pooled_texts(texts)

    where = paint(tmp_path, [np.full((16, 16), 0)])
    measured(f"folder:{where}?background=class&background_name=wall", model=Listening())
    assert asked == [*NAMES, "wall"]
    assert [measured(f"folder:{where}{how}").protocol["size"] for how in ("", "?size=64")] == [32, 64], "the one that was used"


def test_pictures_and_their_legend(tmp_path, rng):
    (tmp_path / "out").mkdir()
    r = measured(f"folder:{paint(tmp_path, blocks(rng, 9, (-1, 0, 2, 255)))}", pictures=tmp_path / "out", limit=8)
    assert r.pictures == ("segmentation.png",) and r.examples == 8
    with Image.open(tmp_path / "out" / "segmentation.png") as image:
        assert min(image.size) > 400


# --- layouts

def devkit(where, truths, ids=None, masks="SegmentationClass", lists="Segmentation"):
    for folder in ("JPEGImages", masks, f"ImageSets/{lists}"):
        (where / folder).mkdir(parents=True)
    for i, truth in enumerate(truths):
        Image.new("RGB", truth.shape[::-1], (90, 40, 20)).save(where / "JPEGImages" / f"p{i}.jpg")
        p = Image.new("P", truth.shape[::-1])
        p.putpalette([(37 * i) % 256 for i in range(768)])
        p.putdata(np.where(truth == 255, 255, truth + 1).ravel().tolist())
        p.save(where / masks / f"p{i}.png")
    (where / f"ImageSets/{lists}/val.txt").write_text("\n".join(ids or [f"p{i}" for i in range(len(truths))]) + "\n")
    return where


def test_voc(tmp_path, rng):
    truths = [rng.integers(-1, 20, (12, 17)) for _ in range(3)]
    truths[0][:2] = 255
    devkit(tmp_path / "VOCdevkit" / "VOC2012", truths)
    for path in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        data, _ = open_data(task, f"voc:{path}?average=dataset")
        assert data.classes == VOC and len(VOC) == 20 and data.keys == ("p0", "p1", "p2") and data.ignore == 255
        assert all(np.array_equal(data.truth(i), truth) for i, truth in enumerate(truths))
        assert data.picture(1, 32).shape == (32, 32, 3)
    lists = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "train.txt").write_text("p2\n")
    trained, _ = open_data(task, f"voc:{tmp_path}?split=train")
    assert (data.name, trained.name, trained.keys) == ("VOC 2012", "VOC 2012 train", ("p2",))
    assert np.array_equal(trained.truth(0), truths[2])


def test_context(tmp_path, rng):
    truths = [rng.integers(-1, 59, (9, 9))]
    root = devkit(tmp_path / "VOC2010", truths, masks="SegmentationClassContext", lists="Main")
    data, _ = open_data(task, f"context:{root}")
    assert data.classes == CONTEXT and len(CONTEXT) == 59 and list(CONTEXT) == sorted(CONTEXT)
    assert np.array_equal(data.truth(0), truths[0])
    (root / "ImageSets/SegmentationContext").mkdir()              # of those that have masks: read before that of all
    (root / "ImageSets/SegmentationContext/val.txt").write_text("p0\np9\n")
    assert open_data(task, f"context:{root}")[0].report.skipped == {"image missing": 1}
    (root / "59_labels.txt").write_text("".join(f"{k + 1}: {name}\n" for k, name in enumerate(reversed(CONTEXT))))
    assert open_data(task, f"context:{root}")[0].classes == CONTEXT[::-1]
    (root / "SegmentationClassContext").rename(root / "elsewhere")
    (root / "trainval_merged.json").write_text("{}")
    with pytest.raises(ValueError, match="trainval_merged.json is not read".replace(".", r"\.")):
        open_data(task, f"context:{root}")


def instances(where, notes, size=(10, 12), images=("a.jpg",)):
    (where / "annotations").mkdir(parents=True)
    (where / "val2017").mkdir()
    for name in images:
        Image.new("RGB", size[::-1]).save(where / "val2017" / name)
    content = {"images": [{"id": i, "file_name": n, "height": size[0], "width": size[1]} for i, n in enumerate(images)],
               "annotations": [{"id": 7 + n, "image_id": 0} | note for n, note in enumerate(notes)],
               "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}]}
    (where / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return where


BOX = [0, 0, 6, 0, 6, 6, 0, 6]


def test_coco_puts_small_objects_on_large_ones_and_ignores_crowds(tmp_path):
    crowd = {"size": [10, 12], "counts": [50, 20, 50]}            # two columns, the first of which the cat reaches into
    notes = [{"category_id": 90, "iscrowd": 0, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]},
             {"category_id": 3, "iscrowd": 0, "segmentation": [BOX]}, {"category_id": 3, "iscrowd": 1, "segmentation": crowd}]
    data, _ = open_data(task, f"coco:{instances(tmp_path, notes)}")
    expected = np.full((10, 12), -1)
    expected[:, 5:7], expected[:6, :6], expected[1:3, 1:3] = 255, 0, 1
    assert data.classes == ("cat", "dog") and data.name == "COCO val2017" and np.array_equal(data.truth(0), expected)


def test_every_picture_of_coco_has_its_own_pixels_and_objects(tmp_path):
    """In the order of the file, however annotations lie in it; one without an object is background."""
    notes = [{"category_id": k, "segmentation": [BOX], "image_id": i} for k, i in ((3, 2), (90, 0))]
    root = instances(tmp_path, notes, images=("a.png", "b.png", "c.png"))
    for n, name in enumerate("abc"):
        Image.new("RGB", (12, 10), (90 * n, 7, 200)).save(root / "val2017" / f"{name}.png")
    data, _ = open_data(task, f"coco:{root}")
    assert data.keys == ("a.png", "b.png", "c.png")
    for i, label in enumerate((1, -1, 0)):
        assert data.truth(i)[0, 0] == label and (data.picture(i, 8) == [90 * i, 7, 200]).all()


@pytest.mark.parametrize("text, expected", [
    ('{"1": "cat", "2": "dog"}', {1: "cat", 2: "dog"}), ('["cat", "dog"]', {0: "cat", 1: "dog"}),
    ('[{"index": 4, "name": "cat"}]', {4: "cat"}), ('[{"id": 4, "name": "cat"}]', {4: "cat"}),
    ('{"one": ["cat"], "ignore_index": 255}', {0: "cat"}), ("cat\ndog\n", {0: "cat", 1: "dog"}),
    ("1: cat\n2: tv: set\n", {1: "cat", 2: "tv: set"}),
])  # fmt: skip
def test_class_lists(tmp_path, text, expected):
    file = tmp_path / f"names.{'json' if text[0] in '[{' else 'txt'}"
    file.write_text(text)
    assert read_names(file, None) == expected


@pytest.mark.parametrize("text", ["", "{}", "[", "[1, 2]", '{"a": "cat"}', '{"a": ["x"], "b": ["y"]}', '[{"name": "cat"}]',
                                  "[" * 99999, '{"1": " "}'], ids=range(9))
def test_class_lists_that_are_none(tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ValueError, match=r"names.json: expected"):
        read_names(tmp_path / "names.json", None)


@pytest.mark.parametrize("ground, ignored", [(0, 255), (7, 9), (-1, 9), (9, -1)])
def test_every_label_of_a_folder_is_the_one_that_the_list_and_the_options_say(tmp_path, ground, ignored):
    """Labels with gaps; the background and what is ignored among the names or not; of several lists the one that is named."""
    labels = {2: "cat", 5: "dog", 7: "bus", 9: "sky", 200: "cup"}
    kept = {label: name for label, name in labels.items() if label not in (ground, ignored)}
    raw = np.array([[*kept, *[x for x in (ground, ignored) if x >= 0]]], np.uint8)
    for folder, picture in (("images", np.zeros((1, raw.shape[1], 3), np.uint8)), ("masks", raw)):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture).save(tmp_path / folder / "0.png")
    (tmp_path / "two.json").write_text(json.dumps(
        {"others": {"1": "x"}, "mine": [{"index": label, "name": name, "id": 300 + label} for label, name in labels.items()]}))
    spec = f"folder:{tmp_path}?names=two.json&of=mine&background_label={ground}&ignore_label={ignored}"
    data, _ = open_data(task, spec)
    assert data.classes == tuple(kept.values())
    wanted = [*range(len(kept)), *[-1] * (ground >= 0), *[data.ignore] * (ignored >= 0)]
    assert data.truth(0).tolist() == [wanted] and data.ignore == 255


def test_as_many_classes_as_a_byte_holds_leave_room_for_what_is_ignored(tmp_path):
    """With the background as one more class, 255 would be a class."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (3, 1)).save(tmp_path / "images" / "0.png")
    Image.fromarray(np.array([[254, 400, 300]], np.uint16)).save(tmp_path / "masks" / "0.png")
    (tmp_path / "classes.json").write_text(json.dumps({str(k): f"n{k}" for k in range(255)}))
    data, _ = open_data(task, f"folder:{tmp_path}?background_label=300&ignore_label=400")
    assert len(data.classes) == 255 and data.ignore > 255 and data.truth(0).tolist() == [[254, data.ignore, -1]]


def test_pasted_scenes_are_those_that_the_options_name(tmp_path):
    """Of the split, seed, size and number of objects; pictures, masks and names are those of the data set itself."""
    (tmp_path / "stickers").mkdir()
    for n in range(8):
        pixels = np.zeros((9, 9, 4), np.uint8)
        pixels[2:7, 2:7] = (30 * n, 200, 100, 255)
        Image.fromarray(pixels).save(tmp_path / "stickers" / f"thing{n}.png")
    (tmp_path / "names.jsonl").write_text("".join(
        json.dumps({"id": f"thing{n}", "name": f"name {n}", "split": "heldout" if n > 4 else "train"}) + "\n"
        for n in range(8)))
    where, names = tmp_path / "stickers", tmp_path / "names.jsonl"
    cases = {"": ("test", 64, 256, 0, (1, 4)),
             "split=heldout&seed=3&pixels=24&count=5&objects=1,2": ("heldout", 24, 5, 3, (1, 2)),
             "split=validation&seed=1&objects=3,3": ("validation", 64, 256, 1, (3, 3))}
    for options, (split, size, count, seed, objects) in cases.items():
        data, _ = open_data(task, f"scenes:{where}?names={names}" + f"&{options}" * bool(options))
        scenes = PictureScenes(where, names, split, size, count, seed, objects)
        assert data.classes == scenes.classes and len(data.keys) == count and data.name == f"scenes of stickers-{split}"
        for i in (0, 3):
            assert np.array_equal(data.truth(i), truth_of(scenes[i], scenes.classes)), options
            assert np.array_equal(data.picture(i, 32), resize(scenes[i].image, 32)), options


# --- damage: what is done to good data, what is then counted or said

def of_voc(where):
    return devkit(where, [np.full((8, 8), k) for k in range(3)])


def of_folder(where):
    return paint(where, [np.full((8, 8), k) for k in range(3)])


MASK = "SegmentationClass/p1.png"
COUNTED = {
    "a mask of another size": (of_voc, lambda r: Image.new("L", (7, 8)).save(r / MASK), "mask and picture of different sizes"),
    "a label outside the list": (of_voc, lambda r: Image.new("L", (8, 8), 21).save(r / MASK), "label outside the class list"),
    "a mask in colour": (of_voc, lambda r: Image.new("RGB", (8, 8)).save(r / MASK), "mask is not made of labels"),
    "a missing mask": (of_voc, lambda r: (r / MASK).unlink(), "mask missing"),
    "an id without a picture": (of_voc, lambda r: (r / "JPEGImages/p1.jpg").unlink(), "image missing"),
    "a damaged picture": (of_voc, lambda r: (r / "JPEGImages/p1.jpg").write_bytes(b"\xff\xd8\xff"), "image corrupt"),
    "a damaged mask": (of_voc, lambda r: (r / MASK).write_bytes(b"\x89PNG\r\n\x1a\n"), "mask"),
    "an id that leaves the folder": (of_voc, lambda r: (r / "ImageSets/Segmentation/val.txt").write_text("p0\n../p1\np2\n"),
                                     "path leaves the folder"),
    "a mask without a picture": (of_folder, lambda r: (r / "images/1.png").unlink(), "mask without a picture"),
    "a picture without a mask": (of_folder, lambda r: (r / "masks/1.png").unlink(), "mask missing"),
    "two pictures of one mask": (of_folder, lambda r: Image.new("RGB", (8, 8)).save(r / "images/1.jpg"),
                                 "several pictures of one name"),
    "a link that leaves the folder": (of_folder, lambda r: ((r / "masks/1.png").rename(r.parent / "out.png"),
                                                            (r / "masks/1.png").symlink_to(r.parent / "out.png")),
                                      "path leaves the folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTED)
def test_one_bad_picture_is_counted_and_the_others_measured(tmp_path, case):
    make, damage, reason = COUNTED[case]
    root = make(tmp_path / "data")
    damage(root)
    r = measured(f"{'voc' if make is of_voc else 'folder'}:{root}")
    found = [key for key in r.counts if key.startswith(reason)]
    assert found and r.counts[found[0]] == 1 and r.examples == 2
    assert any(note.startswith(f"{found[0]}, 1: ") and "1" in note.partition(": ")[2] for note in r.notes)


def without(root, name):
    file = root / name
    file.rename(root.parent / "gone")


REFUSED = {
    "no list": (of_voc, lambda r: without(r, "ImageSets/Segmentation/val.txt"), "voc", "ImageSets/Segm"),
    "an empty list": (of_voc, lambda r: (r / "ImageSets/Segmentation/val.txt").write_text("\n"), "voc", "id a line"),
    "no masks at all": (of_voc, lambda r: without(r, "SegmentationClass"), "voc", "mask missing"),
    "no pictures at all": (of_voc, lambda r: without(r, "JPEGImages"), "voc", "image missing"),
    "no folder of masks": (of_folder, lambda r: without(r, "masks"), "folder", "masks="),
    "no class list": (of_folder, lambda r: without(r, "classes.json"), "folder", "names=FILE"),
    "classes of one name": (of_folder, lambda r: (r / "classes.json").write_text('{"1": "a", "2": "a"}'), "folder",
                            "different names"),
    "every label outside": (of_folder, lambda r: (r / "classes.json").write_text('{"9": "a"}'), "folder", "label out"),
    "nothing there": (of_voc, lambda r: None, "voc:/none/such", "no such folder"),
}


def test_the_same_data_measured_twice_counts_the_same(tmp_path):
    root = of_voc(tmp_path / "data")
    Image.new("L", (7, 8)).save(root / MASK)
    data, protocol = open_data(task, f"voc:{root}")
    first, again = (task.measure(Painted(), data, protocol) for _ in range(2))
    assert first == again and first.counts["mask and picture of different sizes"] == 1


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_an_error_with_its_remedy(tmp_path, case):
    make, damage, kind, message = REFUSED[case]
    root = make(tmp_path / "data")
    damage(root)
    with pytest.raises(ValueError, match=message):
        measured(kind if ":" in kind else f"{kind}:{root}")


BAD_COCO = {
    "no JSON": (lambda c: "{", "got no JSON"),
    "captions": (lambda c: json.dumps({"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}), "annotations, entry"),
    "no categories": (lambda c: json.dumps({k: x for k, x in c.items() if k != "categories"}), "no list categories"),
    "deep": (lambda c: "[" * 99999, "got no JSON"),
    "a picture without a size": (lambda c: json.dumps(c | {"images": [{"id": 0, "file_name": "a.jpg"}]}), "images, entry 0"),
    "a picture of no size": (lambda c: json.dumps(c | {"images": [c["images"][0] | {"width": 0}]}), "images, entry 0"),
    "ids of two kinds": (lambda c: json.dumps(c | {"categories": [{"id": i, "name": f"n{i}"} for i in (1, "2")]}),
                         "categories, entry 1"),
    "no pictures": (lambda c: json.dumps(c | {"images": []}), "expected pictures with masks"),
    "categories of one name": (lambda c: json.dumps(c | {"categories": [{"id": i, "name": "a"} for i in (1, 2)]}),
                               "different names"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_COCO)
def test_a_json_that_is_no_instances_is_refused(tmp_path, case):
    change, message = BAD_COCO[case]
    file = instances(tmp_path, [{"category_id": 3, "segmentation": [BOX]}]) / "annotations" / "instances_val2017.json"
    file.write_text(change(json.loads(file.read_text())))
    with pytest.raises(ValueError, match=message):
        open_data(task, f"coco:{tmp_path}")


@pytest.mark.parametrize("note, reason", [
    ({"category_id": 3, "segmentation": {"size": [10, 12], "counts": [5]}}, "object whose mask cannot be read"),
    ({"category_id": 3, "segmentation": [[1, 2]]}, "object whose mask cannot be read"),
    ({"category_id": 3}, "object without a mask"), ({"category_id": 4, "segmentation": [BOX]}, "object of no category"),
])  # fmt: skip
def test_a_bad_object_costs_its_picture_alone(tmp_path, note, reason):
    notes = [note, {"category_id": 3, "segmentation": [BOX], "image_id": 1}, {"category_id": 3, "image_id": 99}]
    r = measured(f"coco:{instances(tmp_path, notes, images=('a.jpg', 'b.jpg'))}")
    assert r.examples == 1 and r.counts[reason] == 1 and r.counts["objects of a picture that is not listed"] == 1
    assert any(reason in text and "a.jpg" in text for text in r.notes)


@pytest.mark.parametrize("choice, message", [
    ("average=image", "expected one of 'per_image', 'dataset'"), ("background=none", "background"), ("size=33", "multiple of"),
    ("size=-8", "size: expected"), ("resolution=99999", "resolution: expected"), ("classes=some", "classes"),
    ("prompt=x", "prompt"), ("upsample=cubic", "upsample"), ("averag=dataset", "did you mean average"),
])  # fmt: skip
def test_a_wrong_choice_is_refused(tmp_path, choice, message):
    where = of_folder(tmp_path)
    with pytest.raises(ValueError, match=message):
        measured(f"folder:{where}?{choice}")


# --- real masks

def test_coco_objects_give_the_masks_that_lie_beside_them(sample_data):
    """The masks were made by others from the same annotations; the two differ in overlaps and at borders."""
    ours, _ = open_data(task, f"coco:{sample_data / 'coco'}")
    theirs, _ = open_data(task, f"folder:{sample_data / 'coco'}?masks=masks_coco80&of=coco80")
    same = total = 0
    for i in range(0, len(ours.keys), 6):
        a, b = ours.truth(i), theirs.truth(theirs.keys.index(ours.keys[i][:-4]))
        counted = (a != 255) & (b != 255)
        same, total = same + np.count_nonzero((a == b) & counted), total + np.count_nonzero(counted)
    assert ours.classes == theirs.classes and len(ours.classes) == 80
    assert same / total > 0.99


def test_photos_and_their_voc_masks_end_to_end(sample_data, tmp_path):
    r = measured(f"folder:{sample_data / 'coco'}?masks=masks_voc20&of=voc20", model=tiny(VOC), limit=6, pictures=tmp_path)
    assert r.examples == 6 and 0 <= r.numbers["miou"] < 0.2 and r.numbers["per_image_ignore"] >= r.numbers["miou"]
    assert 0 < r.chance["miou"] < 0.2 and r.counts["mask missing"] == 20 and (tmp_path / "segmentation.png").exists()


def test_emoji_scenes_end_to_end(sample_data):
    emoji = sample_data / "emoji"
    spec = f"scenes:{emoji / 'noto.zip'}?names={emoji / 'emoji.jsonl'}&split=heldout&count=8&pixels=48"
    data, protocol = open_data(task, spec)
    r = task.measure(tiny(data.classes), data, protocol, say=lambda line: None)
    assert r.examples == 8 and len(data.classes) > 50 and r.numbers["miou"] < 0.2 < r.numbers["miou"] + 0.21


def test_the_folder_that_the_page_measures(tmp_path):
    from importlib.util import module_from_spec, spec_from_file_location

    from sparc_ref.data import MosaicScenes

    found = spec_from_file_location("draw_segmentation", Path(__file__).parents[2] / "docs" / "draw_segmentation.py")
    script = module_from_spec(found)
    found.loader.exec_module(script)
    script.write_folder(tmp_path / "mosaics", 2)
    data, _ = open_data(task, f"folder:{tmp_path / 'mosaics'}")
    scenes = MosaicScenes("test", 96, 2, coverage=0.6)
    for i in (0, 1):
        assert np.array_equal(data.truth(i), truth_of(scenes[i], scenes.classes))
    assert data.classes == scenes.classes and np.array_equal(data.picture(1, 96), scenes[1].image)
    for choice in script.CHOICES:
        open_data(task, f"folder:{tmp_path / 'mosaics'}?{choice}")
