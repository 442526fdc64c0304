"""A batch of a training run: what gives its numbers, what cannot be told apart on it, and files that are refused by name."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import zoo_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import parity
from parity.checker.dump import compare, file
from parity.checker.dump.judge import judge
from parity.checker.verdict import one_thread

F = np.float32


def batch_of(seed=5, lengths=(7, 3, 5, 1, 6), patches=8, tokens=8, theta=2.0):
    draw = torch.Generator().manual_seed(seed)
    size = len(lengths)
    v = torch.randn(size, patches, 16, generator=draw) * (0.5 + torch.rand(size, patches, 1, generator=draw))
    t = torch.randn(size, tokens, 16, generator=draw)
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    v, t = v.double(), t.double()
    return zoo_cases.Batch(v, t, mask, torch.tensor(theta, dtype=torch.float64), v.mean(1), t.mean(1))


def arrays_of(name, batch, kind="faulty", dtype=F, gradients=True):
    """What a training run with a loss of the zoo would have written."""
    loss, grads = zoo_cases.answer(zoo_cases.ZOO / kind / f"{name}.py", batch, "fine")
    arrays = {"v": batch.v.numpy(), "t": batch.t.numpy(), "theta": batch.theta.numpy(), "loss": np.asarray(loss)}
    arrays |= {f"grad_{k}": np.asarray(grads[k]) for k in ("v", "t", "theta") if gradients and grads.get(k) is not None}
    return {k: np.asarray(x, dtype) for k, x in arrays.items()} | {"mask": batch.mask.numpy()}


def judged(path, arrays, **options):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({k: np.ascontiguousarray(x).reshape(np.shape(x)) for k, x in arrays.items()}, path)
    with one_thread():
        return judge(path, **options)


def names(report):
    return [m.name for m in report.matches]


@pytest.mark.parametrize("kind, name, verdict, first", [pytest.param(*x, marks=pytest.mark.slow if n % 3 else ()) for n, x in (
    enumerate([
    ("sound", "loop_over_tokens", "eq6", "eq. 6"), ("sound", "float32_inside", "eq6", "eq. 6"),
    ("sound", "listing_einsum", "listing1", "Listing 1"), ("faulty", "similarity_cosine", "explained", "similarity.cosine"),
    ("faulty", "threshold_hard_coded", "explained", "threshold.constant(0.3)"),
    ("faulty", "temperature_hard_coded", "explained", "logits.temperature_constant(0.07)"),
    ("faulty", "no_half", "explained", "loss.factor(2)"), ("faulty", "one_direction_tv", "explained", "loss.one_direction(tv)"),
    ("faulty", "patches_group_tokens", "explained", "similarity.patches_group"),
    ("faulty", "negatives_of_the_batch", "explained", "logits.batch_negatives, reduction.token"),
    ("faulty", "usual_suspects", "explained", "similarity.cosine, grouping.normalised_patches"),
    ("outside", "l1_norm", "unexplained", None),
]))])
def test_what_gives_the_numbers(tmp_path, kind, name, verdict, first):
    report = judged(tmp_path / "batch.npz", arrays_of(name, batch_of(), kind))
    if name in ("loop_over_tokens", "similarity_cosine"):  # the other format, once sound and once faulty
        other = judged(tmp_path / "batch.safetensors", arrays_of(name, batch_of(), kind))
        assert (names(other), other.verdict) == (names(report), verdict)
    assert report.verdict == verdict and report.exit_code == (verdict != "eq6")
    assert first is None or names(report)[0] == first
    assert (first or "Nothing that was computed here") in str(report) and report.summary.startswith("SPARC, on this batch: ")
    assert json.loads(report.to_json())["verdict"] == verdict


def test_what_cannot_be_told_apart_is_listed_with_what_hides_it(tmp_path):
    report = judged(tmp_path / "a.npz", arrays_of("loop_over_tokens", batch_of(lengths=(5, 5, 5), tokens=5), "sound"))
    assert {"Listing 1", "logits.padding_not_masked", "reduction.mean_all"} <= set(names(report))
    said = {line.split("  ")[2].strip(): line for line in str(report).splitlines() if line.startswith("    ") and "(" in line}
    assert "hidden here: no padding" in said["logits.padding_not_masked"]
    assert "equal lengths" in said["Listing 1"]
    padded = judged(tmp_path / "b.npz", arrays_of("loop_over_tokens", batch_of(), "sound"))
    assert not {"Listing 1", "logits.padding_not_masked", "reduction.mean_all"} & set(names(padded))
    assert judged(tmp_path / "a.npz", arrays_of("listing_einsum", batch_of(), "sound"), accept=("listing1",)).exit_code == 0


def test_without_gradients_what_changes_them_alone_is_not_ruled_out(tmp_path):
    report = judged(tmp_path / "a.npz", arrays_of("weights_detached", batch_of(), gradients=False))
    assert report.verdict == "eq6" and {"weights.detached", "similarity.detached"} <= set(names(report))
    assert any("no gradients" in note for note in report.notes)
    report = judged(tmp_path / "a.npz", arrays_of("weights_detached", batch_of()))
    assert "eq. 6" not in names(report) and "weights.detached" in names(report)


def test_a_wrong_gradient_is_said_by_itself(tmp_path):
    arrays = arrays_of("loop_over_tokens", batch_of(), "sound")
    report = judged(tmp_path / "a.npz", arrays | {"grad_t": arrays["grad_t"][:, ::-1]})
    assert report.verdict == "unexplained" and report.nearest[0].name == "eq. 6"
    assert any("the loss is eq. 6's" in n and "that of t is off" in n and "that of v is right" in n for n in report.notes)
    spoilt = np.full_like(arrays["grad_v"], np.nan)        # NaN is no other NaN's equal
    report = judged(tmp_path / "a.npz", arrays | {"grad_v": spoilt})
    assert report.verdict == "unexplained" and any("that of v is not finite" in n for n in report.notes)


@pytest.mark.parametrize("change, first, words", [
    (lambda x: {"grad_t": -x["grad_t"]}, "gradient.t.sign", ""),
    (lambda x: {"grad_v": 0.25 * x["grad_v"]}, "gradient.v.factor(0.25)", ""),
    (lambda x: {"grad_theta": x["grad_theta"] * np.exp(-2.0)}, "gradient.theta.of_scale", "chain through exp"),
    (lambda x: {"grad_theta": -x["grad_theta"] * np.exp(2.0)}, "gradient.theta.of_tau", ""),
    (lambda x: {k: 65536 * g for k, g in x.items() if "grad" in k}, "eq. 6, all gradients times 65536", "loss scaling"),
    (lambda x: {k: g / 8 for k, g in x.items() if k == "loss" or "grad" in k}, "loss.factor(0.125)", "0.125 times"),
])
def test_what_is_a_multiple_of_the_right_one_is_named(tmp_path, change, first, words):
    arrays = arrays_of("loop_over_tokens", batch_of(), "sound", np.float64)
    report = judged(tmp_path / "a.npz", arrays | change(arrays))
    assert names(report)[0] == first and report.exit_code == 1 and words in str(report)
    assert first.upper().startswith("EQ. 6") == (report.title == first)


@pytest.mark.parametrize("dtype, factor", [(F, 1.004), (np.float64, 1 + 5e-7)])
def test_a_gradient_that_is_a_little_off_is_no_equal(tmp_path, dtype, factor):
    """Beyond rounding, and near 1."""
    arrays = arrays_of("loop_over_tokens", batch_of(), "sound", dtype)
    for leaf in ("v", "theta"):
        report = judged(tmp_path / "a.npz", arrays | {f"grad_{leaf}": (factor * arrays[f"grad_{leaf}"]).astype(dtype)})
        assert names(report)[0].startswith(f"gradient.{leaf}.factor(") and report.verdict == "explained"


@pytest.mark.parametrize("a, b, gradients, verdict, first", [
    (1.0, 0.0, True, "eq1", "eq. 1, of means"), (0.5, 1.0, True, "total", "0.5 eq. 1 + eq. 6, of means"),
    (0.3, 2.0, True, "total", "0.3 eq. 1 + 2 eq. 6, of means"), (1.0, 1.0, False, "total", "eq. 1 + eq. 6, of means"),
])
def test_the_global_loss_and_totals(tmp_path, a, b, gradients, verdict, first):
    batch = batch_of()
    v, t, theta = (getattr(batch, name).clone().requires_grad_() for name in ("v", "t", "theta"))
    pooled = v.mean(1), torch.where(batch.mask[..., None], t, 0.0).sum(1) / batch.mask.sum(1, keepdim=True)
    z = theta.exp() * torch.nn.functional.normalize(pooled[0], dim=1) @ torch.nn.functional.normalize(pooled[1], dim=1).T
    target = torch.arange(len(z))
    one = (torch.nn.functional.cross_entropy(z, target) + torch.nn.functional.cross_entropy(z.T, target)) / 2
    x = arrays_of("loop_over_tokens", batch, "sound", np.float64)
    grads = dict(zip(("v", "t", "theta"), torch.autograd.grad(one, (v, t, theta))))
    x["loss"] = a * one.item() + b * x["loss"]
    for name, g in grads.items():
        x[f"grad_{name}"] = a * g.numpy() + b * x[f"grad_{name}"]
    report = judged(tmp_path / "a.npz", {k: y for k, y in x.items() if gradients or "grad" not in k})
    assert report.verdict == verdict and names(report)[0].startswith(first) and report.exit_code == 0
    assert report.title.endswith("by value alone") == (not gradients)


def test_a_constant_temperature_is_solved_for(tmp_path):
    x = arrays_of("loop_over_tokens", batch_of(theta=-np.log(0.083)), "sound", np.float64)
    x |= {"theta": np.asarray(2.0), "grad_theta": np.asarray(0.0)}
    assert names(judged(tmp_path / "a.npz", x)) == ["logits.temperature_constant(0.083)"]


def test_a_loss_out_of_a_log_is_compared_to_its_digits_and_what_is_not_finite_to_nothing(tmp_path):
    x = arrays_of("loop_over_tokens", batch_of(), "sound", np.float64)
    report = judged(tmp_path / "a.npz", x | {"loss": np.asarray(round(float(x["loss"]), 4))})
    assert report.verdict == "eq6" and any("digits, and is compared to as many" in n for n in report.notes)
    spoilt = judged(tmp_path / "a.npz", x | {"loss": np.asarray(np.inf)})  # NaN is what masked rows make, and no infinity
    assert spoilt.verdict == "unexplained" and "logits.nan_all_masked_rows" not in names(spoilt)
    assert "logits.nan_all_masked_rows" in names(judged(tmp_path / "a.npz", x | {"loss": np.asarray(np.nan)}))
    for loss in (np.inf, np.nan):
        only = {k: y for k, y in x.items() if "grad" not in k} | {"loss": np.asarray(loss)}
        report = judged(tmp_path / "a.npz", only)
        assert report.verdict == "unexplained" and not report.nearest and any("many things" in n for n in report.notes)


def test_how_far_bfloat16_moves_it_is_said_beside(tmp_path):
    x = arrays_of("loop_over_tokens", batch_of(), "sound")
    rounded = {name: torch.tensor(x[name]).bfloat16().float().numpy() for name in ("v", "t")}
    report = judged(tmp_path / "a.npz", x | rounded)      # the embeddings were saved in bfloat16, after the loss
    assert report.verdict == "unexplained" and any("rounded to bfloat16" in n for n in report.notes)


def test_one_token_per_caption_tells_nothing(tmp_path):
    x = arrays_of("loop_over_tokens", batch_of(lengths=(1, 1, 1), tokens=1), "sound")
    assert any("no caption has two tokens" in n for n in judged(tmp_path / "a.npz", x).notes)


@pytest.mark.parametrize("name, value, slope", [
    ("tau", np.exp(-2.0), -np.exp(2.0)), pytest.param("scale", np.exp(2.0), np.exp(-2.0), marks=pytest.mark.slow)])
def test_any_kind_of_temperature(tmp_path, name, value, slope):
    arrays = arrays_of("loop_over_tokens", batch_of(), "sound", np.float64)
    arrays[name], arrays[f"grad_{name}"] = np.asarray(value), arrays.pop("grad_theta") * slope
    del arrays["theta"]
    report = judged(tmp_path / "a.npz", arrays)
    assert report.verdict == "eq6" and report.gradients == ("t", "theta", "v") and report.tolerance[0] == 1e-9
    arrays[f"grad_{name}"] *= 1.001
    assert judged(tmp_path / "a.npz", arrays).verdict != "eq6"


def test_a_file_that_means_something_else(tmp_path):
    arrays = arrays_of("loop_over_tokens", batch_of(), "sound")
    report = judged(tmp_path / "a.npz", arrays | {"mask": ~arrays["mask"]})
    assert names(report) == ["eq. 6, if the mask marks padding"] and report.verdict == "explained"
    as_scale = {k: x for k, x in arrays.items() if "theta" not in k} | {"scale": arrays["theta"]}
    assert "eq. 6, if scale is log(1/tau)" in names(judged(tmp_path / "a.npz", as_scale))


def test_real_sizes_take_seconds_and_pairs_only_where_there_is_time(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "PAIRS_SECONDS", 0.0)
    report = judged(tmp_path / "a.npz", arrays_of("l1_norm", batch_of(), "outside"))
    assert report.tried["pairs"] == 0 and any("pairs of deviations were not tried" in note for note in report.notes)


def test_the_command_and_parity_check(tmp_path):
    path = tmp_path / "batch.npz"
    judged(path, arrays_of("similarity_cosine", batch_of()))
    assert parity.check(path).verdict == "explained" == parity.check(str(path)).verdict
    with pytest.raises(ValueError, match="mask: these options are for code"):
        parity.check(path, mask="padding")
    done = subprocess.run([sys.executable, "-m", "parity", "check", str(path), "--json", str(tmp_path / "out.json")],
                          capture_output=True, text=True, timeout=120, cwd=tmp_path,
                          env={"PYTHONPATH": parity.__path__[0] + "/.."})
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].endswith("not eq. 6, but known: similarity.cosine")
    assert json.loads((tmp_path / "out.json").read_text())["matches"][0]["name"] == "similarity.cosine"
    assert not (tmp_path / "runs").exists()


# --------------------------------------------------------------------------------------------------------------- hostile files


@pytest.fixture(scope="module")
def plain():
    return arrays_of("loop_over_tokens", batch_of(), "sound")


def pickled():
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([{}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def claims(shape):
    """A header that claims an array, and no array."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize("change, words", [
    ({"v": np.zeros((5, 8, 4), F)}, "same B and D"), ({"v": np.zeros((5, 8), F)}, r"expected v \(B,P,D\)"),
    ({"mask": np.ones((5, 7), bool)}, "mask: expected"), ({"mask": np.full((5, 8), 2)}, "1 for real tokens"),
    ({"v": np.full((5, 8, 16), np.nan, F)}, "v holds NaN"), ({"t": np.full((5, 8, 16), np.inf, F)}, "t holds NaN or infinity"),
    ({"theta": F(90)}, "between"), ({"tau": F(0.1)}, "got theta and tau"), ({"theta": None}, "got none"),
    ({"loss": None}, "loss is missing"), ({"loss": np.zeros(5, F)}, "loss: expected shape"),
    ({"grad_v": np.zeros((5, 16, 8), F)}, "grad_v: expected shape"), ({"logits": F(1)}, "'logits' is none of"),
    ({"v": np.zeros((5, 8, 16), np.float16)}, "expected float32 or float64"),
    ({"v": np.zeros((5, 8, 16), complex)}, "complex128"),
    ({"\x1b[2J": F(1)}, r"\\x1b\[2J"), ({"theta": None, "scale": F(-1)}, "expected a positive number"),
])
def test_wrong_arrays_are_refused_by_name(tmp_path, plain, change, words):
    arrays = {k: x for k, x in (plain | change).items() if x is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=rf"a.npz: .*{words}") as stop:
        judge(tmp_path / "a.npz")
    assert "\x1b" not in str(stop.value)


