"""What a run says aloud because it would pass unnoticed: at the start from the settings, at the end from what was counted."""

import math

from sparc_ref.model import SPARCConfig
from sparc_ref.optim import THETA_RANGE

COUNTED = ("examples", "tokens_truncated", "captions_truncated", "duplicate_pictures")  # over a whole run, kept in checkpoints


def at_start(config: SPARCConfig, batch: int, objective: str = "sparc") -> list[str]:
    """Settings that teach nothing, or that the first update changes."""
    said = []
    if objective != "sparc":
        if batch == 1:
            said.append(f"a batch of one: {objective} has no other caption or picture to tell apart; raise --batch")
    elif batch == 1 and not config.lambda_f:
        said.append("a batch of one without the fine-grained loss: the loss is 0 and nothing is learned; raise --batch")
    elif batch == 1:
        said.append("a batch of one: the global loss has nothing to tell apart and is 0; the fine-grained loss trains alone")
    least, most = (math.exp(-theta) for theta in reversed(THETA_RANGE))
    if not least <= config.temperature_init <= most:
        kept = min(max(config.temperature_init, least), most)
        said.append(f"temperature_init {config.temperature_init:g} is outside of [{least:g}, {most:g}], where training keeps "
                    f"tau: the first update sets it to {kept:g}")
    return said


def at_end(seen: dict[str, int], max_tokens: int) -> list[str]:
    """What `seen`, the counts of a run, says of its data."""
    said, examples = [], max(1, seen["examples"])
    if cut := seen["captions_truncated"]:
        said.append(f"{cut} of {examples} captions ({cut / examples:.1%}) were longer than max_tokens {max_tokens} and were "
                    f"cut: {seen['tokens_truncated']} tokens were not seen; --max-tokens keeps them")
    if same := seen["duplicate_pictures"]:
        said.append(f"{same} of {examples} pictures ({same / examples:.1%}) were equal to another one of their batch: the "
                    "global loss took the other's caption for wrong; leave copies out of the data")
    return said
