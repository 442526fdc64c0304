"""Drawing, writing, regenerating: what is there never changes, and nothing is written that a witness denies."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from parity import vectors
from parity.commands import Vectors
from parity.vectors import budgets, cases, freeze, safe_read, witnesses
from parity.vectors.cases.core import Draw

CASES = vectors.load()
DEFINED = {case.id: case for case in cases.definitions()}


def test_draws_are_the_same_everywhere():
    """Literal numbers: PCG64's raw stream, which no version of NumPy may change."""
    assert Draw(7).normal(4).tolist() == NORMAL
    assert Draw(7).coarse(4).tolist() == COARSE
    assert Draw(7).ids(100, 5).tolist() == IDS
    x = Draw(1).normal(20000).astype(np.float64)
    assert abs(x.mean()) < 0.03 and 1.1 < x.std() < 1.2 and np.abs(x).max() <= 4


NORMAL, COARSE = [0.235382080078125, 1.602783203125, 1.3310546875, -1.21875], [0.21875, 1.59375, 1.3125, -1.21875]
IDS = [43, 25, 86, 14, 1]


@pytest.fixture
def copied(tmp_path):
    return shutil.copytree(vectors.FOLDER, tmp_path / "v1")


@pytest.fixture
def few(monkeypatch, tmp_path):
    """A folder and definitions of three cases, so that writing takes a moment."""
    three = [DEFINED[name] for name in ("global_default", "global_one_sample", "softmax")]
    monkeypatch.setattr(freeze, "definitions", lambda: list(three))
    folder = tmp_path / "new"
    assert freeze.main(Vectors(write=True, folder=folder)) == 0
    return folder, three


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_writing_adds_and_changes_nothing(few, capsys):
    folder, three = few
    before = contents(folder)
    three.append(DEFINED["log_softmax"])
    assert freeze.main(Vectors(folder=folder)) == 1
    assert "log_softmax: defined, but not written yet; --write adds it" in capsys.readouterr().out
    assert freeze.main(Vectors(write=True, folder=folder)) == 0
    assert "4 cases, 1 of them new" in capsys.readouterr().out
    after = contents(folder)
    assert after.keys() - before.keys() == {"log_softmax.safetensors"}
    assert all(after[name] == before[name] for name in before if name != vectors.MANIFEST)
    old, new = (vectors.safe_read.parse_json(each[vectors.MANIFEST], "")["cases"] for each in (before, after))
    assert new[:3] == old
    assert freeze.main(Vectors(write=True, folder=folder)) == 0
    assert contents(folder) == after, "nothing to add, nothing touched"


def test_small_vectors_written_anew_have_the_frozen_numbers(few):
    folder, _ = few
    for case in vectors.load(folder).values():
        got = {n: x for n, x in case.tensors.items() if n in case.budget}
        assert all(d.ok for d in vectors.compare(CASES[case.id], got, "float64"))
        assert all(np.array_equal(x, CASES[case.id].tensors[n]) for n, x in case.tensors.items() if n not in case.budget)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"inputs": {"z": np.ones((3, 5, 4), np.float32)}}, "softmax: in.z differs from the frozen one"),
        ({"note": "Another."}, "softmax: note is frozen as '', defined as 'Another.'"),
        ({"flags": ("large",)}, "softmax: flags is frozen as"),
        ({"function": "log_softmax"}, "softmax: function is frozen as 'softmax', defined as 'log_softmax'"),
        ({"input_dtype": "float16"}, "softmax: input_dtype is frozen"),
        ({"upstream": {"y": np.ones((3, 5, 4), np.float32)}}, "softmax: ct.y differs from the frozen one"),
    ],
)
@pytest.mark.parametrize("write", [False, True])
def test_a_changed_case_is_refused(few, capsys, change, reason, write):
    folder, three = few
    before = contents(folder)
    three[2] = replace(three[2], **change)
    assert freeze.main(Vectors(write=write, folder=folder)) == 1
    out = capsys.readouterr().out
    assert reason in out and "What is frozen never changes: a case that must differ gets a new name." in out
    assert contents(folder) == before


