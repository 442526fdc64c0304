"""From a name to a callable, and what can be said of it without calling it."""

import functools
import importlib
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from parity.checker.calling import naming, taken
from parity.checker.calling.bridges import FRAMEWORKS

WORDS = ("sparc", "fine", "loss", "align", "contrastive", "local", "token", "patch", "criterion", "objective")


class NotFound(Exception):
    """A target that does not exist; the message says what was looked for and what is there."""


def load(request: dict) -> tuple[Any, str | None] | list[str]:
    """The target of a request {"module" or "file", "name" or None}.      -> (object, method of its class or None)

    Without a name: the one callable that looks like a loss, or the names of several.  Raises NotFound, and whatever the
    code raises while it is imported.
    """
    module = import_file(Path(request["file"])) if "file" in request else import_name(request["module"])
    where = request.get("file") or request["module"]
    if request.get("name"):
        found, method = attribute(module, request["name"], where)
        if inspect.isfunction(found) and not method and not takes_two(found) and (made := product_of(found)) is not None:
            found = made
        return with_method(found, method, f"{where}:{request['name']}")
    names = plausible(module)
    if not names and len(made := factories(module)) == 1:
        return with_method(next(iter(made.values())), None, f"{where}:{next(iter(made))}")
    if not names:
        raise NotFound(f"{where}: no function or class there that takes two arrays or more; name one as {where}:NAME")
    return with_method(*attribute(module, names[0], where), f"{where}:{names[0]}") if len(names) == 1 else names


def with_method(found: Any, method: str | None, where: str) -> tuple[Any, str | None] | list[str]:
    """What cannot be called itself, with its one method that takes two arrays or more; several of them as names."""
    if method or (inspect.isroutine(found) or isinstance(found, functools.partial)):
        return found, method
    cls = found if isinstance(found, type) else type(found)
    if calls(cls) or (not isinstance(found, type) and not hasattr(found, "__dict__") and callable(found)):
        return found, None
    names = methods(cls)
    if not names:
        raise NotFound(f"{where}: {cls.__name__} has no method that takes two arrays or more")
    if len(names) == 1:
        return found, names[0]
    return [f"{where.rpartition(':')[2]}.{name}" for name in names]


def import_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise NotFound(f"no module {error.name!r} on the path {', '.join(p or '.' for p in sys.path[:3])} ...") from None
        raise


