"""Training on real input, with the sample data folder (../shared/data, or $SPARC_REF_DATA); bench/real.py is the full run."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("bench_real", Path(__file__).parents[1] / "bench" / "real.py")
real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not real.DATA.is_dir(), reason=f"no sample data folder at {real.DATA}; set SPARC_REF_DATA")]


def test_photos_are_retrieved(tmp_path):
    i2t, t2i, bound = real.photos(tmp_path, steps=120)
    assert min(i2t, t2i) >= bound


def test_emoji_scenes_far_above_chance(tmp_path):
    i2t, t2i, bound = real.emoji(tmp_path, steps=500)
    assert min(i2t, t2i) >= bound / 2
