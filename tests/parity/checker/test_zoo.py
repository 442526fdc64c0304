"""The zoo's labels are true (no checker needed), and the checker says what the labels say."""

import functools
import random
from pathlib import Path

import numpy as np
import pytest
import zoo_cases
import zoo_server
import zoo_truth

from parity.checker.diagnosis.deviations import DEVIATIONS

SOUND, FAULTY, OUTSIDE = (zoo_cases.files(kind) for kind in ("sound", "faulty", "outside"))
ALL = [*SOUND, *FAULTY, *OUTSIDE]
RUNS = [path for path in ALL if zoo_cases.label(path)["verdict"] != "cannot_run"]
ALONE = [path for path in FAULTY if len(zoo_cases.label(path)["deviations"]) == 1]
BATCHES = zoo_cases.batches()
QUICK = (
    "padded", "one token", "unpadded", "equal lengths", "single", "unit patches", "flat", "zero padding", "all padding",
    "knife",
)
EVERYDAY = ("padded", "unit patches", "unpadded", "single", "flat", "unit flat", "all padding", "one token", "equal lengths")
ELSEWHERE = {                                             # lines of the survey that stand alone in another file's losses
    "test_alarms.py": ("threshold.rounding",),
    "test_extras.py": ("weights.softmax_cut", "weights.temperature", "logits.scaled", "logits.special_left_out",
                       "loss.decoupled", "loss.sigmoid", "loss.constant"),
    "test_gradients.py": (
        "grouping.detached", "gradient.v.factor", "gradient.v.path", "gradient.t.sign", "gradient.t.factor", "gradient.t.path",
        "gradient.theta.factor", "gradient.theta.path", "gradient.theta.of_tau", "gradient.theta.of_scale",
        "gradient.padding_not_zero", "gradient.flat_rows"),
    "test_variants.py": ("global.factor",),
    "test_behaviour.py": ("edge.padding_leak", "edge.order_dependent", "edge.batch_split", "edge.low_precision",
                          "edge.train_mode", "edge.padding_place"),
}
NOWHERE = (                                               # no loss has these alone yet: shown by code that others share
    "minmax.detached", "logits.detached", "similarity.epsilon", "weights.epsilon", "norm.epsilon", "loss.epsilon",
    "gradient.v.sign", "gradient.theta.sign", "gradient.v.part", "gradient.t.part", "gradient.theta.part",
    "gradient.v.of_another", "gradient.t.of_another", "gradient.theta.of_another",
)


def name(path):
    return f"{path.parent.name}/{path.stem}"


def compiles(path):
    return zoo_cases.label(path)["framework"] == "jax"


def sample(paths, number, seed=0):
    """The same few of many in every quick run; the slow run takes the rest, and JAX, which compiles for each shape."""
    chosen = set(random.Random(seed).sample([path for path in paths if not compiles(path)], number))
    return [pytest.param(path, id=name(path), marks=() if path in chosen else pytest.mark.slow) for path in paths]


# ----------------------------------------------------------------------------------------- the labels, without the checker


def test_every_line_of_the_survey_is_there_alone():
    alone = {zoo_truth.parse(zoo_cases.label(path)["deviations"]).popitem()[0] for path in ALONE}
    shown = {x for path in ALL for x in (
        *zoo_cases.label(path)["harmless"], *zoo_cases.label(path)["behaviour"], *zoo_cases.label(path)["edges"])}
    listing1 = {"reduction.token"} if any(zoo_cases.label(path)["verdict"] == "listing1" for path in SOUND) else set()
    for file, ids in ELSEWHERE.items():
        text = (Path(__file__).parent / file).read_text()
        assert not [d for d in ids if d not in text], file
    elsewhere = {d for ids in ELSEWHERE.values() for d in ids}
    assert not set(DEVIATIONS) - alone - shown - listing1 - elsewhere - set(NOWHERE)
    assert elsewhere | set(NOWHERE) <= DEVIATIONS.keys()


def test_there_are_enough_of_each():
    assert len(FAULTY) >= 45 and len(SOUND) >= 18 and len(OUTSIDE) >= 10
    assert {"eq6", "listing1"} == {zoo_cases.label(path)["verdict"] for path in SOUND}
    frameworks = [zoo_cases.label(path)["framework"] for path in ALL]
    assert min(frameworks.count("jax"), frameworks.count("numpy")) >= 3