def import_file(path: Path) -> ModuleType:
    """Import a file, as part of its package if it lies in one."""
    path = path.resolve()
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py"))[:8] if path.parent.is_dir() else []
        raise NotFound(f"{path}: no such file" + (f"; there are {', '.join(near)}" if near else ""))
    free = path.stem.isidentifier() and path.stem not in sys.modules and importlib.util.find_spec(path.stem) is None
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    sys.path[:0] = [str(p) for p in (folder, path.parent) if str(p) not in sys.path]
    if len(parts) > 1 and path.stem != "__init__":
        return importlib.import_module(".".join(parts))
    name = path.stem if free else ""
    spec = importlib.util.spec_from_file_location(name or f"checked_{abs(hash(str(path)))}", path)
    if spec is None or spec.loader is None:
        raise NotFound(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module                       # dataclasses and jax look their module up
    spec.loader.exec_module(module)
    return module


def attribute(module: ModuleType, name: str, where: str) -> tuple[Any, str | None]:
    found: Any = module
    for i, part in enumerate(parts := name.split(".")):
        if not hasattr(found, part):
            names = [n for n, x in vars(found).items() if callable(x) and not n.startswith("_")] if hasattr(found,
                                                                                                            "__dict__") else []
            import difflib

            near = difflib.get_close_matches(part, names, 3, 0.4) or names[:8]
            raise NotFound(f"{where} has no {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
        if isinstance(found, type) and i == len(parts) - 1 and inspect.isfunction(inspect.getattr_static(found, part)):
            return found, part
        found = getattr(found, part)
    if not callable(found) and not methods(type(found)):
        raise NotFound(f"{where}: {name!r} is {type(found).__name__}, not something to call")
    return found, None


def plausible(module: ModuleType) -> list[str]:
    """Names of what could be the loss: defined there, takes two arrays or more, not a helper of another."""
    own = {
        name: x for name, x in vars(module).items()
        if not name.startswith("_") and (
            (callable(x) and getattr(x, "__module__", None) == module.__name__ and hasattr(x, "__name__"))
            or made_here(x, module)
        )
    }
    names = [name for name, x in own.items() if takes_two(x) or (not inspect.isroutine(x) and methods(
        x if isinstance(x, type) else type(x)))]
    made = [type(x) for x in own.values() if made_here(x, module)]
    names = [name for name in names if own[name] not in made]  # an instance says more than its class
    used = {name for other in names for name in names if name != other and name in words_of(behind(own[other]))}
    roots = [name for name in names if name not in used] or names
    named = [name for name in roots if any(word in f"{name} {getattr(behind(own[name]), '__name__', '')}".lower()
                                           for word in WORDS)]
    return named if named else roots


def factories(module: ModuleType) -> dict[str, Any]:
    """What functions that need no argument make, where that takes two arrays or more: a name for each -> the product."""
    found = {}
    for name, x in vars(module).items():
        if name.startswith("_") or not inspect.isfunction(x) or x.__module__ != module.__name__:
            continue
        if (product := product_of(x)) is not None:
            found[name] = product
    return found


STARTS = {"theta": 2.66, "scale": 14.3, "tau": 0.07, "log_tau": -2.66}


def product_of(x: Any) -> Any:
    """What a function makes that needs nothing, or a temperature: of the latter a function of that too; else None."""
    needed = [p.name for p in signature(x) if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not words_of(x) or any(max(said := naming.hints(name), key=lambda role: said[role], default="") != "scale"
                              for name in needed):
        return None
    made = x(**{name: STARTS[naming.scale_kinds(name)[0]] for name in needed})
    if not callable(made) or not takes_two(made):
        return None
    if not needed:
        return made

    def call(*args, **given):
        return x(**{name: given.pop(name) for name in needed})(*args, **given)

    own = [p.replace(kind=p.KEYWORD_ONLY) for p in signature(x) if p.name in needed]
    vars(call)["__signature__"] = inspect.Signature([*signature(made), *own])
    return functools.update_wrapper(call, x, updated=())


def behind(x: Any) -> Any:
    """The class of an instance; anything else as it is."""
    return x if isinstance(x, type) or inspect.isroutine(x) or isinstance(x, functools.partial) else type(x)


def made_here(x: Any, module: ModuleType) -> bool:
    """Whether a module's global is an instance that could be the loss: of a class of its own, a torch module, or a partial."""
    if isinstance(x, type | ModuleType) or inspect.isroutine(x):
        return False
    if isinstance(x, functools.partial):
        return True
    torch = sys.modules.get("torch")
    return type(x).__module__ == module.__name__ or (torch is not None and isinstance(x, torch.nn.Module))


def takes_two(x: Any) -> bool:
    """Whether it needs two arguments or more."""
    try:
        called = x
        if isinstance(x, type) or (not inspect.isroutine(x) and not isinstance(x, functools.partial) and calls(type(x))):
            called = method_of(x if isinstance(x, type) else type(x))
        wanted = signature(called)
    except (TypeError, ValueError):
        return False
    keys = keys_of(called)
    return sum(len(keys.get(p.name, [p] if p.kind is not p.VAR_KEYWORD else [])) for p in wanted
               if p.default is p.empty and p.name != "self") >= 2


def calls(cls: type) -> bool:
    """Whether instances of a class can be called as such: a forward alone is a method as any other."""
    try:
        return method_of(cls) is not None and any("__call__" in vars(base) for base in cls.__mro__)
    except TypeError:
        return False


def methods(cls: type) -> list[str]:
    """Public methods of a class that take two arguments or more, and that no other of them uses."""
    found = [
        name for base in cls.__mro__ for name, x in vars(base).items()
        if base.__module__ not in ("builtins", "torch.nn.modules.module") and not name.startswith("_")
        and isinstance(x, FunctionType | staticmethod | classmethod)
    ]
    found = [name for name in dict.fromkeys(found) if takes_two(getattr(cls, name))]
    used = {name for other in found for name in found if name != other and name in words_of(getattr(cls, other))}
    return [name for name in found if name not in used] or found


def method_of(cls: type) -> Any:
    for name in ("forward", "__call__", "call"):
        found = getattr(cls, name, None)
        if found is not None and inspect.isfunction(found) and found.__module__ != "torch.nn.modules.module":
            return found
    raise TypeError(f"{cls.__name__} cannot be called")


def words_of(x: Any) -> set[str]:
    """Every global name and attribute that the code of a function or class mentions."""
    codes = [f.__code__ for f in vars(x).values()
             if inspect.isfunction(f)] if isinstance(x, type) else [getattr(unwrap(x), "__code__", None)]
    found: set[str] = set()
    while codes:
        code = codes.pop()
        if isinstance(code, CodeType):
            found |= set(code.co_names)
            codes += [c for c in code.co_consts if isinstance(c, CodeType)]
    return found


def unwrap(x: Any) -> Any:
    """The Python function or class behind decorators, partials, bound methods and instances."""
    for _ in range(20):
        if isinstance(x, functools.partial):
            x = x.func
        elif hasattr(x, "__wrapped__"):
            x = x.__wrapped__
        elif inspect.ismethod(x):
            x = x.__func__
        elif hasattr(x, "_torchdynamo_orig_callable"):
            x = x._torchdynamo_orig_callable
        else:
            break
    return x if inspect.isfunction(x) or isinstance(x, type) else type(x)


def source_files(x: Any) -> list[str]:
    """The files whose lines are theirs: where it is defined, and what lies in the same folder."""
    try:
        own = inspect.getsourcefile(unwrap(x)) or ""
    except TypeError:
        own = getattr(getattr(unwrap(x), "__code__", None), "co_filename", "")
    if not own:
        return []
    folder = Path(own).parent
    beside = [str(p) for p in sorted(folder.glob("*.py"))[:200]] if "site-packages" not in own else []
    return [own, *(p for p in beside if p != own)]


def signature(x: Any) -> list[inspect.Parameter]:
    if hasattr(x, "schema") and hasattr(x, "graph"):      # torch.jit.script
        return [inspect.Parameter(a.name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for a in x.schema.arguments]
    return list(inspect.signature(x).parameters.values())


def keys_of(x: Any, owner: Any = None) -> dict[str, list[str]]:
    """Arguments that are taken apart, and what is taken of them: `taken`."""
    return taken.keys_of(x, unwrap, signature, owner if owner is not None else getattr(x, "__self__", None))


def parameters(x: Any, skip_self: bool = False, owner: Any = None) -> list[dict]:
    """Arguments; of a structure that is passed, the arrays that the code takes from it, each an argument of that name."""
    plain_ones, keys = own_parameters(x, skip_self), keys_of(x, owner)
    if not keys:
        return plain_ones
    held = {p.name: p.default for p in signature(x) if p.name in keys and taken.is_record(p.default)}
    found = []
    for p in plain_ones:
        named = p | ({"kind": "KEYWORD_ONLY"} if p["kind"] == "POSITIONAL_OR_KEYWORD" or p["name"] in keys else {})
        if p["name"] not in keys:
            found.append(named)
            continue
        for key in keys[p["name"]]:
            one = named | {"name": key, "annotation": ""}
            if p["name"] in held:                         # an object of settings: what is not given keeps its value
                value = taken.value_at(held[p["name"]], key)
                one["default"] = value if plain(value) else repr(value)[:80]
            found.append(one)
    return found


def constructor(cls: type) -> list[dict]:
    """A constructor's arguments; of an object of settings that no annotation makes, what it takes of it."""
    made = taken.settings_of(cls)
    init = inspect.getattr_static(cls, "__init__")
    keys = keys_of(init, cls) if inspect.isfunction(init) else {}
    found = []
    for p in own_parameters(cls):
        if p["name"] not in keys or "default" in p or naming.is_module(p):
            found.append(p | ({"made": True} if p["name"] in made else {}))
            continue
        for key in keys[p["name"]]:
            value = taken.value_at(made.get(p["name"]), key)
            kept = {"default": value} if value is not None and plain(value) else {}
            found.append(p | {"name": key, "annotation": ""} | kept)
    return found


def own_parameters(x: Any, skip_self: bool = False) -> list[dict]:
    found = []
    for p in signature(x)[1 if skip_self else 0 :]:
        default: dict[str, Any] = {}
        if p.default is not p.empty:
            default = {"default": p.default if plain(p.default) else repr(p.default)[:80]}
        note = "" if p.annotation is p.empty else getattr(p.annotation, "__name__", str(p.annotation))
        found.append({"name": p.name, "kind": p.kind.name, "annotation": note[:80], **default})
    return found


def plain(x: Any) -> bool:
    try:
        json.dumps(x, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def describe(x: Any, method: str | None = None) -> dict:
    """Signature, constructor, attributes, sub-modules and frameworks of a callable, as JSON."""
    cls = isinstance(x, type)
    call = getattr(x, method) if method else (method_of(x) if cls else x)
    instance = not cls and not inspect.isroutine(x) and not isinstance(x, functools.partial) and hasattr(x, "__dict__")
    instance = instance and not hasattr(x, "__wrapped__")
    if instance and not method and hasattr(type(x), "forward"):
        call = x.forward                                  # torch's own __call__ takes anything
    source = unwrap(x)
    try:
        lines, start = inspect.getsourcelines(call if instance else source)
    except (OSError, TypeError):
        lines, start = [], 0
    told: dict[str, Any] = {
        "name": getattr(x, "__qualname__", None) or getattr(source, "__qualname__", type(x).__name__),
        "kind": "class" if cls else "instance" if instance else "function",
        "file": (source_files(x) or [""])[0], "line": start, "source": "".join(lines)[:40_000],
        "parameters": parameters(call, cls and (bool(method) or inspect.isfunction(call)),
                                 x if cls else getattr(call, "__self__", None)),
        "constructor": constructor(x) if cls else [], "frameworks": frameworks(x), "attributes": [], "children": [],
        "module": False, "doc": (inspect.getdoc(source) or "")[:2000],
    }
    if method:
        told["name"] += f".{method}"
    torch = sys.modules.get("torch")
    owner = getattr(x, "__self__", x)
    if torch is not None and (isinstance(owner, torch.nn.Module) or (cls and issubclass(x, torch.nn.Module))):
        told["module"] = True
    if instance or hasattr(x, "__self__"):
        told |= inside_of(owner, told["module"])
    return told


def inside_of(owner: Any, module: bool) -> dict:
    """Numbers that an instance holds, and a module's parts that have parameters of their own."""
    attributes, children = [], []
    if module:
        for kind, pairs in (("parameter", owner.named_parameters()), ("buffer", owner.named_buffers())):
            attributes += [
                {"name": name, "kind": kind, "shape": list(p.shape), "value": float(p) if p.numel() == 1 else None} for name,
                p in pairs
            ]
        children = [
            {"name": name, "type": type(child).__name__, "parameters": sum(p.numel() for p in child.parameters())}
            for name, child in owner.named_children()
        ]
    for name, x in vars(owner).items() if hasattr(owner, "__dict__") else ():
        if taken.is_record(x) and not isinstance(x, dict):  # settings that it keeps
            attributes += [{"name": f"{name}.{key}", "kind": "number", "shape": [], "value": y} for key, y in vars(x).items()
                           if isinstance(y, int | float) and not isinstance(y, bool)]
        if isinstance(x, int | float) and not isinstance(x, bool) and not name.startswith("_"):
            attributes.append({"name": name, "kind": "number", "shape": [], "value": x})
        elif not module and not name.startswith("_") and getattr(x, "shape", None) == ():
            attributes.append({"name": name, "kind": "array", "shape": [], "value": float(x)})
    return {"attributes": attributes, "children": children}


def frameworks(x: Any) -> list[str]:
    """Frameworks that the code mentions, most telling first, helpers of the same module included."""
    count: dict[str, int] = {}
    seen: set[int] = set()

    def visit(x, depth):
        x = unwrap(x) if not isinstance(x, ModuleType) else x
        if id(x) in seen or depth > 3:
            return
        seen.add(id(x))
        functions = [f for c in x.__mro__[:-1] for f in vars(c).values() if inspect.isfunction(f)] if isinstance(x,
                                                                                                                 type) else [x]
        for f in functions:
            names, home = words_of(f), getattr(f, "__globals__", {})
            for name in names & set(home):
                found = home[name]
                root = (found.__name__ if isinstance(found, ModuleType) else getattr(found, "__module__", None)
                        or "").split(".")[0]
                if root in FRAMEWORKS:
                    count[root] = count.get(root, 0) + 1
                elif root == "array_api_compat":
                    count["numpy"] = count.get("numpy", 0) + 1
                elif root and root not in sys.stdlib_module_names and (inspect.isfunction(found) or isinstance(found, type)):
                    visit(found, depth + 1)               # a helper, here or in another module
            for root in names & set(FRAMEWORKS):          # imported inside the function
                count.setdefault(root, 1)

    visit(x, 0)
    if isinstance(x, type) and any(c.__module__.split(".")[0] == "torch" for c in x.__mro__):
        count["torch"] = count.get("torch", 0) + 100
    if not isinstance(x, type) and any(c.__module__.split(".")[0] == "torch" for c in type(x).__mro__):
        count["torch"] = count.get("torch", 0) + 100
    if type(x).__module__.startswith("jax"):
        count["jax"] = count.get("jax", 0) + 100
    return sorted(count, key=lambda name: -count[name] - 0.5 * (name != "numpy"))
