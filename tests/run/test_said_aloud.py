"""What ends a run says why and where; what would pass unnoticed is said; what changed is noticed; what lies is refused."""

import json
import os
import shutil
import signal
import threading
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_checkpoint import reindex
from test_train import go, rows, same, small

from sparc_ref import optim
from sparc_ref.data import DrawnScenes, Joined, Limited, PictureScenes, open_captions
from sparc_ref.model import SPARCConfig
from sparc_ref.run import checkpoint, rundir
from sparc_ref.run import train as loop
from sparc_ref.run.rundir import fingerprint, load_run
from sparc_ref.run.train import Interrupted, NonFiniteLoss

# --------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.filterwarnings("error")
def test_a_learning_rate_that_is_too_high(tmp_path):
    """Nothing is planted: forward raises first, before there is a loss to look at, and no warning of NumPy comes before it."""
    with pytest.raises(NonFiniteLoss, match=r"update \d+: .*") as error:
        go(tmp_path, steps=40, lr=1e30, warmup=0, clip=1e30, checkpoint_every=1)
    said = str(error.value)
    assert "drawn-train" in said and "Lower --lr or --clip" in said and str(tmp_path) in said
    assert checkpoint.load(tmp_path).step >= 1            # what is kept is sound


def planted(monkeypatch, where):
    """A fault at one place, outside of what the test watches."""
    huge = np.float32(1e38)
    if where == "forward raises":
        real = loop.forward
        monkeypatch.setattr(loop, "forward", lambda p, *a: real({**p, "g_v.bias": p["g_v.bias"] + huge * np.float32(9)}, *a))
    if where == "back raises":
        def forward(*args):
            loss, trace, back = real_forward(*args)
            return loss, trace, lambda dloss: back(dloss * 1e300)
        real_forward = loop.forward
        monkeypatch.setattr(loop, "forward", forward)
    if where == "the norm":
        monkeypatch.setattr(optim, "clip_by_global_norm", lambda grads, limit: (grads, float("nan")))
    if where == "evaluation":
        def evaluate(*args, **kwargs):
            raise ArithmeticError("fine-grained loss is nan")
        monkeypatch.setattr(loop, "evaluate", evaluate)
    if where == "the parameters":
        step = optim.adamw_step
        monkeypatch.setattr(optim, "adamw_step", lambda p, g, s, *a, **k: (
            {n: x * np.float32(np.nan) if n == "g_v.weight" else x for n, x in p.items()}, step(p, g, s, *a, **k)[1]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("where, words", [
    ("forward raises", r"update 1: .*NaN or infinite, on drawn-train, examples \[\d+"),
    ("back raises", r"update 1: gradient of .*, on drawn-train, examples \[\d+"),
    ("the norm", "update 1: the gradient's norm is nan on drawn-train"),
    ("evaluation", "update 0: evaluation on validation: fine-grained loss is nan"),
    ("the parameters", r"update 1: g_v.weight or a moment of it is NaN or infinite after training on drawn-train"),
])
def test_divergence_ends_in_one_error_wherever_it_appears(tmp_path, monkeypatch, where, words):
    planted(monkeypatch, where)
    with pytest.raises(NonFiniteLoss, match=words) as error:
        go(tmp_path, checkpoint_every=1)
    assert "Lower --lr or --clip, or raise --warmup, and start anew" in str(error.value)
    assert not checkpoint.steps(tmp_path / "checkpoints")


# ------------------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_each_signal_saves_and_resuming_gives_the_same_run(tmp_path, monkeypatch, number):
    want, _ = go(tmp_path / "whole")
    real, calls = loop.gradients, []

    def press(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)
    monkeypatch.setattr(loop, "gradients", press)
    with pytest.raises(Interrupted):
        go(tmp_path / "cut")
    assert checkpoint.load(tmp_path / "cut").step == 3
    monkeypatch.setattr(loop, "gradients", real)
    same(want, go(tmp_path / "cut", resume=True)[0])


def test_nohup_is_respected(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        real = loop.gradients
        monkeypatch.setattr(loop, "gradients", lambda *a, **k: (os.kill(os.getpid(), signal.SIGHUP), real(*a, **k))[1])
        go(tmp_path, steps=2)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert checkpoint.load(tmp_path).step == 2


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "Input/output error")])
def test_nobody_listens_any_more(tmp_path, error):
    """A closed pipe or terminal: the update in hand is saved, nothing is lost."""
    config, options, data, tokenizer = small()
    said = []

    def say(text):
        if text.startswith("update 3/"):
            raise error
        said.append(text)
    with pytest.raises(Interrupted, match="everything up to update 3 of 6"):
        loop.train(config, options, [data], tokenizer, tmp_path, say=say)
    assert checkpoint.load(tmp_path).step == 3


