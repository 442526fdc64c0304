"""What each of several ranks runs: the training command."""

from parity.trainer.detection.__main__ import main


def run(arrays: dict, options: dict) -> dict:
    assert main(options["argv"], lambda text: None) == 0
    return {}
