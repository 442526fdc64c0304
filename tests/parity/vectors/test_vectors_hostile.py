"""A folder that nobody vouches for: whatever is wrong with it is refused with the reason, and nothing outside of it is read."""

import os
import shutil

import numpy as np
import pytest
from tampering import KEPT, edit, entry, refused

from parity import vectors
from parity.commands import Vectors
from parity.vectors import cases, freeze, read, safe_read


def test_the_sound_folder_loads(folder):
    assert set(vectors.load(folder)) == set(KEPT)


# --- the manifest's own digest ------------------------------------------------------------------------------------------


@pytest.fixture
def frozen(tmp_path, monkeypatch):
    """A copy of the vectors that the code takes for its own."""
    copy = shutil.copytree(vectors.FOLDER, tmp_path / "v1")
    monkeypatch.setattr(read, "FOLDER", copy)
    return copy


def test_every_flipped_bit_of_the_manifest_is_refused(frozen):
    """Budgets, scales, notes: bits that neither the schema nor any other check of the manifest can miss."""
    path = frozen / vectors.MANIFEST
    content = path.read_bytes()
    read.read_manifest(frozen)
    rng = np.random.default_rng(7)
    for at in [0, len(content) - 1, content.index(b'"budget"') + 30, *rng.integers(0, len(content), 60).tolist()]:
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :])
        refused(frozen, f"manifest.json: refused: its sha256 is .*, that of the frozen one is {read.DIGEST[:12]}")
    for changed in (content + b" ", content[:-1], b""):
        path.write_bytes(changed)
        refused(frozen, "manifest.json: refused: its sha256 is")
    path.write_bytes(content)
    assert len(read.read_manifest(frozen)["cases"]) == 220


def test_another_folder_has_no_digest_and_says_so(few_cases, folder, capsys):
    assert freeze.main(Vectors(folder=folder)) == 0
    assert f"{folder}: no digest in the code to compare with" in capsys.readouterr().out


def test_writing_into_the_vectors_of_the_package_prints_the_digest(few_cases, folder, monkeypatch, capsys):
    monkeypatch.setattr(read, "FOLDER", folder)
    monkeypatch.setattr(read, "DIGEST", safe_read.digest((folder / vectors.MANIFEST).read_bytes()))
    few_cases.append(next(case for case in cases.definitions() if case.id == "softmax"))
    assert freeze.main(Vectors(write=True)) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    refused(folder, "its sha256 is")
    assert said == f'DIGEST = "{safe_read.digest((folder / vectors.MANIFEST).read_bytes())}"'
    monkeypatch.setattr(read, "DIGEST", said.split('"')[1])
    assert len(vectors.load(folder)) == 5


@pytest.fixture
def few_cases(monkeypatch):
    """Only the cases of `folder` are defined."""
    kept = [case for case in cases.definitions() if case.id in KEPT]
    monkeypatch.setattr(freeze, "definitions", lambda: list(kept))
    return kept


# --- files ---------------------------------------------------------------------------------------------------------------


def test_tampered(folder):
    path = folder / "global_default.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    refused(folder, "global_default.safetensors: refused: its sha256 is not the manifest's")


def test_truncated(folder):
    path = folder / "global_default.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    refused(folder, r"global_default.safetensors: refused: \d+ bytes, the manifest says \d+")


def test_longer(folder):
    path = folder / "global_default.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    refused(folder, r"refused: \d+ bytes, the manifest says")


def test_far_too_long_is_not_read(folder, monkeypatch):
    with open(folder / "global_default.safetensors", "wb") as file:
        file.truncate(1 << 40)                                # sparse: a terabyte of nothing
    refused(folder, "refused: 1099511627776 bytes, where at most 1048576 are allowed")


def test_renamed(folder):
    (folder / "global_default.safetensors").rename(folder / "global_other.safetensors")
    refused(folder, "global_default.safetensors: the file is missing")


def test_exchanged(folder):
    a, b = folder / "global_default.safetensors", folder / "global_one_sample.safetensors"
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    refused(folder, "refused")


def test_missing(folder):
    (folder / "global_default.safetensors").unlink()
    refused(folder, "global_default.safetensors: the file is missing")


@pytest.mark.parametrize("name", ["extra.safetensors", "notes.txt", ".hidden", "manifest.json.bak"])
def test_extra(folder, name):
    (folder / name).write_bytes(b"x")
    refused(folder, f"{name}: refused: no case names this file")


