"""`evaluate --task` over a list of data sets: each is kept as soon as it is measured, and measured once."""

import json
import re
import sys
from dataclasses import asdict, dataclass
from types import ModuleType, SimpleNamespace

import pytest

from sparc_ref.commands import evaluate
from sparc_ref.commands.cli import run
from sparc_ref.tasks import classification
from sparc_ref.tasks.result import Result


@dataclass(frozen=True)
class Protocol:
    prompt: str = "bare"            # why


@pytest.fixture
def task(monkeypatch):
    """A task that counts files, the model a folder's name; `measured` lists what measure() was asked for."""
    module = ModuleType("a_task")
    module.measured = []
    module.identity = "1"

    def folder(path, *, ending: str = "txt"):
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder")
        return sorted(path.glob(f"*.{ending}"))

    def measure(model, data, protocol, *, limit, pictures, say):
        data = data[:limit]
        module.measured.append((model.name, len(data), protocol.prompt))
        (pictures / "seen.png").write_bytes(b"")
        if not data:
            raise ValueError(f"{model.name}: nothing to measure")
        return Result("classification", "x", "ImageNet", len(data), {"top1": len(data) / 10}, {"top1": 0.1},
                      asdict(classification.Protocol(protocol.prompt)), {"unreadable": 2}, ("a note",), ("seen.png",))

    def open_model(checkpoint, *, batch, shards):
        module.opened = batch, shards
        return SimpleNamespace(name=str(checkpoint), identity=module.identity, trained_on=("captions:/all",))

    module.KINDS, module.Protocol, module.measure, module.open_model = {"folder": folder}, Protocol, measure, open_model
    monkeypatch.setitem(sys.modules, "a_task", module)
    monkeypatch.setitem(evaluate.TASKS, "classification", "a_task")
    return module


