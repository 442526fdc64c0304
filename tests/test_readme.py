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


def test_every_file_of_the_package_is_in_the_tree():
    tree = README[README.index("## The tree") :]
    root = Path(__file__).parent.parent
    for path in (*(root / "sparc_ref").glob("*.py"), *(root / "parity").glob("*.py")):
        if not path.name.startswith("__") and path.name != "commands.py":
            assert path.name in tree, path.name
