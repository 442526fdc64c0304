"""The ladder: its rungs on small sizes, what stops it, what it says, what it refuses."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from made_up import AFTER, BLIND, GOOD, climbed, rung, unable

from parity import __main__
from parity.ladder import climb as ladder
from parity.ladder import report
from parity.ladder.rungs import cuda, reconverge, replay, rounded, setup, training, variants, whole
from parity.ladder.rungs.setup import NotRun, Row, Setup, reference_side, trainer_side
from parity.vectors import budgets
from sparc_ref.backend import get_device

ONE = ("fine_default", "global_default", "gelu_tanh", "text_no_blocks", "model_one_sample", "adamw_first_step")


@pytest.fixture(scope="module")
def small():
    """A setup with everything at toy size and a handful of vectors."""
    return Setup("quick", "cpu", 0, reference_side(), trainer_side(), wanted=lambda name: name in ONE)


@pytest.fixture(autouse=True)
def toy_sizes(monkeypatch):
    toy = whole.Sizes("toy", 5, 7, "toy", 12, (2,))
    for module in (whole, training, cuda):
        monkeypatch.setattr(module, "sizes", lambda setup: toy)
        monkeypatch.setitem(module.PRESETS, "toy", whole.TOY)


def all_ok(rows):
    rows = list(rows)
    assert rows and all(row.ok for row in rows), [row for row in rows if not row.ok][:3]
    return rows


def test_rows_know_whether_they_are_within_their_budget():
    assert Row("x", "float64", "trainer", 1e-16, 2e-16).ok and not Row("x", "float64", "trainer", 3e-16, 2e-16).ok
    assert not Row("x", "float64", "trainer", math.nan, math.inf).ok
    for odd in (math.nan, math.inf, -math.inf):           # in the error, in the budget, in both
        assert not Row("x", "float64", "trainer", odd, 1.0).ok and not Row("x", "float64", "trainer", odd, odd).ok
        assert not Row("x", "float32", "trainer", odd, 0.1, must_leave=True).ok
    assert not Row("x", "float64", "trainer", 0.0, math.nan).ok and not Row("x", "float64", "trainer", 0.0, -1.0).ok
    assert not Row("x", "float32", "trainer", 1.0, math.nan, must_leave=True).ok
    assert Row("x", "float64", "trainer", 0.0, 0.0999).proves and not Row("x", "float64", "trainer", 0.0, 0.1).proves
    assert not Row("x", "float64", "trainer", 0.0, math.inf).proves and not Row("x", "float64", "trainer", 0.0, math.nan).proves
    assert Row("x", "float32", "trainer", 1.0, 0.1, must_leave=True).ok
    assert not Row("x", "float32", "trainer", 0.0, 0.1, must_leave=True).ok


def test_every_parameter_has_a_gradient_row_in_forward_order(small):
    gradients = [f"grad.{name}" for name in whole.parameter_shapes(whole.TOY)]
    rows = all_ok(whole.gradients(replace(small, wanted=lambda name: False)))
    for dtype in ("float64", "float32", "mixed"):
        names = list(dict.fromkeys(row.name for row in rows if row.dtype == dtype))
        named = [name for name in names if name in (*whole.FEATURES, *whole.LOSSES, *gradients)]
        assert [name for name in named if name in gradients] == gradients, dtype
        assert set(named[:9]) == {*whole.FEATURES, *whole.LOSSES} and (dtype == "mixed" or names == named), dtype


def test_budgets_are_measured_and_tell_one_precision_from_the_next(small):
    """Each precision leaves the budget of the next finer one: none of them is so wide that it lets everything through."""
    drawn = whole.draw(small, whole.TOY, 5, 7)
    want = whole.measured(small, drawn, low=("float32", "bfloat16"))
    low = whole.reference_run(small, drawn, "float32")
    lower = whole.reference_run(small, drawn, "bfloat16")
    for name, m in want.items():
        assert m.budget["float64"] < m.budget["float32"] < m.budget["bfloat16"], name
    grads = [name for name in want if name.startswith("grad.") and want[name].want.ndim]
    assert all(budgets.error(low[n], want[n].want, want[n].scale) > want[n].budget["float64"] for n in grads)
    assert all(budgets.error(lower[n], want[n].want, want[n].scale) > want[n].budget["float32"] for n in grads)


def test_a_simulated_tf32_run_leaves_the_float32_budget(small):
    """What `--device cuda` must see on a GPU, here with operands rounded to TF32's ten bits by the reference itself."""
    drawn = whole.draw(small, whole.TOY, 5, 7)
    want = whole.measured(small, drawn, low=("float32",))
    rows = list(whole.rows(whole.reference_run(small, drawn, "tf32"), want, "float32", "reference"))
    assert sum(not row.ok for row in rows) > 0.9 * len(rows)


