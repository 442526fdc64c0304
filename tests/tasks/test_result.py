"""A result is kept whole and read back equal; a file that is none is refused by name."""

import json

import pytest

from sparc_ref.tasks.result import Result, read, write

RESULT = Result("retrieval", "captions:/x", "x", 3, {"i2t_r1": 0.5}, {"i2t_r1": 0.3}, {"captions": 5}, {"unreadable": 2},
                ("one note",), ("a.png",))


def test_read_back_equal(tmp_path):
    write(tmp_path / "r.json", RESULT, {"checkpoint": "c"})
    assert read(tmp_path / "r.json") == (RESULT, {"checkpoint": "c"})


@pytest.mark.parametrize("content", [
    b"", b"[]", b"{}", b'{"about": {}}', b'{"about": {}, "result": {"task": "x"}}', b"[" * 100_000, b"\xff",
    b'{"about": {}, "result": 1}'])
def test_other_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"r\.json.*delete it to measure again"):
        read(tmp_path / "r.json")


@pytest.mark.parametrize("name, value", [("numbers", {"x": "1"}), ("numbers", {"x": None}), ("examples", "3"), ("notes", "n")])
def test_values_of_another_type_are_refused(tmp_path, name, value):
    write(tmp_path / "r.json", RESULT, {})
    kept = json.loads((tmp_path / "r.json").read_text())
    kept["result"][name] = value
    (tmp_path / "r.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=r"r\.json"):
        read(tmp_path / "r.json")


@pytest.mark.parametrize("x", [float("nan"), float("inf"), True, "1"])
def test_only_finite_numbers(x):
    with pytest.raises(ValueError, match="i2t_r1: expected a finite number"):
        Result("retrieval", "x", "x", 1, {"i2t_r1": x})
