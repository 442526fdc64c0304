"""Checkpoints: a round trip, and every way of being wrong is refused with its reason."""

import json
import os
import shutil

import numpy as np
import pytest

from sparc_ref.run import checkpoint as ck


class Words:
    """The two things that save() asks of a tokenizer."""
    hash = "0123abcd"

    def save(self, folder):
        (folder / "words.json").write_text('["a", "b"]')


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    params = {"vision.patch.weight": rng.standard_normal((4, 3)).astype("float32").T,   # not contiguous
              "vision.patch.bias": rng.standard_normal(3).astype("float32"), "theta": np.array(2.5, "float32")}
    state = {"step": 7, "m": {k: 0.1 * x for k, x in params.items()}, "v": {k: x * x for k, x in params.items()}}
    state["m"]["theta"] = np.array(0.25, "float32")
    state["v"]["theta"] = np.array(6.25, "float32")
    return params, state


def write(folder, step=7, record=None):
    return ck.save(folder, step, *arrays(), record or {"train": {"lr": 1e-3}, "data": [[1, 2]]}, Words())


def reindex(path, change, honest=True):
    """Edit checkpoint.json; honest: with a matching sha256, as a forger or another program would."""
    index = json.loads((path / ck.INDEX).read_text())
    change(index)
    if honest:
        index["sha256"] = ck.index_hash(index)
    (path / ck.INDEX).write_text(json.dumps(index))


def replace_tensors(path, name, change):
    """Rewrite a safetensors file and its entries, so that only the content itself is wrong."""
    from safetensors.numpy import load_file, save
    x = load_file(path / name)
    change(x)
    (path / name).write_bytes(save(x))

    def entries(index):
        index["files"][name] = {"bytes": (path / name).stat().st_size, "sha256": ck.file_hash(path / name)}
        index["tensors"][name] = {k: ck.describe(v) for k, v in x.items()}
    reindex(path, entries)


def test_round_trip(tmp_path):
    params, state = arrays()
    path = write(tmp_path)
    got = ck.load(path)
    assert (got.step, got.optimizer["step"], got.tokenizer) == (7, 7, "0123abcd")
    assert got.record == {"train": {"lr": 1e-3}, "data": [[1, 2]]}
    assert (got.tokenizer_dir / "words.json").read_text() == '["a", "b"]'
    assert list(got.params) == list(params)
    for have, want in ((got.params, params), (got.optimizer["m"], state["m"]), (got.optimizer["v"], state["v"])):
        for name in want:
            assert have[name].shape == want[name].shape and have[name].dtype == want[name].dtype
            np.testing.assert_array_equal(have[name], want[name])


def test_the_same_content_gives_the_same_bytes(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    for file in (ck.INDEX, ck.PARAMETERS, ck.MOMENTS):
        assert (a / file).read_bytes() == (b / file).read_bytes()


def test_newest_is_found_from_the_run_directory(tmp_path):
    for step in (5, 40, 300):
        write(tmp_path / "checkpoints", step)
    assert ck.find(tmp_path).name == ck.find(tmp_path / "checkpoints").name == "step_00000300"
    ck.prune(tmp_path / "checkpoints", 2)
    assert [p.name for p in ck.steps(tmp_path / "checkpoints")] == ["step_00000040", "step_00000300"]
    ck.prune(tmp_path / "checkpoints", 0)
    assert len(ck.steps(tmp_path / "checkpoints")) == 1
    with pytest.raises(ck.CheckpointError, match="no such directory"):
        ck.find(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ck.CheckpointError, match="holds no checkpoint"):
        ck.find(tmp_path / "empty")


def test_never_overwritten(tmp_path):
    write(tmp_path)
    with pytest.raises(ck.CheckpointError, match="never overwritten"):
        write(tmp_path)


def test_interrupted_write_leaves_the_previous_one(tmp_path, monkeypatch):
    """Stop at every flush in turn: load() finds the earlier checkpoint, and the next save succeeds."""
    before = write(tmp_path, 1)
    calls = {"n": 0}
    real = ck.flush

    def stop_at(n):
        def flush(path):
            calls["n"] += 1
            if calls["n"] == n:
                raise KeyboardInterrupt
            real(path)
        return flush
    for n in range(1, 7):
        calls["n"] = 0
        monkeypatch.setattr(ck, "flush", stop_at(n))
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 2)
        assert ck.load(tmp_path).path == before
    monkeypatch.setattr(ck, "flush", real)
    assert ck.load(write(tmp_path, 2)).step == 2
    assert not list(tmp_path.glob(".partial*"))


def test_non_finite_arrays_are_not_written(tmp_path):
    params, state = arrays()
    params["vision.patch.bias"] = np.array([1, np.nan, 2], "float32")
    with pytest.raises(ck.CheckpointError, match=r"vision.patch.bias holds NaN"):
        ck.save(tmp_path, 1, params, state, {}, Words())
    assert not ck.steps(tmp_path)


def truncate(path, name, to):
    os.truncate(path / name, to)


def flip(path, name):
    data = bytearray((path / name).read_bytes())
    data[-3] ^= 1
    (path / name).write_bytes(bytes(data))


def outside(index):
    index["files"]["../../secret"] = {"bytes": 1, "sha256": ""}


