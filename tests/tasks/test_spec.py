"""layout:path?option=value of a task: options go to opener and protocol; what is wrong is named before a file is read."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from sparc_ref.tasks.spec import absolute, check_spec, open_data


@dataclass(frozen=True)
class Protocol:
    average: str = "per_image"      # why
    size: int | None = None         # why

    def __post_init__(self):
        if self.average not in ("per_image", "dataset"):
            raise ValueError(f"average: expected per_image or dataset, got {self.average!r}")


def voc(path, *, split: str = "val", strict: bool = False):
    if path.name == "none":
        raise ValueError(f"{path}: no such folder")
    return path, split, strict


TASK = SimpleNamespace(KINDS={"voc": voc}, Protocol=Protocol)


def test_options_go_where_they_belong(tmp_path):
    data, protocol = open_data(TASK, f"voc:{tmp_path}?average=dataset&split=test&size=448&strict=true")
    assert data == (tmp_path, "test", True) and protocol == Protocol("dataset", 448)
    assert open_data(TASK, f"voc:{tmp_path}") == ((tmp_path, "val", False), Protocol())


@pytest.mark.parametrize("spec, said", [
    ("vco:/x", r"'vco:/x': expected voc \(did you mean voc\?\)"), ("voc", "no path"), ("voc:", "no path"),
    ("voc:/x?avrage=dataset", r"unknown option 'avrage' \(did you mean average\?\); there are split, strict, average, size"),
    ("voc:/x?average", "unknown option 'average'"), ("voc:/x?average=", "got none"), ("voc:/x?size=1&size=2", "got several"),
    ("voc:/x?size=big", "size: expected"), ("voc:/x?average=mean", "average: expected per_image or dataset, got 'mean'")])
def test_what_is_wrong_is_named_before_a_file_is_read(spec, said):
    with pytest.raises(ValueError, match=said):
        check_spec(TASK, spec)


def test_what_the_opener_refuses_names_the_data():
    with pytest.raises(ValueError, match=r"data 'voc:/a/none': /a/none: no such folder"):
        open_data(TASK, "voc:/a/none")


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("voc:a/b?average=dataset") == f"voc:{tmp_path}/a/b?average=dataset"
    (tmp_path / "names.txt").touch()
    (tmp_path / "a").mkdir()
    assert absolute("voc:a?names=names.txt&split=val") == f"voc:{tmp_path}/a?names={tmp_path}/names.txt&split=val"
    (tmp_path / "a/names.txt").touch()
    assert absolute("voc:a?names=names.txt") == f"voc:{tmp_path}/a?names=names.txt"   # seen from the data's own folder
    for word in ("test", "all", "bare"):                          # words, whatever lies here
        (tmp_path / word).mkdir()
    words = "split=test&candidates=all&prompt=bare"
    assert absolute(f"voc:a?{words}&images=test") == f"voc:{tmp_path}/a?{words}&images={tmp_path}/test"