@pytest.mark.parametrize("path", ALL, ids=name)
def test_header_is_read_without_running_the_file(path):
    expect = zoo_cases.label(path)
    assert expect.keys() <= {
        "target", "verdict", "deviations", "harmless", "conditions", "behaviour", "also", "call", "returns", "framework",
        "precision", "init", "attributes", "stage", "edges",
    }
    named = zoo_truth.parse([*expect["deviations"], *expect["also"], *expect["harmless"], *expect["behaviour"],
                             *expect["edges"]])
    assert named.keys() <= DEVIATIONS.keys()
    assert set(expect["conditions"]) <= set(zoo_cases.CONDITIONS)
    assert bool(expect["conditions"]) == (expect["verdict"] == "conditional")
    assert bool(expect["deviations"]) == (expect["verdict"] in ("conditional", "explained"))
    assert all(DEVIATIONS[x].harmless for x in expect["harmless"])
    assert (expect["verdict"] == "unexplained") == ("stage" in expect)
    assert f"\ndef {expect['target']}(" in path.read_text() or f"\nclass {expect['target'].split('.')[0]}" in path.read_text()


@functools.cache
def paper(batch, wanted, given, base):
    """Eq. 6 (or Listing 1) on a batch, with global embeddings that are given or pooled; the same for every file."""
    expect = {"call": ["v_bar"] if given else [], "deviations": [], "returns": wanted, "verdict": "eq6", "also": []}
    return zoo_cases.expected(expect, BATCHES[batch], "total" if "*" in wanted else wanted, deviations=list(base))


def paper_for(expect, batch, wanted, base):
    returns = expect["returns"]
    if wanted == "total":
        wanted = returns if isinstance(returns, str) else next(k for _, k in zoo_cases.parts(returns) if "*" in k)
    return paper(batch, wanted, any(word.split("=")[-1] == "v_bar" for word in expect["call"]), base)


def agrees(answer, expect, batch, wanted, base=()):
    """Loss and gradients are the paper's; with unit-norm patches the gradient along the sphere."""
    on_sphere = "unit-norm patches" in BATCHES[batch].fulfils() and "unit-norm patches" in expect["conditions"]
    v = BATCHES[batch].v.numpy() if on_sphere else None
    return zoo_cases.off_by(answer, paper_for(expect, batch, wanted, base), v) < expect["precision"]


def verify(path, names):
    """The label is what the file computes: loss and gradients on every batch, conditions, verdict."""
    expect = zoo_cases.label(path)
    for wanted in zoo_cases.losses_given(expect):
        answers = {batch: zoo_cases.answer(path, BATCHES[batch], wanted) for batch in names}
        if expect["verdict"] != "unexplained":
            for batch, got in answers.items():
                off = zoo_cases.off_by(got, zoo_cases.expected(expect, BATCHES[batch], wanted))
                promised = expect["deviations"] or "the paper"
                assert off < expect["precision"], f"{wanted}, {batch}: off by {off:.1e} from {promised}"
        if wanted != "fine":                              # one caption alone has a global loss of 0 whatever was done
            answers = {batch: got for batch, got in answers.items() if len(BATCHES[batch].v) > 1}
        equal = {
            base: {batch: agrees(got, expect, batch, wanted, base) for batch, got in answers.items()}
            for base in ((), ("reduction.token",))
        }
        if expect["verdict"] in ("eq6", "listing1"):
            agreed = equal[("reduction.token",) if expect["verdict"] == "listing1" else ()]
            ties = [batch for batch in agreed if BATCHES[batch].knife and expect["edges"]]
            assert all(same for batch, same in agreed.items() if batch not in ties)
            assert not any(agreed[batch] for batch in ties)   # only an exact tie tells
        elif len(names) == len(BATCHES):
            check_conditions(expect, wanted, equal, answers)


def check_conditions(expect, wanted, equal, answers):
    """Needs all batches: under the label's conditions it agrees, under none that are fewer or milder."""
    chosen = {batch: BATCHES[batch] for batch in answers}
    needed = [zoo_cases.conditions_needed(found, chosen) for found in equal.values()]
    fewest = min((found for found in needed if found is not None), key=len, default=None)
    if expect["verdict"] == "conditional":
        assert fewest == expect["conditions"] or (wanted == "fine" and fewest == [])
    elif wanted == "fine" and any(x.startswith("global") for x in (*expect["deviations"], expect.get("stage", ""))):
        assert fewest == []
    else:
        assert fewest is None or len(fewest) > 2


