"""What a function takes apart: which arrays lie in a dict, a tuple, an object or a list of samples that it is given.

A place is written as in code: batch['image']['v'], batch.v, pair[1] (t), samples[*][0] (v), *tensors[0] (v).  [*] is each
sample of a list; the name in brackets is the one that the code gives it.
"""

import ast
import copy
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

ARRAYS = (("torch", "Tensor"), ("numpy", "ndarray"), ("jax", "Array"), ("tensorflow", "Tensor"), ("cupy", "ndarray"))
PASSED_THROUGH = {"list", "tuple", "iter", "islice", "tqdm", "reversed"}  # of these the first argument is gone through
STEP = re.compile(r"\['(.+?)'\]|\.(\w+)|\[(\d+)\]|\[(\*)\]")
WHOLE = re.compile(r"(\*?\w+)((?:\['.+?'\]|\.\w+|\[\d+\]|\[\*\])+)(?: \(\w+\))?")
Path = tuple                                              # (root, step, ...): ("key", k), ("attr", k), ("at", i), ("each",)


def keys_of(x: Any, unwrap: Callable, signature: Callable, owner: Any = None) -> dict[str, list[str]]:
    """Arguments that are taken apart, and what is taken: {"batch": ["batch['v']"]}; of **batch the bare names."""
    every = [p for p in signature(x) if p.name != "self"]
    wanted = [p for p in every if p.default is p.empty or is_record(p.default)]
    wanted = [p for p in wanted if p.name != "cls"]
    roots = {p.name: ((f"*{p.name}" if p.kind is p.VAR_POSITIONAL else p.name),) for p in wanted}
    reader = Reader(unwrap, signature, owner)
    reader.read(unwrap(x), dict(roots))
    found: dict[str, list[str]] = {}
    loose = {p.name for p in wanted if p.kind is p.VAR_KEYWORD}
    for p in wanted:
        root = roots[p.name]
        paths = [path for path in reader.paths() if path[:1] == root and len(path) > 1]
        paths = [a for a in paths if not any(b != a and b[: len(a)] == a for b in paths) and a[-1] != ("each",)]
        if paths:
            names = [written(path, reader.called.get(path, "")) for path in paths]
            if p.name in loose:
                names = [path[1][1] if path[1][0] == "key" and len(path) == 2 else name for path, name in zip(paths, names)]
            found[p.name] = list(dict.fromkeys(names))
    return found


def is_record(x: Any) -> bool:
    """An object of settings: it holds numbers by name, and is neither a function nor an array."""
    return isinstance(x, SimpleNamespace) or hasattr(x, "__dataclass_fields__") or (isinstance(x, dict) and bool(x))


def written(path: Path, name: str) -> str:
    text = path[0]
    for kind, *what in path[1:]:
        text += {"key": f"[{what[0]!r}]", "attr": f".{what[0]}", "at": f"[{what[0]}]"}[kind] if what else "[*]"
    return f"{text} ({name})" if name and path[-1][0] == "at" else text


class Reader:
    """Goes through the code of a function in order, and into the helpers that are given what it was given."""

    def __init__(self, unwrap, signature, owner):
        self.unwrap, self.signature, self.owner = unwrap, signature, owner
        kinds = [dict, list, str, tuple, *(getattr(sys.modules[m], k) for m, k in ARRAYS if m in sys.modules)]
        self.own = {name for kind in kinds for name in dir(kind)}
        self.sure: dict[Path, None] = {}                  # in the order in which they were seen
        self.called: dict[Path, str] = {}
        self.bare: set[Path] = set()                      # used as a whole
        self.indexed: dict[Path, dict[int, str]] = {}
        self.deep = 0

    def paths(self) -> list[Path]:
        """Found paths; numbers in brackets count where nothing else is done with what they are taken from."""
        found = dict(self.sure)
        for path, names in self.indexed.items():
            if path not in self.bare and len(names) > 1 and sorted(names) == list(range(len(names))):
                for i in sorted(names):
                    found[(*path, ("at", i))] = None
                    self.called.setdefault((*path, ("at", i)), names[i])
        return list(found)

    def read(self, function: Any, env: dict[str, Path]) -> None:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):
            return
        if self.deep > 3:
            return
        self.deep += 1
        home = getattr(function, "__globals__", {})
        if isinstance(function, type):
            home = vars(sys.modules.get(function.__module__, SimpleNamespace()))
        Walker(self, dict(env), home).visit(tree)
        self.deep -= 1

    def add(self, path: Path, name: str = "") -> None:
        self.sure[path] = None
        if name:
            self.called.setdefault(path, name)


