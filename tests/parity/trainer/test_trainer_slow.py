"""What takes minutes: 200 damaged shards with members of every kind; ten kills of two ranks, also during a save."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_shards import member, picture, sound, write
from small_run import arguments, parameters, rows
from test_tar_shards import BAD, CAPTIONS, EXPECTED

from parity.trainer.data.order import Order
from parity.trainer.data.shards import RETRIES, ShardData
from parity.trainer.data.stream import Stream
from sparc_ref.data import WordTokenizer

DAMAGE = ("none", "cut", "header", "missing", "folder", "empty", "compressed")


def everything_below(folder: Path) -> dict[str, tuple]:
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns, p.is_symlink()) for p in sorted(folder.rglob("*"))}


def make(folder: Path, count: int) -> tuple[list[str], Counter, int, int]:
    """Shards with planted faults.      -> paths, how often each reason must be counted, good samples, shards that stay shut"""
    planted: Counter[str] = Counter()
    paths, good, seed, closed = [], 0, 0, 0
    rng = np.random.default_rng(7)
    for n in range(count):
        members, expected, samples = [], Counter(), 0
        for _ in range(int(rng.integers(1, 5))):
            kind = int(rng.integers(0, 3))
            if kind == 0:
                reason = list(BAD)[int(rng.integers(len(BAD)))]
                members += BAD[reason]
                expected[reason] += EXPECTED[reason]
            elif kind == 1:
                reason = list(CAPTIONS)[int(rng.integers(len(CAPTIONS)))]
                extension, data = CAPTIONS[reason]
                content = {"png": picture(n)} | ({"txt": b"fine"} if extension != "json" else {}) | {extension: data}
                members += [member(f"decoded{seed}.{name}", x) for name, x in content.items()]
                expected[reason] += 1
            members += sound(seed, f"good{seed:05d}")
            samples += 1
            seed += 1
        path = folder / f"{n:04d}.tar"
        damage = DAMAGE[n % len(DAMAGE)]
        if damage in ("missing", "folder"):
            if damage == "folder":
                path.mkdir()
            planted["shard does not open"] += 1
            closed += 1
        elif damage in ("empty", "compressed"):
            path.write_bytes(b"" if damage == "empty" else b"\x1f\x8b" + bytes(2000))
            whole = "shard is compressed: unpack it, pictures do not get smaller"
            planted["shard is cut off" if damage == "empty" else whole] += 1
        else:
            write(path, members)
            if damage != "none":                          # behind all that is sound: one more sample, then the damage
                data = path.read_bytes().rstrip(b"\0")
                data += bytes(-len(data) % 512)
                extra = member("last.png", picture(1, 40))[0].tobuf() if damage == "cut" else b"\xff" * 512
                path.write_bytes(data + extra + b"\1" * 100)
                reason = "shard is cut off" if damage == "cut" else "header is damaged: the rest of the shard is not read"
                planted[reason] += 1
            planted += expected
            good += samples
        paths.append(str(path))
    return paths, planted, good, closed


@pytest.mark.slow
def test_200_damaged_shards_are_counted_exactly_and_touch_nothing(tmp_path):
    source, index = tmp_path / "shards", tmp_path / "run" / "index"
    source.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "untouched").write_text("as it was")
    paths, planted, good, closed = make(source, 200)
    before = everything_below(source) | everything_below(outside)
    data = ShardData(paths, 16, index)
    assert closed and data.report.names["shard does not open"][0].startswith(paths[3]) and RETRIES > 0
    stream = Stream(data, WordTokenizer(["red"]), Order(data.sizes, 0, 8), 1, image_size=16, max_tokens=5, workers=2)
    seen = []
    while stream.ready():
        seen += stream.take().items
    stream.next_epoch()
    assert len(seen) == len(set(seen)) == good
    assert data.report.skipped + stream.skipped == planted
    assert everything_below(source) | everything_below(outside) == before
    assert {p.name for p in tmp_path.iterdir()} == {"shards", "run", "outside"}
    assert all(p.suffix == ".npz" for p in index.iterdir()) and len(list(index.iterdir())) == 200


def torchrun(argv: list[str], port: int) -> list[subprocess.Popen]:
    """Two ranks, as torchrun starts them, without its agent: what is killed is then what is meant."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "parity.trainer", *argv]
    each = [{"OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | address | own)
            for own in each]


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ended(ranks: list[subprocess.Popen]) -> list[int]:
    return [rank.wait(timeout=900) for rank in ranks]


@pytest.mark.slow
def test_ten_kills_change_no_bit(tmp_path):
    """SIGKILL of both ranks at random moments, half of them while a checkpoint is being written."""
    more = ["--steps", "24", "--checkpoint-every", "1"]
    assert ended(torchrun(arguments(tmp_path / "whole", *more), free_port())) == [0, 0]
    chance, out = random.Random(11), tmp_path / "killed"
    kills = during_a_save = 0
    while True:
        ranks = torchrun([*arguments(out, *more), "--resume", *(["--async-checkpoints"] if kills % 2 else [])], free_port())
        saving, deadline = kills % 2 == 0, time.monotonic() + 300
        steps = {p.name for p in (out / "sharded").glob("step_*")} if out.exists() else set()
        while kills < 10 and ranks[0].poll() is None and time.monotonic() < deadline:
            partial = list((out / "sharded").glob(".partial-*"))
            moved = {p.name for p in (out / "sharded").glob("step_*")} - steps
            if (saving and partial and moved) or (not saving and moved and chance.random() < 0.02):
                break
            time.sleep(0.001)
        if ranks[0].poll() is None and kills < 10:
            for rank in ranks:
                os.kill(rank.pid, signal.SIGKILL)
            kills += 1
            during_a_save += bool(list((out / "sharded").glob(".partial-*")))
            assert all(code == -signal.SIGKILL for code in ended(ranks))
            continue
        assert ended(ranks) == [0, 0], [rank.stderr.read().decode()[-2000:] for rank in ranks]
        break
    print(f"{kills} kills, {during_a_save} of them during a save")
    assert kills >= 5 and during_a_save >= 2
    assert parameters(out, 24) == parameters(tmp_path / "whole", 24)
    assert rows(out) == rows(tmp_path / "whole")