@pytest.mark.parametrize(("kind", "eps"), [("bfloat16", 2.0**-8), ("tf32", 2.0**-11)])
def test_rounded_products(rng, kind, eps):
    x, y = rng.standard_normal((5, 7)).astype(np.float32), rng.standard_normal((7, 3)).astype(np.float32)
    near = rounded.round_to(x, rounded.BITS[kind])
    assert 0 < np.max(np.abs(near / x - 1)) <= eps and np.array_equal(near, rounded.round_to(near, rounded.BITS[kind]))
    z = rounded.rounded(x, kind) @ y
    assert isinstance(z, rounded.Rounded) and z.kind == kind
    exact = near @ rounded.round_to(y, rounded.BITS[kind])
    assert np.array_equal(np.asarray(z), rounded.round_to(exact, 7) if kind == "bfloat16" else exact)
    assert np.array_equal(np.asarray(rounded.rounded(x, kind) + x), x + x)  # products alone


def test_rounding_to_bfloat16_is_torchs(rng):
    import torch

    x = (rng.standard_normal(1000) * 10.0 ** rng.integers(-20, 20, 1000)).astype(np.float32)
    x[:40] = 1 + np.arange(40) / 256                      # every other one lies half-way between two bfloat16 numbers
    assert np.array_equal(rounded.round_to(x, 7), torch.tensor(x).bfloat16().float().numpy())


# ------------------------------------------------------------------------------------------------- the stop, and its reason


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (Row("x", "float64", "trainer", 1.0, 1e-15), "a fault, not rounding"),
        (Row("x", "float32", "trainer", 1e-3, 1e-6, again=lambda: (1e-16, 1e-15)), "arithmetic in float32 is not"),
        (Row("x", "mixed", "trainer", 1.0, 1e-2, again=lambda: (1.0, 1e-15)), "it is a fault, not rounding"),
        (Row("x", "float32", "trainer", 1e-9, 1e-6, must_leave=True), "was not seen"),
        (Row("x", "float64", "trainer", math.nan, 1e-15), "a fault"),
    ],
)
def test_the_climb_ends_at_the_first_tensor_and_says_why(monkeypatch, row, words):
    results = climbed(monkeypatch, rung(GOOD, row, AFTER), replace(rung(GOOD), name="next"))
    assert not results["passed"] and results["failure"]["row"]["name"] == "x"
    assert words in results["failure"]["verdict"]
    assert [r["status"] for r in results["rungs"]] == ["failed", "not run"]
    assert [r["name"] for r in results["rungs"][0]["rows"]] == ["before", "x"]


def test_what_cannot_be_run_is_not_passed(monkeypatch):
    def climb(setup):
        raise NotRun("no compiler")
        yield

    others = replace(rung(GOOD), name="next"), replace(rung(), name="empty")
    results = climbed(monkeypatch, replace(rung(), climb=climb), *others)
    assert [r["status"] for r in results["rungs"]] == ["not run", "passed", "not run"]
    assert results["rungs"][0]["reason"] == "no compiler" and results["rungs"][2]["reason"] == "nothing was compared"


@pytest.mark.parametrize(
    ("rungs", "options"),
    [
        ([GOOD], {"minutes": 1e-4}),                      # no time for any
        ([], {}),                                         # a rung that yields nothing
        ([BLIND, BLIND], {}),                             # none of whose comparisons proves anything
        (None, {}),                                       # one that cannot be climbed here
    ],
    ids=["no time", "no rows", "no proof", "unable"],
)
def test_nothing_run_is_nothing_passed(monkeypatch, tmp_path, capsys, rungs, options):
    climb = (lambda setup: unable("no compiler")) if rungs is None else (lambda setup: iter(rungs))
    only = replace(rung(), climb=climb, quick=100.0 if options else 1.0)
    results = climbed(monkeypatch, only, replace(only, name="another"), **options)
    assert not results["passed"] and results["failure"] is None
    assert [r["status"] for r in results["rungs"]] == ["not run"] * 2 and all(r["reason"] for r in results["rungs"])
    arguments = [f"--{name}={value}" for name, value in options.items()]
    assert __main__.main(["ladder", "--out", str(tmp_path), *arguments]) == 1
    said = capsys.readouterr().out
    assert "Nothing was run, so nothing is passed; NOT RUN: made up, another" in said and "Passed" not in said
    assert json.loads((tmp_path / "results.json").read_text())["passed"] is False
    assert 'failures="1"' in (tmp_path / "junit.xml").read_text() and "Nothing was run" in (tmp_path / "report.md").read_text()
    assert "FAILED" in (tmp_path / "report.html").read_text()


def test_the_true_command_without_time(tmp_path, capsys):
    """As it is typed; the rungs are the ladder's own."""
    assert __main__.main(["ladder", "--minutes", "0.0001", "--out", str(tmp_path)]) == 1
    assert "Nothing was run, so nothing is passed; NOT RUN: ops, losses, encoders" in capsys.readouterr().out