def test_a_folder_inside(folder):
    (folder / "more").mkdir()
    refused(folder, "more: refused: it is not a plain file")


def test_a_link(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes((folder / "global_default.safetensors").read_bytes())
    (folder / "global_default.safetensors").unlink()
    (folder / "global_default.safetensors").symlink_to(secret)
    refused(folder, "global_default.safetensors: refused: it is a link")


def test_a_link_that_comes_between_listing_and_reading(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (folder / "link").symlink_to(secret)
    with pytest.raises(ValueError, match="link: refused"):
        safe_read.read_bytes(folder, "link", 100)


def test_the_manifest_as_a_link(folder, tmp_path):
    (folder / vectors.MANIFEST).rename(tmp_path / "elsewhere.json")
    (folder / vectors.MANIFEST).symlink_to(tmp_path / "elsewhere.json")
    refused(folder, "manifest.json: refused: it is a link")


def test_a_pipe_does_not_block(folder):
    (folder / "global_default.safetensors").unlink()
    os.mkfifo(folder / "global_default.safetensors")
    refused(folder, "it is not a plain file")


def test_names_that_differ_in_case_alone(folder):
    (folder / "GLOBAL_default.safetensors").write_bytes(b"x")
    refused(folder, "global_default.safetensors: refused: it differs from GLOBAL_default.safetensors in case alone")


def test_another_case_of_letters(folder):
    (folder / "global_default.safetensors").rename(folder / "Global_default.safetensors")
    refused(folder, "global_default.safetensors: the file is missing")


def test_no_folder(tmp_path):
    refused(tmp_path / "none", "there is no such folder")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "there is no such folder")


def test_no_manifest(folder):
    (folder / vectors.MANIFEST).unlink()
    refused(folder, "manifest.json: the file is missing")


# --- names that lead outside ---------------------------------------------------------------------------------------------


OUTSIDE = ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "C:\\x.safetensors", "a\\b.safetensors",
           "GLOBAL_DEFAULT.safetensors", "global_default.safetensors ", "glöbal.safetensors", "x\0.safetensors",
           "~/x.safetensors", "global_default.safetensors\n", "global_default.pkl", "con", "file:///etc/passwd",
           ".global_default.safetensors"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_file_names_that_are_not_plain(folder, name, monkeypatch):
    edit(folder, lambda m: entry(m).update(file=name))
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *a, **k: (opened.append(str(path)), real(path, *a, **k))[1])
    refused(folder, "manifest.json: refused: (cases/|global_default: expected the file)")
    assert opened == [str(folder.resolve() / vectors.MANIFEST)], "nothing but the manifest was opened"


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name != "con"] + ["global_default\n"])
def test_ids_that_are_not_plain(folder, name):
    edit(folder, lambda m: entry(m).update(id=name, file=f"{name}.safetensors"))
    refused(folder, "manifest.json: refused")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a\\b", "a\0b"])
def test_read_bytes_refuses_paths(folder, name):
    with pytest.raises(ValueError, match="not the plain name of a file"):
        safe_read.read_bytes(folder, name, 100)


def test_a_file_of_another_case(folder):
    edit(folder, lambda m: entry(m).update(file="global_one_sample.safetensors"))
    refused(folder, "global_default: expected the file global_default.safetensors, got global_one_sample.safetensors")


# --- the manifest --------------------------------------------------------------------------------------------------------


