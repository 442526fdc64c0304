"""`make gpu-check` without a GPU: what it asks for, what it reports, what it does not accept as passed."""

import sys
from dataclasses import replace

import pytest
from made_up import AFTER, BLIND, GOOD, climbed, rung, unable

from parity.ladder import gpu_check
from parity.ladder.rungs import cuda, whole


def test_the_gpu_check_without_a_gpu_says_what_is_missing(tmp_path, capsys):
    if not gpu_check.missing():
        pytest.skip("there is a GPU here")
    assert gpu_check.main(["--out", str(tmp_path / "gpu")]) == 2
    said = capsys.readouterr().err
    assert "cannot run it" in said and "sees no GPU" in said and "driver" in said and not (tmp_path / "gpu").exists()


def test_the_benchmarks_for_a_gpu_run_on_the_cpu(monkeypatch):
    monkeypatch.setitem(cuda.PRESETS, "toy", whole.TOY)
    rows = list(gpu_check.benchmarks("cpu", {"toy": (4, 7)}, sizes=(16,), width=8, rounds=1))
    assert len(rows) == 5 + 3 + 2 and all(row["seconds"] > 0 for row in rows)
    shown = gpu_check.table({"result": [*rows, {"what": "x", "side": "y", "seconds": None, "GiB": None}], "said": []})
    assert len(shown) == 4 + 11 and "out of memory" in shown[-1] and shown[4].split("|")[4].strip() == "1.00"


def test_running_out_of_memory_is_a_row_and_another_error_is_not():
    def fail(error):
        raise error

    assert gpu_check.row("a", "b", lambda: fail(RuntimeError("CUDA out of memory")), "cpu")["seconds"] is None
    with pytest.raises(ValueError, match="shape"):
        gpu_check.row("a", "b", lambda: fail(ValueError("shape")), "cpu")


@pytest.mark.parametrize("good", [True, False])
def test_the_gpu_report(monkeypatch, good):
    climbed_ = climbed(monkeypatch, rung(GOOD if good else AFTER))
    climbed_["versions"]["gpu"] = "NVIDIA H100 80GB HBM3"
    part = {"status": "passed", "seconds": 3.0, "said": ["3 passed ```"], "result": None}
    timed = part | {"result": [{"what": "x", "side": "y", "seconds": 0.5, "GiB": 1.0}]}
    found = {"ladder": part | {"result": climbed_}, "tests": part, "benchmarks": timed}
    name, text = gpu_check.report(found, 7.0, "2026-01-02")
    assert name == "report-NVIDIA-H100-80GB-HBM3-2026-01-02" and gpu_check.passed(found) == good
    assert ("FAILED" in text) != good and "| made up |" in text
    without = found | {"ladder": part}
    assert not gpu_check.passed(without) and "wrote no results" in gpu_check.report(without, 1)[1]


def test_the_gpu_check_does_not_accept_what_was_not_run(monkeypatch):
    """Each part alone, without anything to show for it."""
    cannot = replace(rung(), name="vit", climb=lambda setup: unable("this GPU is too small"))
    results = climbed(monkeypatch, rung(GOOD), cannot)
    results["versions"]["gpu"] = "a GPU"
    part = {"status": "passed", "seconds": 3.0, "said": ["collected", "2 passed, 3 skipped in 1 s"], "result": None}
    timed = [{"what": "x", "side": "y", "seconds": 0.5, "GiB": 1.0}, {"what": "x", "side": "z", "seconds": None, "GiB": None}]
    sound = {"ladder": part | {"result": results}, "tests": part, "benchmarks": part | {"result": timed}}
    assert gpu_check.passed(sound), gpu_check.problems(sound)

    nothing = climbed(monkeypatch, replace(rung(GOOD), quick=100.0), minutes=1e-4)
    late = climbed(monkeypatch, rung(GOOD), replace(rung(GOOD), name="slow", quick=100.0), minutes=1)
    blind = climbed(monkeypatch, rung(BLIND))
    for name, change, words in (
        ("ladder", {"result": nothing}, "nothing was run"), ("ladder", {"result": late}, "slow was not run"),
        ("ladder", {"result": blind}, "nothing was run"), ("ladder", {"result": None}, "wrote no results"),
        ("ladder", {"result": nothing | {"passed": True}}, "nothing was run"),
        ("tests", {"said": ["31 skipped in 2 s"]}, "none was run"), ("tests", {"said": ["0 passed"]}, "none was run"),
        ("tests", {"said": []}, "none was run"), ("tests", {"status": "failed, exit status 1"}, "exit status 1"),
        ("benchmarks", {"result": []}, "none was run"), ("benchmarks", {"result": None}, "none was run"),
        ("benchmarks", {"result": timed[1:]}, "none was run"),
    ):
        found = sound | {name: sound[name] | change}
        assert not gpu_check.passed(found), (name, change)
        assert any(words in text for text in gpu_check.problems(found)), gpu_check.problems(found)
        assert "FAILED" in gpu_check.report(found, 7.0, "2026-01-02")[1]


def test_a_part_that_takes_too_long_is_stopped():
    found = gpu_check.in_process([sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"], 1.0)
    assert found["status"] == "stopped: out of time" and found["said"] == ["on"] and found["seconds"] < 30
    assert gpu_check.in_process([sys.executable, "-c", "raise SystemExit(3)"], 60)["status"] == "failed, exit status 3"
