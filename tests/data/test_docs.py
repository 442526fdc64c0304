"""docs/data.md: its examples give the reports that it shows, and it explains every reason that the code counts."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image

import sparc_ref.data
from sparc_ref.run.sources import open_source

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
FENCE = re.compile(r"```(\w+) ?([^\n]*)\n(.*?)```", re.S)


def examples(text):
    """(files to write, pictures to make, [(command, report)]) of each example, in order."""
    out, files, pictures, reports = [], {}, [], []
    for kind, info, content in FENCE.findall(text):
        if reports and kind != "report":
            out.append((files, pictures, reports))
            files, pictures, reports = {}, [], []
        if kind == "report":
            reports.append((info, content))
        elif kind == "files":
            pictures = content.split()
        elif info:
            files[info] = content
    return [*out, (files, pictures, reports)]


EXAMPLES = examples(PAGE.read_text())


def build(folder, files, pictures):
    for number, name in enumerate(pictures):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), (40 * number, 90, 200 - 30 * number)).save(stream, "PNG" if name.endswith("png") else "JPEG")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(stream.getvalue())
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: next(iter(e[0])).partition("/")[2])
def test_every_example_reports_what_is_shown(example, tmp_path, monkeypatch):
    files, pictures, reports = example
    build(tmp_path, files, pictures)
    monkeypatch.chdir(tmp_path)
    assert reports
    for command, report in reports:
        assert f"{open_source(command, 8).report}\n" == report


def test_every_format_of_the_house_has_an_example():
    names = " ".join(name for files, _, _ in EXAMPLES for name in files)
    known = (".csv", ".tsv", "metadata.jsonl", "annotations/", "dataset_coco", ".token", "results.csv", "GCC", "00000/",
             "captions.json")
    assert len(EXAMPLES) == len(known) and all(part in names for part in known)


def test_every_reason_in_the_code_is_explained():
    code = "".join(path.read_text() for path in Path(sparc_ref.data.__file__).parent.rglob("*.py"))
    reasons = set(re.findall(r'(?:skip|Unusable|report\.convert)\(\s*"([^"{]+)"', code))
    reasons |= set(re.findall(r'changes\.append\(\s*"([^"{]+)"', code)) | set(re.findall(r'flaw = "([^"]+)"', code))
    page = " ".join(PAGE.read_text().split())
    assert len(reasons) > 45
    assert not [reason for reason in reasons if reason not in page]
