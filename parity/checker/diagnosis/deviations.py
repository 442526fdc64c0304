"""The ways in which public SPARC losses leave the paper, by id ("stage.name"), and how each is said in words.

The table itself is survey.toml, to be edited as text; this reads it.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

CONDITIONS = (
    "no flat rows",
    "no caption of padding alone",
    "no zero embeddings at padding",
    "equal lengths",
    "no padding",
    "B = 1",
    "unit-norm patches",
)  # from mild to strong: where two sets explain the same, the milder is named
RARE = CONDITIONS[:3]                                     # ordinary input fulfils them
STAGES = (
    "similarity", "minmax", "threshold", "weights", "grouping", "norm", "logits", "loss", "reduction", "global", "edge",
    "gradient",
)


@dataclass(frozen=True)
class Deviation:
    """One line of the survey; survey.toml says what each field holds."""

    id: str
    title: str
    words: str
    equation: str
    fix: str
    training: str
    hidden_by: tuple[str, ...] = ()
    harmless: bool = False
    edge: bool = False
    seen: float = 0
    first: str = ""

    @property
    def stage(self) -> str:
        return self.first or self.id.split(".")[0]


@dataclass(frozen=True)
class Found:
    """A deviation that was found.  value: the number or side in its parentheses; way: how it is written, where that shows."""

    id: str
    value: float | str | None = None
    way: str = ""

    def __str__(self):
        digits = 2 if self.id.endswith(".epsilon") else 6
        value = f"{self.value:.{digits}g}" if isinstance(self.value, float) else self.value
        return self.id if value is None else f"{self.id}({value})"


def survey() -> dict[str, Deviation]:
    """The table by id.  Raises ValueError for an entry that is not one of a known stage, hidden by known conditions."""
    lines = [
        Deviation(**line | {"fix": line["fix"].removesuffix("\n"), "hidden_by": tuple(line.get("hidden_by", ()))})
        for line in tomllib.loads((Path(__file__).parent / "survey.toml").read_text("utf-8"))["deviation"]
    ]
    for d in lines:
        if d.stage not in STAGES or not set(d.hidden_by) <= set(CONDITIONS) or [x.id for x in lines].count(d.id) > 1:
            raise ValueError(f"survey.toml: {d.id}: expected a new id, a stage of {STAGES} and conditions of {CONDITIONS}")
    return {d.id: d for d in lines}


DEVIATIONS = survey()


_NOUNS = {
    "poison": "makes the result NaN", "shifts": "changes the loss of its batch", "raises": "raises an exception",
    "s": "not divided by anything", "normalised": "divided by their sum",
    "flat": "flat rows", "zero padding": "zero embeddings at padding", "padding": "batches with padding"}
_DIRECTIONS = {"vt": "groups of patches pick their token", "tv": "tokens pick their group of patches"}
_GLOBAL_DIRECTIONS = {"vt": "pictures pick captions", "tv": "captions pick pictures"}


def words(found: Found, patches: int = 196) -> str:
    """The clause that says what was found, its numbers filled in.      patches: the user's P"""
    if found.id == "minmax.epsilon" and found.value is None:
        return "a token to which every patch is equally similar gets c = 0, as from an epsilon in the denominator of eq. 2"
    if found.id == "edge.nan_gradient" and found.way == "c = 0 there":
        return "a token to which every patch is equally similar gets c = 0, and the gradient is NaN"
    digits = 2 if found.id.endswith(".epsilon") else 6    # an epsilon is measured by what it moves
    value = f"{found.value:.{digits}g}" if isinstance(found.value, int | float) else found.value
    if found.id == "threshold.constant" and isinstance(found.value, float) and len(str(value)) > 6 and (
            abs((n := round(1 / found.value)) * found.value - 1) < 1e-6):
        value, patches = f"1/{n} whatever P is,", 49 if n == patches else patches
    directions = _GLOBAL_DIRECTIONS if found.id.startswith("global.") else _DIRECTIONS
    what = (found.way if value is None else "") or _NOUNS.get(str(value), value) or "embeddings"
    return DEVIATIONS[found.id].words.format(
        value="some constant" if value is None else value,
        way=f" ({found.way})" if found.way else "",
        what=what,
        direction=directions.get(str(value), "one way"),
        patches=patches,
        sigma=f"{1 / patches:.3g}",
    )