def text(folder, old, new):
    path = folder / vectors.MANIFEST
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"version": 1', '"version": 1, "version": 1', "the key 'version' stands twice"),
        ('"version": 1', '"version": 2', "version: 1 was expected"),
        ('"version": 1', '"version": 1, "more": 0', "Additional properties are not allowed"),
        ('"slack": 8.0', '"slack": NaN', "the number NaN is not finite"),
        ('"slack": 8.0', '"slack": Infinity', "the number Infinity is not finite"),
        ('"slack": 8.0', '"slack": -Infinity', "the number -Infinity is not finite"),
        ('"slack": 8.0', '"slack": 1e999', "the number 1e999 is not finite"),
        ('"slack": 8.0', '"slack": 0', "less than the minimum"),
        ('"slack": 8.0', '"slack": "8"', "is not of type 'number'"),
        ('"slack": 8.0', '"slack": ' + "9" * 5000, "of 5000 digits is not finite"),
        ('"slack": 8.0', '"slack": ' + "[" * 5000 + "]" * 5000, "nested 500. deep"),
        ('"slack": 8.0', '"slack": ' + "[" * 200000, "nested 20000. deep"),
        ('"slack": 8.0', '"slack": ', "Expecting value"),
        ('"format": "sparc-vectors"', '"format": "others"', "'sparc-vectors' was expected"),
    ],
)
def test_json_that_tries_something(folder, old, new, reason):
    text(folder, old, new)
    refused(folder, f"manifest.json: refused: .*{reason}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e.update(more=1), "Additional properties"),
        (lambda e: e.pop("sha256"), "'sha256' is a required property"),
        (lambda e: e.update(sha256="0" * 63), "does not match"),
        (lambda e: e.update(bytes=1 << 40), "greater than the maximum"),
        (lambda e: e.update(bytes=-1), "less than the minimum"),
        (lambda e: e.update(level="secret"), "is not one of"),
        (lambda e: e.update(input_dtype="float8"), "is not one of"),
        (lambda e: e.update(flags=[]), "non-empty|too short"),
        (lambda e: e.update(flags=["unheard_of"]), "flags without a meaning: unheard_of"),
        (lambda e: e.update(options={"a b": 1}), "does not match any of the regexes|Additional properties"),
        (lambda e: e.update(options={"x": {"deep": 1}}), "is not valid under any"),
        (lambda e: e.update(accepts=["nowhere"]), "accepts nowhere, which is no earlier case"),
        (lambda e: e.update(accepts=["global_default"]), "accepts global_default, which is no earlier case"),
        (lambda e: e["tensors"].update({"in.../x": e["tensors"]["in.v_bar"]}), "regexes"),
        (lambda e: e["tensors"].update({"secret.x": e["tensors"]["in.v_bar"]}), "regexes"),
        (lambda e: e["tensors"]["in.v_bar"].update(dtype="F8"), "is not one of"),
        (lambda e: e["tensors"]["in.v_bar"].update(budget={}), "Additional properties"),
        (lambda e: e["tensors"]["out.loss"].update(scale=0), "less than or equal to the minimum"),
        (lambda e: e["tensors"]["out.loss"]["budget"].update(float8=1), "Additional properties"),
        (lambda e: e["tensors"]["out.loss"]["budget"].pop("float64"), "'float64' is a required property"),
        (lambda e: e["tensors"]["out.loss"]["budget"].update(float32=-1), "minimum"),
        (lambda e: e["tensors"]["in.v_bar"].update(shape=[1 << 40, 1]), "greater than the maximum"),
        (lambda e: e["tensors"]["in.v_bar"].update(shape=[1 << 20, 1 << 20]), "does not fit a file"),
        (lambda e: e["tensors"]["in.v_bar"].update(shape=[1 << 20] * 8, axes="ABCDEFGH"), "does not fit a file"),
        (lambda e: e["tensors"]["in.v_bar"].update(shape=[-4, -6]), "less than the minimum"),
        (lambda e: e["tensors"]["in.v_bar"].update(shape=[4.5, 6]), "is not of type 'integer'"),
        (lambda e: e["tensors"]["in.v_bar"].update(shape=[4]), "axes 'BD', shape"),
        (lambda e: e["tensors"]["mid.logits"].update(padding=[1]), "has padding, the case has no mask"),
    ],
)
def test_entries_that_are_not_as_the_schema_says(folder, change, reason):
    edit(folder, lambda m: change(entry(m)))
    refused(folder, f"manifest.json: refused: .*({reason})")


def test_padding_along_an_axis_that_is_not_the_masks(folder):
    edit(folder, lambda m: entry(m, "fine_ties_minimum")["tensors"]["grad.v"].update(padding=[2]))
    refused(folder, "fine_ties_minimum: grad.v: padding along axis 2, which is not the mask's")
    edit(folder, lambda m: entry(m, "fine_ties_minimum")["tensors"]["grad.v"].update(padding=[7]))
    refused(folder, "fine_ties_minimum: grad.v: padding along axis 7, which is not the mask's")


def test_a_case_that_stands_twice(folder):
    edit(folder, lambda m: m["cases"].append(entry(m)))
    refused(folder, "the case global_default stands twice")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b"\xff\xfe", b'"cases"', b"{" * 10])
def test_no_manifest_at_all(folder, content):
    (folder / vectors.MANIFEST).write_bytes(content)
    refused(folder, "manifest.json: refused")


def test_an_oversized_manifest_is_not_read(folder):
    with open(folder / vectors.MANIFEST, "ab") as file:
        file.truncate(1 << 40)
    refused(folder, "manifest.json: refused: 1099511627776 bytes, where at most 4194304 are allowed")
