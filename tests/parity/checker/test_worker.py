"""The process that a stranger's code runs in: whatever that does, the checker lives and leaves nothing behind."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from parity.checker.calling import guard
from parity.checker.calling.process import can_fork, descendants
from parity.checker.calling.target import target_of
from parity.checker.calling.worker import Stopped, Worker

HOSTILE = r'''
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
        os.write(1, b'{"ok": true, "bytes": 0}\n' * 1000)
        print("x" * 1000, flush=True)
        sys.stderr.write("y" * 1000)
    return plain(v, t)

def reads(v, t):
    return float(len(sys.stdin.read())) + plain(v, t)

def closes(v, t):
    os.closerange(3, 256)
    return plain(v, t)

def spawns(v, t):
    subprocess.Popen(["sleep", "1000.25"]), subprocess.Popen(["sleep", "1000.25"], start_new_session=True)
    return plain(v, t)

def daemon(v, t, seconds="1000.5", env=None):
    if not os.fork():
        os.setsid()
        if not os.fork():
            os.execvpe("sleep", ["sleep", seconds], os.environ if env is None else env)
        os._exit(0)
    os.wait()
    while not sleeping(seconds):
        time.sleep(0.01)
    return plain(v, t)

def sleeping(seconds):
    import glob
    return any(seconds.encode() in open(path, "rb").read() for path in glob.glob("/proc/[0-9]*/cmdline"))

def daemon_without_a_trace(v, t):
    return daemon(v, t, "1000.75", {"PATH": os.environ["PATH"]})

def kills_its_parents(v, t):
    pid = os.getppid()
    while pid > 1:
        parent = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
        os.kill(pid, 9)
        pid = parent
    time.sleep(0.3)
    return plain(v, t)

def kills_its_parent_and_leaves_a_daemon(v, t):
    daemon(v, t, "1000.875")
    return kills_its_parents(v, t)

def kills_its_group(v, t):
    os.killpg(0, 9)

def forges(v, t):
    line = b'{"losses": {"fine": "3.0"}, "outputs": [], "paths": {}, "passed": [], "mutated": [], "bytes": 0}\n'
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2:
            try:
                os.write(fd, line)
            except OSError:
                pass
    return plain(v, t)

def forges_from_a_child(v, t):
    code = "import os\nfor fd in range(3, 300):\n try: os.write(fd, b'x y')\n except OSError: pass"
    subprocess.run([sys.executable, "-c", code], close_fds=False)
    return plain(v, t)

def one_large_allocation(v, t):
    return float(np.zeros(1 << 27).sum() * 0) + plain(v, t)

def held_for_a_moment(v, t):
    held = np.ones(3 << 23)
    del held
    return plain(v, t)

def environment(v, t):
    return float(sum(name in os.environ for name in ("SECRET_TOKEN", "PASSED"))) + plain(v, t)

def escapes(v, t):
    print("\x1b[2J\x1b]0;gone\x07", flush=True)
    os.write(2, b"\x1b[31mred\n")
    raise ValueError("\x1b[2J\x1b[31mgone \u202e")

def dials(v, t):
    import socket
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())              # itself it may talk to
    names = [name for _, name in socket.if_nameindex()]
    return float(names == ["lo"]) + plain(v, t)

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


def sleeping(seconds, wanted=1):
    """Processes that sleep for so many seconds; a child takes a moment from fork to exec."""
    end = time.monotonic() + 10
    while len(found := asleep(seconds)) < wanted and time.monotonic() < end:
        time.sleep(0.02)
    return found


def asleep(seconds):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", seconds.encode()]:
            found.append(int(path.parent.name))
    return found


def test_no_orphans(hostile):
    with worker(hostile, "spawns") as w:
        w.ask(request(), ARRAYS)
        pid = w.pid
        children = sleeping("1000.25", 2)
        assert len(children) == 2 and set(children) <= set(descendants(pid))
    assert gone(pid) and all(gone(child) for child in children)


@pytest.fixture(params=[True, False], ids=["namespaces", "none"])
def enclosed(request):
    """With the namespaces that this system allows, and as where it allows none."""
    return {"network": not request.param}


@pytest.mark.parametrize("name, seconds", [("daemon", "1000.5"), ("daemon_without_a_trace", "1000.75")])
def test_a_daemon_that_left_session_and_parents_is_ended(hostile, enclosed, name, seconds):
    with worker(hostile, name, **enclosed) as w:
        assert float(w.ask(request(), ARRAYS)[0]["losses"]["fine"]) == 528
        found = sleeping(seconds)
        assert len(found) == 1
    assert gone(found[0])


def test_killing_its_parents_does_no_harm(hostile, tmp_path):
    """In a process of its own: without namespaces the checker itself can be hit, as any process of the same user."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_worker import ARRAYS, request\n"
        "from parity.checker.calling.target import target_of\nfrom parity.checker.calling.worker import Stopped, Worker\n"
        f"with Worker(target_of({str(hostile) + ':kills_its_parents'!r})) as w:\n"
        "    try: print(w.ask(request(), ARRAYS)[0]['losses']['fine'])\n"
        "    except Stopped as stop: print(stop)\n"
        f"with Worker(target_of({str(hostile) + ':plain'!r})) as w: print(w.ask(request(), ARRAYS)[0]['losses']['fine'])\n"
    )
    import subprocess
    import sys

    if not guard.allowed(guard.NEWPID | guard.NEWNET):
        pytest.skip("this system gives no process namespace")
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, timeout=60,
                          env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "528.0", done.stderr


