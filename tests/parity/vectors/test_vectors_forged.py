"""Files that agree with a forged manifest: what is inside is refused all the same; and what the parser reads of sound ones."""

import json

import numpy as np
import pytest
from safetensors.numpy import save
from tampering import build, edit, entry, header, refused, replace

from parity import vectors
from parity.vectors import safe_read


def forge(folder, change):
    """Change a file's header or body, and the manifest's bytes and hash with it."""
    head, body = header((folder / "global_default.safetensors").read_bytes())
    result = change(head, body)
    head, body = (head, body) if result is None else result
    replace(folder, build(head, body))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h, b: (h | {"__metadata__": {"a": "b"}}, b), "tensors differ from the manifest's in __metadata__"),
        (lambda h, b: ({n: x for n, x in h.items() if n != "out.loss"}, b), "tensors differ from the manifest's in out.loss"),
        (lambda h, b: (h | {"out.more": h["out.loss"]}, b), "tensors differ from the manifest's in out.more"),
        (lambda h, b: h["out.loss"].update(dtype="F32"), r"out.loss is F32 \[\], the manifest says F64 \[\]"),
        (lambda h, b: h["in.v_bar"].update(shape=[6, 4]), r"in.v_bar is F32 \[6, 4\], the manifest says F32 \[4, 6\]"),
        (lambda h, b: h["in.v_bar"].update(shape=[1 << 40, 1 << 40]), "the manifest says"),
        (lambda h, b: h["out.loss"].update(more=1), "expected dtype, shape and data_offsets"),
        (lambda h, b: h.update({"out.loss": 7}), "expected dtype, shape and data_offsets"),
        (lambda h, b: h["out.loss"].update(data_offsets=[0, 1 << 50]), "where 8 are needed"),
        (lambda h, b: h["out.loss"].update(data_offsets=[-8, 0]), "where 8 are needed"),
        (lambda h, b: h["out.loss"].update(data_offsets=[8, 0]), "where 8 are needed"),
        (lambda h, b: h["out.loss"].update(data_offsets=["0", "8"]), "data_offsets"),
        (lambda h, b: h["out.loss"].update(data_offsets=[0.0, 8.0]), "data_offsets"),
        (lambda h, b: h["out.loss"].update(data_offsets=[True, 9]), "data_offsets"),
        (lambda h, b: h["out.loss"].update(data_offsets=h["ct.loss"]["data_offsets"]), "where 8 are needed"),
        (lambda h, b: h["grad.v_bar"].update(data_offsets=h["grad.t_bar"]["data_offsets"]), "gap or overlap"),
        (lambda h, b: (h, b + b"\0" * 8), "8 bytes belong to no tensor"),
        (lambda h, b: (h, b[:-8]), "are needed"),
        (lambda h, b: (b"{" * 200, b), "nested 200 deep"),
        (lambda h, b: (b"[]", b), "tensors differ"),
        (lambda h, b: (b"\xff", b), "not UTF-8"),
        (lambda h, b: (json.dumps(h)[:-1].encode() + b', "out.loss": 1}', b), "the key 'out.loss' stands twice"),
    ],
)
def test_a_forged_file(folder, change, reason):
    forge(folder, change)
    refused(folder, f"global_default.safetensors: refused: .*{reason}")


@pytest.mark.parametrize("content", [b"", b"1234567", (1 << 62).to_bytes(8, "little"), (1 << 62).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_no_safetensors(folder, content):
    (folder / "global_default.safetensors").write_bytes(content)
    size = max(8, len(content))
    edit(folder, lambda m: entry(m).update(bytes=size, sha256=safe_read.digest(content)))
    refused(folder, "global_default.safetensors: refused")


def test_a_pickle_is_never_loaded(folder):
    import pickle

    content = pickle.dumps({"out.loss": np.zeros(3)})
    replace(folder, content)
    refused(folder, "global_default.safetensors: refused: its header claims")


def test_a_bool_that_is_neither(folder):
    path = folder / "fine_ties_minimum.safetensors"
    head, body = header(path.read_bytes())
    start, end = head["in.mask"]["data_offsets"]
    replace(folder, build(head, body[:start] + b"\2" * (end - start) + body[end:]), "fine_ties_minimum")
    refused(folder, "in.mask holds a bool that is neither 0 nor 1")


def test_what_is_loaded_does_not_hang_on_the_files_bytes(folder):
    case = vectors.load(folder)["global_default"]
    case.tensors["in.v_bar"][:] = 0
    assert vectors.load(folder)["global_default"].tensors["in.v_bar"].any()


def test_the_parser_reads_what_safetensors_writes(folder):
    from safetensors.numpy import load as theirs

    for name, case in vectors.load(folder).items():
        other = theirs((folder / f"{name}.safetensors").read_bytes())
        assert other.keys() == case.tensors.keys()
        for n, x in other.items():
            assert x.dtype == case.tensors[n].dtype and np.array_equal(x, case.tensors[n], equal_nan=x.dtype == float)


def test_a_view_is_written_as_what_it_shows(tmp_path):
    """safetensors writes the memory behind a view; the writer copies first."""
    x = np.arange(6.0).reshape(2, 3).T
    content = save({"x": np.array(x, order="C")})
    found = safe_read.parse_safetensors(content, "x", {"x": {"dtype": "F64", "shape": [3, 2]}})["x"]
    assert np.array_equal(found, x)
