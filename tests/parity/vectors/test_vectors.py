"""The frozen vectors: what they cover, where their edges are, that they are what the code computes and never change."""

import hashlib
import itertools
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from parity import vectors
from parity.commands import Vectors
from parity.vectors import cases, freeze, witnesses
from parity.vectors.cases.core import Definition
from sparc_ref import alignment, losses, model, ops

ROOT = Path(vectors.__file__).parents[1]
CASES = vectors.load()
DEFINED = {case.id: case for case in cases.definitions()}

# v1 as it was frozen: the number of its cases, and the digest of their entries in the manifest, in order: files' hashes,
# budgets, notes, everything.  New cases come after them; nothing before may change.  A new line for each writing.
FROZEN = {197: "d59fb348c5fd4daab637c5da26e216f3a3bc58b86858b9ea5e72af2f41aae4b4",
          218: "349817cf091516ed758c8e3169cdc82e1c8868b1d41cf7560a782d9a096754ab",
          220: "a3b8ab1c60c217ff04c09d62ab1e6fd3fa466be63351a071e5b24d423437d30e"}


def digest_of(entries):
    return hashlib.sha256(freeze.render({"cases": entries}).encode()).hexdigest()


def test_what_was_frozen_has_not_changed():
    entries = vectors.read_manifest(vectors.FOLDER)["cases"]
    for count, digest in FROZEN.items():
        assert digest_of(entries[:count]) == digest, "frozen vectors were rewritten: give the changed case a new name"
    assert len(entries) == max(FROZEN), f"new cases: add {len(entries)}: {digest_of(entries)!r} to FROZEN"


def test_the_whole_is_small():
    sizes = [path.stat().st_size for path in vectors.FOLDER.iterdir()]
    assert sum(sizes) <= freeze.TOTAL_LIMIT == 5_000_000


@pytest.mark.slow
def test_check_regenerates_them_all(capsys):
    """python -m parity vectors"""
    assert Vectors().run() == 0
    out = capsys.readouterr().out
    assert re.search(r"^\d+ cases, \d+ expected tensors, [\d.]+ MB: inputs bit for bit", out)


# --- what they cover -----------------------------------------------------------------------------------------------------


def test_every_level_and_function_has_cases():
    assert {case.level for case in CASES.values()} == set(cases.LEVELS)
    assert {case.function for case in CASES.values()} == set(cases.FUNCTIONS)
    assert CASES.keys() == DEFINED.keys()
    for case in CASES.values():
        assert cases.FUNCTIONS[case.function].level == case.level


def test_every_operation_has_cases():
    public = {n for n, f in vars(ops).items() if getattr(f, "__module__", "") == ops.__name__ and n[0] != "_"}
    assert public <= {case.function for case in CASES.values()}


def options_seen(*functions):
    seen = {}
    for case in CASES.values():
        if case.function in functions:
            for name, value in case.options.items():
                seen.setdefault(name, set()).add(value if not isinstance(value, list) else tuple(value))
    return seen


def test_every_option_of_the_decisions_table_has_cases():
    fine = options_seen("fine_grained_loss")
    for name, values in {**alignment.CHOICES, "reduction": losses.REDUCTIONS}.items():
        assert fine[name] == set(values), name
    assert {None, 0.0, 0.375, 0.5, 1.0} <= fine["sigma"]
    whole = options_seen("model")
    named = {"gelu": ("tanh", "erf"), "position_resize": ("bicubic", "linear"), "text_positions": ("learned", "none"),
             "text_pool": ("masked", "all"), "h_v": ("dense_gelu", "none"), "temperature": ("shared", "separate"),
             "reduction": losses.REDUCTIONS}
    for name, values in (named | {n: alignment.CHOICES[n] for n in ("similarity", "align", "threshold_on")}).items():
        assert whole[name] == set(values), name
    align = options_seen("align_patches")
    for name, values in alignment.CHOICES.items():
        assert align[name] | ({"nan"} if name == "flat" else set()) == set(values), name


def test_options_are_stated_in_full():
    """No default is left to be known: a reader in another language sees every one."""
    for case in CASES.values():
        if case.function == "fine_grained_loss":
            assert set(case.options) == {*alignment.CHOICES, "sigma", "reduction"}
        if case.function == "model":
            assert model.SPARCConfig(**case.options)


