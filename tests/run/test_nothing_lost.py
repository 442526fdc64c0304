"""Files of others in and around a run folder, links, overwriting, failed starts, folders that vanish: nothing is lost."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from test_train import go, rows, same, small

from sparc_ref.data import DrawnScenes
from sparc_ref.data import tokenizer as tokenizer_file
from sparc_ref.run import checkpoint, files
from sparc_ref.run import train as loop
from sparc_ref.run.files import WriteFailed
from sparc_ref.run.inventory import inventory
from sparc_ref.run.rundir import Metrics, RunGone, lock
from sparc_ref.run.train import Interrupted


def tree(folder):
    """Every name under a folder with its content, links as where they lead."""
    return {p.relative_to(folder).as_posix(): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None
            for p in sorted(Path(folder).rglob("*"))}


@pytest.fixture
def finished(tmp_path_factory):
    """A run of two updates, to be spoilt."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    go(out, steps=2)
    return out


# ------------------------------------------------------------------------------------------------ --out and --overwrite


OTHERS = {"a photo": {"img.jpg": b"x"}, "a hidden file": {".keep": b""}, "tokenizer": {"tokenizer/tokenizer.json": b"{}"},
          "metrics of others": {"metrics.jsonl": b'{"kind": "train"}'},
          "a model's config": {"config.json": b'{"model_type": "clip", "train": 1}'},
          "checkpoints of others": {"config.json": b"[]", "checkpoints/step_00000100/model.bin": b"x"},
          "a broken config": {"config.json": b"{"}, "a folder": {"checkpoints/notes.txt": b"x"}}


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}], ids=["start", "resume", "overwrite"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_that_is_no_run_is_refused_and_untouched(tmp_path, name, how):
    for file, content in OTHERS[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"the folder is neither empty nor a run .* Nothing in it was touched"):
        go(tmp_path, steps=2, **how)
    assert tree(tmp_path) == before


def test_out_that_is_a_file_or_empty_or_a_broken_link(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(ValueError, match="expected a folder, or a name that is still free, got a file or a broken link"):
            go(tmp_path / name)
    with pytest.raises(ValueError, match="expected the name of a folder, got an empty one"):
        go("")
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(finished):
    mine = {"notes.md": b"mine", "plots/loss.png": b"mine", "checkpoints/best/x.bin": b"mine", "tokenizer/README": b"mine",
            "report.html": b"mine", "data.jsonl": b"mine"}
    for name, content in mine.items():
        (finished / name).parent.mkdir(exist_ok=True)
        (finished / name).write_bytes(content)
    go(finished, steps=3, overwrite=True)
    after = tree(finished)
    assert {name: after[name] for name in mine} == mine
    assert checkpoint.load(finished).step == 3 and len(checkpoint.steps(finished / "checkpoints")) == 2
    assert {r["step"] for r in rows(finished)} == {0, 1, 2, 3}


def test_overwrite_with_resume_is_refused(finished):
    before = tree(finished)
    with pytest.raises(ValueError, match="--resume and --overwrite exclude each other"):
        go(finished, steps=2, resume=True, overwrite=True)
    assert tree(finished) == before


SPOILS = {
    "a file in a checkpoint": lambda out, other: (checkpoint.find(out) / "notes.txt").write_text("mine"),
    "a folder in a checkpoint": lambda out, other: (checkpoint.find(out) / "more").mkdir(),
    "a file for a checkpoint": lambda out, other: (out / "checkpoints/step_00000009").write_text("mine"),
    "a link for a checkpoint": lambda out, other: (out / "checkpoints/step_00000009").symlink_to(other),
    "a folder for the metrics": lambda out, other: swap(out / "metrics.jsonl", lambda p: p.mkdir()),
}
LINKS = {
    "metrics": lambda out, other: swap(out / "metrics.jsonl", lambda p: p.symlink_to(other / "file")),
    "config": lambda out, other: link(out / "config.json", other),
    "checkpoints": lambda out, other: link(out / "checkpoints", other),
    "tokenizer": lambda out, other: link(out / "tokenizer", other),
    "lock": lambda out, other: swap(out / ".lock", lambda p: p.symlink_to(other / "file")),
    "half-written": lambda out, other: (out / ".metrics.jsonl.part").symlink_to(other / "file"),
    "a checkpoint": lambda out, other: link(checkpoint.find(out), other),
    "tokenizer file": lambda out, other: link(out / "tokenizer/tokenizer.json", other),
}


def swap(path, make):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def link(path, other):
    """Move it elsewhere and lead there."""
    shutil.move(path, other / path.name)
    path.symlink_to(other / path.name)


@pytest.mark.parametrize("name", [*SPOILS, *LINKS])
@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}], ids=["overwrite", "resume"])
def test_what_lies_in_the_way_is_refused_before_anything_is_deleted(finished, tmp_path, name, how):
    (tmp_path / "file").write_text("mine")
    {**SPOILS, **LINKS}[name](finished, tmp_path)
    before, around = tree(finished), tree(tmp_path)
    if "resume" in how and name in ("a file in a checkpoint", "a folder in a checkpoint"):
        go(finished, steps=2, **how)                      # they are in nobody's way
        assert tree(finished) == before
    else:
        linked = "link" in name or name in LINKS
        words = "is a link, and a run writes through none" if linked else "no run wrote it|something else"
        with pytest.raises(ValueError, match=words):
            go(finished, steps=2, **how)
    assert tree(finished) == before and tree(tmp_path) == around


