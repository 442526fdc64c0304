"""Every case of the reference vectors, in the order of the levels; new ones go to the end of their level."""

from parity.cases import losses
from parity.cases.core import Definition, Function

LEVELS = ("ops", "losses", "encoders", "model", "steps")
FUNCTIONS: dict[str, Function] = losses.FUNCTIONS
FLAGS: dict[str, str] = losses.FLAGS


def definitions() -> list[Definition]:
    """All cases."""
    return losses.cases()