@pytest.mark.parametrize("path", sample([path for path in RUNS if not compiles(path)], 25))
def test_label_is_true(path):
    verify(path, QUICK)


@pytest.mark.slow
def test_label_of_a_jax_file_is_true():
    verify(zoo_cases.ZOO / "sound" / "jax_vmap.py", ("padded", "flat"))


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNS, ids=name)
def test_label_is_true_on_every_batch(path):
    verify(path, list(BATCHES))


@pytest.mark.parametrize("path", OUTSIDE, ids=name)
def test_no_single_deviation_explains_an_outside_one(path):
    expect = zoo_cases.label(path)
    singles = {d for other in ALONE for d in zoo_cases.label(other)["deviations"] if not d.startswith(("edge.", "minmax.nan"))}
    wanted = "global" if expect["stage"] == "global" else "fine"
    got = zoo_cases.answer(path, BATCHES["padded"], wanted)
    for deviation in singles:
        off = zoo_cases.off_by(got, zoo_cases.expected(expect, BATCHES["padded"], wanted, [deviation]))
        assert not off < 1e-3, deviation


def test_a_wrong_label_would_be_noticed(tmp_path):
    text = (zoo_cases.ZOO / "faulty" / "threshold_hard_coded.py").read_text()
    for change in (("constant=0.3", "constant=0.31"), ("threshold.constant=0.3", "norm.missing"), ('"explained"', '"eq6"')):
        path = tmp_path / "wrong.py"
        path.write_text(text.replace(*change))
        with pytest.raises(AssertionError):
            verify(path, QUICK)


# ----------------------------------------------------------------------------------------------------------- the checker


@pytest.fixture(scope="module")
def ask():
    with zoo_server.Server() as ask:
        yield ask


def found_in(report):
    """[(id, value)] without harmless ones."""
    return [(x["id"], x["value"]) for x in report["deviations"]]


def close(value, wanted):
    """A number to a thousandth; where the label or the checker has none, the id is all there is."""
    if isinstance(value, str) or isinstance(wanted, str) or value is None or wanted is None:
        return value is None or wanted is None or value == wanted
    return abs(value - wanted) <= 1e-3 * abs(wanted)


def sets_of(report):
    """The explanation, and those that the checker says no value or gradient tells apart from it."""
    others = []
    for some in report["equals"]:
        pairs = [text.rstrip(")").partition("(")[::2] for text in some]
        others.append([(id, zoo_truth.parse([f"x={value}"])["x"]) for id, value in pairs])
    return [found_in(report), *others]


def same_thing(expect, found, harmless=()):
    """Do another set of deviations and the label's give the same loss and gradients on batches drawn anew, to rounding?

    harmless: what was found beside it; next to some deviations it is not without effect.
    """
    texts = [id if value is None else f"{id}={value}" for id, value in found if not id.startswith("edge.")]
    texts += [id for id in harmless if id == "similarity.tokens_normalised"]
    for wanted in zoo_cases.losses_given(expect):
        for seed in (2, 3):
            for name, batch in zoo_cases.batches(seed).items():
                if name in EVERYDAY:
                    one, two = (zoo_cases.expected(expect, batch, wanted, some) for some in (expect["deviations"], texts))
                    if not zoo_cases.off_by(one, two) < 1e-9:
                        return False
    return True


def explanation_is_right(expect, found):
    """Every deviation of the label is found with its value, and nothing that is not true."""
    needed, allowed = zoo_truth.parse(expect["deviations"]), zoo_truth.parse(expect["also"])
    ids = [id for id, _ in found]
    if expect["verdict"] == "listing1":
        allowed |= {"reduction.token": None}
    return (
        needed.keys() <= set(ids) <= needed.keys() | allowed.keys() and len(ids) == len(set(ids))
        and all(id.startswith("edge.") or close(value, needed.get(id)) for id, value in found)
    )


