"""pytest --sparc-impl pkg.mod:loss adds a test that fails unless the loss equals eq. 6; the failure is the explanation.

    pytest --sparc-impl my_pkg.losses:sparc_loss --sparc-accept listing1 --sparc-option mask=padding
    def test_mine(sparc_check): sparc_check(my_loss)      # the same inside a test; gives the report

Importing this imports pytest alone, and nothing is imported beyond that until a check runs.
"""

from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sparc", "SPARC's loss, checked against the paper")
    group.addoption("--sparc-impl", action="append", default=[], metavar="TARGET",
                    help="check an implementation: pkg.module:name, file.py, file.py:name, a folder of answers; repeatable")
    group.addoption("--sparc-accept", action="append", default=[], metavar="READING", choices=["listing1"],
                    help="a reading of the paper that is as good as eq. 6: listing1")
    group.addoption("--sparc-option", action="append", default=[], metavar="NAME=VALUE",
                    help="as in sparc-ref check: call=v,t,mask,scale or mask=padding; may be repeated")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    for target in config.getoption("--sparc-impl"):
        items.append(SparcItem.from_parent(session, name=f"sparc[{target}]", target=target))


class Differs(Exception):
    """Carries the report of an implementation that is not what the paper says."""

    def __init__(self, report: Any):
        super().__init__(report.summary)
        self.report = report


def missing_torch(error: BaseException) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name == "torch"


def told(target: str, summary: str, text: str) -> Any:
    """A failure that reads as `text`, with `summary` in pytest's last lines."""
    from _pytest._code.code import ReprEntryNative, ReprExceptionInfo, ReprFileLocation, ReprTraceback

    lines = ReprTraceback([ReprEntryNative([f"{line}\n" for line in text.splitlines()])], None, "native")
    return ReprExceptionInfo(lines, ReprFileLocation(target, 0, summary.splitlines()[0]))


class SparcItem(pytest.Item):
    """One implementation as one test."""

    def __init__(self, *, target: str, **rest: Any):
        super().__init__(**rest)
        self.target = target

    def runtest(self) -> None:
        checked(self.target, **options(self.config))

    def repr_failure(self, excinfo: pytest.ExceptionInfo, style: Any = None) -> Any:
        if isinstance(excinfo.value, Differs):
            return told(self.target, excinfo.value.report.summary, str(excinfo.value.report))
        if isinstance(excinfo.value, ValueError) or missing_torch(excinfo.value):  # usage: one line
            return told(self.target, str(excinfo.value), f"{self.target}: {excinfo.value}")
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, None, str]:
        return self.path, None, f"sparc {self.target}"


@pytest.fixture
def sparc_check(request: pytest.FixtureRequest) -> Any:
    """Check a callable or a name: fails the test with the explanation, or gives the report.  Keywords as parity.check has."""
    given = options(request.config)

    def check(target: Any, **overrides: Any) -> Any:
        __tracebackhide__ = True
        try:
            return checked(target, **(given | overrides))
        except Differs as differs:
            pytest.fail(f"{differs.report.summary}\n{differs.report}", pytrace=False)
        except ModuleNotFoundError as error:
            if not missing_torch(error):
                raise
            pytest.fail(str(error), pytrace=False)

    return check


def options(config: pytest.Config) -> dict[str, Any]:
    """The keywords of parity.check that the command line gave.  Raises pytest.UsageError for what is not NAME=VALUE."""
    found: dict[str, Any] = {}
    for text in config.getoption("--sparc-option"):
        name, equals, value = text.partition("=")
        if not equals:
            raise pytest.UsageError(f"--sparc-option {text}: expected NAME=VALUE")
        found[name.replace("-", "_")] = value
    return found | {"accept": tuple(config.getoption("--sparc-accept"))}


def checked(target: Any, **overrides: Any) -> Any:
    from parity.checker.verdict import check

    report = check(target, **overrides)
    if report.exit_code:
        raise Differs(report)
    return report
