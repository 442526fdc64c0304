"""Losses after what users met, with their right answers: what is no fault is not called one."""

from pathlib import Path

import pytest

import parity

CASES = Path(__file__).parent / "alarms"
# name -> verdict, what differs, what shows on ties alone
RIGHT = {
    "s22_guard_and_epsilon": ("eq6", (), ("threshold.rounding",)),
    "e_float32_scale": ("eq6", (), ()),
    "b_eps_inf_rows": ("conditional", ("minmax.nan_from_padding", "minmax.epsilon"), ()),
}


@pytest.mark.parametrize("name", [
    "e_float32_scale", *(pytest.param(x, marks=pytest.mark.slow) for x in ("s22_guard_and_epsilon", "b_eps_inf_rows"))])
def test_case_gets_its_answer(name):
    report = parity.check(CASES / f"{name}.py")
    verdict, deviations, edges = RIGHT[name]
    assert (report.verdict, report.deviations) == (verdict, deviations), report.headline
    assert tuple(f.id for f in report.diagnosis.edges) == edges
    assert report.exit_code == (verdict != "eq6") and not report.behaviour.findings
    if verdict == "eq6":
        assert "strict" not in str(report).replace("--edges strict", "") and "How far from" not in str(report)
        assert right(report) == len(report.diagnosis.off)


def right(report):
    slack, grad_slack = report.diagnosis.rounding
    return sum(o.loss <= slack and (o.gradient or 0) <= grad_slack for o in report.diagnosis.off)


@pytest.mark.slow
def test_ties_count_where_they_are_asked_for():
    report = parity.check(CASES / "s22_guard_and_epsilon.py", edges="strict")
    assert report.verdict == "explained" and report.deviations == ("threshold.rounding",) and report.exit_code == 1
    with pytest.raises(ValueError, match='edges: expected "loose" or "strict"'):
        parity.check(CASES / "s22_guard_and_epsilon.py", edges="sharp")
