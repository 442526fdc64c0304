"""370 losses by five engineers who had not seen the checker: their labels hold, and the checker says what they are."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FRESH = Path(__file__).parent / "fresh"
ROOT = Path(__file__).parents[3]
spec = importlib.util.spec_from_file_location("bench_zoo", ROOT / "bench" / "zoo.py")
assert spec is not None and spec.loader is not None
zoo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zoo)

FOLDERS = ("one", "two", "three", "four", "five", "six", "seven")
LABELS = {f"{name}/{loss}": label for name in FOLDERS for loss, label in zoo.labels(FRESH / name).items()}
QUICK = (                                                 # a few of each group
    "one/finegrained_plain",
)
MISSED = {                                                # what is not judged right, and why
    "one/constant_temperature": "called sound: its temperature is a number, which the paper learns",
    "one/listing_full_model": "called sound: Listing 1 pools over padding, eq. 1 does not",
    "two/tanh_groups": "two faults, the label names the later", "two/squared_scale": "two faults, the label names the later",
    "two/summed_direction": "two faults, the label names the later, the report both",
    "six/teacher_weights_flat_mean": "explained; the label's stage is that of the value, the report's of the gradient",
    "five/jax_listing": "asks which of two candidates",
}


def test_every_loss_has_a_label_and_every_group_is_there():
    assert len(LABELS) == 370 and {x["group"] for x in LABELS.values()} == set(zoo.GROUPS)
    assert set(QUICK) | MISSED.keys() <= LABELS.keys()


def graded(key):
    folder, loss = key.split("/")
    found = zoo.run(FRESH / folder / f"{loss}.py", LABELS[key])
    return zoo.grade(LABELS[key], found), found


@pytest.mark.parametrize("key", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in LABELS])
def test_it_is_judged_right(key):
    grade, found = graded(key)
    good = grade in ("right", "placed")
    assert good != (key in MISSED), (grade, found.get("printed") or found)


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_labels_hold_without_the_checker(folder):
    """Against the oracle, and against a model of each fault."""
    done = subprocess.run([sys.executable, str(FRESH / folder / "verify.py")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def found(verdict, stage=None, conditions=(), deviations=(), limits=(), headline="", floors=()):
    named = [{"id": d, "stage": d.split(".")[0], "value": None, "way": "", "hidden_by": []} for d in deviations]
    return {"verdict": verdict, "json": {"conditions": list(conditions), "stage": stage, "headline": headline,
                                         "limits": list(limits), "deviations": named, "floors": list(floors)}}


@pytest.mark.parametrize("label, answer, grade", [
    ({"verdict": "equals"}, found("eq6"), "right"), ({"verdict": "equals"}, found("explained"), "alarm"),
    ({"verdict": "equals"}, found("conditional", conditions=["no flat rows"]), "right"),
    ({"verdict": "equals"}, found("conditional", conditions=["no padding"]), "alarm"),
    ({"verdict": "equals"}, found("listing1"), "wrong"), ({"verdict": "equals"}, {"verdict": "asks"}, "asks"),
    ({"verdict": "equals", "target": "listing1"}, found("listing1"), "right"),
    ({"group": "faulty", "stage": "sparse"}, found("eq6"), "wrong"),
    ({"group": "faulty", "stage": "sparse"}, found("conditional", conditions=["no flat rows"]), "wrong"),
    ({"group": "faulty", "stage": "sparse"}, found("explained", deviations=["threshold.constant"]), "right"),
    ({"group": "faulty", "stage": "sparse"}, found("explained", deviations=["weights.raw"]), "stage"),
    ({"group": "unlisted", "stage": "logits"}, found("unexplained", "norm"), "placed"),
    ({"group": "unlisted", "stage": "logits"}, found("unexplained", "loss"), "stage"),
    ({"group": "unlisted", "stage": "logits", "also": ["loss"]}, found("unexplained", "loss"), "placed"),
    ({"group": "unlisted", "stage": "logits", "also": ["grouped"]}, found("unexplained", "loss"), "stage"),
    ({"group": "size", "verdict": "conditional"}, found("conditional", conditions=["at most 3 patches"], limits=[1]), "right"),
    ({"group": "size", "verdict": "conditional"}, found("eq6"), "wrong"),
    ({"group": "size", "verdict": "conditional", "small": True}, found("eq6"), "wrong"),
    ({"group": "size", "verdict": "conditional", "small": True}, found("eq6", floors=[1]), "right"),
    ({"group": "size", "verdict": "conditional", "small": True},
     found("conditional", conditions=["no flat rows"], floors=[1]), "right"),
    ({"group": "size", "verdict": "conditional", "small": True},
     found("conditional", conditions=["no padding"], floors=[1]), "alarm"),
    ({"group": "size", "verdict": "conditional"}, found("eq6", floors=[1]), "wrong"),
    ({"group": "gradient", "grads": ["v"]}, found("explained", deviations=["gradient.v.sign"]), "right"),
    ({"group": "gradient", "grads": ["v", "t"]}, found("explained", deviations=["gradient.v.sign"]), "stage"),
    ({"group": "gradient", "grads": ["v"], "target": "total"},
     found("unexplained", headline="The gradient for the image is zero."), "placed"),
    ({"group": "gradient", "grads": ["v"]}, found("unexplained", headline="The gradient for the image is zero."), "stage"),
    ({"group": "gradient", "grads": ["t"]}, found("unexplained", headline="The gradient for tokens is off by 2."), "placed"),
])
def test_the_grader_grades(label, answer, grade):
    whole = {"group": "sound", "target": "fine", "verdict": "differs", "stage": "none", "grads": []} | label
    assert zoo.grade(whole, answer) == grade
