"""Data of a task, named on a command line:    kind:path[?option=value&...]

The options are those of the layout's opener and of the task's Protocol: "voc:VOCdevkit/VOC2012?average=dataset".
"""

import inspect
import os
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from sparc_ref.run.sources import nearest, parse

PLACES = ("images", "masks", "annotations", "names", "classnames", "wnids", "tagger")  # options that name a file or a folder


def open_data(task: ModuleType, spec: str) -> tuple[Any, Any]:
    """The data and the protocol that a spec names.      -> what the opener gives, task.Protocol

    ValueError: what check_spec refuses, and what the opener does.
    """
    make, path, opener, protocol = check_spec(task, spec)
    try:
        return make(Path(path), **opener), task.Protocol(**protocol)
    except ValueError as error:
        raise ValueError(f"data {spec!r}: {error}") from error


def check_spec(task: ModuleType, spec: str) -> tuple[Any, str, dict[str, Any], dict[str, Any]]:
    """What a spec says, no file looked at.      -> the layout's opener, path, the opener's options, the protocol's

    ValueError: an unknown layout or option (with the nearest), no path, a value of another type or one that Protocol refuses.
    """
    head, _, query = spec.partition("?")
    kind, _, path = head.partition(":")
    known = ", ".join(task.KINDS)
    if kind not in task.KINDS:
        example = next(iter(task.KINDS))
        raise ValueError(f"data {spec!r}: expected {known}{nearest(kind, task.KINDS)}; for example {example}:PATH")
    if not path:
        raise ValueError(f"data {spec!r}: expected {kind}:PATH, got no path")
    make = task.KINDS[kind]
    opener = {k: p.annotation for k, p in inspect.signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY}
    protocol = {f.name: f.type for f in fields(task.Protocol)}
    kinds = opener | protocol
    given: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if name not in kinds or not equals:
            raise ValueError(f"data {spec!r}: unknown option {name!r}{nearest(name, kinds)}; there are {', '.join(kinds)}")
        if name in given or not value:
            raise ValueError(f"data {spec!r}: {name}: expected one value, got {'several' if value else 'none'}")
        given[name] = parse(spec, name, value, kinds[name])
    chosen = {k: v for k, v in given.items() if k in protocol}
    try:
        task.Protocol(**chosen)
    except ValueError as error:
        raise ValueError(f"data {spec!r}: {error}") from error
    return make, path, {k: v for k, v in given.items() if k in opener}, chosen


def absolute(spec: str) -> str:
    """The spec with its path absolute, and options that name a file seen from here, so that it can be read from any folder."""
    head, mark, query = spec.partition("?")
    kind, _, path = head.partition(":")
    pairs = []
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        from_here = name in PLACES and os.path.exists(value) and not os.path.exists(os.path.join(path, value))
        pairs.append(f"{name}{equals}{os.path.abspath(value) if from_here else value}")
    return f"{kind}:{os.path.abspath(path)}{mark}{'&'.join(pairs)}"
