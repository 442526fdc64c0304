"""The README's code runs and prints what the README says."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro

import parity
from sparc_ref.commands import cli

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


def test_the_code_for_a_run_of_ones_own(tmp_path, monkeypatch):
    """Trained, opened, embedded and aligned on pictures of one's own, as the section says, with a smaller model."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    example = json.loads(re.search(r"`(\{.*?\})`", README[README.index("## Train on your own data"):]).group(1))
    folder = tmp_path / "my_folder" / "images"
    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for name in range(1, 5):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / f"{name}.jpg")
        lines.append(json.dumps(example | {"image": f"{name}.jpg"}))
    (folder.parent / "captions.jsonl").write_text("\n".join(lines))
    small = "--image-size 16 --vision-width 16 --vision-depth 1 --text-width 16 --text-depth 1 --embed-dim 8 --batch 4"
    command = next(c for c in COMMANDS if "--out runs/first" in c).replace("--steps 300", "--steps 2")
    assert cli.run([*shlex.split(command)[1:], *small.split()]) == 0
    code, = (code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "load_run" in code)
    printed, seen = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(code, seen)
    assert seen["images"]["v_bar"].shape == (2, 8) and seen["images"]["v"].shape == (2, 4, 8)
    assert seen["texts"]["t_bar"].shape == (3, 8) and seen["trace"]["weights"].shape[::2] == (1, 4)
    lines = printed.getvalue().splitlines()
    assert len(lines) == 2 + 1 + 5 and [line.split()[0] for line in lines[3:]] == seen["captions"][0].split()


COMMANDS = [line[2:].partition("  #")[0].strip() for line in README.splitlines() if line.startswith("$ sparc-ref")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command):
    """Whatever the README tells to type is understood: the command and its options exist."""
    known, options = cli.COMMANDS | cli.ADDED, (tyro.conf.OmitArgPrefixes,)
    tyro.extras.subcommand_cli_from_dict(known, args=shlex.split(command)[1:], config=options)


def test_nothing_is_installed_from_an_index():
    """This package is on none: every line that installs it names the clone."""
    root = Path(__file__).parent.parent
    patterns = ("*.md", "docs/**/*.md", "sparc_ref/**/*.py", "parity/**/*.py")
    files = [file for pattern in patterns for file in root.glob(pattern)]
    lines = [line for file in files for line in file.read_text().splitlines() if "pip install" in line]
    assert len(lines) > 8 and not [line for line in lines if re.search(r"pip install +(-\S+ +)*['\"]?sparc", line)]


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


DOCUMENTS = [file for pattern in ("*.md", "docs/**/*.md", "parity/*.md") for file in Path(__file__).parent.parent.glob(pattern)]


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_every_file_that_is_named_is_there(file):
    """Links, and what stands in backticks with a room's name before it; in ARCHITECTURE.md and CONTRIBUTING.md every .py."""
    root, text = Path(__file__).parent.parent, file.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not re.match(r"https?:|mailto:", link)]
    assert not [link for link in links if not (file.parent / link).exists()]
    tracked = [str(path.relative_to(root)) for room in ("sparc_ref", "parity", "tests", "bench", "docs")
               for path in (root / room).rglob("*")]
    named = re.findall(r"`((?:sparc_ref|parity|tests|bench|docs)/[\w./-]+)`", text)
    assert not [name for name in named if name.rstrip("/") not in tracked]
    if file.name in ("ARCHITECTURE.md", "CONTRIBUTING.md"):
        files = re.findall(r"`([\w/]+\.(?:py|toml))`", text)
        found = {f"/{path}" for path in tracked} | {"/pyproject.toml"}
        assert len(files) > 15 and not [name for name in files if not any(f.endswith(f"/{name}") for f in found)]
