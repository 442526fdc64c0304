"""The mIoU on masks of real photos, where the sample data folder is there."""

import os
from pathlib import Path

import numpy as np
import pytest

from sparc_ref.evaluate.grouping import patch_cover
from sparc_ref.evaluate.segmentation import miou, segment

FOLDER = Path(os.environ.get("SPARC_REF_DATA", Path(__file__).parents[3] / "shared" / "data")) / "coco" / "masks_voc20"


@pytest.fixture(scope="module")
def truths():
    if not FOLDER.is_dir():
        pytest.skip(f"{FOLDER} is not there: set SPARC_REF_DATA to the sample data folder")
    from PIL import Image

    masks = [np.asarray(Image.open(p)).astype(np.int64) for p in sorted(FOLDER.glob("*.png"))[:25]]
    return [np.where(m == 255, 255, m - 1)[None] for m in masks]          # 0 background, 1..20 classes in the files


def test_the_truth_itself_scores_one_and_ignored_pixels_do_not_matter(truths):
    rng = np.random.default_rng(0)
    scored = 0
    for truth in truths:
        guess = np.where(truth == 255, rng.integers(-1, 20, truth.shape), truth)
        if np.any((truth >= 0) & (truth < 20)):
            scored += 1
            assert miou(guess, truth, 20) == miou(guess, truth, 20, average="dataset") == 1.0
            assert miou(np.where(guess < 0, 3, guess), truth, 20, background="ignore") == 1.0
    assert scored >= 10


def test_perfect_patches_lose_only_at_borders(truths):
    for truth in truths[:8]:
        present = np.unique(truth[(truth >= 0) & (truth < 20)])
        if len(present) == 0:
            continue
        H, W = truth.shape[1:]
        scores = []
        for grid in ((7, 7), (80, 80)):
            cover = patch_cover(np.stack([truth[0] == k for k in range(20)]), grid)       # (20,P)
            labels = segment(cover.T[None], np.eye(20), grid, (H, W))
            scores.append(miou(labels, truth, 20, background="ignore"))
        assert scores[-1] > 0.8 and scores[-1] >= scores[0]
