"""Answers out of a folder: the C++ example is sound, constants are found or bracketed, a hostile folder is refused by name."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import parity
from parity.checker.exchange import export, judge
from parity.checker.verdict import one_thread
from sparc_ref import fine_grained_loss, global_loss

EXAMPLE = parity.__path__[0] + "/examples/sparc_loss.cpp"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchange") / "batches"
    with one_thread():
        said = export(folder)
    assert "README.txt" in said and len(list(folder.glob("in.*"))) > 100
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "answers")


@pytest.fixture(scope="module")
def answered(exported, tmp_path_factory):
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("answered") / "answers")
    answer(folder)
    return folder


def answer(folder, gradients=True, dtype=np.float64, losses=("fine",), **options):
    """What a program in another language would write."""
    for path in folder.glob("in.*"):
        x = load_file(path)
        loss, _, back = fine_grained_loss(x["v"], x["t"], x["mask"] != 0, x["theta"], **options)
        whole, _, back_global = global_loss(x["v_bar"], x["t_bar"], x["theta"])
        out = {"fine": np.asarray(loss), "global": np.asarray(whole), "total": np.asarray(2 * loss + whole)}
        save_file({k: out[k].astype(dtype) for k in losses}, str(path).replace("/in.", "/out."))
        if gradients:
            parts = {"fine": dict(zip(("v", "t", "theta"), back())),
                     "global": dict(zip(("v_bar", "t_bar", "theta"), back_global()))}
            named = {f"{k}.{leaf}": g for k in losses for leaf, g in parts[k].items()} if len(losses) > 1 else parts[losses[0]]
            save_file({k: np.asarray(g).astype(dtype).copy(order="C") for k, g in named.items()},
                      str(path).replace("/in.", "/grad."))


def test_the_cpp_example_equals_eq_6(folder, tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    program = tmp_path / "sparc_loss"
    subprocess.run([compiler, "-O1", "-std=c++17", "-Wall", "-Werror", EXAMPLE, "-o", str(program)], check=True, timeout=120)
    subprocess.run([str(program), str(folder)], check=True, timeout=60)
    report = parity.check(folder)
    assert report.verdict == "eq6" and report.runs_in == "folder" and report.exit_code == 0
    assert report.diagnosis.reproduced_to < 1e-12


@pytest.mark.parametrize("options, found, note", [
    ({"reduction": "token"}, ["reduction.token"], ""),
    ({"sigma": 0.37}, ["threshold.constant(0.37)"], "sigma lies between 0.369"),
    pytest.param({"sigma": 0.3}, ["threshold.constant(0.3)"], "", marks=pytest.mark.slow),
    pytest.param({"align": "no_threshold"}, ["threshold.absent"], "", marks=pytest.mark.slow),
])
def test_deviations_are_found_from_the_folder_alone(folder, options, found, note):
    answer(folder, **options)
    report = parity.check(folder)
    assert [str(f) for f in report.diagnosis.deviations] == found
    assert report.verdict == ("listing1" if found == ["reduction.token"] else "explained")
    assert any(text.startswith(note) for text in report.notes) if note else report.notes == ()


def test_values_alone_single_precision_and_two_losses(folder):
    answer(folder, gradients=False, dtype=np.float32)
    report = parity.check(folder)
    assert report.verdict == "eq6" and "No gradient" in report.headline
    answer(folder, losses=("fine", "global"))
    assert {name: d.verdict for name, d in judge(folder).diagnosis.losses.items()} == {"fine": "eq6", "global": "eq6"}


@pytest.mark.parametrize("kept", [
    ("v", "theta"), *(pytest.param((x,), marks=pytest.mark.slow) for x in ("v", "t", "theta"))])
def test_gradients_that_were_not_given_are_not_said_to_be_missing(folder, kept):
    answer(folder)
    for path in folder.glob("grad.*"):
        given = load_file(path)
        save_file({leaf: given[leaf] for leaf in kept}, path)
    report = parity.check(folder)
    assert report.verdict == "eq6" and report.behaviour.findings == () and report.deviations == ()
    said = next(item.value for item in report.convention.items if item.what == "grad.*")
    assert said.startswith(", ".join(kept) + "; not given, and not compared: ")
    for path in folder.glob("grad.*"):                    # one that was given and is wrong is still seen
        save_file({leaf: np.asarray(-2 * x) for leaf, x in load_file(path).items()}, path)
    assert parity.check(folder).verdict != "eq6"


def test_batches_without_an_answer_are_named(folder):
    answer(folder)
    (folder / "out.all_padding.safetensors").unlink()
    report = parity.check(folder)
    assert any("no answer to 1 of" in note and "all_padding" in note for note in report.notes)


def header_of(path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(path, change):
    header, body = header_of(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("spoil, words", [
    (lambda f: [p.unlink() for p in f.glob("in.*")], "no in.*.safetensors there"),
    (lambda f: [p.unlink() for p in f.glob("out.*")], "run your program"),
    (lambda f: (f / "out.padded.safetensors").unlink(), "'padded' of this version"),
    (lambda f: [p.unlink() for p in sorted(f.glob("out.*"))[::2]], "batches have no answer, out[.]"),
    (lambda f: (f / "out.padded.safetensors").write_bytes(b"\xff" * 40), "cut short"),
    (lambda f: (f / "out.padded.safetensors").write_bytes((f / "out.padded.safetensors").read_bytes()[:20]), "cut short"),
    (lambda f: (f / "grad.padded.safetensors").write_bytes((f / "grad.padded.safetensors").read_bytes()[:-3]),
     "grad.padded.safetensors"),
    (lambda f: (f / "out.padded.safetensors").write_bytes(b"x" * (1 << 23)), "at most"),
    (lambda f: save_file({"loss": np.zeros(())}, f / "out.padded.safetensors"), "'loss' is none of fine, global, total"),
    (lambda f: save_file({"fine": np.zeros(3)}, f / "out.padded.safetensors"), "expected shape \\(\\), got \\(3,\\)"),
    (lambda f: save_file({"fine": np.zeros((), np.int64)}, f / "out.padded.safetensors"), "expected F64 or F32, got 'I64'"),
    (lambda f: save_file({"v": np.zeros((2, 2))}, f / "grad.padded.safetensors"), "grad.padded.safetensors: v: expected shape"),
    (lambda f: save_file({"w": np.zeros(())}, f / "grad.padded.safetensors"), "'w' is none of"),
    (lambda f: save_file({"v": np.zeros((2, 2, 2))}, f / "in.padded.safetensors"), "expected v, t, mask"),
    (lambda f: with_header(f / "in.padded.safetensors", lambda h: h["t"].update(shape=[1, 2, 3])), "do not belong together"),
    (lambda f: with_header(f / "out.padded.safetensors", lambda h: h["fine"].update(data_offsets=[0, 1 << 40])), "out.padded"),
    (lambda f: with_header(f / "out.padded.safetensors", lambda h: h["fine"].update(shape=[-1])), "expected dtype, shape"),
    (lambda f: ((f / "out.padded.safetensors").unlink(), (f / "out.padded.safetensors").symlink_to("/etc/passwd")),
     "out.padded"),
])
def test_a_hostile_folder_is_refused_by_name(answered, tmp_path, spoil, words):
    folder = shutil.copytree(answered, tmp_path / "answers")
    spoil(folder)
    with pytest.raises(ValueError, match=words):
        parity.check(folder)


def test_nan_is_an_answer(folder):
    answer(folder)
    for path in folder.glob("out.*"):
        save_file({"fine": np.array(np.nan)}, path)
    assert parity.check(folder).verdict == "unexplained"


def test_another_folder_is_not_written_to(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="expected an empty or a new folder"):
        export(tmp_path)
