"""`make gpu-check` without a GPU: what it asks for, what it reports, what it does not accept as passed."""

import sys
import time
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


@pytest.mark.slow
def test_the_benchmarks_for_a_gpu_run_on_the_cpu(monkeypatch):
    monkeypatch.setitem(cuda.PRESETS, "toy", whole.TOY)
    rows = list(gpu_check.benchmarks("cpu", {"toy": (4, 7)}, sizes=(16,), width=8, rounds=1))
    assert len(rows) == 5 + 3 + 2 and all(row["seconds"] > 0 for row in rows)
    shown = gpu_check.tables([*rows, {"what": "x", "side": "y", "seconds": None, "GiB": None}])
    assert len(shown) == 2 + 11 + 1 and shown[-2] == "| x | y |  |  |"


def test_running_out_of_memory_is_a_row_and_another_error_is_not():
    def fail(error):
        raise error

    assert gpu_check.row("a", "b", lambda: fail(RuntimeError("CUDA out of memory")), "cpu")["seconds"] is None
    with pytest.raises(ValueError, match="shape"):
        gpu_check.row("a", "b", lambda: fail(ValueError("shape")), "cpu")


@pytest.mark.parametrize("good", [True, False])
def test_the_gpu_report(monkeypatch, good):
    climbed_ = climbed(monkeypatch, rung(GOOD if good else AFTER))
    part = {"status": "passed", "seconds": 3.0, "said": ["3 passed ```"], "result": None}
    rows = [{"kind": "ratio", "how": "compiled", "batch": 8, "time": 1.04, "memory": 1.03},
            {"kind": "step", "how": "compiled", "what": "SPARC", "batch": 8, "seconds": 0.5, "mfu": 0.4},
            {"kind": "stream", "how": "bf16 stream", "batch": 8, "seconds": 0.45, "mfu": 0.44}]
    found = {"ladder": part | {"kind": "ladder", "result": climbed_}, "tests": part | {"kind": "tests"},
             "benchmarks": part | {"kind": "rows", "result": rows}}
    name, text = gpu_check.report(found, 7.0, "NVIDIA H100 80GB HBM3", "2026-01-02")
    assert name == "report-NVIDIA-H100-80GB-HBM3-2026-01-02" and gpu_check.passed(found) == good
    assert ("FAILED" in text) != good and "- made up" in text
    assert "time: 1.040 at batch 8, compiled; aim at most 1.05: met" in text
    assert "utilisation: 0.440 at batch 8, compiled, bf16 stream; aim at least 0.45: **missed**" in text
    assert text.count("**missed**") == 2 and "| compiled | SPARC | 8 | 0.5 | 0.4 |" in text
    without = found | {"ladder": part | {"kind": "ladder"}}
    assert not gpu_check.passed(without) and "wrote no results" in gpu_check.report(without, 1, "x")[1]


def test_the_gpu_check_does_not_accept_what_was_not_run(monkeypatch):
    """Each part alone, without anything to show for it."""
    cannot = replace(rung(), name="vit", climb=lambda setup: unable("this GPU is too small"))
    results = climbed(monkeypatch, rung(GOOD), cannot)
    part = {"status": "passed", "seconds": 3.0, "said": ["collected", "2 passed, 3 skipped in 1 s"], "result": None}
    timed = [{"what": "x", "side": "y", "seconds": 0.5, "GiB": 1.0}, {"what": "x", "side": "z", "seconds": None, "GiB": None}]
    sound = {"ladder": part | {"kind": "ladder", "result": results}, "tests": part | {"kind": "tests"},
             "benchmarks": part | {"kind": "rows", "result": timed}}
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
        assert "FAILED" in gpu_check.report(found, 7.0, "a GPU", "2026-01-02")[1]


@pytest.mark.slow
def test_parts_are_processes_whose_results_stay(tmp_path):
    """One that dies, one that is stopped and one that is sound, side by side; what was written before counts."""
    def python(name, text, limit=30.0):
        file = tmp_path / name
        return gpu_check.Part(name, "rows", [sys.executable, "-c", f"f = open({str(file)!r}, 'w')\n{text}"], limit, file)

    row = "f.write('{\"seconds\": 1.5}\\n'); f.flush()"
    phases = [[python("dies", f"{row}; raise SystemExit(3)"), python("sound", row)],
              [python("late", f"{row}; import time; time.sleep(60)", 12.0)], [python("half", "f.write('{\"sec')")]]
    found = {}
    for done in gpu_check.run(phases, 8, time.monotonic()):
        found |= done
    assert {name: part["status"] for name, part in found.items()} == {
        "dies": "failed, exit status 3", "sound": "passed", "late": "stopped: out of time", "half": "passed"}
    assert [found[name]["result"] for name in found] == [[{"seconds": 1.5}]] * 3 + [[]]
    assert gpu_check.one(python("x", row), 0.1, time.monotonic())["status"] == "not begun: out of time"


def test_a_part_that_takes_too_long_is_stopped():
    found = gpu_check.in_process([sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"], 1.0)
    assert found["status"] == "stopped: out of time" and found["said"] == ["on"] and found["seconds"] < 30
    assert gpu_check.in_process([sys.executable, "-c", "raise SystemExit(3)"], 60)["status"] == "failed, exit status 3"
