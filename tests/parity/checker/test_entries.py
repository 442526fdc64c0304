"""Every way in: without torch one line, a wrong name writes no page, a notebook shows the page, Listing 1 is hinted at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import parity
from sparc_ref.commands import cli

ROOT = Path(parity.__path__[0]).parent
EXAMPLE = ROOT / "parity" / "examples" / "numpy_loss.py"
LISTING = '''
from sparc_ref import fine_grained_loss

def loss(v, t, mask, theta):
    return fine_grained_loss(v, t, mask, theta, reduction="token")[0]
'''
NO_TORCH = """
import sys
class Missing:
    def find_spec(name, *_):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing)
"""


def without_torch(code, tmp_path):
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-c", NO_TORCH + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=env, cwd=tmp_path)


@pytest.mark.parametrize("code, status", [
    (f"from sparc_ref.commands import cli; sys.exit(cli.run(['check', {str(EXAMPLE)!r}]))", 2),
    (f"from parity.__main__ import main; sys.exit(main(['check', {str(EXAMPLE)!r}]))", 2),
    ("from parity.__main__ import main; sys.exit(main(['check', '--export', 'there']))", 2),
    (f"import parity\ntry: parity.check({str(EXAMPLE)!r})\nexcept ModuleNotFoundError as e: sys.exit(str(e))", 1),
    (f"import pytest; sys.exit(pytest.main(['-p', 'parity.checker.pytest_plugin', '-p', 'no:cacheprovider', '--sparc-impl', "
     f"{str(EXAMPLE)!r}]))", 1),
])
def test_without_torch_one_line_says_what_is_needed(tmp_path, code, status):
    done = without_torch(code, tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == status and "needs torch" in said and "pip install '.[parity]'" in said, said
    assert "Traceback" not in said and not any(tmp_path.iterdir())


def test_a_name_that_is_wrong_writes_no_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for target in (f"{EXAMPLE}:sparc_lose", "no_such_file.py", "no_such_module:loss"):
        assert cli.run(["check", target]) == 3
    assert not (tmp_path / "runs").exists() and ".html" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    path = tmp_path_factory.mktemp("entries") / "listing.py"
    path.write_text(LISTING)
    return path


def test_listing_1_says_how_it_is_accepted(listing):
    report = parity.check(listing)
    assert any("--accept listing1" in note for note in report.notes) and "--accept listing1" in str(report)
    report = parity.check(listing, accept="listing1")
    assert report.exit_code == 0 and not any("--accept" in note for note in report.notes)


def test_a_notebook_shows_the_page(listing):
    shown = parity.check(listing)._repr_html_()
    assert shown.startswith("<iframe sandbox srcdoc=") and "&lt;!doctype html&gt;" in shown
    assert "<script" not in shown and shown.count("<") == 2  # one element; the page is text in its attribute


def test_a_strangers_escapes_reach_neither_terminal_nor_page(tmp_path):
    path = tmp_path / "esc.py"
    path.write_text('def loss(v, t, mask, scale):\n    print("\\x1b[2J")\n    raise ValueError("\\x1b[31mred\\x1b]0;x\\x07")\n')
    report = parity.check(path, call="v,t,mask,scale")
    for text in (str(report), report.to_json(), report._repr_html_(), report.headline, report.summary):
        assert "\x1b" not in text and "\x07" not in text
    assert r"\x1b[31mred" in str(report)


def test_a_module_that_prints_escapes_while_it_dies(tmp_path):
    path = tmp_path / "dies.py"
    path.write_text('import os, sys\nos.write(2, b"\\x1b[2Jbye")\nos.kill(os.getpid(), 9)\ndef loss(v, t, mask, scale): pass\n')
    report = parity.check(path)
    assert report.verdict == "cannot_run" and "\x1b" not in str(report)