@pytest.mark.parametrize("network", [False, True])
def test_a_signal_to_its_group_ends_itself_alone(hostile, network):
    with worker(hostile, "kills_its_group", network=network) as w, pytest.raises(Stopped, match="SIGKILL"):
        w.ask(request(), ARRAYS)


@pytest.mark.parametrize("name", ["forges", "forges_from_a_child"])
def test_a_reply_cannot_be_forged_on_the_pipe(hostile, name):
    with worker(hostile, name) as w:
        try:
            assert float(w.ask(request(), ARRAYS)[0]["losses"]["fine"]) == 528
        except Stopped as stop:
            assert name == "forges" and "checker's own pipe" in str(stop)


def test_one_large_allocation_is_seen(hostile):
    with worker(hostile, "one_large_allocation", memory_limit=200 << 20) as w:
        try:
            error = w.ask(request(), ARRAYS)[0]["error"]
            assert "MemoryError" in error["type"] and "one_large_allocation" in error["lines"][-1]
        except Stopped as stop:
            assert stop.kind == "memory"


def test_memory_that_was_held_for_a_moment_is_seen(hostile):
    with worker(hostile, "held_for_a_moment", memory_limit=100 << 20) as w, pytest.raises(Stopped, match="more than the limit"):
        w.ask(request(), ARRAYS)


def test_the_environment_is_a_short_list(hostile, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "1")
    monkeypatch.setenv("PASSED", "1")
    for env, seen in (((), 0), (("PASSED",), 1)):
        with worker(hostile, "environment", env=env) as w:
            assert float(w.ask(request(), ARRAYS)[0]["losses"]["fine"]) == 528 + seen
            assert "SECRET_TOKEN" not in Path(f"/proc/{w.main}/environ").read_text()


def test_escapes_are_shown_escaped(hostile):
    with worker(hostile, "escapes") as w:
        error = w.ask(request(), ARRAYS)[0]["error"]
        assert error["message"] == r"\x1b[2J\x1b[31mgone \x202e"
        assert "\x1b" not in w.printed() and r"\x1b[31mred" in w.printed()


def test_it_reaches_nobody_but_itself_where_the_system_allows(hostile):
    if not guard.allowed(guard.NEWNET):
        pytest.skip("this system gives no network namespace")
    with worker(hostile, "dials") as w:
        assert float(w.ask(request(), ARRAYS)[0]["losses"]["fine"]) == 529 and not w.network
    with worker(hostile, "dials", network=True) as w:
        w.ask(request(), ARRAYS)
        assert w.network


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


def test_a_jax_loss_beside_one_whose_gradient_is_nan_keeps_its_own():
    """Zero times NaN is NaN: each loss is taken back by itself."""
    jnp = pytest.importorskip("jax.numpy")
    from parity.checker.calling import bridge_jax

    def two(x):
        return jnp.sum(jnp.sqrt(x - x)), jnp.sum(3 * x)

    def named(out):
        return dict(zip(("bad", "good"), out))

    _, losses, grads = bridge_jax.call(two, [np.ones(4, np.float32)], {}, [0], named, "two", {}, True)
    assert float(losses["good"]) == 12 and np.isnan(grads["bad"][0]).all()
    np.testing.assert_array_equal(grads["good"][0], 3.0)
