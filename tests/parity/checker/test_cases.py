"""Small losses that real users brought, each with its right answer; through the command's own door, files and all."""

from pathlib import Path

import pytest

import parity

CASES = Path(__file__).parent / "cases"
ANSWERS = {                                               # file -> deviations, verdict
    "a_cosine_eps_quarter": (["similarity.cosine", "minmax.epsilon(1e-08)", "logits.scaled(0.25)"], "explained"),
    "dcl": (["loss.decoupled"], "explained"),
    "smoothing": (["loss.smoothing(0.1)"], "explained"),
    "no_special": (["logits.special_left_out(the first and the last token)"], "explained"),
    "log_tau": (["loss.constant(log(1/tau))"], "explained"),
    "soft_tau": (["weights.softmax"], "explained"),
    "ng_sign_t": (["gradient.t.sign"], "explained"),
    "ng_pad": (["gradient.padding_not_zero"], "conditional"),
}
QUICK = ("log_tau", "ng_sign_t")


@pytest.mark.parametrize("name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in ANSWERS])
def test_case(name):
    wanted, verdict = ANSWERS[name]
    report = parity.check(CASES / f"{name}.py")
    assert report.verdict == verdict, report
    assert [str(f) for f in report.diagnosis.deviations] == wanted, report
    assert not [f for f in report.behaviour.findings if not f.explained_by], report
    if name.startswith("ng_"):
        assert "The loss itself is that of eq. 6" in report.headline and "gradients for patches" in report.headline
