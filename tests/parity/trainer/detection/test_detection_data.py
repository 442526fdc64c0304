"""Annotation files as they come and as they should not; crops, mosaics, queries, merged boxes."""

import itertools
import json
import threading

import numpy as np
import pytest
from PIL import Image

from parity.trainer.detection import augment, data
from parity.trainer.detection.augment import Augmentation, Scene


def photo(path, width=40, height=20, colour=(250, 10, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


def document(**changes):
    return {"images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 20},
                       {"id": 9, "file_name": "b.png", "width": 20, "height": 20}],
            "categories": [{"id": 90, "name": "Tooth_Brush"}, {"id": 3, "name": "cat"}],
            "annotations": [{"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 8], "area": 50, "iscrowd": 0},
                            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 40, 20], "area": 700, "iscrowd": 1}],
            } | changes


@pytest.fixture
def coco(tmp_path):
    """write(content) -> the folder, with pictures."""
    def write(content, name="annotations/instances_val.json"):
        photo(tmp_path / "val" / "a.png")
        photo(tmp_path / "val" / "b.png", 20, 20)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path
    return write


def test_coco_is_read_with_classes_from_zero(coco):
    found = data.open_coco(coco(document()))
    assert found.classes == ("cat", "Tooth_Brush") and found.ids == (3, 90) and len(found) == 2
    first = found.pictures[0]
    assert first.label.tolist() == [1, 0] and first.crowd.tolist() == [False, True] and first.area.tolist() == [50, 700]
    assert first.box.tolist() == [[1, 2, 10, 8], [0, 0, 40, 20]] and len(found.pictures[1].label) == 0
    image, _ = found.read(0, 20)
    assert image.shape == (10, 20, 3) and found.read(1, 999)[0].shape == (20, 20, 3)
    assert len(found.first(1)) == 1 and found.frequencies().tolist() == [1, 1]


def test_pictures_are_found_by_many_threads_at_once(coco):
    found, lost = data.open_coco(coco(document())), []
    def read():
        try:
            found.read(0, 20)
        except ValueError as error:
            lost.append(error)
    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost


