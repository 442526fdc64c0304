"""The README's code runs and prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

import parity

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", README, re.S)


MINE = re.search(r"```python\n# mine.py\n(.*?)```", README, re.S).group(1)


def test_the_code_prints_what_is_said():
    (code, output), = BLOCKS
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == output


def test_check_your_own_says_what_is_said(tmp_path):
    """Both faults, and nothing once both changes are made as the text says them."""
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    report = parity.check(str(file))
    assert report.verdict == "explained" and report.deviations == ("threshold.constant", "logits.padding_not_masked")
    sentence = " ".join(re.search(r"  DIFFERS, EXPLAINED\n(.*?)\n\n", README, re.S).group(1).split())
    assert report.headline == sentence and report.summary in README
    threshold, masked = re.search(r"Change what it says: `(.*?)`, and `(.*?)`", README).groups()
    changed = MINE.replace("s < threshold", threshold).replace("y.log_softmax(-1)", masked)
    assert threshold in changed and masked in changed
    file.write_text(changed)
    assert parity.check(str(file)).verdict == "eq6"


def test_every_room_is_in_the_tree():
    """Rooms and the files at the door by name; every line of the tree names what is there."""
    tree = README[README.index("## The tree") :]
    root = Path(__file__).parent.parent
    for package in ("sparc_ref", "parity"):
        for path in (*(root / package).glob("*.py"), *(root / package).rglob("__init__.py")):
            name = f"{path.parent.name}/" if path.name == "__init__.py" else path.name
            assert name in tree or path.name == "__main__.py", path
    shown = re.findall(r"^ *([a-z_0-9]+(?:/|\.py|\.md))", tree, re.M)
    assert len(shown) > 25
    for name in shown:
        assert any(root.rglob(name.rstrip("/"))), name
