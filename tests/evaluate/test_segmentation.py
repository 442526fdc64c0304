import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparc_ref.evaluate.segmentation import Tally, cells, drawn, intersections, mean_iou, miou, segment


def by_loops(pred, truth, K, average, background, ignore=255):
    """Pixel by pixel, from the definition."""
    overlap, union, area = np.zeros((len(pred), K)), np.zeros((len(pred), K)), np.zeros((len(pred), K))
    for n in range(len(pred)):
        for p, t in zip(pred[n].ravel().tolist(), truth[n].ravel().tolist()):
            if t == ignore or (t == -1 and background == "ignore"):
                continue
            for k in range(K):
                overlap[n, k] += p == k and t == k
                union[n, k] += p == k or t == k
                area[n, k] += t == k
    if average == "dataset":
        overlap, union, area = overlap.sum(0)[None], union.sum(0)[None], area.sum(0)[None]
    pictures = []
    for n in range(len(overlap)):
        ious = [overlap[n, k] / union[n, k] for k in range(K) if area[n, k]]
        if ious:
            pictures.append(sum(ious) / len(ious))
    return sum(pictures) / len(pictures) if pictures else float("nan")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31),
       st.sampled_from(["per_image", "dataset"]), st.sampled_from(["in_union", "ignore"]))
def test_miou_equals_the_definition(N, H, W, K, seed, average, background):
    rng = np.random.default_rng(seed)
    pred = rng.integers(-1, K, (N, H, W))
    truth = rng.integers(-1, K, (N, H, W))
    truth[rng.random(truth.shape) < 0.2] = 255
    got = miou(pred, truth, K, average=average, background=background)
    assert got == pytest.approx(by_loops(pred, truth, K, average, background), nan_ok=True)


def test_miou_by_hand():
    truth = np.array([[[0, 0, -1, 255]], [[1, 1, 1, 0]]])
    pred = np.array([[[0, 1, 0, 0]], [[1, 1, 0, 0]]])
    # picture 0: class 0 has 1 of 3 (the background pixel counts); picture 1: class 0 has 1 of 2, class 1 has 2 of 3
    assert miou(pred, truth, 2) == pytest.approx((1 / 3 + (1 / 2 + 2 / 3) / 2) / 2)
    assert miou(pred, truth, 2, background="ignore") == pytest.approx((1 / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert miou(pred, truth, 2, average="dataset") == pytest.approx((2 / 5 + 2 / 4) / 2)


def test_a_class_only_predicted_lowers_the_union_of_others_but_is_no_class_of_its_own():
    truth = np.zeros((1, 1, 4), int)
    assert miou(np.array([[[0, 0, 1, 1]]]), truth, 2) == 0.5


def test_perfect_wrong_and_nothing():
    truth = np.array([[[0, 1], [2, 255]]])
    assert miou(np.where(truth == 255, 0, truth), truth, 3) == 1.0
    assert miou((truth + 1) % 3, truth, 3) == 0.0
    assert np.isnan(miou(np.zeros((1, 2, 2), int), np.full((1, 2, 2), 255), 3))
    assert np.isnan(miou(np.zeros((1, 2, 2), int), np.full((1, 2, 2), -1), 3))
    assert np.isnan(miou(np.zeros((0, 2, 2), int), np.zeros((0, 2, 2), int), 3))
    assert miou(np.zeros((2, 1, 1), int), np.array([[[0]], [[-1]]]), 1) == 1.0      # a picture without a class is left out


def test_uint8_masks_with_255_and_parts_summed(rng):
    truth = rng.integers(0, 3, (6, 5, 4)).astype(np.uint8)
    truth[:, 0] = 255
    pred = rng.integers(0, 3, truth.shape)
    parts = [intersections(pred[a:a + 2], truth[a:a + 2], 3) for a in (0, 2, 4)]
    whole = [np.concatenate(x) for x in zip(*parts)]
    for average in ("per_image", "dataset"):
        assert mean_iou(*whole, average=average) == miou(pred, truth, 3, average=average)


def test_many_classes_need_another_ignore_label():
    with pytest.raises(ValueError, match="an ignore label that is no class, got K=1203, ignore=255"):
        miou(np.zeros((1, 1, 1), int), np.zeros((1, 1, 1), int), 1203)
    assert miou(np.full((1, 1, 2), 255), np.array([[[255, 1203]]]), 1203, ignore=1203) == 1.0


def test_segment_takes_the_nearest_class_and_repeats_pixels():
    patches = np.array([[[2.0, 0], [0, 1], [-1, 0], [0.1, 3]]])
    labels = segment(patches, np.array([[5.0, 0], [0, 0.1]]), (2, 2), (4, 6))
    assert labels.shape == (1, 4, 6)
    assert labels[0].tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[1, 1, 1, 1, 1, 1]] * 2


@pytest.mark.parametrize("size", [(3, 3), (5, 7), (1, 1), (2, 9)])
def test_nearest_takes_the_patch_that_holds_the_pixel_centre(rng, size):
    patches, classes = rng.normal(size=(2, 12, 5)), rng.normal(size=(4, 5))
    grid = segment(patches, classes, (3, 4), (3, 4))
    labels = segment(patches, classes, (3, 4), size)
    for y in range(size[0]):
        for x in range(size[1]):
            assert np.all(labels[:, y, x] == grid[:, int((y + 0.5) * 3 / size[0]), int((x + 0.5) * 4 / size[1])])


def test_bilinear_agrees_at_patch_centres_and_with_torch(rng):
    torch = pytest.importorskip("torch")
    patches, classes = rng.normal(size=(2, 12, 5)), rng.normal(size=(4, 5))
    same = segment(patches, classes, (3, 4), (3, 4))
    assert np.array_equal(segment(patches, classes, (3, 4), (3, 4), upsample="bilinear"), same)
    assert np.array_equal(segment(patches, classes, (3, 4), (9, 12), upsample="bilinear")[:, 1::3, 1::3], same)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (patches, classes)]
    score = torch.tensor((unit[0] @ unit[1].T).reshape(2, 3, 4, 4).transpose(0, 3, 1, 2))
    for size in ((7, 10), (1, 1), (24, 32)):
        big = torch.nn.functional.interpolate(score, size, mode="bilinear", align_corners=False)
        if min(size) >= 3:                                        # torch interpolates downwards the same way, too
            assert np.array_equal(segment(patches, classes, (3, 4), size, upsample="bilinear"), big.argmax(1).numpy())