def test_a_case_that_is_no_longer_defined_is_refused(few, capsys):
    folder, three = few
    del three[0]
    assert freeze.main(Vectors(write=True, folder=folder)) == 1
    assert "global_default: frozen, but no longer defined" in capsys.readouterr().out


def test_an_orphan_is_refused(few):
    folder, three = few
    (folder / "log_softmax.safetensors").write_bytes(b"x")
    three.append(DEFINED["log_softmax"])
    with pytest.raises(ValueError, match=r"log_softmax\.safetensors: refused: no case names this file"):
        freeze.main(Vectors(write=True, folder=folder))
    (folder / vectors.MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"has files and no manifest\.json"):
        freeze.main(Vectors(write=True, folder=folder))


def test_another_slack_needs_another_version(few, monkeypatch):
    folder, _ = few
    monkeypatch.setattr(budgets, "SLACK", 16.0)
    with pytest.raises(ValueError, match=r"slack, fraction: frozen as 8.0, .*; others need a new version"):
        freeze.main(Vectors(write=True, folder=folder))


def test_what_does_not_fit_is_not_written(few, monkeypatch):
    folder, three = few
    before = contents(folder)
    three.append(DEFINED["log_softmax"])
    monkeypatch.setattr(freeze, "TOTAL_LIMIT", 1000)
    with pytest.raises(ValueError, match="where at most 1000 are allowed"):
        freeze.main(Vectors(write=True, folder=folder))
    assert contents(folder) == before


def test_check_and_write_at_once_is_refused():
    with pytest.raises(ValueError, match="expected one of them"):
        freeze.main(Vectors(check=True, write=True))


def test_a_tampered_number_is_found_by_check(copied, capsys):
    """Even when the manifest was made to agree with it."""
    path = copied / "global_default.safetensors"
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    start, _ = json.loads(content[8 : 8 + size])["out.loss"]["data_offsets"]
    content[8 + size + start + 4] ^= 16                       # a millionth of the loss
    path.write_bytes(bytes(content))
    manifest = json.loads((copied / vectors.MANIFEST).read_text())
    entry = next(e for e in manifest["cases"] if e["id"] == "global_default")
    entry["sha256"] = safe_read.digest(bytes(content))
    (copied / vectors.MANIFEST).write_text(json.dumps(manifest))
    lines = list(freeze.differences(DEFINED["global_default"], vectors.load(copied)["global_default"]))
    assert len(lines) == 1 and "global_default: out.loss: error" in lines[0] and "beyond" in lines[0]


def test_witnesses_that_disagree_are_not_written(monkeypatch):
    """Each of them alone stops a case: a wrong gradient, a wrong oracle, a margin not kept."""
    sound = cases.FUNCTIONS["softmax"]

    def off(function, factor):
        def ours(x, o):
            y, mid, back = function(x, o)
            return y, mid, lambda ct: {n: g * factor for n, g in back(ct).items()}
        return ours

    case = DEFINED["softmax"]
    witnesses.compute(case)
    monkeypatch.setitem(cases.FUNCTIONS, "softmax", replace(sound, ours=off(sound.ours, 1 + 1e-9)))
    with pytest.raises(witnesses.Disagreement, match=r"softmax: grad\.z: autograd differs by"):
        witnesses.compute(case)

    def wrong_twice(x, o):                                    # manual and autograd agree on a gradient that is not the value's
        z = x["z"]
        y = torch.softmax(z, -1).detach() + (torch.softmax(z, -1) - torch.softmax(z, -1).detach()) * (1 + 1e-5)
        return {"y": y}, {}

    monkeypatch.setitem(cases.FUNCTIONS, "softmax", replace(sound, ours=off(sound.ours, 1 + 1e-5), theirs=wrong_twice))
    for thorough in (True, False):
        with pytest.raises(witnesses.Disagreement, match="differences say"):
            witnesses.compute(case, thorough)
    near = DEFINED["fine_sigma_hit"]
    with pytest.raises(witnesses.Disagreement, match="fine_sigma_hit: the distance from sigma: a margin of 0"):
        witnesses.compute(replace(near, flags=("ordinary",)))
    flat = DEFINED["fine_ties_minimum"]
    with pytest.raises(witnesses.Disagreement, match="the gap above the minimum: a margin of 0"):
        witnesses.compute(replace(flat, flags=("ordinary",)))