def test_a_hard_link_is_not_written_through(finished, tmp_path):
    """A name that shares its content with a file elsewhere: writing replaces the name, never the content."""
    for n, name in enumerate(("config.json", "metrics.jsonl", ".lock", "tokenizer/tokenizer.json")):
        os.link(finished / name, tmp_path / str(n))
    before = tree(tmp_path)
    go(finished, steps=3, overwrite=True)
    assert tree(tmp_path) == before


def test_out_may_itself_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    go(tmp_path / "out", steps=2)
    assert checkpoint.load(tmp_path / "disk").step == 2


def test_pruning_leaves_a_checkpoint_with_files_of_others(tmp_path):
    real = checkpoint.save

    def add_notes(folder, step, *args):
        path = real(folder, step, *args)
        if step == 2:
            (path / "notes.txt").write_text("mine")
        return path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", add_notes)
        go(tmp_path, steps=8, keep=1)
    assert [p.name for p in checkpoint.steps(tmp_path / "checkpoints")] == ["step_00000002", "step_00000008"]
    assert checkpoint.load(tmp_path / "checkpoints/step_00000002").step == 2
    assert (tmp_path / "checkpoints/step_00000002/notes.txt").read_text() == "mine"


def test_unfinished_things_are_cleaned_up_but_for_files_of_others(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in (".partial-1", ".deleted-step_00000009", ".partial-mine", ".deleted-mine"):
        (folder / name / "tokenizer").mkdir(parents=True)
        (folder / name / "parameters.safetensors").write_bytes(b"half")
    (folder / ".partial-1/notes.txt").write_text("mine")
    checkpoint.clean(folder)
    assert set(tree(folder)) == {".partial-1", ".partial-1/notes.txt",
                                 *(f"{n}{x}" for n in (".partial-mine", ".deleted-mine")
                                   for x in ("", "/tokenizer", "/parameters.safetensors"))}


# ---------------------------------------------------------------------------------------------------------- failed starts


def fail_with(error):
    def failing(*args, **kwargs):
        raise error
    return failing


@pytest.mark.parametrize("where", ["data", "evaluate", "gradients", "write_json", "say", "forward"])
def test_a_failed_first_start_leaves_nothing_and_blocks_nothing(tmp_path, monkeypatch, where):
    (tmp_path / "neighbour").write_text("mine")
    out = tmp_path / "a" / "b" / "run"
    failing = {"evaluate": (loop, ValueError("no.")), "gradients": (loop, MemoryError("no.")),
               "forward": (loop, KeyboardInterrupt("no.")),
               "write_json": (tokenizer_file, OSError(errno.ENOSPC, "no."))}
    with pytest.MonkeyPatch.context() as patch:
        if where in failing:
            patch.setattr(failing[where][0], where, fail_with(failing[where][1]))
        with pytest.raises(BaseException, match=r"no\.|at most 40|bad word"):
            if where == "say":
                config, options, data, tokenizer = small()
                loop.train(config, options, [data], tokenizer, out, say=fail_with(ValueError("bad word")))
            go(out, **{"batch": 41} if where == "data" else {})
    assert set(tree(tmp_path)) == {"neighbour"}
    go(out, steps=2, lr=2e-3)                             # other settings, and no word of a run that is there


def test_a_failed_start_in_a_folder_that_was_there_leaves_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "gradients", fail_with(ValueError("no.")))
    with pytest.raises(ValueError, match=r"no\."):
        go(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_refused_resume_changes_nothing(finished):
    before = tree(finished)
    with pytest.raises(ValueError, match="other settings"):
        go(finished, steps=2, resume=True, lr=5e-3)
    (finished / ".lock").unlink()
    with pytest.raises(ValueError, match="other settings"):
        go(finished, steps=2, resume=True, lr=5e-3)
    assert tree(finished) == {k: v for k, v in before.items() if k != ".lock"}


def test_an_overwriting_start_whose_settings_are_wrong_deletes_nothing(finished):
    before = tree(finished)
    for change in ({"batch": 41}, {"data": []}, {"model": {"vocab_size": 7}}, {"data": [DrawnScenes(size=16, count=3)]}):
        with pytest.raises(ValueError):
            if change.get("data") == []:
                config, options, _, tokenizer = small()
                loop.train(config, options, [], tokenizer, finished, overwrite=True)
            else:
                go(finished, steps=2, overwrite=True, **change)
    assert tree(finished) == before


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".config.json.part"], [".lock", "config.json"],
                                  [".lock", "config.json", "tokenizer/tokenizer.json.part"],
                                  [".lock", "config.json", "tokenizer/tokenizer.json", "metrics.jsonl"]], ids=str)
