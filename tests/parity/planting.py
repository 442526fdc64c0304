"""Faults planted in a copy of the reference, which then answers the frozen vectors.

    with planted(("losses", "columns = mask[:, None, :]", "columns = xp.ones_like(mask[:, None, :])")) as faulty:
        wrong = first_wrong(faulty, case)                  # the first tensor in forward order that leaves its budget, or None

The copy is a second import of sparc_ref and of the cases that call it, from changed source text; the sound one is untouched.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys

import numpy as np

from parity import vectors

COPIED = ("sparc_ref", "parity.vectors.cases", "parity.vectors.witnesses", "parity.vectors.runs")


@contextlib.contextmanager
def planted(*faults, clean=lambda text: re.sub(r" +#.*", "", text)):
    """A second runs whose sparc_ref has `faults` in it: (module, right text, wrong text); comments do not count."""
    kept = {name: module for name, module in sys.modules.items() if _copied(name)}
    finder = _Finder(faults, clean)
    for name in kept:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        runs = importlib.import_module("parity.vectors.runs")
        missing = [fault for fault in faults if fault not in finder.done]
        assert not missing, f"{missing[0][1]!r} is not in {missing[0][0]} any more: move the fault to where it went"
        yield runs
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _copied(name)]:
            del sys.modules[name]
        sys.modules.update(kept)
        for name, module in kept.items():                     # `from parity import runs` looks here first
            parent, _, child = name.rpartition(".")
            if parent in sys.modules:
                setattr(sys.modules[parent], child, module)


def first_wrong(runs, case, dtype="float64", kind="numpy"):
    """The first Difference beyond its budget, None if there is none; an error of the copy is its own text."""
    try:
        with np.errstate(all="ignore"):
            got = runs.replay(case, dtype, kind)
    except (ArithmeticError, ValueError, TypeError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return next((d for d in vectors.compare(case, got, dtype) if not d.ok), None)


def _copied(name):
    return any(name == copied or name.startswith(f"{copied}.") for copied in COPIED)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, faults, clean):
        self.faults, self.clean, self.done = faults, clean, []

    def find_spec(self, name, path, target=None):
        mine = [fault for fault in self.faults if name == f"sparc_ref.{fault[0]}"]
        if not mine:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = _Loader(name, spec.origin, mine, self)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name, path, faults, finder):
        super().__init__(name, path)
        self.faults, self.finder = faults, finder

    def get_code(self, fullname):
        text = self.finder.clean(self.get_source(fullname))
        for fault in self.faults:
            _, right, wrong = fault
            if right in text:
                text = text.replace(right, wrong, 1)
                self.finder.done.append(fault)
        return compile(text, self.path, "exec")