@pytest.mark.parametrize(("note", "cause"), [
    ({"image_id": 8, "category_id": 3, "bbox": [0, 0, 5, 5]}, "annotation of an image that is not listed"),
    ({"image_id": 7, "category_id": 4, "bbox": [0, 0, 5, 5]}, "annotation of an unknown category"),
    ({"image_id": 7, "category_id": [], "bbox": [0, 0, 5, 5]}, "annotation of an unknown category"),
    ({"image_id": 7, "category_id": 3, "bbox": [0, 0, 5]}, "box is not four numbers"),
    ({"image_id": 7, "category_id": 3, "bbox": [0, 0, 5, float("nan")]}, "box is not four numbers"),
    ({"image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 10**400]}, "box is not four numbers"),
    ({"image_id": 10**400, "category_id": 3, "bbox": [0, 0, 5, 5]}, "annotation of an image that is not listed"),
    ({"image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 0]}, "box without area"),
    ({"image_id": 7, "category_id": 3, "bbox": [41, 0, 5, 5]}, "box outside of its picture"),
    ("text", "annotation of an image that is not listed")])
def test_what_cannot_be_used_is_counted(coco, note, cause):
    found = data.open_coco(coco(document(annotations=[note])))
    assert found.report.skipped == {cause: 1} and sum(len(p.label) for p in found.pictures) == 0
    with pytest.raises(ValueError, match=cause):
        data.open_coco(coco(document(annotations=[note])), strict=True)


def test_a_box_that_reaches_out_is_cut_and_rounding_is_let_be(coco):
    notes = [{"image_id": 7, "category_id": 3, "bbox": box} for box in ([30, 10, 20, 20], [30, 10, 10.4, 10.2])]
    found = data.open_coco(coco(document(annotations=notes)))
    assert found.pictures[0].box.tolist() == [[30, 10, 10, 10], [30, 10, 10.4, 10.2]]
    assert found.report.converted == {"box reaches out of its picture, cut": 1}


@pytest.mark.parametrize(("content", "said_of_it"), [
    ("{", "expected JSON"), ("[" * 100_000, "expected JSON"), ([], "expected COCO's lists"),
    ({"images": []}, "expected COCO's lists"),
    (document(categories=[]), "expected categories"), (document(images=[]), "expected pictures"),
    (document(images=[{"id": 1, "file_name": "a.png", "width": -1, "height": 5}]), "expected pictures")])
def test_a_file_that_is_none_is_named(coco, content, said_of_it):
    with pytest.raises(ValueError, match=rf"instances_val.json: {said_of_it}"):
        data.open_coco(coco(content))


def test_which_file_and_where_the_pictures_are(coco, tmp_path, monkeypatch):
    folder = coco(document())
    with pytest.raises(ValueError, match="nothing there"):
        data.open_coco(folder, annotations="missing.json")
    with pytest.raises(ValueError, match=r"expected one lvis\*.json in it"):
        data.open_lvis(folder)
    for opened in (data.open_coco, data.open_vg):
        with pytest.raises(ValueError, match="first: expected at least 0, which takes all, got -1"):
            opened(folder, first=-1)
    with pytest.raises(ValueError, match="images: expected a folder"):
        data.open_coco(folder, images=str(folder / "nowhere"))
    file = folder / "annotations" / "instances_val.json"
    assert data.open_coco(file).read(0, 40)[0].shape == (20, 40, 3)
    coco(document(), "annotations/instances_train.json")
    with pytest.raises(ValueError, match="several, name one with"):
        data.open_coco(folder)
    monkeypatch.setattr(data, "MAX_JSON", 10)
    with pytest.raises(ValueError, match="bytes, at most 10"):
        data.open_coco(file)


def test_pictures_that_are_missing_or_of_another_shape(coco):
    images = [{"id": 1, "file_name": "c.png", "width": 40, "height": 20},
              {"id": 2, "file_name": "a.png", "width": 20, "height": 40},
              {"id": 3, "file_name": "../../etc/passwd", "width": 20, "height": 40}]
    found = data.open_coco(coco(document(images=images)))
    for index, cause in enumerate(("image missing", "another shape", "leaves the folder")):
        with pytest.raises(data.Unusable, match=cause):
            found.read(index, 40)


def test_a_picture_stays_as_it_is_stored(coco):
    """Boxes are of the pixels of the file: EXIF does not turn it."""
    folder = coco(document())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(folder / "val" / "a.jpg", exif=exif)
    images = [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 20}]
    assert data.open_coco(coco(document(images=images))).read(0, 40)[0].shape == (20, 40, 3)


def lvis_document(**image):
    content = document()
    content["images"] = [{"id": 7, "coco_url": "http://images.cocodataset.org/val/a.png", "width": 40, "height": 20,
                          "neg_category_ids": [90, 5], "not_exhaustive_category_ids": [3]} | image]
    for category, how in zip(content["categories"], "rf"):
        category["frequency"] = how
    return content


def test_lvis_says_what_was_looked_for(coco):
    found = data.open_lvis(coco(lvis_document(), "lvis_v1_val.json"))
    assert found.pictures[0].negative == (1,) and found.pictures[0].incomplete == (0,) and found.frequency == ("f", "r")
    assert found.report.skipped == {"unknown category in neg_category_ids": 1}
    assert found.read(0, 40)[0].shape == (20, 40, 3) and found.name == "LVIS"
    with pytest.raises(ValueError, match="expected a list neg_category_ids"):
        data.open_lvis(coco(lvis_document(neg_category_ids=None), "lvis_v1_val.json"))
    with pytest.raises(ValueError, match="frequency of r, c or f"):
        data.open_lvis(coco(document(), "lvis_v1_val.json"))


def test_objects365_and_visual_genome(coco, tmp_path):
    found = data.open_objects365(coco(document(), "zhiyuan_objv2_val.json"))
    assert len(found) == 2 and found.read(0, 40)[0].shape == (20, 40, 3)
    photo(tmp_path / "VG_100K" / "5.jpg")
    (tmp_path / "image_data.json").write_text(json.dumps([{"image_id": 5, "width": 40, "height": 20}]))
    objects = [{"object_id": 1, "names": ["Traffic light", "light"], "x": 1, "y": 1, "w": 5, "h": 9},
               {"object_id": 2, "names": [], "x": 1, "y": 1, "w": 5, "h": 9},
               {"names": ["sky"], "x": 1, "y": 50, "w": 5, "h": 9}]
    (tmp_path / "objects.json").write_text(json.dumps([{"image_id": 5, "objects": objects}, {"image_id": 6, "objects": []}]))
    found = data.open_vg(tmp_path)
    assert found.classes == ("light", "traffic light") and found.pictures[0].label.tolist() == [1, 0]
    assert found.read(0, 40)[0].shape == (20, 40, 3)
    assert found.report.skipped == {"object without a name": 1, "box outside of its picture": 1,
                                    "picture without a size in image_data.json, or without objects": 1}
    (tmp_path / "image_data.json").unlink()
    with pytest.raises(ValueError, match=r"found no image_data\.json"):
        data.open_vg(tmp_path)


def test_boxes_of_scenes_are_those_of_their_masks(tmp_path):
    found = data.open_scenes(tmp_path / "drawn", count=5, size=64)
    from sparc_ref.data import DrawnScenes

    scenes = DrawnScenes(size=64, count=5)
    assert found.report.kept == {"scenes": 5, "boxes": sum(len(annotated.label) for annotated in found.pictures)}
    for n, annotated in enumerate(found.pictures):
        image, _ = found.read(n, 64)
        assert np.array_equal(image, scenes[n].image)
        for region, (x, y, w, h), area in zip([r for r in scenes[n].regions if r.mask.any()], annotated.box.astype(int),
                                              annotated.area):
            inside = np.zeros((64, 64), bool)
            inside[y:y + h, x:x + w] = True
            assert not (region.mask & ~inside).any() and area == region.mask.sum()
            assert region.mask[y].any() and region.mask[y + h - 1].any() and region.mask[:, [x, x + w - 1]].any(0).all()


# ----------------------------------------------------------------------------------------------------------------- augmentation


def marked(size, box):
    """A grey picture with a white box: where the white is, there the box has to be."""
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 255
    return Scene(image, np.array([box], float), np.array([0]))


def white(image):
    y, x = np.flatnonzero((image > 170).all(2).any(1)), np.flatnonzero((image > 170).all(2).any(0))
    return [x[0], y[0], x[-1] + 1, y[-1] + 1]


def test_boxes_follow_their_pixels():
    rng = np.random.default_rng(0)
    options = Augmentation(crop_keep=0.2)
    for n in range(40):
        scene = marked((90, 60), [20 + n % 20, 10, 60, 20 + n % 30])
        scene = augment.crop(scene, options, rng)
        scene = augment.flipped(scene) if n % 2 else scene
        if not len(scene.box):
            continue
        assert scene.box[0].tolist() == white(scene.image)
        k = 1 + n % 3
        image, box, _ = augment.mosaic([scene] + [Scene(np.full((9, 30, 3), 90, np.uint8), np.zeros((0, 4)), np.zeros(0, int))
                                                  ] * (k * k - 1), 240)
        assert image.shape == (240, 240, 3) and np.abs(box[0] * 240 - white(image)).max() <= 1.5


def test_crops_keep_their_bounds():
    rng, options = np.random.default_rng(1), Augmentation()
    for _ in range(60):
        scene = augment.crop(marked((90, 60), [10, 10, 50, 40]), options, rng)
        h, w = scene.image.shape[:2]
        assert 0.32 <= h * w / 5400 <= 1 and 0.72 <= w / h <= 1.38
        for x0, y0, x1, y1 in scene.box:
            assert (x1 - x0) * (y1 - y0) >= 0.6 * 1200
    every = augment.crop(marked((90, 4), [10, 1, 50, 3]), options, rng)                    # no such crop fits: the whole
    assert every.image.shape == (4, 90, 3)


def test_padding_is_grey_below_and_to_the_right():
    wide, tall = (augment.padded(np.full((*shape, 3), 250, np.uint8), 60) for shape in ((10, 30), (30, 10)))
    assert (wide[:20] == 250).all() and (wide[20:] == 128).all() and (tall[:, :20] == 250).all() and (tall[:, 20:] == 128).all()


def test_boxes_of_one_place_are_one():
    box = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 9.5], [0, 0, 10, 8]], float)
    kept, has = augment.merged(box, np.array([0, 1, 2, 3]), 4)
    assert kept.tolist() == box[[0, 1, 3]].tolist()
    assert has.tolist() == [[True, False, True, False], [False, True, False, False], [False, False, False, True]]
    same, has = augment.merged(box[[0, 0]], np.array([1, 1]), 2)
    assert len(same) == 1 and has.tolist() == [[False, True]]


