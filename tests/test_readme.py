"""The README's code runs and prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", README, re.S)


def test_there_are_blocks():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize(("code", "output"), BLOCKS, ids=["forward", "check your own"])
def test_code_prints_what_is_said(code, output):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == output


def test_the_fault_of_the_example_is_the_only_one():
    code = BLOCKS[1][0].replace("    v = F.normalize(v, dim=-1)\n", "")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    loss, gradient, *stages = printed.getvalue().splitlines()
    assert re.fullmatch(r"loss +(\S+), reference \1", loss)
    assert "off by 0%" in gradient
    assert all("off by 0.00" in stage for stage in stages) and len(stages) == 3


def test_every_file_of_the_package_is_in_the_tree():
    tree = README[README.index("## The tree") :]
    for path in (Path(__file__).parent.parent / "sparc_ref").glob("*.py"):
        if not path.name.startswith("__"):
            assert path.name in tree, path.name