class Walker(ast.NodeVisitor):
    """One function: `env` holds the names that stand for a path."""

    def __init__(self, reader: Reader, env: dict[str, Path], home: dict):
        self.reader, self.env, self.home, self.inside = reader, env, home, 0

    def path(self, node, name: str = "") -> Path | None:
        """The path that an expression stands for."""
        if isinstance(node, ast.Name):
            return self.env.get(node.id)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            key = node.slice.value
            if (base := self.path(node.value)) is None or isinstance(key, bool):
                return None
            if isinstance(key, str):
                return self.took((*base, ("key", key)))
            if isinstance(key, int) and key >= 0:
                self.reader.indexed.setdefault(base, {}).setdefault(key, "")
                if name:
                    self.reader.indexed[base][key] = name
                return None
        if isinstance(node, ast.Attribute) and node.attr not in self.reader.own:
            base = self.path(node.value)
            return None if base is None else self.took((*base, ("attr", node.attr)))
        if isinstance(node, ast.Call) and name_of(node.func) in ("get", "pop") and isinstance(node.func, ast.Attribute):
            key = getattr(node.args[0], "value", None) if node.args else None
            base = self.path(node.func.value)
            return None if base is None or not isinstance(key, str) else self.took((*base, ("key", key)))
        return None

    def took(self, path: Path) -> Path:
        self.reader.add(path)
        return path

    def visit_FunctionDef(self, node):
        inner = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
        kept = self.env
        if self.inside:
            self.env = {name: path for name, path in kept.items() if name not in inner}
        self.inside += 1
        for child in node.body:
            self.visit(child)
        self.inside -= 1
        self.env = kept if self.inside else self.env

    def visit_Assign(self, node):
        bound = self.bind(node.targets[0], node.value)
        self.visit(node.value)
        for target in node.targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and name.id not in bound:
                    self.env.pop(name.id, None)           # another thing from here on

    def bind(self, target, value) -> set[str]:
        """target = value, where value is a path or is taken from one.      -> the names that now stand for a path"""
        if isinstance(target, ast.Name):
            if (path := self.path(value, target.id)) is not None:
                self.env[target.id] = path
            return {target.id} if path is not None else set()
        if not isinstance(target, ast.Tuple | ast.List) or any(isinstance(e, ast.Starred) for e in target.elts):
            return set()
        names = [e.id if isinstance(e, ast.Name) else "" for e in target.elts]
        if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
            return {name for one, what in zip(target.elts, value.elts) for name in self.bind(one, what)}
        keys = self.keys(value)
        if keys is not None and len(keys[1]) == len(names):
            return self.each_target(target, [(*keys[0], ("key", k)) for k in keys[1]])
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "values":
            if (base := self.path(value.func.value)) is not None and all(names):
                return self.each_target(target, [(*base, ("key", n)) for n in names])
        elif (inner := self.transposed(value)) is not None:
            return self.each_target(target, [(*inner, ("each",), ("at", i)) for i in range(len(names))])
        elif (base := self.path(value)) is not None and len(names) > 1:
            return self.each_target(target, [(*base, ("at", i)) for i in range(len(names))])
        return set()

    def each_target(self, target, paths) -> set[str]:
        bound = set()
        for one, path in zip(target.elts, paths):
            if isinstance(one, ast.Name):
                self.reader.add(path, one.id)
                self.env[one.id] = path
                bound.add(one.id)
            elif isinstance(one, ast.Tuple):
                bound |= self.each_target(one, [(*path, ("at", i)) for i in range(len(one.elts))])
        return bound

    def keys(self, value) -> tuple[Path, list[str]] | None:
        """itemgetter("a", "b")(batch), (batch[k] for k in ("a", "b")), map(batch.get, ("a", "b")): what it takes of what."""
        if not isinstance(value, ast.Call | ast.GeneratorExp | ast.ListComp):
            return None
        if isinstance(value, ast.GeneratorExp | ast.ListComp):
            made, loop = value.elt, value.generators[0]
            base = self.path(made.value) if isinstance(made, ast.Subscript) and isinstance(made.slice, ast.Name) else None
            words = strings(loop.iter)
        elif isinstance(value.func, ast.Call) and name_of(value.func.func) == "itemgetter" and len(value.args) == 1:
            base, words = self.path(value.args[0]), [str(getattr(a, "value", "")) for a in value.func.args]
        elif name_of(value.func) == "map" and len(value.args) == 2 and isinstance(value.args[0], ast.Attribute):
            base, words = self.path(value.args[0].value), strings(value.args[1])
        else:
            return None
        return (base, words) if base is not None and words and all(words) else None

    def transposed(self, value) -> Path | None:
        """zip(*samples), map(torch.stack, zip(*samples)), (torch.stack(x) for x in zip(*samples)): the path of the samples."""
        if isinstance(value, ast.GeneratorExp | ast.ListComp):
            return self.transposed(value.generators[0].iter)
        if isinstance(value, ast.Call) and name_of(value.func) == "map" and len(value.args) == 2:
            return self.transposed(value.args[1])
        if isinstance(value, ast.Call) and name_of(value.func) in ("list", "tuple") and len(value.args) == 1:
            return self.transposed(value.args[0])
        if isinstance(value, ast.Call) and name_of(value.func) == "zip" and len(value.args) == 1 and isinstance(
                value.args[0], ast.Starred):
            return self.gone_through(value.args[0].value)
        return None

    def gone_through(self, node) -> Path | None:
        """The path whose items a loop takes."""
        if isinstance(node, ast.Call) and name_of(node.func) in PASSED_THROUGH and node.args:
            return self.gone_through(node.args[0])
        return self.path(node)

    def loop(self, target, iterated) -> None:
        if isinstance(iterated, ast.Call) and name_of(iterated.func) == "enumerate" and iterated.args:
            if isinstance(target, ast.Tuple) and len(target.elts) == 2:
                self.loop(target.elts[1], iterated.args[0])
            return
        if self.transposed(iterated) is not None or (base := self.gone_through(iterated)) is None:
            return
        if isinstance(target, ast.Tuple):
            self.each_target(target, [(*base, ("each",), ("at", i)) for i in range(len(target.elts))])
        elif isinstance(target, ast.Name):
            self.env[target.id] = (*base, ("each",))

    def visit_For(self, node):
        self.loop(node.target, node.iter)
        self.generic_visit(node)

    def comprehension(self, node):
        kept = dict(self.env)
        for part in node.generators:
            self.loop(part.target, part.iter)
        self.generic_visit(node)
        self.env = kept

    visit_ListComp = visit_GeneratorExp = visit_SetComp = visit_DictComp = comprehension

    def visit_Call(self, node):
        self.path(node)
        helper = self.helper(node.func)
        params = [p.name for p in self.reader.signature(helper)] if helper is not None else []
        params = params[1:] if params[:1] == ["self"] else params
        env, at = {}, 0
        for arg in node.args:
            if isinstance(arg, ast.Starred):
                base = self.path(arg.value)
                taken = len(params) - (len(node.args) - 1) - len(node.keywords)
                for i in range(max(0, taken) if base is not None else 0):
                    env[params[at + i]] = path = (*base, ("at", i))
                    self.reader.add(path, params[at + i])
                at += max(0, taken)
                continue
            name = params[at] if at < len(params) else ""
            path = self.path(arg, name)
            if path is not None and name:
                env[name] = path
            at += 1
        for word in node.keywords:
            if word.arg and (path := self.path(word.value, word.arg)) is not None and word.arg in params:
                env[word.arg] = path
        if helper is not None and env:
            self.reader.read(helper, env)
        self.generic_visit(node)

    def helper(self, node) -> Any:
        """The function of theirs that is called."""
        found = None
        if isinstance(node, ast.Name):
            found = self.home.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            found = inspect.getattr_static(self.reader.owner, node.attr, None) if self.reader.owner is not None else None
            found = getattr(found, "__func__", found)
        found = self.reader.unwrap(found) if found is not None else None
        return found if inspect.isfunction(found) and found.__module__ == self.home.get("__name__") else None

    def visit_Subscript(self, node):
        if self.path(node) is None and not (isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int)
                                            and self.path(node.value) is not None):
            self.generic_visit(node)

    def visit_Attribute(self, node):
        if self.path(node) is None:
            self.generic_visit(node)

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load) and (path := self.env.get(node.id)) is not None:
            self.reader.bare.add(path)


