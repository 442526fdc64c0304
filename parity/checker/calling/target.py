"""What a target is called: an object, "pkg.mod:name", "file.py:name", as another process would find it."""

import importlib.machinery
import os
import sys
from pathlib import Path
from typing import Any

from parity.checker.calling.load import methods


def target_of(x: Any) -> dict[str, Any]:
    """How the process finds a callable: by the name that it can be imported under, else the object itself.

    A string is "pkg.mod:name", "file.py" or "file.py:name".  Raises ValueError for other strings and for what cannot be called.
    """
    path = {"path": [p or os.getcwd() for p in sys.path if "site-packages" not in p and not p.startswith(sys.base_prefix)]}
    if isinstance(x, str | Path):
        return written(str(x)) | {"path": [os.getcwd(), *path["path"]]}
    if not callable(x) and not methods(type(x)):
        raise ValueError(f"check: expected something to call or its name, got {type(x).__name__}")
    module, name = getattr(x, "__module__", None), getattr(x, "__qualname__", "")
    found: Any = sys.modules.get(module or "")
    for part in name.split(".") if name else [""]:
        found = getattr(found, part, None) if part != "<locals>" else None
    if found is x and module not in ("__main__", None) and findable(module):
        return {"module": module, "name": name} | path
    return {"object": x}


def findable(module: str) -> bool:
    """Whether another process would find this very module by its name."""
    root = module.partition(".")[0]
    spec = importlib.machinery.PathFinder.find_spec(root)
    here = getattr(sys.modules.get(root), "__file__", None)
    return spec is not None and (here is None or spec.origin == here)


def written(text: str) -> dict[str, Any]:
    file, _, name = text.partition(".py:")
    if text.endswith(".py") or name:
        return {"file": os.path.abspath(text if text.endswith(".py") else file + ".py"), "name": name or None}
    module, _, name = text.partition(":")
    if Path(text).suffix == ".ipynb":
        raise ValueError(f"{text}: a notebook cannot be imported; call parity.check(your_function) in it, or save it as .py")
    if not module or not all(part.isidentifier() for part in module.split(".")) or "/" in text:
        raise ValueError(f"{text}: expected pkg.module:name, file.py, file.py:name or a folder of answers")
    return {"module": module, "name": name or None}