def test_one_patch_and_zero_patches(rng):
    classes = rng.normal(size=(3, 5))
    for how in ("nearest", "bilinear"):
        assert np.all(segment(classes[None, 1:2], classes, (1, 1), (4, 4), upsample=how) == 1)
        assert np.all(segment(np.zeros((1, 4, 5)), classes, (2, 2), (4, 4), upsample=how) == 0)   # a tie: the first class


@pytest.mark.parametrize("args, what", [
    ((np.ones((1, 5, 3)), np.ones((2, 3)), (2, 2), (4, 4)), r"patches: expected \(N,4,D\), got \(1, 5, 3\)"),
    ((np.ones((1, 4, 3)), np.ones((2, 4)), (2, 2), (4, 4)), r"class_emb: expected \(K,3\), got \(2, 4\)"),
    ((np.ones((1, 4, 3)), np.ones((0, 3)), (2, 2), (4, 4)), "at least one class"),
    ((np.ones((1, 4, 3)), np.ones((2, 3)), (2, 2), (0, 4)), "at least one class, patch and pixel"),
    ((np.full((1, 4, 3), np.inf), np.ones((2, 3)), (2, 2), (4, 4)), "finite"),
])
def test_segment_refuses(args, what):
    with pytest.raises(ValueError, match=what):
        segment(*args)


@pytest.mark.parametrize("pred, truth, what", [
    (np.zeros((1, 2, 2), int), np.zeros((1, 2, 3), int), r"truth: expected \(1,2,2\), got \(1, 2, 3\)"),
    (np.zeros((1, 2, 2)), np.zeros((1, 2, 2), int), "pred: expected integers"),
    (np.full((1, 2, 2), 3), np.zeros((1, 2, 2), int), r"pred: expected labels -1..1 \(or 255 in truth\), got 3..3"),
    (np.zeros((1, 2, 2), int), np.full((1, 2, 2), 2), "truth: expected labels"),
])
def test_miou_refuses(pred, truth, what):
    with pytest.raises(ValueError, match=what):
        miou(pred, truth, 2)