def name_of(node) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def strings(node) -> list[str]:
    if isinstance(node, ast.Tuple | ast.List):
        return [str(getattr(e, "value", "")) for e in node.elts]
    text = getattr(node, "value", None)
    return [] if not isinstance(text, str) else text.split()


def steps(name: str) -> tuple[str, list[tuple]] | None:
    """The root and the steps of a written place; None for a plain name."""
    if (whole := WHOLE.fullmatch(name)) is None:
        return None
    found: list[tuple] = []
    for key, attr, at, each in STEP.findall(whole[2]):
        found.append(("key", key) if key else ("attr", attr) if attr else ("each",) if each else ("at", int(at)))
    return whole[1], found


def is_each(name: str) -> bool:
    """Whether a place is in each sample of a list."""
    return "[*]" in name and steps(name) is not None


def grouped(fn: Callable, names: list[str]) -> Callable:
    """A function that takes the places of a structure as keywords of those names, where there are any."""
    if not any(steps(name) for name in names):
        return fn

    @functools.wraps(fn)
    def call(*args, **given):
        plain: dict[str, Any] = {}
        trees: dict[str, dict] = {}
        for name, x in given.items():
            if (place := steps(name)) is None:
                plain[name] = x
                continue
            node = trees.setdefault(place[0], {})
            for step in place[1][:-1]:
                node = node.setdefault(step, {})
            node[place[1][-1]] = x
        rest: tuple = ()
        for root, tree in trees.items():
            if root.startswith("*"):
                rest = made(tree)
            else:
                plain[root] = made(tree, default_of(fn, root))
        if rest:                                          # what stands before *rest goes by its place
            kinds = inspect.signature(fn).parameters.values()
            args = (*args, *(plain.pop(p.name) for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD and p.name in plain))
        return fn(*args, *rest, **plain)

    return call