@pytest.mark.parametrize("resume", [False, True])
def test_what_a_killed_start_leaves_blocks_nothing(tmp_path, left, resume):
    """kill -9 before the first update: started anew with any settings."""
    go(tmp_path / "other", steps=2)
    for name in left:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        source = tmp_path / "other" / name.replace(".part", "").replace(".config", "config")
        shutil.copy(source, tmp_path / "run" / name)
    if "metrics.jsonl" in left:
        (tmp_path / "run/metrics.jsonl").write_text('{"kind": "eval", "step": 0}\n')
    params, _ = go(tmp_path / "run", steps=2, resume=resume, lr=2e-3)
    want, _ = go(tmp_path / "want", steps=2, lr=2e-3)
    same(params, want)
    assert rows(tmp_path / "run") == rows(tmp_path / "want")


def test_a_run_killed_before_its_first_checkpoint_is_resumed_or_overwritten_but_not_replaced_silently(tmp_path):
    go(tmp_path, steps=2)
    shutil.rmtree(tmp_path / "checkpoints")
    assert inventory(tmp_path).state == "run"
    with pytest.raises(ValueError, match="holds a run already"):
        go(tmp_path, steps=2)
    go(tmp_path, steps=2, resume=True)
    assert checkpoint.load(tmp_path).step == 2


# ------------------------------------------------------------------------------------------- folders that vanish, disks


