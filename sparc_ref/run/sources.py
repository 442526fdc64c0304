"""Data named on a command line:  kind[:path][?option=value&...]

    drawn                                   scenes drawn here; the options of DrawnScenes: drawn?style=short&fused=true
    mosaic                                  pictures cut into named regions; of MosaicScenes: mosaic?coverage=0.5&words=2
    pictures:emoji.zip?names=emoji.jsonl    a folder or zip of pictures with transparency, pasted into scenes; PictureScenes
    wallpaper:emoji.zip?names=emoji.jsonl   mosaics of such pictures, each region papered with one; WallpaperScenes
    captions:photos/                        pictures with captions, in any format of docs/data.md; open_captions. Of one folder,
                                            captions:photos/?split=train and ?split=validation are two parts
"""

import difflib
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparc_ref.data import (
    CaptionData,
    DrawnScenes,
    MosaicScenes,
    PictureScenes,
    UnigramTokenizer,
    WallpaperScenes,
    WordTokenizer,
    load_tokenizer,
    open_captions,
)

KINDS: dict[str, Callable[..., Any]] = {
    "drawn": DrawnScenes, "mosaic": MosaicScenes, "pictures": PictureScenes, "wallpaper": WallpaperScenes,
    "captions": open_captions}


def open_source(spec: str, size: int, **defaults: Any) -> Any:
    """Open the data that a command line names.      defaults: options such as split, used where spec gives none

    Of image-caption files the default split concerns those only that come with splits of their own.
    ValueError: unknown kind or option (with the nearest), a path too many or too few, or what the data itself refuses.
    """
    head, _, query = spec.partition("?")
    kind, _, path = head.partition(":")
    if kind not in KINDS:
        raise ValueError(f"data {spec!r}: expected {', '.join(KINDS)}{nearest(kind, KINDS)}; for example drawn, "
                         "pictures:emoji.zip, captions:photos/captions.jsonl; see docs/data.md")
    drawn_here = kind in ("drawn", "mosaic")
    if bool(path) == drawn_here:
        raise ValueError(f"data {spec!r}: expected {f'{kind}, without a path' if drawn_here else f'{kind}:PATH'}; "
                         "see docs/data.md")
    make = KINDS[kind]
    if kind == "captions" and "split" in defaults:
        defaults["own_split"] = defaults.pop("split")
    known = {k: p for k, p in inspect.signature(make).parameters.items() if k not in ("source", "path", "progress")}
    given = {}
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if name not in known or not equals:
            raise ValueError(f"data {spec!r}: unknown option {name!r}{nearest(name, known)}; {kind} has "
                             f"{', '.join(known)}; see docs/data.md")
        if name in given or not value:
            raise ValueError(f"data {spec!r}: {name}: expected one value, got {'several' if value else 'none'}; "
                             "see docs/data.md")
        given[name] = parse(spec, name, value, known[name].annotation)
    options = {k: v for k, v in {"size": size, **defaults}.items() if k in known} | given
    try:
        return make(*[path] * bool(path), **options)
    except ValueError as error:
        raise ValueError(f"data {spec!r}: {error}") from error


SPLITS = {"drawn": ("train", "validation", "test", "unseen"), "pictures": ("train", "validation", "test", "heldout"),
          "wallpaper": ("train", "validation", "test")}


def check_split(split: str, specs: Sequence[str]) -> None:
    """ValueError for a split that one of the data sets has not, before any is opened.

    Those that name their own are let be, and captions, whose files may come with splits of any name.
    """
    for spec in specs:
        known = SPLITS.get(spec.partition("?")[0].partition(":")[0], (split,))
        if "split=" not in spec and split not in known:
            raise ValueError(f"--split {split}: expected {', '.join(known)}{nearest(split, known)}, for {spec}")


def has_splits(spec: str) -> bool:
    """Whether the source comes with scenes that are not trained on."""
    return not spec.startswith("captions")


def validation_of(spec: str, dataset: Any) -> str | None:
    """What to measure on where nothing was named: the part that `spec`, opened as `dataset`, keeps apart, or None."""
    split = [pair.partition("=")[2] for pair in spec.partition("?")[2].split("&") if pair.startswith("split=")]
    if has_splits(spec):
        return spec if not split else None
    if isinstance(dataset, CaptionData) and split == ["train"] and (not dataset.splits or "validation" in dataset.splits):
        head, mark, query = spec.partition("?")
        return head + mark + query.replace("split=train", "split=validation")
    return spec if isinstance(dataset, CaptionData) and not split and "validation" in dataset.splits else None


