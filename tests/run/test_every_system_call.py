"""bench/robustness.py: a fault at every system call, and nothing lost.  docs/robustness.md holds its table."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "robustness.py"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_nothing_is_lost_at_any_system_call():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    total = next(line for line in done.stdout.splitlines() if line.startswith("| all |")).strip("| ").split(" | ")
    assert int(total[-5].replace(",", "")) > 1000 and total[-4:] == ["0"] * 4
