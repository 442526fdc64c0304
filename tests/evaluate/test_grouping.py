import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparc_ref.evaluate.grouping import grouping, patch_cover, queries, summary


def square(H, W, y0, y1, x0, x1):
    m = np.zeros((H, W), bool)
    m[y0:y1, x0:x1] = True
    return m


def test_by_hand():
    masks = square(4, 4, 0, 2, 0, 3)[None, None]                  # patch 0 whole, patch 1 half: area 6 of 16
    w = np.array([[[0.6, 0.3, 0.1, 0], [1, 0, 0, 0]]])
    got = grouping(w, np.array([[0, -1]]), masks, (2, 2))
    assert got["mass"] == pytest.approx(0.6 + 0.15)
    assert got["pointing"] == 1.0
    assert got["iou"] == pytest.approx(1.5 / 2)                   # region: patches 0 and 1 (0.3 is half of 0.6)
    assert got["mass_chance"] == got["pointing_chance"] == got["iou_chance"] == pytest.approx(6 / 16)
    assert got["mass_lift"] == pytest.approx(0.75 / 0.375)
    assert got["best"] == 1.0 and got["objects"] == 1.0


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
       st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_uniform_weights_score_the_area_share_exactly(N, L, R, gh, gw, H, W, seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((N, R, H, W)) < 0.4
    region = rng.integers(-1, R, (N, L))
    got = queries(np.full((N, L, gh * gw), 0.25), region, masks, (gh, gw))
    for q, (n, r) in enumerate(zip(got["image"], got["region"])):
        area = masks[n, r].mean()
        for name in ("mass", "pointing", "iou", "mass_chance", "pointing_chance", "iou_chance"):
            assert got[name][q] == pytest.approx(area)
    wanted = {(n, r) for n in range(N) for r in region[n] if r >= 0 and masks[n, r].any()}
    assert set(zip(got["image"].tolist(), got["region"].tolist())) == wanted


def test_a_name_of_several_tokens_is_averaged():
    masks = square(2, 2, 0, 1, 0, 1)[None, None]
    w = np.array([[[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]]])
    got = grouping(w, np.array([[0, 0, -1]]), masks, (2, 2))
    assert got["mass"] == 0.5 and got["pointing"] == 0.5          # two patches tie, one of them is right
    assert got["objects"] == 1


def test_perfect_weights_reach_the_best(rng):
    masks = rng.random((5, 3, 8, 8)) < 0.3
    cover = patch_cover(masks, (4, 4))
    w = np.eye(16)[cover.argmax(-1)]                              # (5,3,16) all on the most covered patch
    got = grouping(w, np.tile(np.arange(3), (5, 1)), masks, (4, 4))
    assert got["mass"] == got["pointing"] == pytest.approx(got["best"])


def test_random_weights_are_at_chance(rng):
    masks = np.zeros((400, 1, 8, 8), bool)
    for m in masks[:, 0]:
        y, x = rng.integers(0, 5, 2)
        m[y:y + 4, x:x + 4] = True
    w = rng.random((400, 1, 64))
    got = grouping(w / w.sum(-1, keepdims=True), np.zeros((400, 1), int), masks, (8, 8))
    assert got["mass"] == pytest.approx(0.25, abs=0.01)
    assert abs(got["pointing"] - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 400)
    assert got["pointing_lift"] == pytest.approx(got["pointing"] / 0.25)


@pytest.mark.parametrize("H, W, gh, gw", [(8, 8, 4, 4), (7, 5, 3, 2), (3, 3, 4, 5), (1, 1, 2, 2)])
def test_patch_cover_equals_a_fine_count(rng, H, W, gh, gw):
    mask = rng.random((2, H, W)) < 0.5
    fine = np.repeat(np.repeat(mask, gh, -2), gw, -1)             # each pixel cut so that patch borders fall between cuts
    want = fine.reshape(2, gh, H, gw, W).mean((2, 4)).reshape(2, -1)
    assert np.allclose(patch_cover(mask, (gh, gw)), want)
    assert np.allclose(patch_cover(mask, (gh, gw)).mean(-1), mask.mean((-2, -1)))


def test_choice_asks_which_of_the_objects_and_is_blind_to_what_merely_stands_out():
    masks = np.stack([square(4, 4, 0, 2, 0, 2), square(4, 4, 2, 4, 0, 4), np.zeros((4, 4), bool)])[None]
    both = np.array([[[0.5, 0, 0.5, 0.5]] * 2]) / 1.5             # the same weights, on the objects, for both names
    got = grouping(both, np.array([[0, 1]]), masks, (2, 2))
    assert got["mass"] == pytest.approx(0.5) and got["mass_chance"] == pytest.approx(0.375)
    assert got["choice"] == got["choice_chance"] == 0.5           # they tie: a hidden third object is no candidate
    own = np.array([[[0.7, 0, 0.3, 0], [0.4, 0, 0.3, 0.3]]])      # the second puts more on its object, but less per pixel
    assert queries(own, np.array([[0, 1]]), masks, (2, 2))["choice"].tolist() == [1, 0]
    alone = grouping(own, np.array([[0, -1]]), masks[:, :1], (2, 2))
    assert "choice" not in alone and "mass" in alone


def test_touch_counts_a_border_patch_as_the_object():
    masks = square(4, 4, 0, 1, 0, 1)[None, None]
    w = np.array([[[1.0, 0, 0, 0]]])
    region = np.array([[0]])
    assert grouping(w, region, masks, (2, 2))["pointing"] == 0.25
    got = grouping(w, region, masks, (2, 2), on="touch")
    assert got["pointing"] == 1.0 and got["pointing_chance"] == 0.25


def test_a_hidden_object_is_not_asked_and_none_at_all_is_no_crash():
    hidden = np.zeros((1, 1, 4, 4), bool)
    w = np.full((1, 2, 4), 0.25)
    assert grouping(w, np.array([[0, -1]]), hidden, (2, 2)) == {"objects": 0.0}
    assert grouping(w, np.full((1, 2), -1), ~hidden, (2, 2)) == {"objects": 0.0}
    assert grouping(w, np.full((1, 2), -1), np.zeros((1, 0, 4, 4), bool), (2, 2)) == {"objects": 0.0}


def test_rows_of_zero_say_nothing_and_padding_may_hold_anything():
    masks = square(4, 4, 0, 2, 0, 2)[None, None]
    w = np.zeros((1, 2, 4))
    w[0, 1] = -7                                                  # padding, not a name
    assert grouping(w, np.array([[0, -1]]), masks, (2, 2))["mass"] == 0.25


def test_batches_joined_are_the_whole(rng):
    w, region, masks = rng.random((6, 4, 9)), rng.integers(-1, 2, (6, 4)), rng.random((6, 2, 9, 9)) < 0.5
    parts = [queries(w[a:a + 2], region[a:a + 2], masks[a:a + 2], (3, 3)) for a in (0, 2, 4)]
    assert summary({k: np.concatenate([p[k] for p in parts]) for k in parts[0]}) == grouping(w, region, masks, (3, 3))


@pytest.mark.parametrize("change, what", [
    ({"weights": np.ones((1, 2, 5))}, r"weights: expected \(N,L,4\), got \(1, 2, 5\)"),
    ({"weights": np.full((1, 2, 4), np.nan)}, "finite"),
    ({"weights": -np.ones((1, 2, 4))}, "none below 0"),
    ({"word_region": np.array([[0, 1]])}, r"expected -1..0, got 0..1"),
    ({"word_region": np.array([[0]])}, r"word_region: expected \(1,2\), got \(1, 1\)"),
    ({"masks": np.ones((1, 1, 4, 4))}, "masks: expected booleans"),
    ({"masks": np.ones((2, 1, 4, 4), bool)}, r"masks: expected \(1,R,H,W\), got"),
    ({"on": "near"}, "on: expected one of"),
])
def test_refuses(change, what):
    given = {"weights": np.ones((1, 2, 4)), "word_region": np.array([[0, -1]]), "masks": np.ones((1, 1, 4, 4), bool),
             "grid": (2, 2)}
    with pytest.raises(ValueError, match=what):
        grouping(**(given | change))