# ------------------------------------------------------------------------------------------- pictures, captions that change


@pytest.fixture
def photos(tmp_path):
    """200 pictures with captions: more than the 64 examples that were looked at."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    rng, lines = np.random.default_rng(1), []
    for i in range(200):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"images/{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": f"number {i}"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def opened(folder, **options):
    return open_captions(folder, size=16, progress=False, **options)


@pytest.mark.parametrize("at", [0, 199, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 77))])
@pytest.mark.parametrize("what", ["pixel", "caption", "name", "metadata"])
def test_resume_notices_any_changed_picture_or_caption(tmp_path, photos, at, what):
    go(tmp_path / "run", steps=2, data=[opened(photos)])
    file, captions = photos / f"images/{at}.png", photos / "captions.jsonl"
    if what == "pixel":
        pixels = np.array(Image.open(file))
        pixels[3, 3, 0] ^= 1                              # of a file that is as long as before, or nearly
        Image.fromarray(pixels).save(file)
    if what == "metadata":
        file.write_bytes(file.read_bytes() + b"\0")
    if what == "caption":
        captions.write_text(captions.read_text().replace(f'"number {at}"', f'"Number {at}"'))
    if what == "name":
        file.rename(photos / f"images/{at}.jpeg")
        captions.write_text(captions.read_text().replace(f'"{at}.png"', f'"{at}.jpeg"'))
    with pytest.raises(ValueError, match=r"--resume: .*other settings; .*data\.0:photos\.sha256 of pictures and captions"):
        go(tmp_path / "run", steps=2, data=[opened(photos)], resume=True)


def test_the_same_data_elsewhere_is_the_same(tmp_path, photos):
    first = opened(photos).digest()
    photos.rename(tmp_path / "moved")
    assert opened(tmp_path / "moved", memory_mb=0).digest() == first


def test_every_picture_of_picture_scenes_counts(tmp_path, rng):
    def made(changed):
        path = tmp_path / f"{changed}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for i in range(30):
                pixels = np.full((8, 8, 4), i * 8, np.uint8)
                pixels[..., 3] = 255 * (np.arange(8) >= 4)
                pixels[0, 5, 0] += i == changed
                Image.fromarray(pixels).save(tmp_path / "p.png")
                archive.write(tmp_path / "p.png", f"thing {i}.png")
        return PictureScenes(path, size=16, count=2)
    digests = {made(i).digest() for i in (-1, 0, 13, 29)}
    assert len(digests) >= 3                              # one name in ten is held out
    assert made(-1).digest() == made(-1).digest()


def test_joined_limited_and_other_data_sets():
    a, b = DrawnScenes(size=16, count=4), DrawnScenes(size=16, count=4, seed=1)

    class Other:
        name, classes = "other", ()

        def __init__(self, changed=-1):
            self.changed = changed

        def __len__(self):
            return 300

        def __getitem__(self, i):
            return (b if i == self.changed else a)[i % 4]

        def describe(self):
            return {"name": "other"}
    key = "sha256 of pictures and captions"
    prints = [fingerprint(d)[key] for d in (a, b, Joined(a, b), Joined(b, a), Other(), Other(1), Other(299))]
    assert len(set(prints)) == 7
    assert fingerprint(Limited(a, 2))[key] == prints[0] and fingerprint(Limited(a, 2))["limited_to"] == 2


def test_decoded_pictures_are_sampled_from_everywhere():
    """130 examples: every third is decoded, the last of them at 129."""
    class Many:
        name, classes = "many", ()

        def __init__(self, changed=-1):
            self.changed = changed

        def __len__(self):
            return 130

        def __getitem__(self, i):
            return replace(example, image=example.image + (i == self.changed))

        def describe(self):
            return {"name": "many"}

        def digest(self):
            return "the same files"
    example = DrawnScenes(size=16, count=1)[0]
    said = {i: fingerprint(Many(i))["sha256 of some decoded pictures"] for i in (-1, 0, 3, 66, 129, 128)}
    assert len(set(said.values())) == 5 and said[128] == said[-1]


# ----------------------------------------------------------------------------------------------------- said at start and end


def notes(said):
    return [line for line in said if line.startswith("note: ")]


def test_an_ordinary_run_has_no_notes(tmp_path):
    assert not notes(go(tmp_path, steps=2)[1])


def test_a_batch_of_one(tmp_path):
    said = go(tmp_path / "a", steps=2, batch=1, model={"lambda_f": 0.0})[1]
    assert notes(said) == ["note: a batch of one without the fine-grained loss: the loss is 0 and nothing is learned; "
                           "raise --batch"]
    assert all(r["loss"] == 0 for r in rows(tmp_path / "a") if r["kind"] == "train")
    said = go(tmp_path / "b", steps=2, batch=1)[1]
    assert len(notes(said)) == 1 and "the global loss has nothing to tell apart and is 0" in notes(said)[0]


@pytest.mark.parametrize("tau, kept", [(5.0, "1"), (0.001, "0.01"), (1.0, ""), (0.0101, "")])
def test_a_temperature_outside_of_the_clamp(tmp_path, tau, kept):
    said = notes(go(tmp_path, steps=1, log_every=1, model={"temperature_init": tau})[1])
    if not kept:
        assert not said
        return
    assert said == [f"note: temperature_init {tau:g} is outside of [0.01, 1], where training keeps tau: the first update sets "
                    f"it to {kept}"]
    (row,) = (r for r in rows(tmp_path) if r["kind"] == "train")
    assert row["temperature"] == pytest.approx(float(kept), rel=1e-5)


def test_truncated_captions_with_share_and_count(tmp_path):
    """Of the captions that were trained on; resuming counts on."""
    said = notes(go(tmp_path / "a", steps=4, model={"max_tokens": 5})[1])
    last = [r for r in rows(tmp_path / "a") if r["kind"] == "train"][-1]
    cut, dropped = last["captions_truncated"], last["tokens_truncated"]
    assert 0 < cut < last["examples"] == 32 and dropped >= cut
    assert said == [f"note: {cut} of 32 captions ({cut / 32:.1%}) were longer than max_tokens 5 and were cut: {dropped} tokens "
                    "were not seen; --max-tokens keeps them"]
    _, _, data, tokenizer = small()
    lengths = [len(tokenizer.encode(data[i].captions[0]).ids) for i in range(len(data))]
    index = np.concatenate(order_of(data, tokenizer, 4))
    assert cut == sum(lengths[i] > 5 for i in index) and dropped == sum(max(0, lengths[i] - 5) for i in index)


def order_of(data, tokenizer, updates):
    from sparc_ref.data import Batches
    batches = Batches(data, tokenizer, 8, seed=0, max_tokens=5, image_size=16)
    return [next(batches).index for _ in range(updates)]


def test_duplicate_pictures_in_a_batch(tmp_path, photos):
    """Files of other names with the same pixels; pictures that are twice in the data but not in one batch do not count."""
    for i in range(120):
        pixels = np.array(Image.open(photos / "images/150.png"))
        Image.fromarray(pixels).save(photos / f"images/{i}.png", compress_level=i % 9)
    said = notes(go(tmp_path / "run", steps=5, data=[opened(photos)])[1])
    index = order_of(opened(photos), small()[3], 5)
    same_one = [int(np.sum((i < 120) | (i == 150))) for i in index]
    count = sum(n for n in same_one if n > 1)
    assert count > 4
    assert said[-1] == (f"note: {count} of 40 pictures ({count / 40:.1%}) were equal to another one of their batch: the global "
                        "loss took the other's caption for wrong; leave copies out of the data")


# ------------------------------------------------------------------------------------------------- checkpoints, read anew


def test_loading_while_another_process_prunes(tmp_path, monkeypatch):
    """The checkpoint that was found is deleted while it is read, at every file in turn: the newest is read instead."""
    out = tmp_path / "run"
    go(out, steps=6, keep=3)
    everything = tmp_path / "kept"
    os.rename(out, everything)
    for at in range(1, 5):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(everything, out)
        shutil.rmtree(out / "checkpoints/step_00000006")
        calls = []
        real = checkpoint.read_file if at < 4 else rundir.load_tokenizer

        def read(*args, at=at, real=real, calls=calls):
            calls.append(1)
            if len(calls) == (at if at < 4 else 1):
                shutil.copytree(everything / "checkpoints/step_00000006", out / "checkpoints/step_00000006")
                checkpoint.prune(out / "checkpoints", 1)
            return real(*args)
        with monkeypatch.context() as patch:
            patch.setattr(*((checkpoint, "read_file") if at < 4 else (rundir, "load_tokenizer")), read)
            assert load_run(out)[3].step == 6
        assert len(calls) > 1
    with pytest.raises(checkpoint.CheckpointError, match="no such directory"):
        load_run(out / "checkpoints/step_00000004")


def test_a_reader_and_a_writer_at_once(tmp_path):
    """A thread saves and prunes as fast as it can; every load meanwhile gives a whole checkpoint."""
    from test_checkpoint import write
    write(tmp_path / "checkpoints", 1)
    errors = []

    def work():
        try:
            for step in range(2, 21):
                write(tmp_path / "checkpoints", step)
                checkpoint.prune(tmp_path / "checkpoints", 1)
        except Exception as error:
            errors.append(error)
    thread, steps = threading.Thread(target=work), []
    thread.start()
    while thread.is_alive():
        steps.append(checkpoint.load(tmp_path).step)
    thread.join()
    assert not errors and steps == sorted(steps) and checkpoint.load(tmp_path).step == 20


LIES = {
    "a number as text": ("vision_width", "64", r"SPARCConfig\.vision_width: expected int, got '64'"),
    "a float for an int": ("vision_width", 64.0, r"vision_width: expected int"),
    "a truth value": ("vision_depth", True, r"vision_depth: expected int"),
    "a list": ("text_width", [64], r"text_width: expected int"),
    "null": ("embed_dim", None, r"embed_dim: expected int"),
    "NaN": ("lambda_f", float("nan"), r"lambda_f: expected float"),
    "infinity": ("sigma", float("inf"), r"sigma: expected"),
    "not a choice": ("align", "max", r"align: expected one of"),
    "a negative size": ("text_width", -64, r"text_width: expected a positive number"),
    "nothing": ("patch_size", 0, r"patch_size: expected a positive number"),
    "a billion blocks": ("vision_depth", 10**9, r"its configuration has 1000000001 blocks, but it holds \d+ tensors"),
    "beyond any size": ("vision_width", 2**60, r"vision_width: expected int"),
    "a huge width": ("vision_width", 2**40, r"dtype and shape \['float32', \[1099511627776"),
    "a huge vocabulary": ("vocab_size", 2**45, r"text\.embedding\.weight: expected dtype and shape"),
    "a huge picture": ("image_size", 2**40, r"vision\.positions: expected dtype and shape"),
    "no heads": ("vision_heads", 0, r"vision_heads: expected a positive number"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_configuration_that_lies_is_refused_before_anything_is_allocated(tmp_path, monkeypatch, lie):
    field, value, words = LIES[lie]
    go(tmp_path, steps=2)
    path = checkpoint.find(tmp_path)
    reindex(path, lambda index: index["record"]["config"]["model"].update({field: value}))
    monkeypatch.setattr(checkpoint, "read_file", lambda *args: pytest.fail("a file was read before its sizes were checked"))
    with pytest.raises(checkpoint.CheckpointError, match=words):
        load_run(tmp_path)


def test_files_larger_than_their_tensors_are_refused_unread(tmp_path, monkeypatch):
    go(tmp_path, steps=2)
    path = checkpoint.find(tmp_path)
    for name in (checkpoint.PARAMETERS, "tokenizer/tokenizer.json"):
        size = (path / name).stat().st_size
        os.truncate(path / name, 1 << 40)                 # sparse: a terabyte of nothing
        reindex(path, lambda index, name=name: index["files"][name].update(bytes=1 << 40))
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "read_file", lambda *args: pytest.fail("read"))
            with pytest.raises(checkpoint.CheckpointError, match="contents need at most"):
                load_run(tmp_path)
        os.truncate(path / name, size)
        reindex(path, lambda index, name=name, size=size: index["files"][name].update(bytes=size))
    assert load_run(tmp_path)[3].step == 2


@pytest.mark.parametrize("change", [{"counters": None}, {"counters": {"examples": 1}}, {"positions": []}, {"positions": [3]},
                                    {"counters": dict.fromkeys(loop.remarks.COUNTED, -1)}, {"positions": [{"seed": 9}]}],
                         ids=str)
def test_positions_and_counters_that_lie_are_refused(tmp_path, change):
    go(tmp_path, steps=2)
    reindex(checkpoint.find(tmp_path), lambda index: index["record"].update(change))
    with pytest.raises(ValueError, match=r"its counters are|its positions in the data are|seed: expected"):
        go(tmp_path, steps=2, resume=True)


@pytest.mark.parametrize("change", [{"hash": "another"}, {"vocab_size": 3}], ids=str)
def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path, monkeypatch, change):
    go(tmp_path, steps=2)
    real = rundir.load_tokenizer(checkpoint.find(tmp_path) / "tokenizer")
    other = SimpleNamespace(**{"hash": real.hash, "vocab_size": real.vocab_size} | change)
    monkeypatch.setattr(rundir, "load_tokenizer", lambda folder: other)
    with pytest.raises(checkpoint.CheckpointError, match="its tokenizer is not the one that the model was trained with"):
        load_run(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    go(tmp_path, steps=4)
    real = checkpoint.Path.read_bytes

    def read_bytes(path):
        if path.name == checkpoint.MOMENTS:
            raise OSError(5, "Input/output error")        # as read() does: without a name
        return real(path)
    monkeypatch.setattr(checkpoint.Path, "read_bytes", read_bytes)
    with pytest.raises(checkpoint.CheckpointError, match=r"moments\.safetensors cannot be read .Input/output error"):
        load_run(tmp_path)


def test_types_of_every_field_are_what_a_sound_configuration_has():
    assert checkpoint.from_json(SPARCConfig, json.loads(json.dumps(SPARCConfig().__dict__)), "here") == SPARCConfig()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_run_starts_is_an_interruption_too(tmp_path, monkeypatch, number):
    """The configuration is being written: nothing is half there, and the printed command starts the run."""
    real, once = rundir.write_whole, [number]
    monkeypatch.setattr(rundir, "write_whole", lambda *a: (once and os.kill(os.getpid(), once.pop()), real(*a))[1])
    with pytest.raises(Interrupted, match="everything up to update 0 of 6"):
        go(tmp_path / "run", eval_every=0)
    monkeypatch.setattr(rundir, "write_whole", real)
    same(go(tmp_path / "run", resume=True, eval_every=0)[0], go(tmp_path / "want", eval_every=0)[0])
