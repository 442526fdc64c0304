"""Words and numbers for the verdict's page: strangers' text made harmless, JSON's numbers made readable."""

import html
import math
from collections.abc import Iterable, Mapping
from typing import Any

from parity.checker.calling.packing import visible


def number(x: Any) -> float | None:
    """A number, also one that JSON had to write as text; None for anything else."""
    if x is None or isinstance(x, bool):
        return None
    try:
        return float(x)
    except (TypeError, ValueError):
        return None


def differs(x, nothing=False):
    """Is a relative difference more than rounding?  nothing: what to say of no number at all."""
    value = number(x)
    return nothing if value is None else not value <= 1e-6


def off_by(x):
    value = number(x)
    if value is None:
        return "" if x is None else safe(x)
    if math.isnan(value):
        return "NaN"
    return "0" if value == 0 else f"{value:.0e}" if value < 1e-4 else percent(value)


def percent(x):
    value = number(x)
    if value is None or not math.isfinite(value):
        return "NaN" if value is None or math.isnan(value) else "∞"
    if value >= 10:
        return f"{float(f'{value:.2g}'):.0f} times" if value < 1e6 else f"{value:.2g} times"
    return f"{value:.0%}" if value >= 0.095 else f"{value:.1%}" if value >= 0.00095 else f"{value:.1e}" if value else "0"


def counted(sentences: Mapping[str, int]) -> str:
    """What became of the sentences that a check could say."""
    said, weaker, withheld = (sentences.get(kind, 0) for kind in ("said", "weaker", "withheld"))
    return f"{said} sentence{'s' * (said != 1)} measured again and said, {weaker} said weaker, {withheld} withheld"


def as_list(x) -> list:
    if x is None:
        return []
    return list(x) if isinstance(x, Iterable) and not isinstance(x, str | Mapping) else [x]


def capital(text):
    text = str(text)
    return text[:1].upper() + text[1:]


def safe(text: Any) -> str:
    """Text for HTML, quotes included; control characters made visible, and those that turn the text around."""
    return html.escape(visible(text), quote=True)
