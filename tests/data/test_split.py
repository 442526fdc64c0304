"""One folder, two sides: by a hash of the picture's name, the same for ever."""

import pytest

from sparc_ref.data import open_captions
from sparc_ref.data.captions import in_validation


@pytest.fixture
def hundred(tmp_path, photo):
    """A hundred small pictures with two captions each."""
    small = photo(size=(2, 2))
    for n in range(100):
        (tmp_path / f"{n:03}.png").write_bytes(small)
    (tmp_path / "captions.csv").write_text("".join(f"{n:03}.png,{n} {k}\n" for k in "ab" for n in range(100)))
    return tmp_path


def test_the_sides_are_apart_and_together_everything(hundred):
    train, validation = (open_captions(hundred, size=2, split=split, share=0.2) for split in ("train", "validation"))
    assert not set(train.names) & set(validation.names) and len(train) + len(validation) == 100
    assert 10 <= len(validation) <= 30
    assert all(len(texts) == 2 for data in (train, validation) for texts in data.texts)
    assert train.report.kept["images of the other split"] == len(validation)
    assert (train.name, validation.name) == (f"{hundred.name}-train", f"{hundred.name}-validation")
    assert "20.0% to validation" in str(train.report) and len(open_captions(hundred, size=2)) == 100


def test_more_files_move_no_picture(hundred, photo):
    before = open_captions(hundred, size=2, split="validation", share=0.2).names
    for n in range(100, 140):
        (hundred / f"{n}.png").write_bytes(photo(size=(2, 2)))
    lines = [f"{n:03}.png,{n}" for n in range(140)]
    (hundred / "captions.csv").write_text("\n".join(reversed(lines)))
    after = open_captions(hundred, size=2, split="validation", share=0.2).names
    assert set(before) < set(after) and all(int(name[:3]) >= 100 for name in set(after) - set(before))


def test_the_share_is_what_is_asked_for():
    for share in (0.01, 0.05, 0.5):
        held = sum(in_validation(f"photos/{n}.jpg", share) for n in range(20_000)) / 20_000
        assert abs(held - share) < 5 * (share * (1 - share) / 20_000) ** 0.5
    held = [n for n in range(12) if in_validation(f"{n}.jpg", 0.5)]
    assert held == [0, 1, 5, 6, 11], "a side never changes between versions"
    assert in_validation("Caf\u00e9/1.JPG", 0.5) == in_validation("cafe\u0301\\1.jpg", 0.5)
    smaller = {n for n in range(999) if in_validation(f"{n}", 0.05)}
    assert smaller <= {n for n in range(999) if in_validation(f"{n}", 0.1)}


@pytest.mark.parametrize(("options", "words"), [
    ({"split": "test"}, "split: expected train or validation, by a hash"),
    ({"split": "trian"}, "split: expected train, validation"),
    ({"share": 0.0}, "share: expected a number between 0 and 1"), ({"share": float("nan")}, "share: expected"),
    ({"memory_mb": float("nan")}, "memory_mb: expected at least 0, got nan"), ({"memory_mb": -1.0}, "memory_mb: expected"),
    ({"split": "validation", "share": 1e-9}, "none of its 100 pictures falls there.*docs/data.md")])
def test_wrong_splits_are_clear_errors(hundred, options, words):
    with pytest.raises(ValueError, match=words):
        open_captions(hundred, size=2, **options)


def test_the_share_that_the_error_names_gives_some(hundred):
    """A folder of 24 pictures has none at the usual 5 %, and whoever wrote split=train is told what to write."""
    (hundred / "captions.csv").write_text("".join(f"{n:03}.png,{n}\n" for n in range(2, 12)))
    with pytest.raises(ValueError, match=r"none of its 10 pictures .* share=0.01; some do with &share=([0-9.]+), or "
                                         "leave split= out") as error:
        open_captions(hundred, size=2, split="validation", share=0.01)
    share = float(str(error.value).partition("&share=")[2].partition(",")[0])
    assert len(open_captions(hundred, size=2, split="validation", share=share)) >= 1
