"""A ladder of made-up rungs: rows that pass, fail or prove nothing, without a model behind them."""

from parity.ladder import climb as ladder
from parity.ladder.rungs.setup import NotRun, Row


def rung(*rows):
    return ladder.Rung("made up", "for a test", lambda setup: iter(rows), 1, 1)


def climbed(monkeypatch, *rungs, **options):
    monkeypatch.setattr(ladder, "RUNGS", rungs)
    return ladder.run(**options)


def unable(reason):
    raise NotRun(reason)
    yield


GOOD = Row("before", "float64", "trainer", 1e-16, 1e-15)
BLIND = Row("blind", "bfloat16", "trainer", 0.01, 0.2)
AFTER = Row("after", "float64", "trainer", 1.0, 1e-15)