def default_of(fn, root):
    try:
        return copy.copy(record_of(inspect.signature(fn).parameters[root], fn))
    except (KeyError, TypeError, ValueError):
        return None


def record_of(p: inspect.Parameter, fn: Any) -> Any:
    """The object of settings that an argument has by default, or that its annotation makes of nothing; else None."""
    if is_record(p.default):
        return p.default
    kind = p.annotation
    home = sys.modules.get(getattr(fn, "__module__", None) or "")
    if isinstance(kind, str):
        kind = getattr(home, kind, None)
    if p.default is not p.empty or not isinstance(kind, type) or kind.__module__ != getattr(home, "__name__", ""):
        return None
    try:
        made = kind()
    except Exception:                                     # it needs something
        return None
    return made if is_record(made) or getattr(made, "__dict__", None) else None


def settings_of(cls: type) -> dict[str, Any]:
    """The objects of settings that a class's constructor needs, made."""
    try:
        params = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):
        return {}
    found = {p.name: record_of(p, cls) for p in params if p.default is p.empty}
    return {name: x for name, x in found.items() if x is not None}


def value_at(x: Any, name: str) -> Any:
    """What an object of settings holds at a place; None where that is not there."""
    for kind, *what in (steps(name) or ("", []))[1]:
        x = x.get(what[0]) if kind == "key" and isinstance(x, dict) else getattr(x, str(what[0]), None) if what else None
    return x


def made(tree: Any, base: Any = None, sample: int | None = None) -> Any:
    """The structure itself; base: an object of settings whose values are kept but for those given."""
    if not isinstance(tree, dict) or not tree or not all(isinstance(step, tuple) for step in tree):
        return tree if sample is None or not hasattr(tree, "__len__") or getattr(tree, "ndim", 1) == 0 else tree[sample]
    kinds = {step[0] for step in tree}
    if kinds == {"each"}:
        inner = tree["each",]
        return [made(inner, None, i) for i in range(len(first_leaf(inner)))]
    if kinds == {"at"}:
        return tuple(made(tree[step], None, sample) for step in sorted(tree))
    whole = base if base is not None else {} if kinds == {"key"} else SimpleNamespace()
    for (_, name), x in tree.items():
        value = made(x, None, sample)
        if isinstance(whole, dict):
            whole[name] = value
        else:
            object.__setattr__(whole, name, value)
    return whole


def first_leaf(tree: Any) -> Any:
    """The first array of a structure that has samples."""
    for x in tree.values() if isinstance(tree, dict) and all(isinstance(k, tuple) for k in tree) else ():
        found = first_leaf(x) if isinstance(x, dict) else x if hasattr(x, "__len__") else None
        if found is not None:
            return found
    return tree if hasattr(tree, "__len__") and not isinstance(tree, dict) else None