def remembered(data: Sequence[str], validation: Sequence[str] = (), measured: Mapping[str, str] | None = None,
               opened: Mapping[str, Any] | None = None) -> dict:
    """What a run keeps of the data that it was started with, so that it can be opened again from any folder.   -> JSON-able

    data        what it is trained on, paths made absolute
    measured    name -> what its numbers are measured on: the validation data where it is named; else the test split of
                scenes, what captioned pictures keep apart, or they themselves (trained_on says that)
    opened      spec -> its data set, which knows of splits of its own
    """
    if measured is None:
        opened = opened or {}
        specs = [own_part(s, opened.get(s)) for s in validation] or [held_out(s, opened.get(s)) for s in data]
        specs = [absolute(s) for s in specs]
        measured = {f"{i}:{spec.partition(':')[0].partition('?')[0]}" if i else "": spec for i, spec in enumerate(specs)}
    return {"data": [absolute(s) for s in data], "measured": dict(measured)}


def held_out(spec: str, dataset: Any = None) -> str:
    """The same data, as far as it was not trained on: the test split of scenes, what captions keep apart; else itself."""
    if has_splits(spec):
        return with_options(spec, split="test")
    if validation_of(spec, dataset):
        return with_options(spec, split="validation")
    own = getattr(dataset, "splits", ()) if "split" not in options_of(spec) else ()
    return with_options(spec, split="test" if "test" in own else "train") if own else spec


def own_part(spec: str, dataset: Any = None) -> str:
    """Captions that come with splits of their own are named with the one that validation opens."""
    own = getattr(dataset, "splits", ()) and "split" not in options_of(spec) and not has_splits(spec)
    return with_options(spec, split="validation") if own else spec


def trained_on(spec: str, sources: Mapping) -> bool:
    """Whether a run was trained on the very data that it is measured on."""
    return spec in sources["data"] and not has_splits(spec)


def options_of(spec: str) -> dict[str, str]:
    return dict(pair.partition("=")[::2] for pair in spec.partition("?")[2].split("&") if pair)


def with_options(spec: str, **options: str) -> str:
    """The spec with these options set."""
    head = spec.partition("?")[0]
    return head + "?" + "&".join(f"{name}={value}" for name, value in (options_of(spec) | options).items())


def absolute(spec: str) -> str:
    """The spec with every path in it absolute."""
    head, mark, _ = spec.partition("?")
    kind, colon, path = head.partition(":")
    known = inspect.signature(KINDS[kind]).parameters if kind in KINDS else {}
    paths = {name: os.path.abspath(value) for name, value in options_of(spec).items()
             if name in known and os.PathLike in typing.get_args(known[name].annotation)}
    head = f"{kind}:{os.path.abspath(path)}" if colon and path else head
    return with_options(f"{head}?{spec.partition('?')[2]}", **paths) if mark else head


def parse(spec, name, text, kind):
    """One option's value: int, float, bool, a tuple of ints "1,3", or text."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    try:
        if bool in kinds:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if int in kinds or float in kinds:
            return int(text) if int in kinds else float(text)
        if any(typing.get_origin(k) is tuple for k in kinds):
            return tuple(int(x) for x in text.split(","))
    except (KeyError, ValueError):
        raise ValueError(f"data {spec!r}: {name}: expected {getattr(kind, '__name__', kind)}, got {text!r}") from None
    return text


def nearest(name, known):
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def make_tokenizer(datasets: Sequence[Any], vocab_size: int, eos: bool = True, lower: bool = True) -> Any:
    """Words for generated scenes, whose vocabulary is known; sentencepiece unigrams learned from the captions otherwise."""
    if all(hasattr(d, "vocabulary") for d in datasets):
        return WordTokenizer((w for d in datasets for w in d.vocabulary()), eos=eos, lower=lower)
    return UnigramTokenizer.train((text for d in datasets for text in texts_of(d)), vocab_size, eos=eos, lower=lower)


def texts_of(dataset, most=20_000):
    """The captions of a data set; of scenes, which are endless, those of the first `most`."""
    if isinstance(dataset, CaptionData):
        return [text for texts in dataset.texts for text in texts]
    return [text for i in range(min(len(dataset), most)) for text in dataset[i].captions]


def open_tokenizer(path: str | os.PathLike, eos: bool = True, lower: bool = True) -> Any:
    """A tokenizer that sparc_ref saved, or a sentencepiece .model file."""
    return UnigramTokenizer.load(path, eos, lower) if str(path).endswith(".model") else load_tokenizer(path)
