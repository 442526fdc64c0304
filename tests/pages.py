"""What a report page and the terminal show, read back: tables as rows of cells, numbers with units, figures as asked for."""

import contextlib
import functools
import inspect
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

# the unit of each number that is no share
UNITS = {"grounding_gap": "nats", "fine_loss": "nats", "seconds": "seconds"}


class Tables(HTMLParser):
    """tables: every table of a page as rows of cells; text that nests is joined by spaces."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.cell = [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join(self.cell).replace("\xa0", " "))
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)


def numbers_in(text):
    """Values with their units and spreads ("1.0 ± 0.5 % (3)"), in order."""
    return re.findall(r"-?\d[\d.]* ± [\d.]*(?: %)? \(\d\)|-?\d[\d.]* (?:%|nats|s)(?!\w)", text)


def unit(key):
    return UNITS.get(key.removeprefix("unseen_"), "share")


def written(key, x):
    return {"nats": f"{x:.3f} nats", "seconds": f"{x:.0f} s", "share": f"{100 * x:.1f} %"}[unit(key)]


def written_spread(key, mean, sd, n):
    return {"nats": f"{mean:.3f} ± {sd:.3f} ({n})", "seconds": f"{mean:.0f} ± {sd:.0f} ({n})",
            "share": f"{100 * mean:.1f} ± {100 * sd:.1f} % ({n})"}[unit(key)]  # fmt: skip


@contextlib.contextmanager
def figures_asked_for():
    """Draw nothing; collect what explain, curves and masks were asked to draw.   -> {name: [arguments by name]}"""
    from matplotlib.figure import Figure

    from sparc_ref.show import maps, plots

    calls = {}

    def spy(name, signature, *args, **options):
        calls[name].append(SimpleNamespace(**signature.bind(*args, **options).arguments))
        return Figure((0.1, 0.1))

    with pytest.MonkeyPatch.context() as patch:
        for room, name in ((maps, "explain"), (plots, "curves"), (plots, "masks")):
            calls[name] = []
            patch.setattr(room, name, functools.partial(spy, name, inspect.signature(getattr(room, name))))
        yield calls
