"""Fail and kill training runs at every system call on their folder, and count what is lost.

    python bench/robustness.py [--every N] [--run RUN] [--fault FAULT] [--log FILE] [--out FILE]

Three runs: started in a new folder; resumed from a checkpoint; started with --overwrite over an old run, in a folder that
holds files of others too. Each is repeated once for every system call on its folder (open, read, write, close, stat, opendir,
readdir, fsync, rename, unlink, mkdir, rmdir, ftruncate, flock) and every fault that can come there: the disk is full from there
on (calls that need space), an I/O error (all calls), kill -9, SIGTERM, SIGHUP (calls that change anything: between two of them
the folder is the same, so that a signal elsewhere adds nothing). faults.c plants them below Python, in the C library's calls,
so it needs a C compiler and Linux. After each fault

    lost            a checkpoint that had been reported as saved is gone or does not load
    outside         a file beside the run, or of others inside its folder, is not what it was
    not continued   --resume (or --overwrite again, where the old run is still there) does not end with the weights, metrics
                    and files of a run that nothing happened to
    not named       an error that does not name a file of the run, or a traceback

Prints one table as Markdown. Every process is forked from this one, which has imported all that a run needs and made one of
each before, so that a fault takes a fraction of a second. --log FILE: a line for each fault as it is done; started again with
the same file, it goes on where it stopped, as long as the code is the same.
"""

import argparse
import ctypes
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

FAULTS = {"full disk": errno.ENOSPC, "I/O error": errno.EIO, "kill -9": -signal.SIGKILL, "SIGTERM": -signal.SIGTERM,
          "SIGHUP": -signal.SIGHUP}
SCENARIOS = ("start", "resume", "overwrite")
BAD = ("lost", "outside", "not continued", "not named")


def train(out, steps, say=lambda text: None, saved=lambda step: None, **how):
    """A run that takes a moment; saved(step) is told of every checkpoint once it is there."""
    from sparc_ref.data import DrawnScenes, WordTokenizer
    from sparc_ref.model import PRESETS
    from sparc_ref.run import checkpoint
    from sparc_ref.run import train as loop

    data = DrawnScenes(size=16, count=12, style="short")
    tokenizer = WordTokenizer(data.vocabulary())
    config = replace(PRESETS["tiny"], image_size=16, vision_width=8, vision_depth=1, vision_heads=2, text_width=8, text_depth=1,
                     text_heads=2, embed_dim=8, vocab_size=tokenizer.vocab_size, max_tokens=20)
    options = loop.TrainConfig(steps=steps, batch=4, warmup=1, log_every=1, eval_every=4, eval_limit=4, checkpoint_every=1,
                               keep=1, shards=1, lr=how.pop("lr", 1e-3))
    real = checkpoint.save

    def save(folder, step, *args):
        path = real(folder, step, *args)
        saved(step)
        return path

    checkpoint.save = save
    try:
        return loop.train(config, options, [data], tokenizer, out, validation={"validation": data}, say=say,
                          again="sparc-ref ...", **how)
    finally:
        checkpoint.save = real


def prepared(scenario, folder):
    """The state before: out = folder/run, files of others beside it, and in it where it is overwritten."""
    out = folder / "run"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos/1.jpg").write_bytes(b"mine")
    (folder / "notes.txt").write_bytes(b"mine")
    if scenario == "resume":
        def stop(step):
            if step == 2:
                raise KeyboardInterrupt
        with suppress(KeyboardInterrupt):
            train(out, 4, saved=stop)
    if scenario == "overwrite":
        train(out, 2, lr=5e-3)
        for name in ("notes.md", "plots/loss.png", "checkpoints/best/x.bin", "tokenizer/README"):
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(b"mine")


def action(scenario, out, **more):
    """The run that faults are planted in."""
    how = {"start": {}, "resume": {"resume": True}, "overwrite": {"overwrite": True}}[scenario]
    return train(out, 4, **how, **more)