def test_a_budget_that_is_not_a_number_fails(monkeypatch, tmp_path):
    results = climbed(monkeypatch, rung(GOOD, Row("x", "float64", "trainer", 0.0, math.nan)))
    assert not results["passed"] and results["failure"]["row"]["name"] == "x"
    report.write(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["failure"]["row"]["budget"] == "nan"


def test_what_proves_nothing_is_counted_and_said(monkeypatch, capsys):
    said: list = []
    results = climbed(monkeypatch, rung(GOOD, BLIND, replace(BLIND, budget=0.05), replace(BLIND, error=0.19)), say=said.append)
    assert results["passed"] and results["rungs"][0]["blind"] == 2
    assert "2 of them prove nothing" in said[0] and "of which 2 prove nothing" in report.verdict(results)
    row = results["rungs"][0]["rows"][1]
    assert (row["count"], row["blind"], row["proves"], row["budget"]) == (3, 2, True, 0.05)  # the one that proves is shown
    alone = climbed(monkeypatch, rung(GOOD, BLIND))
    assert "proves nothing" in report.describe(alone["rungs"][0]["rows"][1])
    assert "proves nothing" in report.junit(alone) and "#999" in report.page(alone)
    assert next(iter(report.lines(alone)))[2] == "1"
    over = climbed(monkeypatch, rung(GOOD, replace(BLIND, error=0.3)))
    assert not over["passed"]                             # beyond even such a budget is a fault


def test_of_several_comparisons_the_one_that_notices_most_counts(monkeypatch):
    rows = [replace(GOOD, name="grad.x", notices=x) for x in (1e-3, math.nan, 1e-13, math.inf)]
    zero = replace(GOOD, name="grad.zero", notices=math.nan)
    results = climbed(monkeypatch, rung(*rows, zero, replace(GOOD, name="grad.y", dtype="mixed", notices=0.2)))
    assert [(e["dtype"], e["gradients"], e["zero"], e["median"], e["worst"], e["name"]) for e in results["sensitivity"]] == [
        ("float64", 1, 1, 1e-13, 1e-13, "grad.x"), ("mixed", 1, 0, 0.2, 0.2, "grad.y")]
    text = report.markdown(results)
    assert "| made up | 1e-13; 1e-13 |  |  |  | 20.0%; 20.0% |" in text
    assert "noticed in float64, aim 1e-12: met by every gradient" in text
    assert "noticed in mixed, aim 5.0%: missed by the worst gradient of made up: grad.y (trainer) 20.0%" in text
    assert "1 gradients are exactly zero" in text and "20.0%; 20.0%" in report.page(results)


def test_what_raises_has_failed(monkeypatch):
    def climb(setup):
        yield GOOD
        raise FloatingPointError("loss is nan")

    results = climbed(monkeypatch, replace(rung(), climb=climb))
    assert not results["passed"] and results["rungs"][0]["status"] == "failed"
    assert results["failure"]["row"]["name"] == "raised FloatingPointError"
    assert "loss is nan" in results["failure"]["row"]["where"] and "test_ladder.py" in results["failure"]["row"]["where"]


def test_a_rung_that_would_not_end_in_time_is_not_run(monkeypatch):
    slow = replace(rung(GOOD), name="slow", quick=100.0)
    results = climbed(monkeypatch, slow, rung(GOOD), minutes=1)
    assert [r["status"] for r in results["rungs"]] == ["not run", "passed"]
    assert "takes about 100 s" in results["rungs"][0]["reason"]


def test_the_worst_of_several_comparisons_is_kept(monkeypatch):
    rows = [replace(GOOD, error=e, where=str(e)) for e in (1e-16, 9e-16, 3e-16)]
    results = climbed(monkeypatch, rung(*rows, replace(rows[0], side="reference")))
    assert [(r["where"], r["count"]) for r in results["rungs"][0]["rows"]] == [("9e-16", 3), ("1e-16", 1)]
    assert results["rungs"][0]["compared"] == 4


def test_without_a_compiler_torch_compile_is_not_passed(small, monkeypatch):
    monkeypatch.setattr(variants, "compiler", lambda: None)
    with pytest.raises(NotRun, match="compiler"):
        next(variants.compiled(small))


@pytest.mark.skipif(variants.compiler() is None, reason="torch.compile needs a C++ compiler and there is none on the PATH")
def test_compiled_against_eager(small, monkeypatch):
    """Through aot_eager, which traces and differentiates as inductor does and needs seconds, not a minute."""
    import torch

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="aot_eager"))
    assert {row.side for row in all_ok(variants.compiled(small))} == {"trainer, compiled"}


# ---------------------------------------------------------------------------------------------------------- re-convergence


