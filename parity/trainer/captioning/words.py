"""How captions are cut into words before they are compared: the Penn Treebank's way needs Java and pycocoevalcap."""

import contextlib
import io
import shutil
from collections.abc import Sequence

from sparc_ref.evaluate.captioning import plain_words

HOW = {"ptb": "Penn Treebank tokenizer of pycocoevalcap, as the published numbers", "plain": "words without punctuation, in "
       "lower case; not the tokenizer of published numbers, which needs Java and pycocoevalcap"}  # fmt: skip


def chosen(how: str) -> str:
    """"auto": the Penn Treebank's where it can be had.   ValueError where it was asked for and cannot"""
    missing = absent()
    if how == "ptb" and missing:
        raise ValueError(f"words: ptb needs {missing}; or take words=plain, not comparable with published numbers")
    return ("plain" if missing else "ptb") if how == "auto" else how


def absent() -> str:
    """What the Penn Treebank tokenizer lacks here, or nothing."""
    if shutil.which("java") is None:
        return "Java (a command `java`)"
    try:
        import pycocoevalcap.tokenizer.ptbtokenizer  # noqa: F401
    except ModuleNotFoundError:
        return "the package pycocoevalcap: in a clone of sparc_ref: pip install '.[evaluation]'"
    return ""


def cut(texts: Sequence[str], how: str) -> list[str]:
    """Words of each text, separated by single spaces.      how "ptb" | "plain" """
    if how == "plain":
        return [plain_words(text) for text in texts]
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = [" ".join(text.split()).encode("utf-8", "replace").decode() for text in texts]  # a line break would shift the rest
    with contextlib.redirect_stdout(io.StringIO()):
        found = PTBTokenizer().tokenize({i: [{"caption": line}] for i, line in enumerate(lines)})
    if [len(found.get(i, ())) for i in range(len(lines))] != [1] * len(lines):
        raise ValueError(f"words: the Penn Treebank tokenizer gave {len(found)} lines for {len(lines)} captions; "
                         "mend Java, or take words=plain")
    return [found[i][0] for i in range(len(lines))]