def forked(function):
    """Call function(tell) in a forked process.   -> status (negative: its signal), what it told, its last error

    status 0: it ended; 1: an error that the command line prints as one line; 2: interrupted, and saved; 3: any other error
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        status = 3
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)

        def tell(**what):
            os.write(write, (json.dumps(what) + "\n").encode())
        try:
            from sparc_ref.run.train import Interrupted
            try:
                function(tell)
                status = 0
            except Interrupted as error:
                status = 2
                tell(error=str(error))
            except (ValueError, OSError) as error:        # what the command line prints as one line
                status = 1
                tell(error=str(error))
            except BaseException as error:
                tell(error=f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = [json.loads(line) for line in pipe if line.endswith("\n")]
    _, code = os.waitpid(pid, 0)
    status = os.waitstatus_to_exitcode(code)
    return status, told, next((t["error"] for t in told if "error" in t), "")


def files_of(folder):
    """Every file by name with a hash of its content; a run's own times left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "metrics.jsonl":
                timed = ("seconds", "examples_per_second")
                rows = [{k: v for k, v in json.loads(line).items() if k not in timed} for line in content.splitlines()]
                content = json.dumps(rows).encode()
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def others(folder, mine):
    """What the files of others are now."""
    return {name: (folder / name).read_bytes() if (folder / name).is_file() else None for name in mine}