def test_every_flag_means_something_and_is_used():
    used = {flag for case in CASES.values() for flag in case.flags}
    assert used == set(cases.FLAGS)
    assert {"sigma_hit", "ties", "flat", "one_patch", "one_token", "all_padding", "padding", "temperature", "half"} <= used


def test_every_knife_edge_names_its_fault_and_its_answers():
    for case in CASES.values():
        if "ordinary" not in case.flags:
            assert "Caught: " in case.note, case.id
            assert case.accepts or case.note.endswith("Accepted: this answer alone."), case.id


EDGES = {
    "sigma exactly hit": "fine_sigma_hit", "on weights": "fine_weights_hit", "ties at the minimum": "fine_ties_minimum",
    "at the maximum": "fine_ties_maximum", "at both": "fine_ties_both", "flat rows": "fine_flat_uniform",
    "one token": "fine_one_token_each", "one patch": "fine_one_patch_uniform", "all padding": "fine_all_padding_caption_sample",
    "zeros": "fine_padding_zeros_sample", "huge": "fine_padding_huge_sample", "random": "fine_padding_words_sample",
    "theta 0": "fine_theta_zero",
    "log 100": "fine_theta_log100", "beyond": "fine_theta_beyond", "float16": "fine_float16", "bfloat16": "fine_bfloat16",
    "B = 1": "fine_one_sample", "unequal norms": "fine_unequal_norms",
}  # fmt: skip


@pytest.mark.parametrize("id", EDGES.values(), ids=EDGES)
def test_the_edges_are_where_they_say(id):
    """On the frozen numbers themselves, not on the code that drew them."""
    x = {n[3:]: witnesses.wide(y) for n, y in CASES[id].tensors.items() if n.startswith("in.")}
    s = (x["t"] @ x["v"].swapaxes(1, 2))[x["mask"]]
    low, high = s.min(-1, keepdims=True), s.max(-1, keepdims=True)
    flat = (low == high)[:, 0]
    with np.errstate(invalid="ignore"):
        s_hat = (s - low) / (high - low)
    patches = s.shape[-1]
    name = id.removeprefix("fine_")
    if name == "sigma_hit":
        assert np.all(np.sum(s_hat == 1 / patches, -1) == 1)
    elif name == "weights_hit":
        assert np.sum(s_hat / s_hat.sum(-1, keepdims=True) == 1 / patches) >= 3
    elif name.startswith("ties"):
        ends = {"minimum": [low], "maximum": [high], "both": [low, high]}[name[5:]]
        assert all(np.sum(np.sum(s == end, -1) > 1) >= 3 for end in ends)
        tied = [i for i in range(patches) if s[0, i] == ends[0][0]]
        assert len({x["v"][0, i].tobytes() for i in tied}) > 1, "tied patches are different patches"
    elif name.startswith("flat"):
        assert 0 < flat.sum() < len(flat)
    elif name.startswith("one_patch"):
        assert patches == 1
    elif name == "one_token_each":
        assert np.all(x["mask"].sum(1) == 1)
    elif name.startswith("all_padding"):
        assert 0 in x["mask"].sum(1)
    elif name.startswith("padding"):
        held = x["t"][~x["mask"]]
        assert {"zeros": not held.any(), "huge": np.all(held > 9e29), "words": np.all(held.any(-1))}[name.split("_")[1]]
    elif name.startswith("theta"):
        assert x["theta"] == {"zero": 0, "log100": np.float32(math.log(100)), "beyond": 6}[name[6:]]
    elif name == "one_sample":
        assert len(x["v"]) == 1
    elif name == "unequal_norms":
        norms = np.linalg.norm(x["v"], axis=-1)
        assert np.all(norms.max(1) > 8 * norms.min(1))
    else:
        assert CASES[id].input_dtype == name


def test_ordinary_cases_keep_their_margins():
    count = 0
    for id, case in CASES.items():
        if "ordinary" in case.flags:
            answer = {n: x for n, x in case.tensors.items() if n.startswith("mid.")}
            for what, margin in witnesses.margins(DEFINED[id], answer):
                assert margin >= witnesses.MARGIN == 1e-4, (id, what)
                count += 1
    assert count > 100


