"""Batches that no search uses: what a sentence claims is measured anew on them before it is said."""

import functools
from dataclasses import replace

import numpy as np

from parity.checker.diagnosis.designs import apart, equiangular, pairs, parallel, rotation
from parity.checker.probes import Probe, draw

KINDS = ("padded", "unpadded", "single", "equal", "single padded", "flat")


@functools.cache
def fresh(kind: str) -> tuple[Probe, ...]:
    """Batches of a kind, drawn for this file alone."""
    main, more = {"columns": 6, "patches": 9}, {"columns": 7, "patches": 16}
    match kind:
        case "padded":
            return draw("again_padded", (4, 6, 2), **main), draw("again_padded_more", (3, 7, 5, 2), **more)
        case "single":
            return draw("again_single", (6,), **main), draw("again_single_more", (7,), **more)
        case "unit":
            return draw("again_unit", (6,), **main, unit=True), draw("again_unit_more", (7,), **more, unit=True)
        case "unpadded":
            return draw("again_unpadded", (6, 6, 6), **main), draw("again_unpadded_more", (7, 7, 7, 7), **more)
        case "equal":
            return draw("again_equal", (3, 3, 3), **main), draw("again_equal_more", (4, 4, 4, 4), **more)
        case "single padded":
            return draw("again_single_padded", (4,), **main), draw("again_single_padded_more", (3,), **more)
        case "flat":
            unit = draw("again_flat_unit", (4, 3, 5), **main, unit=True, flat=True)  # flat where patches are normalised first
            return draw("again_flat", (6, 6, 6), **main, flat=True), draw("again_flat_single", (6,), **main, flat=True), unit
        case "one token":
            return draw("again_one_token", (1, 1, 1, 1), 1, 9), draw("again_one_token_more", (1, 1, 1), 1, 16)
        case "one token alone":
            return draw("again_one_token_alone", (1,), 1, 9), draw("again_one_token_alone_more", (1,), 1, 16)
        case "zero":
            return draw("again_zero", (4, 2, 3), **main, zero=True), draw("again_zero_single", (5,), **main, zero=True)
        case "empty":
            return draw("again_empty", (3, 0, 5), **main), draw("again_empty_more", (4, 6, 0, 2), **more)
        case "pairs":
            return pairs("again_pairs_4", 4, 4), pairs("again_pairs_6", 6, 6)
        case "warmer":
            return pairs("again_warmer_4", 4, 4, 0.4), pairs("again_warmer_6", 6, 6, 0.4)
        case "spare":
            return pairs("again_spare_4", 4, 9), pairs("again_spare_6", 6, 11)
        case "norm":
            return tuple(turned(p, n) for n, p in enumerate(fresh("pairs")))
        case "logits":
            return equiangular("again_angles", 6, 0.4), equiangular("again_angles_wide", 5, -0.2)
        case "grouping":
            return (apart("again_apart_even", even=True, theta=0.8),)
        case "reduction":
            return (apart("again_apart", theta=0.8),)
        case "reduction lengths":
            return (apart("again_apart_lengths", [1.3, 0.7, 1.0, 1.7, 0.8], 0.8),)
        case "parallel":
            return (parallel("again_parallel", 9, True, 0.8),)
    raise KeyError(kind)


def fewest_tokens(limits) -> int:
    """How many tokens a caption has at least, within limits."""
    return max((int(x.holds) for x in limits if x.key == "L" and not x.up), default=1)


def within_limits(limits) -> list[Probe]:
    """Padded batches within limits, those of the length of captions counted by real tokens."""
    fewest = fewest_tokens(limits)
    shapes = ((8, 9, (fewest, 8, fewest + 1)), (9, 9, (9, fewest + 2, fewest, fewest + 1))) if fewest < 6 else ()
    made = [draw(f"again_from_{fewest}_{n}", lengths, columns, patches) for n, (columns, patches, lengths) in enumerate(shapes)]
    return [p for p in made if not any(x.beyond(p) for x in limits)]


def turned(probe: Probe, n: int) -> Probe:
    """In another direction, with other lengths."""
    r, lengths = rotation(20 + n), np.linspace(0.6, 1.9, probe.t.shape[1])[:, None]
    return replace(probe, v=probe.v @ r / lengths, t=probe.t @ r * lengths, name=f"{probe.name}_turned")


@functools.cache
def under(conditions: tuple[str, ...]) -> tuple[Probe, ...]:
    """Batches that fulfil conditions and, as far as those allow, nothing else."""
    alone, unit = "B = 1" in conditions, "unit-norm patches" in conditions
    made: list[Probe] = []
    sizes: tuple[tuple[int, int, tuple[int, ...]], ...] = ((6, 9, (4, 6, 2)), (7, 16, (3, 7, 5, 2)), (6, 4, (5, 1, 3)))
    for columns, patches, lengths in sizes:
        if "no padding" in conditions:
            lengths = (columns,) * len(lengths)
        elif "equal lengths" in conditions:
            lengths = (columns - 2,) * len(lengths)
        lengths = lengths[:1] if alone else lengths
        name = "-".join(["again", *conditions, str(patches)])
        made.append(draw(name, lengths, columns, patches, unit=unit))
    return tuple(made)