def during(monkeypatch, at, do):
    """Do something while update `at` runs."""
    real, calls = loop.gradients, []

    def gradients(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            do()
        return real(*args, **kwargs)
    monkeypatch.setattr(loop, "gradients", gradients)


VANISH = {
    "deleted": lambda out: shutil.rmtree(out),
    "moved": lambda out: out.rename(out.with_name("elsewhere")),
    "replaced": lambda out: (out.rename(out.with_name("elsewhere")), out.mkdir()),
    "replaced by a link": lambda out: (out.rename(out.with_name("elsewhere")), out.symlink_to(out.with_name("other"))),
    "metrics deleted": lambda out: (out / "metrics.jsonl").unlink(),
}


@pytest.mark.parametrize("at, log_every", [(1, 50), (5, 1), (6, 50)])
@pytest.mark.parametrize("how", VANISH)
def test_a_run_whose_folder_vanishes_ends_with_an_error(tmp_path, monkeypatch, how, at, log_every):
    (tmp_path / "other").mkdir()
    out = tmp_path / "run"
    during(monkeypatch, at, lambda: VANISH[how](out))
    with pytest.raises(RunGone, match="run's folder was deleted, moved or replaced while it trained") as error:
        go(out, log_every=log_every)
    assert "sparc-ref train --resume" in str(error.value) and not tree(tmp_path / "other")
    if how in ("deleted", "moved"):
        assert not out.exists()                           # nothing was made anew
    if how == "replaced":
        assert not list(out.iterdir())


def test_metrics_that_an_editor_replaced_are_written_on(tmp_path, monkeypatch):
    def edit():
        content = (tmp_path / "metrics.jsonl").read_bytes()
        (tmp_path / "new").write_bytes(content)
        os.replace(tmp_path / "new", tmp_path / "metrics.jsonl")
    during(monkeypatch, 4, edit)
    go(tmp_path)
    assert [r["step"] for r in rows(tmp_path) if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("call, number, words", [
    ("write", errno.ENOSPC, "the disk is full: free some space"), ("fsync", errno.EIO, "the disk does not answer: check it"),
    ("replace", errno.EROFS, "the disk is read-only: write to another one"), ("open", errno.ENOSPC, "the disk is full")])
def test_a_disk_that_refuses_is_named_with_the_remedy(tmp_path, call, number, words):
    """The error names a file of the run and what to do, and the run goes on from its last checkpoint.

    At some calls; test_every_system_call.py does them all, below Python.
    """
    want, _ = go(tmp_path / "want", steps=4)
    counts = {"n": 0}
    real = getattr(os, call)

    def failing(at):
        def function(*args, **kwargs):
            counts["n"] += 1
            if counts["n"] == at:
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)
        return function
    failed = 0
    for at in (2, 7, 19):
        counts["n"], out = 0, tmp_path / f"run{at}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.os, call, failing(at))
            try:
                go(out, steps=4)
            except WriteFailed as error:
                failed += 1
                patch.undo()
                assert str(out) in str(error) and words in str(error) and "Errno" not in str(error)
            except Exception as error:
                patch.undo()
                raise AssertionError(f"call {at}: {error!r}") from error
        got, _ = go(out, steps=4, resume=True)
        same(want, got)
        assert rows(out) == rows(tmp_path / "want"), at
        assert not [p for p in tree(out) if "partial" in p or "deleted" in p or p.endswith(".part")]
    assert failed >= 1


def test_half_a_row_of_metrics_is_taken_back(tmp_path, monkeypatch):
    """The disk takes ten bytes of a row and then no more."""
    real, state = os.write, {"n": 0}

    def write(handle, content):
        state["n"] += b'"step": 3' in bytes(content)
        if state["n"] == 1:
            state["n"] = 2
            real(handle, bytes(content[:10]))
            raise OSError(errno.ENOSPC, "full")
        return real(handle, content)
    monkeypatch.setattr(files.os, "write", write)
    with pytest.raises(WriteFailed, match=r"metrics\.jsonl: not written: .* go on with:\n  sparc-ref train --resume"):
        go(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines) and len(lines) >= 3


def test_the_lock_is_this_folders(tmp_path):
    """A lock file that was deleted and made again is not the one that is held."""
    with lock(tmp_path / "run"):
        with pytest.raises(ValueError, match="another process is training here"), lock(tmp_path / "run"):
            pass
        assert (tmp_path / "run/.lock").exists()
    with lock(tmp_path / "run") as undo:
        undo()
    assert not (tmp_path / "run/.lock").exists()


def test_an_interrupted_overwriting_run_goes_on(finished, monkeypatch):
    """What it prints is pasted: --resume alone continues, and the new run is not deleted."""
    def stop():
        raise KeyboardInterrupt
    during(monkeypatch, 3, lambda: os.kill(os.getpid(), 2))
    with pytest.raises(Interrupted):
        go(finished, overwrite=True, lr=2e-3)
    assert checkpoint.load(finished).step == 3
    go(finished, resume=True, lr=2e-3)
    assert checkpoint.load(finished).step == 6




@pytest.mark.parametrize("call", ["stat", "lstat", "fstat", "close"])
def test_a_disk_that_fails_below_the_metrics_is_named(tmp_path, monkeypatch, call):
    """fstat and close know no name; "[Errno 5] Input/output error" was all that was said."""
    real = getattr(os, call)

    def failing(*args, **more):
        real(*args, **more)
        raise OSError(errno.EIO, "Input/output error")

    metrics = Metrics(tmp_path / "metrics.jsonl")
    with metrics:
        metrics.write({"step": 1})
        with monkeypatch.context() as now:
            now.setattr(os, call, failing)
            with pytest.raises(WriteFailed, match=r"metrics\.jsonl: not written: Input/output error; the disk does not"):
                metrics.__exit__() if call == "close" else metrics.check()
