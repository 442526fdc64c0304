"""pytest --sparc-impl: a test that fails with the explanation, and costs nothing where it is not asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "parity" / "examples"
pytest_plugins = ["pytester"]

NUMPY_LISTING = '''
import numpy as np
from sparc_ref import fine_grained_loss

def loss(v, t, mask, theta):
    return fine_grained_loss(v, t, mask, theta, reduction="token")
'''


@pytest.fixture
def run(pytester, monkeypatch):
    """pytest in a process of its own, with the plugin named as the entry point would."""
    root = str(EXAMPLES.parents[1])
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "300")                  # what does not fit in a line pytest cuts off

    def go(*arguments):
        return pytester.runpytest_subprocess("-p", "parity.checker.pytest_plugin", *arguments)

    return go


def test_a_sound_loss_passes_and_a_test_can_ask_for_the_report(run, pytester):
    pytester.makepyfile(test_mine=f"""
        def test_report(sparc_check):
            report = sparc_check({str(EXAMPLES / "numpy_loss.py")!r})
            assert report.verdict == "eq6" and report.convention.written == "v,t,lengths,theta"
    """)
    result = run("--sparc-impl", str(EXAMPLES / "numpy_loss.py"))
    result.assert_outcomes(passed=2)


@pytest.mark.slow
def test_another_reading_fails_with_the_explanation(run, pytester):
    path = pytester.makepyfile(listing=NUMPY_LISTING)
    result = run("--sparc-impl", f"{path}:loss")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*EQUALS LISTING 1*", "*reduction.token*", "*loss.mean()*"])
    assert "Traceback" not in result.stdout.str()
    result.stdout.fnmatch_lines(["FAILED*sparc?*loss? - SPARC: equals Listing 1*"])


@pytest.mark.slow
def test_another_reading_can_be_accepted(run, pytester):
    path = pytester.makepyfile(listing=NUMPY_LISTING)
    run("--sparc-impl", f"{path}:loss", "--sparc-accept", "listing1").assert_outcomes(passed=1)


def test_wrong_use_is_one_line(run):
    result = run("--sparc-impl", "no_such_module:loss")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no module 'no_such_module'*", "FAILED*no_such_module:loss? - SPARC: cannot run: NotFound*"])
    assert run("--sparc-option", "mask").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result = run("--sparc-impl", str(EXAMPLES / "numpy_loss.py"), "--sparc-option", "masc=lengths")
    result.stdout.fnmatch_lines(["*no option masc*", "FAILED*numpy_loss.py? - check: no option masc*"])


@pytest.mark.slow
def test_a_test_that_asks_and_fails_has_its_line_too(run, pytester):
    path = pytester.makepyfile(listing=NUMPY_LISTING)
    pytester.makepyfile(test_mine=f"def test_report(sparc_check):\n    sparc_check({str(path) + ':loss'!r})\n")
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*EQUALS LISTING 1*", "FAILED*test_report - *SPARC: equals Listing 1*"])


def test_importing_the_plugin_imports_neither_torch_nor_numpy():
    code = "import sys, parity.checker.pytest_plugin; print(sorted({'torch', 'numpy', 'jax', 'sparc_ref'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLES.parents[1], timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
