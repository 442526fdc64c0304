"""What is said of one batch of a training run, and how."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from parity.checker.diagnosis.deviations import DEVIATIONS, Found, words

KINDS = {"eq6": "eq. 6", "listing1": "Listing 1", "eq1": "eq. 1", "total": "eqs. 1 and 6", "explained": "not eq. 6, but known",
         "unexplained": "none of what was computed"}


@dataclass(frozen=True)
class Match:
    """A reading of the paper, or deviations from it, and how far it is from the numbers: relative, None without gradients."""

    found: tuple[Found, ...]
    loss: float
    gradient: float | None
    how: str = ""                                         # how the file was read, where that is not as it stands
    label: str = ""                                       # of eq. 1 and of totals

    @property
    def name(self) -> str:
        if self.label:
            return self.label
        ids = [d.id for d in self.found]
        each = [f"{d} ({d.way})" if d.way and d.value is None else str(d) for d in self.found]
        named = "Listing 1" if ids == ["reduction.token"] else ", ".join(each) or "eq. 6"
        return f"{named}, {self.how}" if self.how else named

    @property
    def off(self) -> float:
        """The larger of both, to order by."""
        return max(self.loss, self.gradient or 0.0)

    @property
    def of_another_loss(self) -> str:
        """"eq1" | "total" | ""."""
        return "" if not self.label else "total" if "eq. 6" in self.label else "eq1"


@dataclass(frozen=True)
class DumpReport:
    """matches: what gives the numbers, simplest first; nearest: what comes closest, where nothing does.

    tried: how many readings, single deviations and pairs were computed.  tolerance: of loss and gradient, for their precision.
    """

    target: str
    holds: str
    matches: tuple[Match, ...]
    nearest: tuple[Match, ...]
    tried: dict[str, int]
    tolerance: tuple[float, float]
    met: frozenset[str]                                   # of deviations.CONDITIONS
    notes: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    seconds: float = 0.0
    gradients: tuple[str, ...] = field(default=())
    batch: int = 1
    patches: int = 196

    @property
    def verdict(self) -> str:
        """"eq6" | "listing1" | "explained" | "unexplained", on this batch."""
        names = [m.name for m in self.matches]
        if not names:
            return "unexplained"
        if "eq. 6" in names or "Listing 1" in names:
            return "eq6" if "eq. 6" in names else "listing1"
        return self.matches[0].of_another_loss or "explained"

    @property
    def title(self) -> str:
        first = self.matches[0] if self.verdict == "explained" else None
        title = first.name if first is not None and not first.found else KINDS[self.verdict]
        return title if self.gradients or not self.matches else f"{title}, by value alone"

    @property
    def exit_code(self) -> int:
        """0: eq. 6, eq. 1 or a sum of both gives these numbers, or what --accept names; else 1."""
        return 0 if self.verdict in ("eq6", "eq1", "total", *self.accept) else 1

    @property
    def summary(self) -> str:
        first = f": {self.matches[0].name}" if self.verdict in ("total", "explained") and self.matches[0].found else ""
        return f"SPARC, on this batch: {self.title}{first}"

    def to_dict(self) -> dict[str, Any]:
        def plain(m):
            numbers = {"loss": finite(m.loss), "gradient": finite(m.gradient)}
            said = says(m, self.patches, self.batch)
            return {"name": m.name, "deviations": [str(d) for d in m.found], **numbers, "words": said}

        return {
            "format": "sparc-dump", "version": 1, "target": self.target, "verdict": self.verdict, "summary": self.summary,
            "exit_code": self.exit_code, "holds": self.holds, "gradients": list(self.gradients),
            "matches": [plain(m) for m in self.matches], "nearest": [plain(m) for m in self.nearest], "tried": self.tried,
            "tolerance": list(self.tolerance), "conditions": sorted(self.met), "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def __str__(self) -> str:
        lines = ["", f"  ON THIS BATCH: {self.title.upper()}", f"  {self.holds}", ""]
        if self.matches:
            first, *rest = self.matches
            near = f"loss to {self.tolerance[0]:.0e}, gradients to {self.tolerance[1]:.0e}, relative"
            lines += [f"  What gives these numbers ({near})",
                      f"    {first.name:44} {offs(first)}"]
            lines += [f"      {line}" for line in says(first, self.patches, self.batch)]
            if rest:
                lines += ["", f"  Cannot be told apart from it on this batch: {len(rest)}"]
                lines += [f"    {m.name:44} {why_hidden(m, self.met)}".rstrip() for m in rest]
        else:
            lines += ["  Nothing that was computed here gives these numbers. Nearest"]
            lines += [f"    {m.name:44} {offs(m)}" for m in self.nearest]
        if self.notes:
            lines += ["", "  Also", *(f"    {note}" for note in self.notes)]
        tried = ", ".join(f"{n:,} {what}" for what, n in self.tried.items() if n)
        return "\n".join([*lines, "", f"  computed here: {tried}; {self.seconds:.1f} s"])


def says(m: Match, patches: int, batch: int) -> list[str]:
    """What each deviation is, in words."""
    return [f"{d}: {words(d, patches)}" + " (B)" * (d.id == "loss.factor" and d.value == batch > 2) for d in m.found]


def offs(m: Match) -> str:
    gradient = "" if m.gradient is None else f", gradients by {m.gradient:.1e}"
    return f"loss off by {m.loss:.1e}{gradient}"


def why_hidden(m: Match, met: frozenset[str]) -> str:
    """Conditions of the survey that hide a deviation and that this batch fulfils."""
    if all(DEVIATIONS[d.id].harmless for d in m.found):
        return "(changes nothing anywhere)"
    hidden = [c for d in m.found for c in DEVIATIONS[d.id].hidden_by if c in met]
    return f"(hidden here: {', '.join(dict.fromkeys(hidden))})" if hidden else ""


def finite(x: float | None) -> float | None:
    return float(x) if x is not None and math.isfinite(x) else None
