"""bench/hostile_data.py: nothing lost, nothing outside, every count exact; and docs/data.md shows what it prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_table_is_what_the_script_prints():
    """In a process of its own: what watches the opening of files stays for the life of a process."""
    done = subprocess.run([sys.executable, ROOT / "bench" / "hostile_data.py"], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    table, _, memory = done.stdout.rpartition("Largest memory")
    planted = [int(row.split("|")[2].strip(" *")) for row in table.splitlines() if row.startswith("| **")]
    assert planted[0] >= 230 and planted[1] >= 190 and planted[2] >= 70
    page = (ROOT / "docs" / "data.md").read_text()
    assert table in page, "put it there again: python bench/hostile_data.py --write"
    assert int(memory.split()[-2].replace(",", "")) < 900
