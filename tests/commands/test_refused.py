"""What a command cannot do is refused before any work; what it prints to be pasted deletes nothing."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from test_cli import SMALL, run

from sparc_ref.commands import cli
from sparc_ref.commands import demo as d
from sparc_ref.run import checkpoint, rundir, sources


@pytest.fixture
def no_work(monkeypatch):
    """Opening data, reading a checkpoint and training are work."""
    def worked(*args, **kwargs):
        raise AssertionError("work was begun")
    for module, name in ((sources, "open_source"), (sources, "make_tokenizer"), (rundir, "load_run"), (cli, "train"),
                         (d, "one_model"), (d, "recipe")):
        monkeypatch.setattr(module, name, worked)


@pytest.mark.parametrize("argv, words", [
    (["evaluate", "--checkpoint", "x", "--limit", "0"], "limit: expected at least 1, got 0"),
    (["evaluate", "--checkpoint", "x", "--limit", "-3"], "limit: expected at least 1, got -3"),
    (["evaluate", "--checkpoint", "x", "--batch", "0"], "batch: expected at least 1, got 0"),
    (["evaluate", "--checkpoint", "x", "--shards", "0"], "shards: expected at least 1"),
    (["evaluate", "--checkpoint", "x", "--data", "drawn", "--split", "tset"], "did you mean test?"),
    (["evaluate", "--checkpoint", "x", "--data", "drawn", "--split", "heldout"], "expected train, validation, test, unseen"),
    (["evaluate", "--checkpoint", "x", "--data", "pictures:a.zip", "--split", "unseen"], "heldout"),
    (["evaluate", "--checkpoint", "x", "--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
    (["evaluate", "--checkpoint", "x", "--json", "/"], "expected a file, got the folder /"),
    (["evaluate", "--checkpoint", "x", "--json", "/proc/numbers.json"], "/proc cannot be written to"),
    (["explain", "x.png", "a dog", "--checkpoint", "x", "--out", "/proc/x.png"], "/proc cannot be written to"),
    (["train", "--out", "OUT", "--device", "gpu"], 'expected "cpu" or "cuda", got "gpu"'.replace('"gpu"', "'gpu'")),
    (["train", "--out", "OUT", "--batch", "0"], "batch: expected at least 1"),
    (["train", "--out", "OUT", "--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
    (["train", "--out", "FULL"], "the folder is neither empty nor a run (it holds photo.jpg)"),
    (["train", "--out", "FULL", "--overwrite"], "the folder is neither empty nor a run"),
    (["demo", "--out", "FULL"], "neither empty nor a demo (it holds photo.jpg)"),
    (["demo", "--out", "FULL", "--overwrite"], "neither empty nor a demo"),
    (["demo", "--out", "OUT", "--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
    (["train", "--out", ""], "--out: expected a value, got an empty one"),
    (["train", "--out="], "--out: expected a value, got an empty one"),
    (["demo", "--out", ""], "--out: expected a value"),
    (["evaluate", "--checkpoint", ""], "--checkpoint: expected a value"),
    (["evaluate", "--checkpoint", "x", "--json="], "--json: expected a value"),
    (["explain", "x.png", "a dog", "--checkpoint", "x", "--out", ""], "--out: expected a value"),
], ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_refused_before_any_work(no_work, argv, words, capsys, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "photo.jpg").write_text("mine")
    argv = [{"OUT": str(tmp_path / "out"), "FULL": str(full)}.get(a, a) for a in argv]
    status, out, err = run(argv, capsys)
    assert status == 2 and words in " ".join((out + err).replace("│", " ").split()) and "Traceback" not in out + err
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "photo.jpg"]


def test_device_cuda_without_a_gpu_is_refused_before_any_work(no_work, capsys, tmp_path):
    from sparc_ref.backend import get_device
    try:
        get_device("cuda")
    except ValueError:
        status, _, err = run(["train", "--out", str(tmp_path / "out"), "--device", "cuda"], capsys)
        assert status == 2 and "pip install" in err and not (tmp_path / "out").exists()
        return
    pytest.skip("a GPU is present")


def test_an_ordinary_command_does_begin_work(no_work, capsys, tmp_path):
    """The fixture can fail."""
    for argv in (["train", "--out", str(tmp_path / "out")], ["evaluate", "--checkpoint", "x"],
                 ["demo", "--out", str(tmp_path / "demo")]):
        with pytest.raises(AssertionError, match="work was begun"):
            run(argv, capsys)


def test_numbers_go_where_they_are_asked_for(capsys, tmp_path):
    out = str(tmp_path / "run")
    assert run(["train", "--out", out, *SMALL, "--data", "drawn?count=8"], capsys)[0] == 0
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    evaluate = ["evaluate", "--checkpoint", out, "--data", "drawn?count=8", "--limit", "4", "--json"]
    for name in ("new.json", "there", "link"):
        assert run([*evaluate, str(tmp_path / name)], capsys)[0] == 0
        assert json.loads((tmp_path / name).read_text())["step"] == 2
    assert (tmp_path / "link").is_symlink() and not list(tmp_path.glob(".*"))
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        assert run([*evaluate, str(tmp_path / "pipe")], capsys)[0] == 0
        assert json.loads(reader.communicate()[0])["step"] == 2


# ------------------------------------------------------------------------------------------------- what is printed to be pasted


@pytest.mark.parametrize("argv", [
    ["train", "--out", "x", "--overwrite"], ["train", "--overwrite", "--out", "a b", "--no-resume"], ["demo", "--overwrite"],
    ["train", "--out=x", "--resume"], ["demo"], ["train", "--out", "x", "--no-overwrite"]], ids=" ".join)
def test_the_command_to_continue_never_deletes(argv):
    pasted = shlex.split(cli.to_continue(argv))
    assert pasted[0] == "sparc-ref" and pasted.count("--resume") == 1 and "--overwrite" not in pasted
    kept = [a for a in argv if a not in ("--overwrite", "--no-overwrite", "--resume", "--no-resume")]
    assert pasted[1:-1] == kept


@pytest.mark.parametrize("number", [signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
                                    pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_printed_command_pasted_continues(tmp_path, number):
    """An overwriting run is stopped by a signal; the line that it prints, run as it is, finishes that run."""
    out = tmp_path / "a run"
    command = [sys.executable, "-m", "sparc_ref", "train", "--out", str(out), *SMALL, "--data", "drawn?count=64&style=short"]
    command[command.index("--steps") + 1] = "3000"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([a if a != "3000" else "2" for a in command], check=True, capture_output=True, env=environment)
    assert checkpoint.load(out).step == 2
    with subprocess.Popen([*command, "--overwrite"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment) as process:
        for line in process.stdout:
            if line.startswith("update 150/"):
                break
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    step = checkpoint.load(out).step
    assert step >= 150
    pasted = err.splitlines()[-1].strip()
    assert "--resume" in pasted and "--overwrite" not in pasted
    (tmp_path / "notes.txt").write_text("mine")
    words = shlex.split(pasted)
    with subprocess.Popen([sys.executable, "-m", "sparc_ref", *words[1:]], stdout=subprocess.PIPE, text=True,
                          env=environment) as process:
        first = next(line for line in process.stdout if line.startswith(("resuming", "training")))
        time.sleep(0.2)
        process.kill()
    assert first.startswith(f"resuming at update {step}")


# --------------------------------------------------------------------------------------------------------------- the demo


@pytest.fixture
def quick(monkeypatch, tiny_recipe):
    monkeypatch.setattr(d, "write_page", lambda path, *args, **kwargs: None)
    return d.DemoConfig(steps=2, examples=8, checkpoint_every=1)


def test_the_demo_checks_every_folder_before_it_deletes_from_one(tmp_path, quick):
    """What lies in the way of the second model is found before the first is trained."""
    d.demo(replace(quick, out=tmp_path / "demo"), say=lambda text: None)
    (tmp_path / "demo/notes.txt").write_text("mine")
    (checkpoint.find(tmp_path / "demo/global") / "photo.jpg").write_text("mine")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"photo\.jpg lies in a checkpoint and no run wrote it"):
        d.demo(replace(quick, out=tmp_path / "demo", overwrite=True), say=lambda text: None)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*") if p.is_file()} == before
    (checkpoint.find(tmp_path / "demo/global") / "photo.jpg").unlink()
    d.demo(replace(quick, out=tmp_path / "demo", overwrite=True), say=lambda text: None)
    assert (tmp_path / "demo/notes.txt").read_text() == "mine"


def test_the_demo_writes_through_no_link(tmp_path, quick):
    (tmp_path / "other").mkdir()
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/sparc").symlink_to(tmp_path / "other")
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match="is a link, and a run writes through none"):
            d.demo(replace(quick, out=tmp_path / "demo", **how), say=lambda text: None)
    assert not list((tmp_path / "other").iterdir()) and [p.name for p in (tmp_path / "demo").iterdir()] == ["sparc"]