def one(library, scenario, kept, work, n, fault, expected):
    """One fault at call n.   -> where it hit, and which of BAD came of it"""
    from sparc_ref.run import checkpoint

    folder = work / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder, symlinks=True)
    out = folder / "run"
    mine = [name for name in files_of(folder) if (folder / name).read_bytes() == b"mine"]
    bad = []

    def run(tell):
        library.fault_arm(str(out).encode(), n, FAULTS[fault])
        try:
            action(scenario, out, saved=lambda step: tell(saved=step))
        finally:
            tell(hit=library.fault_hit().decode())
            library.fault_arm(b"", -1, 0)

    status, told, error = forked(run)
    hit = next((t["hit"] for t in told if "hit" in t), "")
    newest = max([t["saved"] for t in told if "saved" in t], default=2 if scenario == "resume" else 0)
    steps = []
    for path in checkpoint.steps(out / "checkpoints"):
        try:
            steps.append(checkpoint.load(path).step)
        except ValueError as wrong:
            bad.append(("lost", str(wrong)))
    if newest and (not steps or max(steps) < newest):
        bad.append(("lost", f"step {newest} had been saved, {steps} are there"))
    if any(content != b"mine" for content in others(folder, mine).values()):
        bad.append(("outside", str(others(folder, mine))))
    wanted = {"kill -9": (-9,), "SIGTERM": (2, 0), "SIGHUP": (2, 0)}.get(fault, (0, 1))
    if status not in wanted or (status == 1 and str(out) not in error):
        bad.append(("not named", f"status {status}: {error}"))
    status, _, error = forked(lambda tell: train(out, 4, resume=True))
    if status and scenario == "overwrite" and "other settings" in error:
        status, _, error = forked(lambda tell: train(out, 4, overwrite=True))
    got = files_of(folder)
    if status or got != expected:
        odd = {k for k in {*expected, *got} if expected.get(k) != got.get(k)}
        bad.append(("not continued", f"status {status} {error}; differs in {sorted(odd)}"))
    return hit, bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every n-th system call")
    parser.add_argument("--run", choices=SCENARIOS, help="only this run")
    parser.add_argument("--fault", choices=FAULTS, help="only this fault")
    parser.add_argument("--log", type=Path, help="a line for each fault; what is in it already is not done again")
    parser.add_argument("--out", help="also write what was counted as JSON")
    args = parser.parse_args()
    here = Path(__file__).resolve().parent
    if "FAULTS_LIBRARY" not in os.environ:
        if not shutil.which("cc") or not sys.platform.startswith("linux"):
            raise SystemExit("needs Linux and a C compiler (cc)")
        with tempfile.TemporaryDirectory() as made:
            library = f"{made}/faults.so"
            subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, here / "faults.c", "-ldl"], check=True)
            return subprocess.run([sys.executable, __file__, *sys.argv[1:]], check=False, env={
                **os.environ, "FAULTS_LIBRARY": library, "LD_PRELOAD": library, "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1"}).returncode
    os.environ.pop("LD_PRELOAD")
    library = ctypes.CDLL(os.environ["FAULTS_LIBRARY"])
    library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
    library.fault_count.restype, library.fault_hit.restype = ctypes.c_long, ctypes.c_char_p
    began = time.perf_counter()
    done = read_log(args.log)
    table, details = [], []
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # what a call does to the disk is not asked, only its answer
    with tempfile.TemporaryDirectory(dir=memory) as made:
        work = Path(made).resolve()
        warm_up(work / "warm")
        for scenario in [args.run] if args.run else SCENARIOS:
            kept, whole = work / scenario, work / "whole"
            status, _, error = forked(lambda tell, s=scenario, k=kept: prepared(s, k))
            assert status == 0, error
            for fault in [args.fault] if args.fault else FAULTS:
                shutil.rmtree(whole, ignore_errors=True)
                shutil.copytree(kept, whole)
                status, told, error = forked(lambda tell, s=scenario, f=fault, w=whole: counted(library, s, w / "run", f, tell))
                assert status == 0, error
                calls, expected = told[-1]["calls"], files_of(whole)
                found, tried = Counter(), 0
                for n in range(1, calls + 1, args.every):
                    key = scenario, fault, n, calls
                    if key not in done:
                        hit, bad = one(library, scenario, kept, work, n, fault, expected)
                        done[key] = {"hit": hit, "bad": bad}
                        if args.log:
                            with args.log.open("a") as file:
                                file.write(json.dumps({"key": key, **done[key]}) + "\n")
                    tried += 1
                    for what, why in done[key]["bad"]:
                        found[what] += 1
                        details.append({"scenario": scenario, "fault": fault, "call": n, "hit": done[key]["hit"],
                                        "what": what, "why": why})
                row = {"scenario": scenario, "fault": fault, "calls": calls, "tried": tried, **{b: found[b] for b in BAD}}
                table.append(row)
                print(row, file=sys.stderr, flush=True)
    print("| run | fault | system calls | faults planted | lost | outside | not continued | not named |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in table:
        print("| " + " | ".join(str(x) for x in row.values()) + " |")
    totals = [sum(row[k] for row in table) for k in ("tried", *BAD)]
    print("| all | | | " + " | ".join(f"{n:,}" for n in totals) + " |")
    print(f"\n{time.perf_counter() - began:.0f} s")
    for detail in details[:20]:
        print(detail, file=sys.stderr)
    if args.out:
        Path(args.out).write_text(json.dumps({"table": table, "details": details}, indent=1))
    return 1 if details else 0


def warm_up(folder):
    """Make one run of each kind here, so that no fork imports anything again."""
    import threading

    for scenario in SCENARIOS:
        prepared(scenario, folder / scenario)
        action(scenario, folder / scenario / "run")
    assert threading.active_count() == 1, threading.enumerate()  # a fork keeps one thread only


def read_log(path):
    """What an earlier call has done with the same code.   -> key -> what came of it"""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted([*root.glob("sparc_ref/**/*.py"), root / "bench/faults.c", Path(__file__)]):
        digest.update(file.read_bytes())
    if path is None:
        return {}
    if not path.exists():
        path.write_text(json.dumps({"code": digest.hexdigest()}) + "\n")
    first, *lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    if first.get("code") != digest.hexdigest():
        raise SystemExit(f"{path}: made with other code; name another --log")
    return {tuple(line["key"]): line for line in lines}


def counted(library, scenario, out, fault, tell):
    """The run that nothing happens to, and how many calls it makes at which the fault may come."""
    library.fault_arm(str(out).encode(), 0, FAULTS[fault])
    action(scenario, out)
    tell(calls=library.fault_count())
    library.fault_arm(b"", -1, 0)


if __name__ == "__main__":
    sys.exit(main())
