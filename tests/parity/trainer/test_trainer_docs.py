"""The trainer's pages say what is there: options, commands, causes."""

import re
import shlex
from pathlib import Path

import pytest

from parity.trainer import settings
from parity.trainer.data import shards
from sparc_ref.data import tar

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "trainer.md").read_text()
RECIPES = {path.name: path.read_text() for path in sorted((ROOT / "docs" / "recipes").glob("*.md"))}


def commands(text: str) -> list[str]:
    """The trainer's command lines in a page's blocks."""
    blocks = re.findall(r"```\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.split("#")[0].removeprefix("$ ") for line in lines if "-m parity.trainer " in line and "..." not in line]


@pytest.mark.parametrize("name", ["trainer.md", *RECIPES])
def test_every_command_is_understood(name):
    import tyro

    from parity.trainer.__main__ import Options

    found = commands(PAGE if name == "trainer.md" else RECIPES[name])
    assert found or name == "README.md"
    for line in found:
        words = shlex.split(line)
        given = tyro.cli(Options, args=words[words.index("parity.trainer") + 1 :], config=(tyro.conf.OmitArgPrefixes,))
        training, _ = settings.choose_training(settings.Training(**vars(given.training)), given.preset)
        settings.Machine(**vars(given.machine))
        assert training.steps and training.batch and given.out


def test_every_cause_is_explained():
    """Each reason in the readers' source stands on the page, in its own words or in a row that joins several."""
    source = Path(tar.__file__).read_text() + Path(shards.__file__).read_text()
    reasons = set(re.findall(r'(?:skip|Unusable)\("([^"]+)"', source)) | set(tar.OTHER_KINDS.values())
    assert len(reasons) > 15
    words = PAGE.replace("\n", " ")
    for reason in reasons:
        short = reason.split(":")[0].removeprefix("member is ").removeprefix("caption's JSON ").removeprefix("caption is ")
        assert short.removeprefix("picture is ") in words or reason in words, reason


def test_every_option_that_is_named_is_there():
    import dataclasses

    from parity.trainer.__main__ import Options
    from sparc_ref.objectives.chosen import ObjectiveConfig

    classes = (settings.Training, settings.Machine, Options, ObjectiveConfig)
    known = {f.name for cls in classes for f in dataclasses.fields(cls)}
    known |= {"lambda_f", "nnodes", "nproc_per_node", "run", "batch", "help", "vocab_size"}
    named = {name.replace("-", "_") for name in re.findall(r"`--([a-z-]+)", PAGE)}
    assert named and not named - known, named - known
