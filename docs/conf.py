"""The site: `make docs`.  Sphinx reads the repository as it stands, so that every link is the same here and on a code host.

Three things are changed on the way in: a line that is a link to a section of README becomes that section; a link to a folder
becomes its text; an anchor within a notebook is spelled as myst spells it.  Docstrings are set as they are written.
"""

import importlib.util
import re
from pathlib import Path
from urllib.parse import unquote

from myst_parser.slugs import github_slugify
from pygments.lexers.special import TextLexer

import sparc_ref

ROOT = Path(__file__).parent.parent
project = "SPARC reference"
version = release = sparc_ref.__version__
html_title = f"{project} {release}"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "parity/README.md", "tutorials/*.md", "tutorials/*.ipynb"]
exclude_patterns = ["README.md", ".*", "runs", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
nb_execution_mode = "off"                                 # notebooks are committed as they ran
nb_ipywidgets_js = {}                                     # nothing is fetched from elsewhere
highlight_language = "none"
smartquotes = False

autodoc_mock_imports = ["torch"]                        # parity imports it; docstrings need none of it
autodoc_member_order = "bysource"
autodoc_typehints = "none"                                # docstrings give shapes
add_module_names = False

html_theme = "furo"
html_static_path = ["site/site.css"]
html_css_files = ["site.css"]
html_extra_path = ["site/index.html"]
html_copy_source = False
html_favicon = "site/icon.svg"
html_show_copyright = False
html_use_index = html_domain_indices = False             # the API is one page, and searched
# One file of MathJax, which draws SVG and needs no fonts.
html_static_path += [str(Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax/tex-svg.js")]
mathjax_path = "tex-svg.js"


def prepare(app, docname, source):
    """A page's text on the way in: sections of README, links to folders, anchors within notebooks."""
    folder = (ROOT / docname).parent
    text = re.sub(r"^\[README: [^\]]*\]\(\.\./README\.md#([\w-]+)\)$", lambda m: readme(m[1]), source[0], flags=re.M)
    text = re.sub(r"(?<!!)\[([^\]]+)\]\(([\w./-]+)\)", lambda m: m[1] if (folder / m[2]).is_dir() else m[0], text)
    source[0] = re.sub(r"\.ipynb#([^)\s]+)\)", lambda m: f".ipynb#{github_slugify(unquote(m[1]))})", text)


def readme(anchor: str) -> str:
    """A section of README, with its links as they are from docs/; the first one without its title."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = {github_slugify(part.partition("\n")[0].lstrip("# ")): part for part in re.split(r"^(?=## )", text, flags=re.M)}
    section = re.sub(r"\A# .*\n", "", sections[anchor])
    if section.count("```") % 2:
        raise ValueError(f"README.md: expected whole blocks of code in {anchor}, found a line that starts with ## inside one")
    return re.sub(r'(\]\(|src=")(?!http|#)', r"\1../", section).replace("../docs/", "")


def set_docstring(app, what, name, obj, options, lines):
    """Prose as text, what has columns or stands apart as it is written.  Shapes at the first line's edge get a line."""
    if lines:
        lines[:1] = re.sub(r"(\S) {3,}", r"\1\n\n", lines[0]).split("\n")
    out, before, literal = [], "", False
    for line in lines:
        columns = re.search(r"[^. ] {2,}\S|\S {3,}\S", line) or (line.startswith(" ") and (literal or not before))
        if columns:
            out += [f"    {line}"] if literal else ["", "::", "", f"    {line}"]
        else:
            apart = literal or before.endswith(".") or re.match(r"\w+(, \w+)*( \([^)]*\))?: ", line)
            text = re.sub(r"([*_|\\])", r"\\\1", line.strip()).replace("`", "``")
            out += ["", text] if apart else [text]
        before, literal = line, bool(columns) or (literal and not line)
    lines[:] = out


def setup(app):
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", set_docstring)
    for name in ("csv", "tsv", "files", "report"):        # fences of docs/data.md
        app.add_lexer(name, TextLexer)
