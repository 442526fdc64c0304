"""What --data names: splits of one folder and of published files, from the command line to the metrics."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from sparc_ref.commands import cli
from sparc_ref.data import MosaicScenes
from sparc_ref.run.sources import open_source, validation_of

CASES = Path(__file__).parents[1] / "data" / "cases" / "captions"
SMALL = ["--image-size", "16", "--vision-width", "16", "--vision-depth", "1", "--text-width", "16", "--text-depth", "1",
         "--steps", "2", "--batch", "4", "--eval-limit", "4", "--warmup", "1"]


@pytest.fixture
def photos(tmp_path):
    """Forty pictures with a caption each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(40):
        stream = io.BytesIO()
        Image.new("RGB", (16, 16), (6 * n, 90, 200)).save(stream, "PNG")
        (folder / f"{n}.png").write_bytes(stream.getvalue())
    (folder / "captions.csv").write_text("".join(f"{n}.png,picture of number {n} in a row\n" for n in range(40)))
    return folder


def measured(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {row["split"] for row in rows if row["kind"] == "eval"}


def test_one_folder_is_trained_on_one_side_and_measured_on_the_other(photos, tmp_path, capsys):
    train = f"captions:{photos}?split=train&share=0.3"
    assert cli.run(["train", "--out", str(tmp_path / "run"), *SMALL, "--data", train]) == 0
    assert measured(tmp_path / "run") == {"0:photos-validation"}
    out = capsys.readouterr().out
    assert "30.0% to validation; read: train" in out and "measured on 0:photos-validation: " in out
    assert cli.run(["evaluate", "--checkpoint", str(tmp_path / "run"), "--data", train.replace("train&", "validation&")]) == 0
    held = len(open_source(train.replace("train&", "validation&"), 16))
    assert f"photos-validation, {held} examples" in capsys.readouterr().out and 4 < held < 20


def test_without_a_split_the_folder_itself_is_measured_and_named_so(photos, tmp_path):
    assert cli.run(["train", "--out", str(tmp_path / "run"), *SMALL, "--data", f"captions:{photos}"]) == 0
    assert measured(tmp_path / "run") == {"0:photos, trained on"}


def test_a_published_split_is_trained_measured_and_tested_on(tmp_path, capsys):
    spec = f"captions:{CASES}/karpathy/dataset_coco.json"
    assert cli.run(["train", "--out", str(tmp_path / "run"), *SMALL, "--data", spec]) == 0
    assert measured(tmp_path / "run") == {"0:dataset_coco-validation"}
    capsys.readouterr()
    assert cli.run(["evaluate", "--checkpoint", str(tmp_path / "run"), "--data", spec]) == 0
    assert "dataset_coco-test, 2 examples" in capsys.readouterr().out


def test_what_is_kept_apart(photos):
    folder, own = f"captions:{photos}", f"captions:{CASES}/karpathy/dataset_coco.json"
    for spec, apart in ((folder, None), (f"{folder}?split=train", f"{folder}?split=validation"),
                        (f"{folder}?share=0.2&split=train", f"{folder}?share=0.2&split=validation"), (own, own),
                        (f"{own}?split=train", f"{own}?split=validation"), (f"{own}?split=all", None), ("drawn", "drawn"),
                        ("drawn?split=test", None)):
        assert validation_of(spec, open_source(spec, 16)) == apart


def test_errors_name_the_page(tmp_path, capsys):
    (tmp_path / "captions.csv").write_text("picture,words\n0.jpg,a dog\n")
    for spec, words in ((f"captions:{tmp_path}", "picture, words"), ("caption:x", "did you mean captions?")):
        assert cli.run(["train", "--out", str(tmp_path / "run"), "--data", spec]) == 2
        err = capsys.readouterr().err
        assert words in err and "docs/data.md" in err and err.count("\n") == 1


def test_an_option_is_of_its_own_type():
    """Truth in its usual spellings, whole numbers, a range, a share, text; anything else is named."""
    def made(options, kind="mosaic"):
        return open_source(f"{kind}?{options}", 32)

    assert [made(f"fused={x}", "drawn").fused for x in ("true", "True", "1", "false", "FALSE", "0")] == [True] * 3 + [False] * 3
    data = made("regions=1,3&coverage=.25&grain=2&link=and&split=test&count=9&seed=4&words=2&distractors=1")
    assert data == MosaicScenes("test", 32, 9, 4, (1, 3), 0.25, 1, 2, "and", 2)
    for options, words in (("count=2.5", "count: expected int, got '2.5'"), ("coverage=half", "coverage: expected float"),
                           ("regions=1,x", "regions: expected tuple"), ("seed=", "seed: expected one value, got none")):
        with pytest.raises(ValueError, match=words):
            made(options)
    with pytest.raises(ValueError, match="fused: expected bool, got 'yes'"):
        made("fused=yes", "drawn")


@pytest.mark.parametrize(("options", "words"), [
    ("split=train&split=validation", "split: expected one value, got several"),
    ("images=", "images: expected one value, got none"),
])
def test_an_option_is_given_once_and_with_a_value(photos, options, words):
    with pytest.raises(ValueError, match=words):
        open_source(f"captions:{photos}?{options}", 16)
