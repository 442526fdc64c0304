"""Every case of the reference vectors, in the order of the levels; new ones go to the end of their level."""

from parity.vectors.cases import edges, encoders, losses, model, objectives, ops, steps
from parity.vectors.cases.core import Definition, Function

LEVELS = ("ops", "losses", "encoders", "model", "steps", "objectives")
FUNCTIONS: dict[str, Function] = ops.FUNCTIONS | losses.FUNCTIONS | encoders.FUNCTIONS | model.FUNCTIONS | steps.FUNCTIONS
FUNCTIONS |= objectives.FUNCTIONS
FLAGS: dict[str, str] = losses.FLAGS | ops.FLAGS | encoders.FLAGS | model.FLAGS | steps.FLAGS


def definitions() -> list[Definition]:
    """All cases."""
    return [*ops.cases(), *losses.cases(), *edges.cases(), *encoders.cases(), *model.cases(), *steps.cases(),
            *objectives.cases()]
