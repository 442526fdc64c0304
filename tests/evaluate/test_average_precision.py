"""Boxes against rasters; average precision against pycocotools and lvis, on random ones and on what is built to differ."""

import contextlib
import io
import logging
from dataclasses import replace

import numpy as np
import pytest

from sparc_ref.evaluate.detection import (
    LARGE,
    SMALL,
    Found,
    Truth,
    average_precision,
    averaged,
    corners,
    giou,
    iou,
    sized,
)

AREAS = {"all": (0, 1e10), "small": (0, SMALL), "medium": (SMALL, LARGE), "large": (LARGE, 1e10)}


def raster(box, size=40):
    out = np.zeros((size, size), bool)
    x, y, w, h = box
    out[y:y + h, x:x + w] = True
    return out


def test_boxes_against_rasters():
    rng = np.random.default_rng(0)
    a, b = (np.concatenate([rng.integers(0, 20, (30, 2)), rng.integers(1, 20, (30, 2))], 1) for _ in range(2))
    overlap, general, crowd = iou(a, b), giou(a, b), iou(a, b, np.ones(30, bool))
    for i in range(30):
        for j in range(30):
            p, q = raster(a[i]), raster(b[j])
            both, union = (p & q).sum(), (p | q).sum()
            rows, columns = np.flatnonzero((p | q).any(1)), np.flatnonzero((p | q).any(0))
            hull = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            assert overlap[i, j] == both / union and crowd[i, j] == both / p.sum()
            assert general[i, j] == pytest.approx(both / union - (hull - union) / hull, abs=1e-15)


def test_boxes_that_are_known():
    unit, apart, none = [0.0, 0, 1, 1], [3.0, 0, 1, 1], [0.2, 0.2, 0, 0]
    boxes = np.array([unit, apart, none])
    assert np.array_equal(iou(boxes, boxes), np.diag([1.0, 1, 0]))
    assert giou(boxes, boxes)[0].tolist() == [1.0, -0.5, pytest.approx(0 - (1 - 1) / 1)]  # hull 4, union 2: -(4 - 2) / 4
    assert np.array_equal(sized(corners(boxes)), boxes)


# ------------------------------------------------------------------------------------------------------------------ pycocotools


def coco(truth, found, classes, images):
    """(K,T) for every area by COCOeval, and what it summarises: AP, AP50, AP75, small, medium, large."""
    pytest.importorskip("pycocotools", reason="pycocotools is not installed: pip install '.[evaluation]'")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = {
            "images": [{"id": i} for i in range(images)], "categories": [{"id": k} for k in range(classes)],
            "annotations": [{"id": n + 1, "image_id": int(i), "category_id": int(k), "bbox": box.tolist(), "area": float(s),
                             "iscrowd": int(c)} for n, (i, k, box, s, c) in enumerate(zip(
                                 truth.image, truth.label, truth.box, truth.area, truth.crowd))]}
        api.createIndex()
        rows = [{"image_id": int(i), "category_id": int(k), "bbox": box.tolist(), "score": float(s)}
                for i, k, box, s in zip(found.image, found.label, found.box, found.score)]
        run = COCOeval(api, api.loadRes(rows) if rows else COCO(), "bbox")
        run.evaluate()
        run.accumulate()
        if rows:
            run.summarize()
    at = run.eval["precision"][..., -1]                   # T, R, K, areas
    at = np.where(at < 0, np.nan, at).mean(1).transpose(2, 1, 0)  # areas, K, T
    return at, (run.stats[:6] if rows else None)


def ours(truth, found, classes, **options):
    return np.stack([average_precision(truth, found, classes, area=a, **options) for a in AREAS.values()])


