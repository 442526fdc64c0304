"""python -m parity.trainer.captioning"""

import sys

from parity.trainer.captioning.fit import left_by
from parity.trainer.captioning.train import Options, run


def main(argv: list[str] | None = None) -> int:
    import tyro

    given = tyro.cli(Options, args=argv, prog="python -m parity.trainer.captioning", config=(tyro.conf.OmitArgPrefixes,))
    with left_by("captioning") as status:
        run(given)
    return status[0]


if __name__ == "__main__":
    sys.exit(main())