@pytest.mark.parametrize("members, words", [
    ({"v.npy": pickled()}, "not an array|expected float32"), ({"v.npy": claims((1 << 40,))}, "needs 8796093022208 bytes"),
    ({"v.npy": claims((-1, 5))}, "v: "), ({"v.npy": b"\x93NUMPY\x09\x00" + bytes(100)}, "not an array"),
    ({"v.npy": b"x"}, "not an array"),
    ({"v.npy": b"\x93NUMPY\x01\x00\x20\x00" + b"{'descr': __import__('os'),     "}, "not an array"),
    ({f"x{i}.npy": b"" for i in range(100)}, "107 members"), ({"../../v.npy": b""}, "none of"),
])
def test_hostile_archives_are_refused(tmp_path, plain, members, words):
    rest = io.BytesIO()
    np.savez(rest, **{k: x for k, x in plain.items() if k != "v"})
    with zipfile.ZipFile(rest, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    (tmp_path / "a.npz").write_bytes(rest.getvalue())
    with pytest.raises(ValueError, match=words):
        judge(tmp_path / "a.npz")


def test_a_bomb_is_refused_before_it_is_opened(tmp_path, plain, monkeypatch):
    monkeypatch.setattr(file, "FILE_LIMIT", 1 << 20)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("v.npy", bytes(1 << 22))
    assert len(bomb.getvalue()) < 1 << 14
    (tmp_path / "a.npz").write_bytes(bomb.getvalue())
    with pytest.raises(ValueError, match="at most 1048576 are read"):
        judge(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(bytes(1 << 21))
    with pytest.raises(ValueError, match="at most"):
        judge(tmp_path / "b.npz")
    monkeypatch.setattr(file, "MOST", 100)
    np.savez(tmp_path / "c.npz", **plain)
    with pytest.raises(ValueError, match="save a smaller batch"):
        judge(tmp_path / "c.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_what_is_no_file_of_that_kind(tmp_path, name):
    with pytest.raises(ValueError, match="missing"):
        judge(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=name):
        judge(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=rf"{name}: refused: it is a link"):
        judge(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        parity.check(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pt", "a.npy"])
def test_other_formats_are_told_which_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{name}: batches are read from .npz"):
        parity.check(tmp_path / name)


def test_one_gradient_of_one_temperature(tmp_path, plain):
    np.savez(tmp_path / "a.npz", **plain | {"grad_theta": F(1), "grad_tau": F(1)})
    with pytest.raises(ValueError, match="grad_theta and grad_tau: expected the gradient of one"):
        judge(tmp_path / "a.npz")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_spoilt_file_gives_a_line_or_a_report(tmp_path_factory, plain, data):
    """Bytes changed anywhere: one ValueError, never another exception."""
    stream = io.BytesIO()
    np.savez(stream, **plain)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    with pytest.raises(ValueError):
        file.batch_of(tmp_path_factory.getbasetemp() / "a.npz", file.read_npz("a.npz", bytes(content)))
        raise ValueError("read")
