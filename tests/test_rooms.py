"""The arrows between the rooms: kept, and seen to break when a forbidden import is planted; the picture is of what is there."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def contracts(folder: Path) -> subprocess.CompletedProcess:
    """What `lint-imports` says of the copy of the project in `folder`."""
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "400"})


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of both packages and of the contracts."""
    folder = tmp_path_factory.mktemp("house")
    for package in ("sparc_ref", "parity"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("v1", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_all_arrows_point_one_way(house):
    done = contracts(house)
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout + done.stderr


PLANTED = [
    ("sparc_ref/ops.py", "from sparc_ref import model", "sparc_ref.ops -> sparc_ref.model"),
    ("sparc_ref/run/train.py", "from sparc_ref.show import plots", "sparc_ref.run.train -> sparc_ref.show.plots"),
    ("sparc_ref/evaluate/grouping.py", "import sparc_ref.data.batches",
     "sparc_ref.evaluate.grouping -> sparc_ref.data.batches"),
    ("sparc_ref/commands/cli.py", "from parity.commands import Check", "sparc_ref.commands.cli -> parity.commands"),
    ("sparc_ref/losses.py", "import torch", "sparc_ref.losses -> torch"),
    ("parity/oracle.py", "from sparc_ref import ops", "parity.oracle -> sparc_ref.ops"),
    ("parity/trainer/loss.py", "from sparc_ref.losses import global_loss", "parity.trainer.loss -> sparc_ref.losses"),
    ("parity/trainer/evaluate.py", "from sparc_ref import alignment", "parity.trainer.evaluate -> sparc_ref.alignment"),
    ("parity/checker/diagnosis/search.py", "from parity.vectors import budgets",
     "parity.checker.diagnosis.search -> parity.vectors.budgets"),
    ("parity/checker/calling/naming.py", "from parity.checker.diagnosis import search",
     "parity.checker.calling.naming -> parity.checker.diagnosis.search"),
    ("parity/vectors/budgets.py", "from parity.vectors import runs", "parity.vectors.budgets -> parity.vectors.runs"),
    ("parity/vectors/read.py", "from parity.ladder import climb", "parity.vectors.read -> parity.ladder.climb"),
]  # fmt: skip


def test_forbidden_imports_are_seen(house):
    """All at once, each named."""
    kept = {}
    for file, line, _ in PLANTED:
        kept.setdefault(file, (house / file).read_text())
        (house / file).write_text(f"{(house / file).read_text()}\n{line}\n")
    try:
        done = contracts(house)
    finally:
        for file, text in kept.items():
            (house / file).write_text(text)
    said = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert not [arrow for *_, arrow in PLANTED if f"{arrow} (l." not in said], done.stdout


def test_there_are_no_circles():
    import grimp

    for package in ("sparc_ref", "parity"):
        graph = grimp.build_graph(package, cache_dir=None)
        above: dict[str, set[str]] = {m: set(graph.find_modules_directly_imported_by(m)) for m in graph.modules}
        while free := [m for m, uses in above.items() if not uses]:
            for m in free:
                del above[m]
            for uses in above.values():
                uses.difference_update(free)
        assert not above, f"import circles among {sorted(above)}"


def test_the_picture_is_of_what_is_there():
    spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    assert drawing.OUT.read_text() == drawing.draw(), "draw it again: python docs/draw_rooms.py"
