"""The process that a stranger's code runs in: whatever that does, the checker lives and leaves nothing behind."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from parity.checker.calling.process import can_fork, descendants
from parity.checker.calling.target import target_of
from parity.checker.calling.worker import Stopped, Worker

HOSTILE = '''
import ctypes, os, subprocess, sys, time
import numpy as np

def plain(v, t):
    return (v.sum() * t.sum()).item()

def exits(v, t):
    sys.exit(3)

def exits_at_once(v, t):
    os._exit(7)

def segfault(v, t):
    ctypes.string_at(0)

def loops(v, t):
    while True:
        pass

def hog(v, t):
    held = []
    while True:
        held.append(np.ones(1 << 22))

def far_too_much(v, t):
    return np.zeros(1 << 50).sum()

def prints(v, t):
    for i in range(200):
        os.write(1, b'{"ok": true, "bytes": 0}\\n' * 1000)
        print("x" * 1000, flush=True)
        sys.stderr.write("y" * 1000)
    return plain(v, t)

def reads(v, t):
    return float(len(sys.stdin.read())) + plain(v, t)

def closes(v, t):
    os.closerange(3, 256)
    return plain(v, t)

def spawns(v, t):
    children = [subprocess.Popen(["sleep", "1000"]), subprocess.Popen(["sleep", "1000"], start_new_session=True)]
    with open(os.environ["PIDS"], "w") as file:
        file.write(" ".join(str(child.pid) for child in children))
    return plain(v, t)

def raises(v, t):
    raise ValueError(f"v has shape {v.shape}")

def writes(v, t):
    v *= 2
    return plain(v, t)

def draws(v, t):
    return float(np.random.rand()) + plain(v, t)

def traced(v, t):
    s = t @ v.swapaxes(1, 2)
    a = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    a[0] = 0
    return a.sum()
'''
ARRAYS = {
    "v": np.arange(12.0).reshape(1, 3, 4), "t": np.ones((1, 2, 4)), "mask": np.ones((1, 2), bool), "theta": np.array(1.0),
    "v_bar": np.ones((1, 4)), "t_bar": np.ones((1, 4)),
}


def request(**more):
    args = [{"leaf": "v"}, {"leaf": "t"}]
    return {"do": "call", "framework": "numpy", "args": args, "labels": ["v", "t"], "losses": {"fine": {"paths": [""]}}, **more}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "hostile.py"
    path.write_text(HOSTILE)
    return path


def worker(path, name, **limits):
    return Worker(target_of(f"{path}:{name}"), **limits)


def gone(pid):
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("name, kind, words", [
    ("exits_at_once", "exit", "status 7"), ("segfault", "crash", "SIGSEGV"), ("loops", "time", "longer than 1 s"),
    ("hog", "memory", "limit of 0.2 GiB"), ("closes", "exit", "ended its own process"),
])
def test_what_ends_the_process_is_told_and_the_next_call_starts_another(hostile, name, kind, words):
    with worker(hostile, name, time_limit=1.0 if name == "loops" else 20.0, memory_limit=200 << 20) as w:
        with pytest.raises(Stopped, match=words) as stop:
            w.ask(request(), ARRAYS)
        assert stop.value.kind == kind
        assert w.pid is None
        reply, _ = w.ask({"do": "describe"})
        assert reply["name"] == name


@pytest.mark.parametrize("name, type_, words", [
    ("exits", "SystemExit", "3"), ("raises", "ValueError", "v has shape (1, 3, 4)"), ("far_too_much", "MemoryError", ""),
])
def test_what_they_raise_comes_back_with_their_line(hostile, name, type_, words):
    with worker(hostile, name) as w:
        error = w.ask(request(), ARRAYS)[0]["error"]
        assert words in error["message"] and type_ in error["type"]
        assert error["lines"][-1].startswith("hostile.py:") and f"in {name}" in error["lines"][-1]
        assert w.ask({"do": "describe"})[0]["name"] == name  # the same process goes on


@pytest.mark.parametrize("name", ["prints", "reads"])
def test_prints_and_reads_do_not_reach_the_pipes(hostile, name, capfd):
    with worker(hostile, name) as w:
        for _ in range(2):
            reply, _ = w.ask(request(), ARRAYS)
            assert float(reply["losses"]["fine"]) == 66 * 8
        assert len(w.printed()) < 2_000_000
    assert capfd.readouterr() == ("", "")


def test_no_orphans(hostile, tmp_path, monkeypatch):
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    with worker(hostile, "spawns") as w:
        w.ask(request(), ARRAYS)
        pid = w.pid
        children = [int(x) for x in (tmp_path / "pids").read_text().split()]
        assert set(children) <= set(descendants(pid))
    assert gone(pid) and all(gone(child) for child in children)


def test_the_process_dies_with_its_parent(hostile, tmp_path):
    code = (
        "import os, sys, threading, time; sys.path.insert(0, sys.argv[1]); from test_worker import ARRAYS, request\n"
        "from parity.checker.calling.target import target_of\nfrom parity.checker.calling.worker import Worker\n"
        f"w = Worker(target_of({str(hostile) + ':loops'!r})); w.ask({{'do': 'describe'}})\n"
        "threading.Thread(target=w.ask, args=(request(), ARRAYS)).start(); time.sleep(0.3)\n"  # busy: it reads no more requests
        "print(w.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, timeout=60,
                          env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.returncode == -9 and gone(int(done.stdout))


def test_too_many_crashes_end_it(hostile):
    with worker(hostile, "exits_at_once", restarts=1) as w:
        for _ in range(2):
            with pytest.raises(Stopped, match="status 7"):
                w.ask(request(), ARRAYS)
        with pytest.raises(Stopped, match="too often"):
            w.ask(request(), ARRAYS)


def test_the_budget_is_for_all_calls(hostile):
    with worker(hostile, "plain", budget=0.0) as w, pytest.raises(Stopped, match="longer than 0 s in all"):
        w.ask(request(), ARRAYS)


def test_changed_inputs_are_seen(hostile):
    with worker(hostile, "writes") as w:
        assert w.ask(request(mutation=True), ARRAYS)[0]["mutated"] == ["v"]
    with worker(hostile, "plain") as w:
        assert w.ask(request(mutation=True), ARRAYS)[0]["mutated"] == []


def test_random_numbers_are_the_same_at_each_call_unless_let_run_on(hostile):
    with worker(hostile, "draws") as w:
        first, second = (w.ask(request(), ARRAYS)[0]["losses"]["fine"] for _ in range(2))
        assert first == second
        assert w.ask(request(seed=None), ARRAYS)[0]["losses"]["fine"] != w.ask(request(seed=None), ARRAYS)[0]["losses"]["fine"]


def test_a_trace_names_variables_and_sees_writes_in_place(hostile):
    with worker(hostile, "traced") as w:
        reply, sent = w.ask(request(trace=True), ARRAYS)
    names = [where.split()[-1] for where in reply["stages"]]
    assert names == ["s", "a", "a"]
    np.testing.assert_array_equal(sent["stage/0"], ARRAYS["t"] @ ARRAYS["v"].swapaxes(1, 2))
    assert sent["stage/1"].any() and not sent["stage/2"].any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_what_has_no_name_runs_in_a_fork_or_here(monkeypatch):
    target = target_of(lambda v, t: (v.sum() * t.sum()).item())
    assert "object" in target
    monkeypatch.setattr("parity.checker.calling.worker.can_fork", lambda: True)
    with Worker(target) as w:
        assert w.how == "fork" and float(w.ask(request(), ARRAYS)[0]["losses"]["fine"]) == 528
        pid = w.pid
    assert gone(pid)
    monkeypatch.setattr("parity.checker.calling.worker.can_fork", lambda: False)
    with Worker(target) as w:
        assert w.how == "here" and float(w.ask(request(), ARRAYS)[0]["losses"]["fine"]) == 528


def test_no_fork_beside_frameworks_with_threads(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorflow", object())
    assert not can_fork()


def test_a_named_function_is_found_by_its_name():
    target = target_of(np.linalg.norm)
    assert target["module"] == "numpy.linalg" and target["name"] == "norm"


@pytest.mark.parametrize("text, words", [("a b", "expected pkg.module:name"), ("x.ipynb", "a notebook cannot be imported"),
                                         ("a/b", "expected")])
def test_names_that_make_no_sense(text, words):
    with pytest.raises(ValueError, match=words):
        target_of(text)


def test_no_pickle_is_read():
    import parity

    for path in Path(parity.__file__).parent.rglob("*.py"):
        words = path.read_text()
        assert "import pickle" not in words and "torch.load" not in words and "allow_pickle=True" not in words, path