def nan(x):
    x["theta"] = np.array(np.nan, "float32")


def swap_link(path):
    shutil.move(path / ck.MOMENTS, path.parent / "elsewhere")
    (path / ck.MOMENTS).symlink_to(path.parent / "elsewhere")


FAULTS = {
    "index missing": (lambda p: (p / ck.INDEX).unlink(), "checkpoint.json is missing"),
    "index empty": (lambda p: truncate(p, ck.INDEX, 0), "not valid JSON"),
    "index truncated": (lambda p: truncate(p, ck.INDEX, 200), "not valid JSON"),
    "index not text": (lambda p: (p / ck.INDEX).write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    "index nested too deep": (lambda p: (p / ck.INDEX).write_text("[" * 200_000), "not valid JSON"),
    "foreign": (lambda p: (p / ck.INDEX).write_text('{"model_type": "clip"}'), "not a checkpoint of sparc_ref"),
    "a list": (lambda p: (p / ck.INDEX).write_text("[]"), "not a checkpoint of sparc_ref"),
    "version": (lambda p: reindex(p, lambda i: i.update(version=99)), "format version 99"),
    "edited": (lambda p: reindex(p, lambda i: i.update(step=8), honest=False), "was changed after"),
    "unknown key": (lambda p: reindex(p, lambda i: i.update(extra=1)), "unknown .'extra'"),
    "lost key": (lambda p: reindex(p, lambda i: i.pop("record")), "lacks .'record'"),
    "structure": (lambda p: reindex(p, lambda i: i.update(files=[])), "expected structure"),
    "negative step": (lambda p: reindex(p, lambda i: i.update(step=-1)), "expected structure"),
    "path outside": (lambda p: reindex(p, outside), "'../../secret', which no checkpoint has"),
    "parameters missing": (lambda p: (p / ck.PARAMETERS).unlink(), "parameters.safetensors is missing"),
    "parameters truncated": (lambda p: truncate(p, ck.PARAMETERS, 40), "bytes where"),
    "moments flipped bit": (lambda p: flip(p, ck.MOMENTS), "sha256 of moments.safetensors differs"),
    "tokenizer flipped bit": (lambda p: flip(p, "tokenizer/words.json"), "sha256 of tokenizer/words.json differs"),
    "tokenizer missing": (lambda p: (p / "tokenizer/words.json").unlink(), "words.json is missing"),
    "symbolic link": (swap_link, "not a plain file"),
    "NaN": (lambda p: replace_tensors(p, ck.PARAMETERS, nan), "theta holds NaN"),
    "shape": (lambda p: replace_tensors(p, ck.PARAMETERS, lambda x: x.update(theta=np.zeros(2, "float32"))), "theta: expected"),
    "dtype": (lambda p: replace_tensors(p, ck.PARAMETERS, lambda x: x.update(theta=np.array(1))), "dtype int64"),
    "moment lost": (lambda p: replace_tensors(p, ck.MOMENTS, lambda x: x.pop("m.theta")), "lacks the tensors m.theta"),
    "moment added": (lambda p: replace_tensors(p, ck.MOMENTS, lambda x: x.update(z=np.zeros(1, "f4"))), "holds the tensors z"),
    "tensor list": (lambda p: reindex(p, lambda i: i["tensors"][ck.PARAMETERS].pop("theta")), "holds the tensors theta"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused_with_the_reason(tmp_path, fault):
    write(tmp_path, 6)
    path = write(tmp_path, 7)
    damage, reason = FAULTS[fault]
    damage(path)
    with pytest.raises(ck.CheckpointError, match=reason) as e:
        ck.load(path)
    assert "step_00000007" in str(e.value) and "\n" not in str(e.value)


def test_not_safetensors_at_all(tmp_path):
    path = write(tmp_path)
    (path / ck.PARAMETERS).write_bytes(b"\xff" * 64)

    def entry(index):
        index["files"][ck.PARAMETERS] = {"bytes": 64, "sha256": ck.file_hash(path / ck.PARAMETERS)}
    reindex(path, entry)
    with pytest.raises(ck.CheckpointError, match="not a readable safetensors file"):
        ck.load(path)


def test_remedy_names_the_earlier_checkpoint(tmp_path):
    write(tmp_path, 6)
    flip(write(tmp_path, 7), ck.PARAMETERS)
    with pytest.raises(ck.CheckpointError, match="delete it to continue from step_00000006"):
        ck.load(tmp_path)


def test_parameters_of_another_model(tmp_path):
    path = write(tmp_path)
    params, _ = arrays()
    shapes = {name: x.shape for name, x in params.items()}
    ck.check_params(path, params, shapes)
    with pytest.raises(ck.CheckpointError, match=r"vision.patch.bias: expected"):
        ck.check_params(path, params, {**shapes, "vision.patch.bias": (5,)})


def test_configuration_of_another_version():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Config:
        lr: float
        betas: tuple
    assert ck.from_json(Config, {"lr": 1.0, "betas": [0.9, 0.98]}, "here") == Config(1.0, (0.9, 0.98))
    with pytest.raises(ck.CheckpointError, match=r"lacks \['betas'\] and does not know \['beta'\]"):
        ck.from_json(Config, {"lr": 1.0, "beta": 2}, "here")