def annotated(label, negative=(), crowd=None):
    M = len(label)
    return data.Annotated("x", "x", (40, 40), np.tile([5.0, 5, 10, 10], (M, 1)) + np.arange(M)[:, None] * [6, 6, 0, 0],
                          np.array(label, int), np.ones(M), np.array(crowd or [False] * M), negative)


def item(classes, label, frequency=None, negative=(), seed=0, crowd=None, forbidden=(), **options):
    options = {"flip": 0.0, "crop": 0.0, "mosaics": (1.0,), "prompts": "bare"} | options
    image = np.zeros((40, 40, 3), np.uint8)
    return augment.make_item(lambda: (image, annotated(label, negative, crowd)), classes,
                             np.ones(len(classes), int) if frequency is None else np.array(frequency), 48,
                             Augmentation(**options), np.random.default_rng(seed), augment.forbidden_names(forbidden))


NAMES = [f"thing {n}" for n in range(80)]


def test_queries_are_those_there_those_absent_and_others():
    made = item(NAMES, [3, 5, 3], negative=(9, 10))
    assert len(made.texts) == len(set(made.texts)) == 2 + 50
    assert {"thing 3", "thing 5", "thing 9", "thing 10"} <= set(made.texts)
    has = [{made.texts[q] for q in np.flatnonzero(row)} for row in made.labels]
    assert has == [{"thing 3"}, {"thing 5"}, {"thing 3"}]
    assert np.allclose(made.box[0], [10 / 40, 10 / 40, 10 / 40, 10 / 40])                  # the centre, the size
    few = item(NAMES[:8], [3])
    assert sorted(few.texts) == NAMES[:8]                                                 # there are no more
    order = [item(NAMES, [3], seed=s).texts.index("thing 3") for s in range(12)]
    assert len(set(order)) > 4                                                            # nothing is told by the place