@pytest.fixture
def data(tmp_path):
    for name, count in (("a", 3), ("b", 5), ("empty", 0)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.txt").touch()
    (tmp_path / "run").mkdir()
    return tmp_path


def command(data, *specs, more=()):
    return run(["evaluate", "--checkpoint", str(data / "run"), "--task", "classification", "--data",
                *(f"folder:{data}/{s}" for s in specs), *more])


def test_each_is_measured_once_and_kept(task, data, capsys):
    assert command(data, "a", "b", more=["--json", str(data / "r.json")]) == 0
    said = capsys.readouterr().out
    for text in ("[1/2]", "top1    0.3000  chance 0.1000", "unreadable: 2", "prompt=bare", "a note", "seen.png",
                 f"results are kept in {data}/run/evaluation"):
        assert text in said
    content = json.loads((data / "r.json").read_text())
    assert [r["numbers"]["top1"] for r in content["results"]] == [0.3, 0.5] and content["checkpoint"] == f"{data}/run"
    assert [r["data"] for r in content["results"]] == [f"folder:{data}/a", f"folder:{data}/b"] and content["not measured"] == []
    assert f"classification on ImageNet: 3 examples, folder:{data}/a" in said and task.opened == (64, 4)
    named = [line.strip() for line in said.splitlines() if line.endswith("seen.png")]
    assert sorted(named) == sorted(str(file) for file in (data / "run/evaluation").glob("*/seen.png")) and len(named) == 2
    kept = [json.loads(file.read_text()) for file in (data / "run/evaluation").glob("*.json")]
    assert all(each["about"]["trained_on"] == ["captions:/all"] for each in kept) and len(kept) == 2
    assert command(data, "a", "b", "a?prompt=clip7") == 0
    assert "kept from before" in capsys.readouterr().out
    assert [(n, p) for _, n, p in task.measured] == [(3, "bare"), (5, "bare"), (3, "clip7")]
    assert command(data, "a", more=["--limit", "1"]) == 0 and command(data, "a", more=["--again"]) == 0
    assert [n for _, n, _ in task.measured[3:]] == [1, 3]


def test_results_are_kept_where_they_are_asked_for(task, data, capsys):
    """Elsewhere they are found again, and a folder's own come before those of the run that it lies in."""
    assert command(data, "a", more=["--batch", "3", "--shards", "2"]) == 0 and task.opened == (3, 2)
    assert command(data, "b", more=["--out", str(data / "run/other")]) == 0
    (file,) = (data / "run/other").glob("*.json")
    assert json.loads(file.read_text())["result"]["numbers"] == {"top1": 0.5}
    capsys.readouterr()
    for place, value in (("run", "30.0"), ("run/evaluation", "30.0"), ("run/other", "50.0")):
        out = data / f"{place.replace('/', '-')}.html"
        assert run(["report", "--tables", str(data / place), "--out", str(out)]) == 0 and out.exists()
        said = capsys.readouterr().out
        assert f"Open {out}" in said and re.search(rf"^{place.split('/')[-1]} +{re.escape(value)}", said, re.M), place
    assert not list((data / "run").glob("tables.html")), "the page is where it was asked for"


def test_other_weights_are_measured_anew(task, data):
    assert command(data, "a") == 0
    task.identity = "2"
    assert command(data, "a") == 0
    assert len(task.measured) == 2


def test_one_that_cannot_be_measured_does_not_stop_the_rest(task, data, capsys):
    assert command(data, "empty", "none", "b", more=["--json", str(data / "r.json")]) == 2
    said = capsys.readouterr().out
    assert "2 of 3 could not be measured" in said and "unreadable: 2" in said
    assert "none: no such folder" in said and "nothing to measure" in said
    kept = json.loads((data / "r.json").read_text())
    assert len(kept["results"]) == 1 and len(kept["not measured"]) == 2
    assert command(data, "b", "empty") == 2 and [n for _, n, _ in task.measured] == [0, 5, 0]


def test_a_mistyped_name_shows_before_anything_is_measured(task, data, capsys):
    assert command(data, "a", "b?promt=clip7") == 2
    assert "unknown option 'promt' (did you mean prompt?)" in capsys.readouterr().err and not task.measured


@pytest.mark.parametrize("more, said", [
    (["--split", "test"], "--split: is not of a task"), (["--limit", "0"], "--limit: expected at least 1"),
    (["--json", "/nowhere/r.json"], "there is no folder /nowhere")])
def test_options_that_do_not_fit(task, data, capsys, more, said):
    assert command(data, "a", more=more) == 2
    assert said in capsys.readouterr().err and not task.measured


def test_options_of_a_task_without_one(data, capsys):
    assert run(["evaluate", "--checkpoint", str(data / "run"), "--again"]) == 2
    assert "--again: is of a task; name one with --task" in capsys.readouterr().err


def test_a_damaged_result_is_named(task, data, capsys):
    assert command(data, "a") == 0
    file = next((data / "run/evaluation").glob("*.json"))
    file.write_text("{")
    capsys.readouterr()
    assert command(data, "a") == 2
    assert file.name in (said := capsys.readouterr().err) and "delete it to measure again" in said


def test_stopped_by_hand_the_same_command_goes_on(task, data, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    assert command(data, "a") == 0
    monkeypatch.setattr(task, "measure", stopped)
    assert command(data, "a", "b") == 130
    said = capsys.readouterr()
    assert "kept from before" in said.out and "the same command (without --again) goes on" in said.err
    assert "--resume" not in said.err                             # which evaluate has not


def test_a_damaged_result_does_not_stop_the_rest(task, data, capsys):
    assert command(data, "a") == 0
    file = next((data / "run/evaluation").glob("*.json"))
    file.write_text("{")
    assert command(data, "a", "b") == 2
    said = capsys.readouterr().out
    assert file.name in said and "1 of 2 could not be measured" in said and [n for _, n, _ in task.measured] == [3, 5]


def test_checkpoints_of_one_run_have_a_row_each(task, data, capsys):
    steps = data / "run/checkpoints"
    for name, what, identity in (("step_1", "a", "1"), ("step_2", "b", "2"), ("step_2", "a", "3")):
        (steps / name).mkdir(parents=True, exist_ok=True)
        task.identity = identity
        assert run(["evaluate", "--checkpoint", str(steps / name), "--task", "classification", "--data",
                    f"folder:{data}/{what}", "--out", str(data / "run/evaluation")]) == 0
    capsys.readouterr()
    assert run(["report", "--tables", str(data / "run")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("run step")]
    assert rows[:3] == [["run", "step_1", "30.0"], ["run", "step_2", "2", "50.0"], ["run", "step_2", "3", "30.0"]]


def test_tables_of_several_runs(task, data, capsys):
    assert command(data, "a") == 0
    (data / "other").mkdir()
    run(["evaluate", "--checkpoint", str(data / "other"), "--task", "classification", "--data", f"folder:{data}/b"])
    capsys.readouterr()
    assert run(["report", "--tables", str(data / "run"), str(data / "other/evaluation")]) == 0
    said = capsys.readouterr().out
    page = (data / "run/tables.html").read_text()
    assert "Table 1" in said and f"Open {data / 'run/tables.html'}" in said
    ours = page[:page.index("not comparable</th>")]
    assert ours.index(">run<") < ours.index("30.0") < ours.index("50.0")
    run(["evaluate", "--checkpoint", str(data / "run"), "--task", "classification", "--data", f"folder:{data}/b", "--out",
         str(data / "else/run")])
    capsys.readouterr()
    assert run(["report", "--tables", str(data / "run"), str(data / "else/run"), "--out", str(data / "t.html")]) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith(str(data))]
    assert rows[:2] == [[str(data / "run"), "30.0"], [str(data / "else/run"), "50.0"]], "of one name, and each is there"
    assert run(["report", "--tables", str(data / "empty")]) == 2
    assert "expected results of sparc-ref evaluate --task" in capsys.readouterr().err
    for option, value in (("--limit", "3"), ("--data", "drawn")):
        assert run(["report", "--tables", str(data / "run"), option, value]) == 2
        assert f"{option}: is not of --tables" in capsys.readouterr().err


@pytest.mark.parametrize("name, extra", [("detection", "evaluation"), ("retrieval", "run")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(data, capsys, monkeypatch, name, extra):
    def absent(task):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(evaluate, "load_task", absent)
    assert run(["evaluate", "--checkpoint", str(data / "run"), "--task", name, "--data", "x:y"]) == 2
    assert f"the package torch is missing; in a clone of sparc_ref: pip install '.[{extra}]'" in capsys.readouterr().err
