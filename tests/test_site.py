"""The site's sources, without Sphinx: every page is listed, every link resolves, the method's page says what the code does.

The build itself is `make docs` (any warning fails it); docs/browse.py opens every page of it in a browser.
"""

import fnmatch
import importlib.util
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from urllib.parse import unquote

import pytest

from sparc_ref import SPARCConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "parity" / "README.md", *(ROOT / "tutorials").glob("*.md")])
METHOD = (DOCS / "method.md").read_text(encoding="utf-8")


def prose(path):
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^( *)```.*?^\1```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S))


def slugs(path):
    """The anchors of a page's headings, as a code host and myst make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", t) for t in re.findall(r"^#+ (.*)", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", t.strip().lower()).replace(" ", "-") for t in titles}


def test_every_page_is_listed():
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(encoding="utf-8"), re.S)
    entries = [e if e.startswith("/") else f"/docs/{e}" for b in blocks for e in b.split("\n") if e and not e.startswith(":")]
    notebooks = (ROOT / "tutorials").glob("[0-9]*.ipynb")
    names = [f"/{p.relative_to(ROOT).with_suffix('').as_posix()}" for p in (*PAGES, *notebooks)]
    missed = [n for n in names if not any(fnmatch.fnmatchcase(n, e) for e in entries)]
    assert missed == ["/README", "/docs/index"]
    assert [e for e in entries if not fnmatch.filter(names, e)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_resolves(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / unquote(name)).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert file.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        if anchor and file.suffix == ".md":
            assert anchor in slugs(file), f"{page.name}: {target}"


def choices(name):
    """The values that an option may have, from the error that a wrong one gives."""
    with pytest.raises(ValueError, match=f"{name}: expected one of") as told:
        SPARCConfig(**{name: "?"})
    return re.search("one of (.*);", str(told.value))[1].split(", ")


@pytest.mark.parametrize("field", [f for f in fields(SPARCConfig) if f.type is str], ids=lambda f: f.name)
def test_every_reading_is_on_the_methods_page(field):
    """In a section or a row of its own: the default as such, every other value, and what that one changes."""
    name, values = field.name, choices(field.name)
    row = re.search(rf"^\| `{name}` \| `\"(\w+)\"` \| (.*?) \|", METHOD, re.M)
    section = re.search(rf"^### .*`{name}`.*\n((?:(?!###|## ).*\n)*)", METHOD, re.M)
    assert section, f"docs/method.md: expected a section on {name}"
    default = row[1] if row else re.search(r'`"(\w+)"` \(default', section[1])[1]
    assert default == field.default and default in values
    for value in set(values) - {default}:
        assert f'`"{value}"`' in (row[2] if row else section[1])
        assert f"| `{name}` `{value}` |" in METHOD or value == "nan"  # no number to compare


def test_what_the_methods_page_names_exists():
    known = {f.name for f in fields(SPARCConfig)}
    named = {n for title in re.findall(r"^### .*?: (.*)", METHOD, re.M) for n in re.findall(r"`(\w+)`", title)}
    named |= set(re.findall(r"^\| `(\w+)` ", METHOD, re.M))
    assert len(named) >= 16 and named <= known


def test_the_methods_table_is_what_the_script_prints():
    spec = importlib.util.spec_from_file_location("decisions", DOCS / "decisions.py")
    decisions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(decisions)
    told = re.search(r"<!-- decisions -->\n(.*?)\n<!-- end -->", METHOD, re.S)[1]
    assert told == decisions.table()


QUOTED = {  # on the method's page, from the page that it links
    "docs/experiments/small-world.md": ".240 .339 .412 .396 .209 .241 .630 .653 .861 .840 .052 .107 .73 .43 .71 .19 .200 .211",
    "docs/objectives.md": "9.19 9.14",
    "tutorials/04_sparse_alignment.ipynb": "1.07 .0002 97.99 35.2",
    "tutorials/06_fine_grained_loss.ipynb": ".25 .533",
}


@pytest.mark.parametrize("page", QUOTED)
def test_numbers_that_are_quoted_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for number in QUOTED[page].split():
        assert number in text and number in METHOD, number


def test_every_extra_is_on_the_install_page():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"'\.\[(\w+)\]'", (DOCS / "install.md").read_text(encoding="utf-8")))
    assert named == extras.keys()


def test_sections_of_readme_that_pages_take_exist():
    line = re.compile(r"^\[README: .*\]\(\.\./README\.md#(.*)\)$", re.M)
    taken = {anchor for page in DOCS.glob("*.md") for anchor in line.findall(page.read_text(encoding="utf-8"))}
    assert len(taken) >= 6 and taken <= slugs(ROOT / "README.md")
