"""What torch counts of a real step is what the cost model predicts."""

from dataclasses import replace

import pytest

from parity.__main__ import run
from parity.counted import reference_loss, trainer_step
from sparc_ref.model import PRESETS
from sparc_ref.objectives.chosen import ObjectiveConfig

TINY = replace(PRESETS["tiny"], vocab_size=16)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_trainers_step(weight):
    assert abs(trainer_step(replace(TINY, lambda_f=weight), 4).off) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_trainers_step_of_vit_b_16(weight):
    assert abs(trainer_step(replace(PRESETS["vit_b_16"], lambda_f=weight), 8).off) < 0.005


@pytest.mark.parametrize("objective", [
    ObjectiveConfig("sparc"), ObjectiveConfig("filip"), ObjectiveConfig("filip", filip_keep=1.0), ObjectiveConfig("clip_filip"),
    ObjectiveConfig("filip", filip_keep=0.25, filip_drop_side="both"), ObjectiveConfig("pacl"), ObjectiveConfig("gloria"),
    ObjectiveConfig("pacl", pacl_embedder="none"), ObjectiveConfig("mgca"), ObjectiveConfig("mgca", mgca_attention="paramfree"),
    ObjectiveConfig("mgca", mgca_lambda_cpa=0.0), ObjectiveConfig("flair")],
    ids=lambda o: o.objective)
def test_the_references_loss(objective):
    assert abs(reference_loss(TINY, objective, 4).off) < 0.05


def test_the_command(capsys):
    assert run(["cost", "--preset", "tiny", "--batch", "4"]) == 0
    assert "trainer's step, sparc, batch 4" in capsys.readouterr().out