@pytest.fixture(scope="module")
def case():
    from parity import vectors

    return vectors.load(level="losses")["fine_default"]


def harmless(case, name, change):
    got = {n: np.array(x) for n, x in case.tensors.items()}
    got = change(got)
    fitted, words = reconverge.harmless(name, got, case)
    error = budgets.error(fitted, case.tensors[name], case.scale[name])
    return error <= case.budget[name]["float64"], words


@pytest.mark.parametrize("stage", ["similarity", "minmax", "sparse", "weights", "grouped"])
def test_a_factor_per_row_is_harmless(case, rng, stage):
    name = f"mid.{stage}"
    factor = rng.uniform(0.1, 9, (*case.tensors[name].shape[:-1], 1))
    assert harmless(case, name, lambda got: got | {name: got[name] * factor})[0]
    assert not harmless(case, name, lambda got: got | {name: got[name] * -factor})[0]
    assert harmless(case, name, lambda got: got | {name: got[name] + factor})[0] == (stage == "similarity")
    noise = rng.uniform(0.9, 1.1, case.tensors[name].shape)
    assert not harmless(case, name, lambda got: got | {name: got[name] * noise})[0]


def test_exchanged_directions_are_harmless(case):
    swap = {"mid.loss_vt": "mid.loss_tv", "mid.loss_tv": "mid.loss_vt"}
    ok, words = harmless(case, "mid.loss_vt", lambda got: got | {name: got[other] for name, other in swap.items()})
    assert ok and "other direction" in words
    assert not harmless(case, "mid.loss_vt", lambda got: got)[0]
    assert reconverge.harmless("mid.nothing", {}, replace(case, tensors={"mid.nothing": np.zeros(1)})) is None


def test_losses_come_after_their_stages(small, case):
    one = replace(small, wanted=lambda name: name == "model_one_sample")
    names = list(dict.fromkeys(row.name.removeprefix("model.") for row in replay.replay(one, "model")))
    assert names.index("loss_text") < names.index("loss_global") < names.index("similarity")
    assert names.index("loss_tv") < names.index("loss_fine") < names.index("loss") < names.index("grad.vision.patch.weight")


# ------------------------------------------------------------------------------------- what a GPU would run, without a GPU


def test_the_lines_for_a_gpu_run_on_the_cpu(small):
    """NumPy in CuPy's place.  On a CPU, TF32 has no effect: the rung that must see it says that it did not."""
    rows = all_ok(cuda.backends(small))
    assert {row.side for row in rows} == {"reference, CuPy", "reference, torch CUDA"}
    rows = list(cuda.tf32(small))
    assert all(row.ok for row in rows if not row.must_leave)
    assert [row.ok for row in rows if row.must_leave] == [False, False]
    notes = []
    all_ok(cuda.vit_b_16(replace(small, note=notes.append), "toy", batch=6, small=4))
    assert len(notes) == 2 and "s an update" in notes[0]


def test_cuda_without_a_gpu_says_what_is_missing(capsys):
    try:
        get_device("cuda")
    except ValueError as error:
        with pytest.raises(ValueError, match="To run on a GPU you need"):
            ladder.run(device="cuda")
        assert __main__.main(["ladder", "--device", "cuda"]) == 2
        assert str(error) in capsys.readouterr().err
        return
    pytest.skip("there is a GPU here")


# ------------------------------------------------------------------------------------------------------------ command line


def test_the_command_writes_four_files_and_its_exit_status_tells(tmp_path, capsys, monkeypatch):
    bad = [GOOD, replace(AFTER, where="case 7")]
    for rows, status in (([GOOD], 0), (bad, 1)):
        monkeypatch.setattr(ladder, "RUNGS", (rung(*rows),))
        out = tmp_path / str(status)
        assert __main__.main(["ladder", "--out", str(out), "--seed", "3"]) == status
        said = capsys.readouterr().out
        assert {p.name for p in out.iterdir()} == {"results.json", "report.md", "report.html", "junit.xml"}
        assert str(out / "report.html") in said and "threads" in said and "torch" in said and "TF32" in said
        assert json.loads((out / "results.json").read_text())["settings"]["seed"] == 3
    assert "Failed at made up: after (trainer, float64) is off by 1.0e+00, its budget is 1.0e-15; case 7" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [({"preset": "slow"}, "quick or full"), ({"rungs": ["roofs"]}, "rungs: expected any of ops, losses"),
     ({"seed": -1}, "seed"), ({"device": "tpu"}, "device"), ({"rungs": ["vit_b_16"]}, "rungs")],
)
def test_unknown_choices_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ladder.run(**options)


def test_threads_are_set_and_given_back():
    import torch

    before = torch.get_num_threads()
    with ladder.few_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    assert setup.reference_side().cases.FUNCTIONS
