"""The committed notebooks are what their sources gave; exercises, solutions and checks agree; the word list points right."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

jupytext = pytest.importorskip("jupytext", reason="notebooks: pip install '.[tutorials]' in a clone")

HERE = Path(__file__).parents[2] / "tutorials"
SOURCES = sorted(HERE.glob("[0-9][0-9]_*.py"))
sys.path.insert(0, str(HERE))

with mpl.rc_context():                                    # the style that drawing sets is not for other tests
    import build
    import drawing
    import exercises


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context(drawing.STYLE):
        yield


each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
SOLUTION = re.compile(r"# <details><summary>Solution</summary>\n(.*?)# </details>", re.S)
EXERCISE = re.compile(r"# ## Exercise (\d\d\.\d)")
CHECKED = re.compile(r'check\("(\d\d\.\d)", (\w+)\)')


def cells(source):
    return jupytext.read(source).cells


def notebook(source):
    return json.loads(source.with_suffix(".ipynb").read_text())


def joined(text):
    return text if isinstance(text, str) else "".join(text)


def test_there_are_tutorials_and_no_notebook_without_a_source():
    assert SOURCES and sorted(HERE.glob("*.ipynb")) == [source.with_suffix(".ipynb") for source in SOURCES]


@each_source
def test_a_notebook_holds_the_cells_of_its_source_run_once_from_the_top(source):
    ours, theirs = cells(source), notebook(source)["cells"]
    assert [(c.cell_type, c.source) for c in ours] == [(c["cell_type"], joined(c["source"])) for c in theirs]
    code = [c for c in theirs if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for c in code for output in c["outputs"]}
    assert kinds <= {"stream", "display_data"}, f"{source.name}: {kinds}"
    assert not any(output.get("name") == "stderr" for c in code for output in c["outputs"])
    asked = [joined(output["text"]) for c in code if 'check("' in joined(c["source"]) for output in c["outputs"]]
    assert set(asked) == {"Nothing is returned yet. Your turn.\n"}, asked


@each_source
def test_outputs_come_from_the_committed_source_and_style(source):
    assert notebook(source)["metadata"]["source_sha256"] == build.source_hash(source), (
        f"{source.name} or drawing.py changed after its notebook was executed: make tutorials"
    )


def test_the_hash_notices_any_change(tmp_path, monkeypatch):
    for name in ("00_x.py", *build.HELPERS):
        (tmp_path / name).write_text("a = 1\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    before = build.source_hash(tmp_path / "00_x.py")
    for name in ("00_x.py", *build.HELPERS):
        (tmp_path / name).write_text("a = 2\n")
        assert build.source_hash(tmp_path / "00_x.py") != before
        (tmp_path / name).write_text("a = 1\n")
    assert build.source_hash(tmp_path / "00_x.py") == before


@each_source
def test_notebooks_are_small_and_draw(source):
    assert source.with_suffix(".ipynb").stat().st_size <= build.LIMIT
    drawn = [o for c in notebook(source)["cells"] for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
    names = re.findall(r"\bshow\(", source.read_text())
    assert len(drawn) >= len(names) > 0


@each_source
def test_the_first_cell_is_the_same_everywhere_and_the_library_is_imported(source):
    first = next(c.source for c in cells(source) if c.cell_type == "code")
    assert first == next(c.source for c in cells(SOURCES[0]) if c.cell_type == "code")
    assert re.search(r"^from (sparc_ref|parity)", source.read_text(), re.M)


def first_cell():
    return next(c.source for c in cells(SOURCES[0]) if c.cell_type == "code")


def test_the_first_cell_does_nothing_locally(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail(f"ran {a}"))
    exec(first_cell(), {})


@pytest.mark.parametrize("cloned", [False, True])
def test_the_first_cell_installs_from_a_clone_elsewhere(tmp_path, monkeypatch, cloned):
    ran = []

    def run(command, check):
        assert check
        ran.append(command)
        if command[0] == "git":
            (tmp_path / "clone" / "tutorials").mkdir(parents=True)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    if cloned:
        (tmp_path / "tutorials").mkdir()
        (tmp_path / "tutorials" / "drawing.py").touch()
        os.chdir(tmp_path / "tutorials")
    exec(first_cell(), {})
    *clone, install = ran
    assert [c[:2] for c in clone] == ([] if cloned else [["git", "clone"]])
    assert install[1:4] == ["-m", "pip", "install"] and install[-1] == f"{tmp_path if cloned else tmp_path / 'clone'}[parity]"


@each_source
def test_every_section_with_code_asserts_something(source):
    title, asserted, coded = "", {}, set()
    for cell in cells(source):
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^##+ (.*)", cell.source, re.M):
                title = heading
        elif title and not title.startswith("Exercise"):
            coded.add(title)
            asserts = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)]
            asserted[title] = asserted.get(title, 0) + len(asserts)
    assert coded and not [title for title in coded if not asserted[title]]


def solutions():
    for source in SOURCES:
        text = source.read_text()
        numbers = EXERCISE.findall(text)
        written = SOLUTION.findall(text)
        assert len(numbers) == len(written) == len(CHECKED.findall(text)) > 0, source.name
        for number, (checked, name), solution in zip(numbers, CHECKED.findall(text), written):
            assert number == checked and number.startswith(source.name[:2])
            code = re.search(r"# ```python\n(.*?)# ```", solution, re.S).group(1)
            yield pytest.param(number, name, re.sub(r"^# ?", "", code, flags=re.M), id=number)


SOLUTIONS = list(solutions())


def test_every_check_has_an_exercise():
    assert sorted(exercises.CHECKS) == sorted(param.id for param in SOLUTIONS)


@pytest.mark.parametrize("number,name,code", SOLUTIONS)
def test_every_hidden_solution_is_right(number, name, code):
    space = {"np": np}
    exec(code, space)
    assert exercises.check(number, space[name]) == exercises.RIGHT


@pytest.mark.parametrize("number", sorted(exercises.CHECKS))
def test_an_empty_answer_is_told_so_and_noise_is_not_right(number):
    assert exercises.check(number, lambda *given: None) == "Nothing is returned yet. Your turn."
    assert "ZeroDivisionError" in exercises.check(number, lambda *given: 1 / 0)

    def noise(*given):
        return np.random.default_rng(9).standard_normal(np.shape(given[0]))

    assert exercises.check(number, noise) != exercises.RIGHT


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def stretched(s):
    return (s - s.min()) / (s.max() - s.min())


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def hiding(seed, one_length=True):
    """A batch in which patches may be of one length, with padding."""
    rng = np.random.default_rng(seed)
    v, t = rng.standard_normal((2, 6, 4)), rng.standard_normal((2, 3, 4))
    return unit(v) if one_length else v, t, np.array([[True] * 3, [True, True, False]])


def stretched_rows(s, eps):
    low, high = s.min(1, keepdims=True), s.max(1, keepdims=True)
    return (s - low) / (high - low + eps)


def cut_rows(s_hat):
    s_til = np.where(s_hat >= 1 / s_hat.shape[1], s_hat, 0)
    return np.where(np.isnan(s_hat), np.nan, s_til) / s_til.sum(1, keepdims=True)


def numpy_alone(x):
    y = np.asarray(x) - np.mean(x, axis=1, keepdims=True)
    return y / np.abs(y).max(1, keepdims=True)


def crossed(rows, columns, start):
    """The sum of both cross-entropies, right answers from `start` on."""
    at = np.arange(len(rows)), start + np.arange(len(rows))
    return (-np.log(softmax(rows)[at]) - np.log(softmax(columns)[at])).sum()


def cut(s, sigma):
    return np.where(stretched(s) >= sigma, stretched(s), 0)


def above(s):
    return np.where(stretched(s) > 1 / len(s), stretched(s), 0)


def back_min_max(s, d, sign):
    direct, ds = d / np.ptp(s), d / np.ptp(s)
    ds[s.argmin()] += (direct * (stretched(s) - 1)).sum()
    ds[s.argmax()] -= sign * (direct * stretched(s)).sum()
    return ds


def exercise_06_1(z):
    return (np.log(np.exp(z).sum(0)) + np.log(np.exp(z).sum(1)) - 2 * np.diag(z)).mean() / 2


def padded_columns(z, mask):
    z = np.where(mask, z, -40.0)
    return (np.log(np.exp(z).sum(0)) + np.log(np.exp(z).sum(1)) - 2 * np.diag(z))[mask].mean() / 2


WRONG = [
    ("00.1", stretched, "eq. 2 alone"),
    ("00.1", lambda s: stretched(s) / stretched(s).sum(), "threshold is missing"),
    ("00.1", lambda s: cut(s, 1 / 6), "sum to 1"),
    ("00.1", lambda s: cut(s, 0.25) / cut(s, 0.25).sum(), "not 1/4"),
    ("00.1", softmax, "softmax"),
    ("00.1", lambda s: s[:2], "shape"),
    ("00.2", lambda z: -np.log(np.diag(softmax(z))).mean(), "Rows only"),
    ("00.2", lambda z: -np.log(np.diag(softmax(z, 0))).mean(), "Columns only"),
    ("01.1", lambda z, dy: dy - softmax(z), "sum belongs to p"),
    ("01.1", lambda z, dy: dy - softmax(z) * dy.sum(), "not over the batch"),
    ("01.2", lambda x, y: y / np.linalg.norm(y) / np.linalg.norm(x), "part along x"),
    ("02.1", lambda dy, back: back(dy), "directly"),
    ("02.2", lambda q, k, v, m: softmax(q @ k.T / 2) @ v, "Padding is looked at"),
    ("03.1", lambda z: (softmax(z) - np.eye(4)) / 4, "Rows only"),
    ("03.1", lambda z: (softmax(z) + softmax(z.T) - 2 * np.eye(4)) / 8, "transposed"),
    ("03.2", lambda B, tau: np.log1p(B * np.exp(-1 / tau)), "B - 1"),
    ("03.2", lambda B, tau: 0.0, "Not 0"),
    ("04.1", lambda s, d: d / np.ptp(s), "Minimum and maximum"),
    ("04.2", lambda t, v, sigma: (v @ t - (v @ t).min()) @ v, "threshold"),
    ("05.1", lambda a: (a * a).sum(), "other way up"),
    ("05.2", lambda s: 1.0, "your 1 uses"),
    ("06.1", lambda z, m: (-np.log(np.diag(softmax(z)) * np.diag(softmax(z, 0)))).mean() / 2, "mask is not used"),
    ("06.1", lambda z, m: (-np.log(np.diag(softmax(z)) * np.diag(softmax(z, 0))))[m].mean() / 2, "competes"),
    ("09.1", lambda x, bits: np.ldexp(np.trunc(np.ldexp(np.frexp(x)[0], bits)), np.frexp(x)[1] - bits), "Cut off"),
    ("09.2", lambda x: x.astype(np.float64).sum(), "float32 alone"),
    ("09.2", lambda x: np.cumsum(x)[-1], "units of rounding"),
    ("06.2", lambda m, r: m / m.sum() if r == "token" else m / m.size, "counts alike"),
    ("00.1", lambda s: above(s) / above(s).sum(), "equals sigma"),
    ("01.1", lambda z, dy: dy + softmax(z) * dy.sum(1, keepdims=True), "The sign"),
    ("01.2", lambda x, y: (unit(x) - unit(y) * (unit(x) @ unit(y))) / np.linalg.norm(y), "with respect to y"),
    ("02.1", lambda dy, back: dy * back(dy), "not multiplied"),
    ("02.2", lambda q, k, v, m: np.where(m[:, None], softmax(q @ k.T / 2) @ v, 0), "on the queries"),
    ("02.2", lambda q, k, v, m: (softmax(q @ k.T / 2) * m) @ v, "sums to 1"),
    ("02.2", lambda q, k, v, m: softmax(np.where(m, q @ k.T / 2, -1e9), 0) @ v, "over the keys"),
    ("03.1", lambda z: (softmax(z) + softmax(z, 0) - 2 * np.eye(4)) / 2, "mean over the B"),
    ("03.2", lambda B, tau: np.log(B), "guessing"),
    ("03.2", lambda B, tau: np.log1p((B - 1) * np.exp(-2 / tau)), "not -1"),
    ("04.1", lambda s, d: back_min_max(s, d, -1), "sign at the maximum"),
    ("04.2", lambda t, v, sigma: (lambda x: np.where(x >= sigma, x, 0) @ v)(v @ t - (v @ t).min()), "share of the row's range"),
    ("05.2", lambda s: 1.67 / s.std(), "uses"),
    ("06.1", lambda z, m: padded_columns(z, m), "the rows are the answers"),
    ("06.1", lambda z, m: exercise_06_1(z[:3, :3]), "not the first three"),
    ("06.2", lambda m, r: (m / m.sum() if r == "token" else m / m.sum(1, keepdims=True) / 3) / 2, "1/2 belongs"),
    ("06.2", lambda m, r: m / m.size if r == "token" else m / m.sum(1, keepdims=True) / 3, "not of all places"),
    ("09.1", lambda x, bits: np.ldexp(np.floor(np.ldexp(np.frexp(x)[0], bits)), np.frexp(x)[1] - bits), "Rounded down"),
    ("09.2", lambda x: x.sum(), "np.sum"),
    ("09.2", lambda x: np.float32(x.astype(np.float64).sum()), "float32 alone"),
    ("09.2", lambda x: np.float32(np.sum(x, dtype=np.float64)), "float32 alone"),
    ("07.1", lambda loss, v, t, m, o: loss(v, t, m) - loss(v[o], t, m), "other way round"),
    ("07.1", lambda loss, v, t, m, o: loss(v[o], t[o], m[o]) - loss(v, t, m), "moved together"),
    ("07.2", lambda w, x: (w * x).sum(1).mean(), "That is mass"),
    ("07.3", lambda lengths: np.log(lengths.mean()), "logarithm of the mean"),
    ("07.3", lambda lengths: np.average(np.log(lengths), weights=lengths), "every caption alike"),
    ("08.1", lambda v, t: (v @ t.T).max(1).mean(), "By cosine"),
    ("08.1", lambda v, t: (unit(v) @ unit(t).T).max(0).mean(), "caption asking"),
    ("08.2", lambda k: (np.exp(k), np.log(1000)), "from -1 to 1"),
    ("08.3", lambda tower, L, P, D: (tower / (2 * L * P * D), tower / (2 * L * P * D + L * L * D)), "no B"),
    ("10.1", lambda seed: hiding(seed, False), "patches of one length"),
    ("10.1", lambda seed: (*hiding(seed)[:2], np.ones((2, 3), bool)), "is there padding"),
    ("10.1", lambda seed: hiding(seed)[:1] * 3, "Expected v"),
    ("10.2", lambda s: cut_rows(stretched_rows(s, 0)), "NaN"),
    ("10.2", lambda s: np.nan_to_num(cut_rows(stretched_rows(s, 0))), "no weight at all"),
    ("10.3", lambda z, value: "rows only", "it is 'right'"),
    ("10.3", lambda z, value: "wrong", "Expected one of"),
    ("11.1", lambda x: x - x.mean(1, keepdims=True), "not divided"),
    ("11.1", numpy_alone, "RuntimeError"),
    ("11.2", lambda z: np.eye(4), "Right for NumPy"),
    ("12.1", lambda r, c, start, W: crossed(r, c, start) / 12, "W times too small"),
    ("12.1", lambda r, c, start, W: crossed(r, c, 0) * 3 / 12, "at start + i"),
    ("12.2", lambda flops, gpus, updates, peak, share: flops * updates / peak / share, "seconds"),
    ("12.2", lambda flops, gpus, updates, peak, share: flops * updates / peak / share / 86400 / gpus, "one GPU already"),
    ("12.3", lambda B, W: (4 * B * B, 4 * B * B // W), "two matrices"),
    ("12.3", lambda B, W: (4 * B * B, 4 * (2 * (B // W) * B - (B // W) ** 2)), "corner"),
]


@pytest.mark.parametrize("number,answer,words", WRONG, ids=[f"{n}-{w}" for n, _, w in WRONG])
def test_known_mistakes_are_named(number, answer, words):
    assert words in exercises.check(number, answer)


def slug(heading):
    return heading.replace(" ", "-").replace("(", "%28").replace(")", "%29")


def test_every_word_is_linked_to_where_it_is_first_used():
    text = (HERE / "words.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| \[(\d\d) ([^\]]+)\]\(([^)#]+)#([^)]+)\) \|", text, re.M)
    assert len(rows) > 30 and len(rows) == sum(line.startswith("| ") for line in text.splitlines()) - 2
    terms = [row[0] for row in rows]
    assert terms == sorted(set(terms), key=str.lower)
    for term, number, heading, file, anchor in rows:
        source = (HERE / file).with_suffix(".py")
        assert source.name[:2] == number and anchor == slug(heading)
        section = dict(sections(source))[heading]
        assert f"*{term}*" in section, f"{term}: not set apart in {file}, {heading}"
        for earlier in SOURCES[: SOURCES.index(source)]:
            assert f"*{term}*" not in " ".join(text for _, text in sections(earlier)), f"{term}: {earlier.name} has it before"


def sections(source):
    """(heading, text with its lines joined), in order."""
    parts = re.split(r"^# ##? (.*)\n", source.read_text(), flags=re.M)
    return [(heading, text.replace("\n# ", " ")) for heading, text in zip(parts[1::2], parts[2::2])]


def test_the_list_names_every_notebook():
    text = (HERE / "README.md").read_text()
    assert re.findall(r"^\| \[(\d\d_\w+)\]\(\1\.ipynb\)", text, re.M) == [source.stem for source in SOURCES]
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert (HERE / path).exists(), path


@each_source
def test_links_between_the_tutorials_lead_somewhere(source):
    for path in re.findall(r"\]\(([^)#\s]+\.ipynb)\)", source.read_text()):
        assert (HERE / path).exists(), path


def test_a_figure_is_written_as_svg_and_pdf_for_slides(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTORIAL_FIGURES", str(tmp_path))
    figure, (left, right) = drawing.panels(2)
    drawing.matrix(left, [[-0.006, 0], [1, 2]], "x", zeros="none")
    drawing.line(right, 1, [0, 1], [1, 0], "y")
    drawing.show(figure, "name")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name.pdf", "name.png", "name.svg"]
    assert [text.get_text() for text in left.texts] == ["-0.01", "none", "1.00", "2.00"]


def test_sliders_draw_where_there_is_somebody_to_move_them(monkeypatch):
    widgets = pytest.importorskip("ipywidgets", reason="ipywidgets is in the extra tutorials")
    drawn, made = [], []
    monkeypatch.setattr(drawing, "in_notebook", lambda: True)
    monkeypatch.setattr(drawing, "show", lambda figure, name: drawn.append((figure, name)))
    monkeypatch.setattr(widgets, "interact", lambda f, **choices: made.append((f, choices)))

    def picture(tau):
        return tau

    monkeypatch.setenv("TUTORIAL_STATIC", "1")
    drawing.step(picture, tau=(0, 1))
    assert not made
    monkeypatch.delenv("TUTORIAL_STATIC")
    drawing.step(picture, tau=(0, 1))
    (redraw, choices), = made
    redraw(tau=0.5)
    assert choices == {"tau": (0, 1)} and drawn == [(0.5, "picture")]


def test_the_first_tutorial_runs_as_a_script():
    subprocess.run([sys.executable, SOURCES[0].name], cwd=HERE, check=True, capture_output=True, timeout=120)


@pytest.mark.slow
@each_source
def test_every_tutorial_runs_in_three_minutes(source):
    subprocess.run([sys.executable, source.name], cwd=HERE, check=True, capture_output=True, timeout=180)
