"""Execute the tutorials from clean, in order, and write the notebooks:  python tutorials/build.py [NN ...] [--figures FOLDER]

NN_name.py (py:percent) is the source. NN_name.ipynb holds its cells, what they printed and drew, and the hash of the source
and of drawing.py; tests/tutorials compares it. --figures FOLDER also writes every figure as SVG and PDF, for slides.
"""

import argparse
import hashlib
import os
import time
from pathlib import Path

HERE = Path(__file__).parent
HELPERS = ("drawing.py",)  # exercises.py decides no output: a notebook shows answers that are still empty
LIMIT = 400_000  # bytes of a committed notebook


def source_hash(source: Path) -> str:
    """SHA-256 of the tutorial's source and of what draws for it."""
    digest = hashlib.sha256()
    for path in (source, *(HERE / name for name in HELPERS)):
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def build(source: Path, patience: int = 180) -> tuple[float, int]:
    """Execute one tutorial in a fresh kernel and write its notebook.  Returns seconds and bytes; raises if a cell fails."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    digest = source_hash(source)                          # before it runs: an edit meanwhile must show
    notebook = jupytext.read(source)
    start = time.perf_counter()
    NotebookClient(notebook, timeout=patience, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    seconds = time.perf_counter() - start
    kept = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.metadata = nbformat.from_dict(kept | {"language_info": {"name": "python"}, "source_sha256": digest})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
    text = nbformat.writes(notebook)
    if len(text.encode()) > LIMIT:
        raise ValueError(f"{source.name}: expected a notebook of at most {LIMIT} bytes, got {len(text.encode())}")
    source.with_suffix(".ipynb").write_text(text)
    return seconds, len(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("numbers", nargs="*", help="such as 00 04; all of them unless given")
    parser.add_argument("--patience", type=int, default=180, help="seconds that a cell may take [180]")
    parser.add_argument("--figures", help="a folder for SVG and PDF versions of every figure")
    asked = parser.parse_args()
    os.environ["TUTORIAL_STATIC"] = "1"
    os.environ.setdefault("PYTHONWARNINGS", "ignore::DeprecationWarning")
    if asked.figures:
        os.environ["TUTORIAL_FIGURES"] = str(Path(asked.figures).resolve())
    for source in sorted(HERE.glob("[0-9][0-9]_*.py")):
        if not asked.numbers or source.name[:2] in asked.numbers:
            seconds, size = build(source, asked.patience)
            print(f"{source.stem:32} {seconds:6.1f} s {size / 1000:6.0f} kB", flush=True)


if __name__ == "__main__":
    main()