def test_no_two_dimensions_are_alike():
    """One letter, one size; another letter, another size.  Squares (I, J) and unchanged grids (O, P) are what they are."""
    for case in CASES.values():
        sizes = {}
        for name, letters in case.axes.items():
            for letter, size in zip(letters, case.tensors[name].shape, strict=True):
                assert sizes.setdefault(letter, size) == size, (case.id, name, letter)
        for (a, m), (b, n) in itertools.combinations(sizes.items(), 2):
            assert m != n or m == 1 or {a, b} in ({"I", "J"}, {"O", "P"}), f"{case.id}: {a} and {b} are both {m}"


def test_inputs_are_stored_exactly():
    for case in CASES.values():
        for name, x in case.tensors.items():
            kind = name.split(".")[0]
            allowed = {"in": ("float32", "int64", "bool"), "ct": ("float32",)}.get(kind, ("float64",))
            assert x.dtype in allowed, (case.id, name)
            if case.input_dtype != "float32" and x.dtype == np.float32:
                low = torch.tensor(x).to(getattr(torch, case.input_dtype))
                assert torch.equal(low.float(), torch.tensor(x)), f"{case.id}: {name} is not exact in {case.input_dtype}"


def test_upstream_gradients_can_tell():
    """Random ones: what passes with ones does not pass with these."""
    for case in CASES.values():
        for name, x in case.tensors.items():
            if name.startswith("ct.") and x.size > 1:
                assert np.unique(x).size > 1 and (x < 0).any() and (x > 0).any(), (case.id, name)
        assert any(n.startswith("ct.") for n in case.tensors) == (case.level != "steps")


def test_tf32_cannot_hide():
    """Inputs have more digits than TF32 and bfloat16 keep."""
    for case in CASES.values():
        if "ordinary" in case.flags:
            names = [n for n, x in case.tensors.items() if n.startswith("in.") and x.dtype == np.float32 and x.size > 8]
            assert any((case.tensors[n].view(np.uint32) & 0x1FFF).any() for n in names), case.id


def test_what_is_accepted_answers_the_same_question():
    found = [(case, other) for case in CASES.values() for other in case.alternatives]
    ends = ("minimum", "maximum", "both")
    assert {case.id for case, _ in found} == {f"{a}_ties_{b}" for a in ("fine", "align") for b in ends}
    for case, other in found:
        for name, x in case.tensors.items():
            if name.startswith(("in.", "ct.")):
                assert np.array_equal(x, other.tensors[name]), (case.id, name)
        assert case.accepts == (other.id,) and other.level == case.level


def test_what_changes_nothing_changes_nothing():
    """Cases that must have the same loss as another: padding, scales."""
    same = {f"fine_padding_{what}_sample": "fine_default" for what in ("zeros", "words", "like_words", "huge")}
    same |= {f"fine_padding_{what}_token": "fine_token_reduction" for what in ("zeros", "words", "like_words", "huge")}
    same |= dict.fromkeys(("fine_small_norms", "fine_flat_zero_unused", "fine_ties_first_unused"), "fine_default")
    for one, other in same.items():
        assert CASES[one].tensors["out.loss"] == pytest.approx(float(CASES[other].tensors["out.loss"]), rel=1e-14), one


# --- for implementers ----------------------------------------------------------------------------------------------------


def test_the_example_in_the_readme_runs():
    """parity/README.md's program, and what it prints."""
    text = (ROOT / "README.md").read_text()
    code, output = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", text, re.DOTALL).groups()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout == output


def test_the_readme_names_what_there_is():
    text = (ROOT / "README.md").read_text()
    assert f"{len(CASES)} frozen cases" in text
    for level in cases.LEVELS:
        assert f"`{level}`" in text
    for flag in cases.FLAGS:
        assert f"`{flag}`" in text, flag


def test_a_definition_says_no_more_than_it_uses():
    case = Definition("x", "softmax", {"z": np.ones((1, 1, 1), np.float32)})
    assert case.words == "" and replace(case, flags=("large",), note="A.").words == "A. Accepted: this answer alone."