def drawn(seed, images=8, classes=5, most=6, side=160, ties=False, crowds=True):
    """Random boxes, and detections of which many are moved copies of them."""
    rng = np.random.default_rng(seed)
    M = int(rng.integers(images, images * most))
    box = np.concatenate([rng.integers(0, side // 2, (M, 2)), rng.integers(1, side, (M, 2))], 1).astype(float)
    truth = Truth(rng.integers(0, images, M), rng.integers(0, classes - 1, M), box,
                  box[:, 2] * box[:, 3] * rng.uniform(.3, 1, M), (rng.random(M) < .15) & crowds)
    of = rng.integers(0, M, 3 * M)
    moved = np.maximum(box[of] + np.round(rng.normal(0, box[of] * .06 + .1)), [0, 0, 1, 1])
    label = np.where(rng.random(3 * M) < .2, rng.integers(0, classes, 3 * M), truth.label[of])
    score = rng.integers(0, 4, 3 * M) / 4 if ties else rng.random(3 * M)
    return truth, Found(truth.image[of], label, moved, score)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_pycocotools(seed, ties):
    truth, found = drawn(seed, ties=ties)
    theirs, stats = coco(truth, found, 5, 8)
    mine = ours(truth, found, 5)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12)
    assert np.isnan(mine[0, 4]).all()                     # the last class has no truth
    summary = [averaged(x) for x in (mine[0], mine[0, :, 0], mine[0, :, 5], *mine[1:])]
    np.testing.assert_allclose(summary, np.where(stats < 0, np.nan, stats), atol=1e-12)
    assert 0.02 < summary[0] < 0.9                        # the comparison is of something


CASES = {
    "more than a hundred of one class": ([[0, 0, 10, 10]], [0], [([200 + n, 0, 10, 10], 0.9) for n in range(100)] +
                                         [([0, 0, 10, 10], 0.1)]),
    "several of one score": ([[0, 0, 10, 10]], [0], [([3, 0, 10, 10], .5), ([0, 0, 10, 10], .5), ([0, 0, 10, 10], .5)]),
    "two boxes of one overlap": ([[0, 0, 10, 10], [0, 0, 10, 10]], [0, 0], [([0, 0, 10, 9], .9), ([0, 1, 10, 9], .8)]),
    "one overlap, and one of them is wanted later": ([[0, 0, 10, 10], [0, 2, 10, 10]], [0, 0],
                                                     [([0, 1, 10, 10], .9), ([0, 0, 10, 10], .8)]),
    "several in one crowd": ([[0, 0, 100, 100], [200, 0, 9, 9]], [1, 0],
                             [([10, 10, 20, 20], .9), ([30, 10, 20, 20], .8), ([200, 0, 9, 9], .7)]),
    "IoU of a threshold exactly": ([[0, 0, 10, 10]], [0], [([0, 0, 10, 5], .9)]),
    "in a crowd and in a box": ([[0, 0, 100, 100], [10, 10, 20, 20]], [1, 0], [([10, 10, 20, 20], .9), ([10, 10, 20, 19], .8)]),
    "only a crowd": ([[0, 0, 100, 100]], [1], [([10, 10, 20, 20], .9)]),
    "no detection": ([[0, 0, 10, 10]], [0], []),
    "boxes without area": ([[5, 5, 0, 0], [0, 0, 4, 4]], [0, 0], [([5, 5, 0, 0], .9), ([0, 0, 4, 4], .3)]),
    "large truth, small detection": ([[0, 0, 100, 100]], [0], [([0, 0, 20, 20], .9), ([0, 0, 96, 97], .8)]),
}


@pytest.mark.parametrize("case", CASES)
def test_average_precision_is_pycocotools_where_rules_meet(case):
    boxes, crowd, rows = CASES[case]
    box = np.array(boxes, float)
    truth = Truth(np.zeros(len(box), int), np.zeros(len(box), int), box, box[:, 2] * box[:, 3], np.array(crowd, bool))
    found = Found(np.zeros(len(rows), int), np.zeros(len(rows), int), np.array([b for b, _ in rows], float).reshape(-1, 4),
                  np.array([s for _, s in rows], float))
    mine, (theirs, _) = ours(truth, found, 2), coco(truth, found, 2, 1)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12)


def test_perfect_and_random_detectors():
    truth, _ = drawn(3, images=60, crowds=False)
    perfect = Found(truth.image, truth.label, truth.box, np.ones(len(truth.image)))
    assert np.nanmin(average_precision(truth, perfect, 5)) == pytest.approx(1, abs=1e-12)
    rng = np.random.default_rng(0)
    N = 3000
    box = np.concatenate([rng.uniform(0, 160, (N, 2)), rng.uniform(0, 160, (N, 2))], 1)
    found = Found(rng.integers(0, 60, N), rng.integers(0, 5, N), box, rng.random(N))
    assert np.nanmean(average_precision(truth, found, 5)) < 0.02


def test_bad_input_is_named():
    truth, found = drawn(0)
    with pytest.raises(ValueError, match=r"truth\.label: expected .* in 0\.\.1"):
        average_precision(truth, found, 2)
    with pytest.raises(ValueError, match=r"found\.box: .*NaN"):
        average_precision(truth, Found(found.image, found.label, found.box * np.nan, found.score), 5)
    with pytest.raises(ValueError, match="sizes of at least 0"):
        average_precision(truth, Found(found.image, found.label, -found.box, found.score), 5)


# ------------------------------------------------------------------------------------------------------------------------ lvis


@pytest.fixture
def lvis(monkeypatch):
    """lvis 0.5.3, with the name that NumPy 1.24 removed."""
    monkeypatch.setattr(np, "float", float, raising=False)
    return pytest.importorskip("lvis", reason="lvis is not installed, the published evaluator: pip install --no-deps lvis "
                                              "opencv-python-headless")


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_federated_average_precision_is_lvis(lvis, seed, ties):
    images, classes, most = 10, 9, 12
    truth, found = drawn(seed, images, classes, ties=ties, crowds=False)
    rng = np.random.default_rng(seed + 100)
    there = set(zip(truth.image.tolist(), truth.label.tolist()))
    pairs = [(i, k) for i in range(images) for k in range(classes)]
    negative = frozenset(p for p in pairs if p not in there and rng.random() < .4)
    incomplete = frozenset(p for p in sorted(there) if rng.random() < .3)
    truth = Truth(truth.image, truth.label, truth.box, truth.area, truth.crowd, negative, incomplete)
    group = "rcf"
    document = {
        "images": [{"id": i, "neg_category_ids": [k + 1 for j, k in negative if j == i],
                    "not_exhaustive_category_ids": [k + 1 for j, k in incomplete if j == i]} for i in range(images)],
        "categories": [{"id": k + 1, "frequency": group[k % 3]} for k in range(classes)],
        "annotations": [{"id": n + 1, "image_id": int(i), "category_id": int(k) + 1, "bbox": box.tolist(), "area": float(s)}
                        for n, (i, k, box, s) in enumerate(zip(truth.image, truth.label, truth.box, truth.area))]}
    rows = [{"image_id": int(i), "category_id": int(k) + 1, "bbox": box.tolist(), "score": float(s)}
            for i, k, box, s in zip(found.image, found.label, found.box, found.score)]
    logging.disable(logging.WARNING)
    try:
        api = lvis.LVIS.__new__(lvis.LVIS)
        api.logger, api.dataset = logging.getLogger("lvis"), document
        api._create_index()
        run = lvis.LVISEval(api, lvis.LVISResults(api, rows, max_dets=most), "bbox")
        run.run()
    finally:
        logging.disable(logging.NOTSET)
    at = run.eval["precision"]
    theirs = np.where(at < 0, np.nan, at).mean(1).transpose(2, 1, 0)
    mine = ours(truth, found, classes, most=most)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12)
    for name, part in (("AP", slice(None)), *((f"AP{g}", slice(n, None, 3)) for n, g in enumerate(group))):
        assert np.nanmean(mine[0, part]) == pytest.approx(run.results[name], abs=1e-12)
    dense = Truth(truth.image, truth.label, truth.box, truth.area, truth.crowd, frozenset(pairs))
    without = average_precision(dense, found, classes, most=most)
    assert np.all((without <= mine[0] + 1e-12) | np.isnan(without)) and np.nanmean(without) < np.nanmean(mine[0])  # it matters


def test_the_best_few_count_and_what_is_incomplete_is_no_mistake():
    """Two images with a box each; the best detection of the first is beside it, the second best is it."""
    box = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], float)
    truth = Truth(np.array([0, 1]), np.array([0, 0]), box)
    boxes = np.array([[50, 50, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]], float)
    found = Found(np.array([0, 0, 1]), np.zeros(3, int), boxes, np.array([0.9, 0.8, 0.7]))
    best = Found(found.image[[0, 2]], found.label[[0, 2]], found.box[[0, 2]], found.score[[0, 2]])
    few = average_precision(truth, found, 1, most=1)
    assert np.array_equal(few, average_precision(truth, best, 1)) and (few < average_precision(truth, found, 1)).all()
    federated = {incomplete: average_precision(replace(truth, negative=frozenset(), incomplete=frozenset(incomplete)), found, 1)
                 for incomplete in ((), ((0, 0),), ((1, 0),))}
    assert (federated[((0, 0),)] == 1).all() and (federated[()] < 1).all() and (federated[((1, 0),)] < 1).all()