def faults_of(report, expect):
    """[] if verdict and explanation are exactly right, or else what is wrong, in words."""
    wrong = []
    if report["verdict"] != expect["verdict"]:
        wrong.append(f"verdict {report['verdict']}, not {expect['verdict']}")
    found = found_in(report)
    if expect["verdict"] in ("unexplained", "cannot_run"):
        if found:
            wrong.append(f"explained by {found}")
        if report["stage"] != expect.get("stage"):
            wrong.append(f"located at {report['stage']}, not at {expect.get('stage')}")
    elif not any(explanation_is_right(expect, some) for some in sets_of(report)) or (
        not explanation_is_right(expect, found) and not same_thing(expect, found, [x["id"] for x in report["harmless"]])
    ):
        wrong.append(f"explained by {found} (the same: {report['equals']}), not by {expect['deviations']}")
    if report["conditions"] != expect["conditions"]:
        wrong.append(f"conditions {report['conditions']}, not {expect['conditions']}")
    harmless = {x["id"] for x in report["harmless"]}
    if not harmless <= set(expect["harmless"]):
        wrong.append(f"harmless {sorted(harmless)}, of which only {expect['harmless']} are there")
    if [x["id"] for x in report["edges"]] != expect["edges"]:
        wrong.append(f"on exact ties {[x['id'] for x in report['edges']]}, not {expect['edges']}")
    seen = {x["id"] for x in report["behaviour"]}
    if not set(expect["behaviour"]) <= seen:
        wrong.append(f"behaviour {sorted(seen)} without {expect['behaviour']}")
    return wrong


@pytest.mark.parametrize("path", sample(FAULTY, 2, seed=1))
def test_faulty_one_is_explained(path, ask):
    assert not faults_of(ask(path), zoo_cases.label(path))


@pytest.mark.parametrize("path", sample(SOUND, 2))
def test_sound_one_raises_no_alarm(path, ask):
    report = ask(path)
    assert not faults_of(report, zoo_cases.label(path))
    assert report["exit_code"] == (report["verdict"] != "eq6")
    expected = zoo_cases.label(path)["behaviour"]
    assert not [x for x in report["behaviour"] if not x["explained_by"] and x["id"] not in expected]


@pytest.mark.parametrize("path", sample(OUTSIDE, 0))
def test_outside_one_is_located_and_called_unexplained(path, ask):
    assert not faults_of(ask(path), zoo_cases.label(path))


def test_what_a_checker_gets_wrong_would_be_noticed():
    expect = zoo_cases.label(zoo_cases.ZOO / "faulty" / "threshold_hard_coded.py")
    good = {
        "verdict": "explained", "deviations": [{"id": "threshold.constant", "value": 0.3}], "stage": "threshold", "equals": [],
        "conditions": [], "harmless": [], "behaviour": [], "edges": [],
    }
    assert not faults_of(good, expect)
    for change in (
        {"verdict": "eq6"}, {"deviations": []}, {"deviations": [{"id": "threshold.constant", "value": 0.4}]},
        {"deviations": [*good["deviations"], {"id": "norm.missing", "value": None}]}, {"conditions": ["no padding"]},
        {"harmless": [{"id": "weights.mean"}]}, {"equals": [["norm.missing"]], "deviations": []},
    ):
        assert faults_of(good | change, expect), change
    outside = zoo_cases.label(zoo_cases.ZOO / "outside" / "l1_norm.py")
    located = good | {"verdict": "unexplained", "deviations": [], "stage": "norm"}
    assert not faults_of(located, outside)
    assert faults_of(located | {"stage": "logits"}, outside)
    assert faults_of(located | {"deviations": good["deviations"]}, outside)


def test_another_explanation_counts_only_if_it_is_the_same_thing():
    expect = {"deviations": ["similarity.detached", "norm.missing"], "also": [], "verdict": "explained", "call": []}
    expect["returns"] = "fine"
    assert same_thing(expect, [("weights.detached", None), ("norm.missing", None)])
    assert not same_thing(expect, [("weights.detached", None)])
    report = {"deviations": [], "equals": [["threshold.constant(0.3)", "norm.missing"]]}
    assert sets_of(report) == [[], [("threshold.constant", 0.3), ("norm.missing", None)]]


def test_values_are_compared():
    assert close(0.3, 0.30001) and close(None, 0.3) and close("vt", "vt")
    assert not close(0.31, 0.3) and not close("tv", "vt")
    expect = {"deviations": ["norm.missing", "loss.factor=2"], "also": ["edge.padding_leak"], "verdict": "explained"}
    assert explanation_is_right(expect, [("norm.missing", None), ("loss.factor", 2.0), ("edge.padding_leak", None)])
    assert not explanation_is_right(expect, [("norm.missing", None)])
    assert not explanation_is_right(expect, [("norm.missing", None), ("loss.factor", 3.0)])
    assert not explanation_is_right(expect, [("norm.missing", None), ("loss.factor", 2.0), ("threshold.absent", None)])
    assert np.isnan(zoo_cases.off_by((np.nan, {}), (1.0, {})))