def test_pseudo_negatives_are_drawn_by_frequency():
    frequency = [0] * 40 + [1] * 39 + [400]
    drawn = [set(item(NAMES, [0], frequency, negatives=5, seed=s).texts) for s in range(30)]
    assert sum("thing 79" in texts for texts in drawn) >= 28
    assert not any(f"thing {n}" in texts for texts, n in itertools.product(drawn, range(1, 40)))


def test_forbidden_names_are_never_shown_nor_crowds():
    made = item(["Tooth_Brush", "cat", "dog"], [0, 1, 0], forbidden=["tooth-brush"])
    assert len(made.box) == 1 and set(made.texts) == {"cat", "dog"}
    made = item(["Tooth_Brush", "cat", "dog"], [0, 1], negative=(0,), crowd=[False, True], forbidden=["toothbrush"])
    assert len(made.box) == 1 and "tooth brush" in made.texts                             # one word is another name


def test_mosaics_come_as_often_as_asked():
    calls = []
    image = np.zeros((40, 40, 3), np.uint8)
    def read():
        calls.append(1)
        return image, annotated([1])
    counts = {}
    for seed in range(200):
        calls.clear()
        made = augment.make_item(read, NAMES, np.ones(80), 48, Augmentation(), np.random.default_rng(seed))
        counts[len(calls)] = counts.get(len(calls), 0) + 1
        assert len(made.box) <= len(calls) and made.image.shape == (48, 48, 3)
    assert set(counts) == {1, 4, 9} and 55 <= counts[1] <= 105 and 40 <= counts[4] <= 80


def test_names_are_said_in_clips_templates():
    texts = {text for seed in range(9) for text in item(["Aerosol_Can", "cat"], [0], prompts="clip80", seed=seed).texts}
    assert len(texts) > 9 and all("aerosol can" in text or "cat" in text for text in texts)
    with pytest.raises(ValueError, match="prompt: expected one of"):
        Augmentation(prompts="none")
    with pytest.raises(ValueError, match="mosaics"):
        Augmentation(mosaics=(0.5,))
