"""What is put into a run's folder from outside, names that are odd, commands that are printed: one line, nothing lost."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sparc_ref.commands import cli
from sparc_ref.run import checkpoint

TINY = shlex.split("--data drawn?style=short&count=8 --image-size 16 --vision-width 8 --vision-depth 1 --vision-heads 2 "
                   "--text-width 8 --text-depth 1 --text-heads 2 --embed-dim 8 --max-tokens 20 --steps 2 --batch 4 --warmup 1 "
                   "--eval-every 0 --eval-limit 4 --shards 1".replace("&", "'&'"))


@pytest.fixture
def command(capfd, tmp_path, monkeypatch):
    """command("train", ...) -> exit status, everything printed"""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        argv = [argv[0], *TINY * (argv[0] == "train"), *argv[1:]]
        status = cli.run(argv)
        sys.stdout.flush(), sys.stderr.flush()
        return status, "".join(capfd.readouterr())
    return call


@pytest.fixture
def run(command):
    assert command("train", "--out", "run")[0] == 0
    return Path("run")


def test_a_configuration_of_another_program_makes_no_run(command):
    """Five common words are in many a config.json; its metrics and tokenizer were deleted as those of a killed start."""
    words = {key: {"name": "x"} for key in ("model", "train", "data", "validation")} | {"tokenizer": "bpe"}
    theirs = {"config.json": json.dumps(words), "metrics.jsonl": "theirs", "tokenizer/tokenizer.json": "theirs"}
    for name, content in theirs.items():
        Path("other", name).parent.mkdir(parents=True, exist_ok=True)
        Path("other", name).write_text(content)
    for how in ([], ["--resume"], ["--overwrite"]):
        status, said = command("train", "--out", "other", *how)
        assert status == 2 and "the folder is neither empty nor a run" in said
        assert {name: Path("other", name).read_text() for name in theirs} == theirs


@pytest.mark.parametrize("row", [
    "5", "null", "[]", '{"kind": "train"}', '{"kind": "train", "step": NaN, "seconds": 1}', "[" * 9999,
    '{"kind": "train", "step": 1, "seconds": "x"}', '{"kind": "train", "step": 1, "seconds": 1, "loss": []}'])
def test_rows_of_metrics_that_are_none(command, run, row):
    metrics = run / "metrics.jsonl"
    metrics.write_text(f"{row}\n{metrics.read_text()}")
    for argv in (["report", "run", "--limit", "4"], ["train", "--out", "run", "--resume"]):
        status, said = command(*argv)
        assert status == 2 and "metrics.jsonl, line 1: " in said and said.endswith("delete that line\n")


@pytest.mark.parametrize("change", [
    lambda record: record.update(config=[1]), lambda record: record["config"].update(train=None),
    lambda record: record["config"].update(data=None), lambda record: record["config"]["data"].update(x=5),
    lambda record: record["config"].update(sources=5), lambda record: record["config"]["sources"].update(command={"x": 1}),
], ids=["a list", "no training", "no data", "data of another type", "no sources", "no command"])
def test_a_record_that_was_edited(command, run, change):
    file = checkpoint.find(run) / "checkpoint.json"
    index = json.loads(file.read_text())
    change(index["record"])
    file.write_text(json.dumps(index | {"sha256": checkpoint.index_hash(index)}))
    for argv in (["report", "run", "--limit", "4"], ["evaluate", "--checkpoint", "run", "--limit", "4"]):
        status, said = command(*argv)
        assert status == 2 and "its configuration is not one that sparc_ref wrote" in said


def test_a_checkpoint_under_another_name(command, run):
    os.rename(run / "checkpoints/step_00000002", run / "checkpoints/step_00000009")
    status, said = command("evaluate", "--checkpoint", "run")
    assert status == 2 and "checkpoint.json says step 2, its folder says another" in said


def test_a_lost_tokenizer_is_written_again(command, run):
    saved = (run / "tokenizer/tokenizer.json").read_bytes()
    (run / "tokenizer/tokenizer.json").unlink()
    assert command("train", "--out", "run", "--resume")[0] == 0
    assert (run / "tokenizer/tokenizer.json").read_bytes() == saved


@pytest.mark.parametrize(("option", "words"), [
    ("--no-eos", "--eos: True there, False here"), ("--no-lower", "--lower: True there, False here")])
def test_options_of_the_tokenizer_are_settings_too(command, run, option, words):
    status, said = command("train", "--out", "run", "--resume", option)
    assert status == 2 and "was started with other settings; " in said and words in said


@pytest.mark.parametrize(("name", "words"), [
    ("x" * 300, "no run can be there (File name too long)"), ("y/" * 3000, "no run can be there (File name too long)"),
    ("a\0b", "no run can be there (embedded null byte)"), ("file/run", "got a file or a broken link at file"),
    ("broken/run", "got a file or a broken link at broken"), ("loop/run", "no run can be there (Too many levels"),
])
def test_places_where_no_run_can_be(command, name, words):
    Path("file").write_text("mine")
    Path("broken").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    status, said = command("train", "--out", name)
    assert status == 2 and words in said and len(said) < 300
    assert Path("file").read_text() == "mine" and not os.path.lexists("nowhere")


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8")
@pytest.mark.parametrize("name", [
    "a b'c\nd", *(pytest.param(x, marks=pytest.mark.slow) for x in ("-dash", os.fsdecode(b"caf\xe9")))])
def test_the_page_that_train_names_can_be_pasted(command, tmp_path, name):
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}   # as in any UTF-8 locale but C's
    done = subprocess.run([sys.executable, "-m", "sparc_ref", "train", *TINY, f"--out={name}"], env=environment, cwd=tmp_path,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    words = shlex.split(os.fsdecode(done.stdout).partition("on a page:\n")[2])
    assert words[:2] == ["sparc-ref", "report"] and len(words) == 3
    assert command(*words[1:], "--limit", "4")[0] == 0 and Path(name, "report.html").exists()


def test_ctrl_c_before_anything_began_is_no_traceback(monkeypatch, capsys):
    from sparc_ref import __main__ as entry

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "command", interrupted)
    assert entry.main() == 130
    assert capsys.readouterr().err == "sparc-ref: stopped before anything had begun\n"


def test_the_systems_own_errors_get_a_remedy():
    assert cli.told(PermissionError(13, "Permission denied", "run/checkpoints")) == (
        "run/checkpoints: Permission denied; you have no access there: choose another place")
    assert cli.told(OSError("some words")) == "some words"