def test_unknown_options_are_refused():
    x = np.zeros((1, 2, 2), int)
    with pytest.raises(ValueError, match="average: expected one of 'per_image', 'dataset', got 'image'"):
        miou(x, x, 1, average="image")
    with pytest.raises(ValueError, match="background"):
        miou(x, x, 1, background="drop")
    with pytest.raises(ValueError, match="upsample"):
        segment(np.ones((1, 4, 3)), np.ones((2, 3)), (2, 2), (4, 4), upsample="cubic")


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31),
       st.sampled_from(["in_union", "ignore"]))
def test_counting_picture_by_picture_and_by_patches_is_the_same(N, H, W, K, seed, background):
    rng = np.random.default_rng(seed)
    grid = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    truth = rng.integers(-1, K, (N, H, W))
    truth[rng.random(truth.shape) < 0.2] = 255
    label = rng.integers(0, K, (N, grid[0] * grid[1]))
    pred = segment(np.eye(K)[label], np.eye(K), grid, (H, W))
    tally, by_patch = Tally(K), Tally(K)
    for n in range(N):
        counts = intersections(pred[n:n + 1], truth[n:n + 1], K, background=background)
        tally.add(*counts)
        quick = drawn(cells(truth[n], grid, K, background=background), label[n])
        assert all(np.array_equal(a, b) for a, b in zip(counts, quick))
        by_patch.add(*quick)
    for average in ("per_image", "dataset"):
        expected = miou(pred, truth, K, average=average, background=background)
        assert tally.mean(average) == pytest.approx(expected, nan_ok=True) == pytest.approx(by_patch.mean(average), nan_ok=True)


def test_bilinear_labels_do_not_depend_on_the_strips(rng, monkeypatch):
    patches, classes = rng.normal(size=(2, 6, 5)), rng.normal(size=(4, 5))
    whole = segment(patches, classes, (2, 3), (13, 17), upsample="bilinear")
    monkeypatch.setattr("sparc_ref.evaluate.segmentation.STRIP", 17 * 4 * 3)
    assert np.array_equal(whole, segment(patches, classes, (2, 3), (13, 17), upsample="bilinear"))


def test_where_jaccard_is_the_same_and_where_it_is_not(rng):
    """Over a whole set, of the classes in the truth: scikit-learn's macro Jaccard index. As an average over pictures, or where
    a class is predicted that no truth has (Jaccard counts a 0 for it), it is another number."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    truth = rng.integers(0, 4, (5, 8, 8))
    truth[:, :3, :3] = 255
    pred = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, 4, truth.shape))
    pred[truth == 255] = 0
    counted = truth != 255

    def jaccard(labels):
        return metrics.jaccard_score(truth[counted], pred[counted], average="macro", labels=labels)

    assert miou(pred, truth, 6, average="dataset") == pytest.approx(jaccard([0, 1, 2, 3]))
    assert miou(pred, truth, 6) != pytest.approx(jaccard([0, 1, 2, 3]), abs=1e-6)
    pred[0, 7, 7] = 5                                             # in no truth
    assert miou(pred, truth, 6, average="dataset") == pytest.approx(jaccard([0, 1, 2, 3]))
    assert jaccard(None) == pytest.approx(jaccard([0, 1, 2, 3]) * 4 / 5)


def test_absent_and_ignored_by_hand():
    """One row: truth a a b . x (x ignored, . background), predicted a c b b c; class c is in no truth."""
    truth, pred = np.array([[[0, 0, 1, -1, 255]]]), np.array([[[0, 2, 1, 1, 2]]])
    assert miou(pred, truth, 3) == (1 / 2 + 1 / 2) / 2
    assert miou(pred, truth, 3, background="ignore") == (1 / 2 + 1) / 2
    background_is_3 = np.array([[[0, 0, 1, 3, 255]]])
    assert miou(pred, background_is_3, 4) == (1 / 2 + 1 / 2 + 0) / 3
