"""What the command line hands on: which data, split, tokenizer and options; which numbers it prints under which name."""

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pages import figures_asked_for
from PIL import Image

from sparc_ref.commands import cli, demo
from sparc_ref.data import DrawnScenes, UnigramTokenizer, WordTokenizer, load_image, open_captions
from sparc_ref.model import PRESETS
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run import measure, sources
from sparc_ref.run import train as loop
from sparc_ref.run.examples import explain_caption
from sparc_ref.run.measure import evaluate
from sparc_ref.run.rundir import load_run
from sparc_ref.run.train import TrainConfig, train


@pytest.fixture
def handed_on(monkeypatch, tmp_path, capsys):
    """handed_on("--steps", "3", ...): what the command `train` gives to train(), which is not run."""
    given = []

    def instead(config, options, datasets, tokenizer, out, **how):
        given.append(SimpleNamespace(config=config, options=options, datasets=list(datasets), tokenizer=tokenizer, out=out,
                                     checks=dict(how.pop("validation")), **how))

    for module in (cli, loop):
        monkeypatch.setattr(module, "train", instead, raising=False)

    def call(*argv):
        status = cli.run(["train", "--out", str(tmp_path / "run"), *argv])
        assert status == 0, capsys.readouterr().err
        return given.pop()

    return call


def test_options_of_model_and_training_are_handed_on(handed_on):
    got = handed_on("--preset", "small", "--image-size", "32", "--lambda-f", "2.5", "--text-pool", "all", "--sigma", "0.25",
                    "--steps", "7", "--lr", "0.5", "--seed", "9", "--final-lr", "0.01", "--batch", "5", "--eval-limit", "6",
                    "--data", "drawn?count=30")
    words = DrawnScenes().vocabulary()
    assert got.config == replace(PRESETS["small"], image_size=32, lambda_f=2.5, text_pool="all", sigma=0.25,
                                 vocab_size=WordTokenizer(words).vocab_size)
    assert got.options == TrainConfig(steps=7, lr=0.5, seed=9, final_lr=0.01, batch=5, eval_limit=6)
    assert got.datasets == [DrawnScenes("train", size=32, count=30)] and got.tokenizer.words == WordTokenizer(words).words


def test_an_option_of_zero_is_an_option(handed_on):
    got = handed_on("--lambda-f", "0", "--sigma", "0", "--text-depth", "0", "--eval-every", "0", "--weight-decay", "0")
    assert (got.config.lambda_f, got.config.sigma, got.config.text_depth) == (0, 0, 0) != (PRESETS["tiny"].text_depth,) * 3
    assert (got.options.eval_every, got.options.weight_decay) == (0, 0)


def test_the_objective_and_its_settings_are_handed_on(handed_on):
    got = handed_on("--objective", "filip", "--filip-keep", "0.4", "--filip-select", "pair")
    assert got.objective == ObjectiveConfig("filip", filip_keep=0.4, filip_select="pair")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_one_that_is_named(handed_on, name):
    got = handed_on("--preset", name, "--data", "drawn?count=30")
    assert got.config == replace(PRESETS[name], vocab_size=got.tokenizer.vocab_size)
    assert got.datasets[0].size == PRESETS[name].image_size


@pytest.mark.parametrize("flag", [None, "resume", "overwrite"])
def test_going_on_and_starting_anew_are_not_confused(handed_on, tmp_path, flag):
    got = handed_on("--data", "drawn", *([f"--{flag}"] if flag else []))
    assert (got.resume, got.overwrite) == (flag == "resume", flag == "overwrite") and got.out == tmp_path / "run"
    assert "--resume" in got.again


def test_options_of_the_demo_are_handed_on(monkeypatch, tmp_path):
    given, again = [], []
    for module in (cli, demo):
        monkeypatch.setattr(module, "demo", lambda config, **how: given.append(config) or again.append(how["again"]),
                            raising=False)
    argv = ["--seed", "3", "--seeds", "2", "--steps", "5", "--examples", "9", "--checkpoint-every", "4", "--resume"]
    assert cli.run(["demo", "--out", str(tmp_path), *argv, "--data", "drawn"]) == 0 == cli.run(["demo", "--out", str(tmp_path)])
    wanted = demo.DemoConfig(tmp_path, seed=3, seeds=2, steps=5, examples=9, checkpoint_every=4, resume=True, data="drawn")
    assert given == [wanted, demo.DemoConfig(tmp_path)] and given[1].data == "mosaic"
    assert again[0] == (f"sparc-ref demo --out {tmp_path} --seed 3 --seeds 2 --steps 5 --examples 9 --checkpoint-every 4 "
                        "--data drawn --resume") and again[1] == f"sparc-ref demo --out {tmp_path} --resume"
    assert [demo.recipe(config)[-1].steps for config in (*given, replace(wanted, steps=None))] == [5, 300, 400]


def test_scenes_are_validated_on_scenes_that_are_not_trained_on(handed_on):
    got = handed_on("--image-size", "16", "--data", "drawn?count=30", "drawn?seed=3&style=short", "--eval-limit", "6")
    assert got.datasets == [DrawnScenes("train", 16, 30), DrawnScenes("train", 16, seed=3, style="short")]
    first, second = got.checks.values()
    assert [d.split for d in (first, second)] == ["validation"] * 2 and len(second) == 6
    assert first in (DrawnScenes("validation", 16, 6), DrawnScenes("validation", 16, 30))
    assert second == DrawnScenes("validation", 16, 6, seed=3, style="short")


def test_measuring_on_what_was_trained_on_is_called_so(handed_on):
    got = handed_on("--image-size", "16", "--data", "drawn?split=train&count=30", "drawn?count=20")
    same = {name: any(data == trained for trained in got.datasets) for name, data in got.checks.items()}
    assert sorted(same.values()) == [False, True]
    assert all(("trained on" in name) == trained for name, trained in same.items())


def test_pasted_pictures_are_validated_on_other_scenes(handed_on, tmp_path):
    (tmp_path / "stickers").mkdir()
    for n in range(8):
        pixels = np.zeros((9, 9, 4), np.uint8)
        pixels[2:7, 2:7] = (30 * n, 200, 100, 255)
        Image.fromarray(pixels).save(tmp_path / "stickers" / f"thing{n}.png")
    got = handed_on("--image-size", "16", "--data", f"pictures:{tmp_path / 'stickers'}?objects=1,1&seed=2", "--eval-limit", "6")
    ((name, scenes),) = got.checks.items()
    assert (got.datasets[0].split, scenes.split, scenes.seed, len(scenes)) == ("train", "validation", 2, 6)
    assert "trained on" not in name and not np.array_equal(scenes[0].image, got.datasets[0][0].image)


def test_validation_that_is_named_is_the_one_that_is_used(handed_on):
    got = handed_on("--image-size", "16", "--data", "drawn?count=30", "--validation", "drawn?count=5&seed=9",
                    "drawn?split=unseen&count=4")
    assert list(got.checks.values()) == [DrawnScenes("validation", 16, 5, seed=9), DrawnScenes("unseen", 16, 4)]
    got = handed_on("--image-size", "16", "--validation", *(f"drawn?count={n}" for n in (5, 6, 7)))
    assert {name: len(data) for name, data in got.checks.items()} == {
        "drawn-validation": 5, "drawn-validation#1": 6, "drawn-validation#2": 7}, "of one name, and each is there"


def own_splits(folder, *splits):
    """A caption file that says which split each of its pictures is of, four of each."""
    folder.mkdir()
    with open(folder / "captions.jsonl", "w") as file:
        for n, split in enumerate(split for split in splits for _ in range(4)):
            Image.fromarray(np.full((8, 8, 3), 9 * n, np.uint8)).save(folder / f"{n}.png")
            file.write(json.dumps({"image": f"{n}.png", "caption": f"{split} {n}", "split": split}) + "\n")
    return f"captions:{folder}"


def test_what_is_measured_later_is_what_was_named_or_kept_apart(handed_on, tmp_path):
    """Of each data set by itself: the test split of scenes, of files with splits their own; or what it is validated on."""
    three, two = own_splits(tmp_path / "three", "train", "val", "test"), own_splits(tmp_path / "two", "train", "test")
    size = ("--image-size", "16", "--vocab-size", "30", "--eval-limit", "3")
    got = handed_on(*size, "--data", three, "mosaic?regions=1,1&count=30", two)
    assert got.sources == {
        "data": [three, "mosaic?regions=1,1&count=30", two], "command": cli.started(got.again),
        "measured": {"": f"{three}?split=validation", "1:mosaic": "mosaic?regions=1,1&count=30&split=test",
                     "2:captions": f"{two}?split=test"}}
    assert [data.texts[0][0].split()[0] for data in (got.datasets[0], got.datasets[2])] == ["train"] * 2
    assert [(name, data.split) for name, data in got.checks.items()] == [
        ("0:three-validation", "validation"), ("1:mosaic-validation", "validation"), ("2:two-train, trained on", "train")]
    named = ("drawn?count=5", three, f"{two}?split=test")
    got = handed_on(*size, "--data", two, "--validation", *named)
    assert got.sources["measured"] == {"": "drawn?count=5", "1:captions": f"{three}?split=validation", "2:captions": named[2]}
    assert {name: data.split for name, data in got.checks.items()} == {
        "drawn-validation": "validation", "three-validation": "validation", "two-test": "test"}
    assert got.sources["data"] == [two]


@pytest.mark.parametrize("flags, eos, lower", [((), True, True), (("--no-eos",), False, True), (("--no-lower",), True, False)])
def test_the_tokenizer_is_made_as_asked_and_of_all_data(handed_on, flags, eos, lower):
    got = handed_on("--data", "drawn", "drawn?fused=true", *flags)
    assert (got.tokenizer.eos, got.tokenizer.lower) == (eos, lower)
    assert {"red", "circle", "red-circle"} <= set(got.tokenizer.words)
    assert got.config.vocab_size == got.tokenizer.vocab_size


def test_a_saved_tokenizer_is_the_one_that_is_used(handed_on, tmp_path):
    saved = WordTokenizer(["odd", "words"], eos=False)
    saved.save(tmp_path)
    got = handed_on("--tokenizer", str(tmp_path))
    assert got.tokenizer.hash == saved.hash and got.config.vocab_size == 5


def test_pieces_are_learned_from_every_caption_of_every_set(tmp_path):
    """Each caption has letters of its own, so that one that was left out is unknown; of files and of anything else."""
    class Told:
        def __init__(self, letters):
            self.letters = letters

        def __len__(self):
            return 2

        def __getitem__(self, i):
            if not 0 <= i < 2:
                raise IndexError(i)
            return SimpleNamespace(captions=tuple(f"{self.letters[2 * i + k]} " * 40 for k in range(2)))

    with open(tmp_path / "captions.jsonl", "w") as file:
        for n, letters in enumerate(("ij", "kl")):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{n}.png")
            file.write(json.dumps({"image": f"{n}.png", "captions": [f"{letter} " * 40 for letter in letters]}) + "\n")
    files = open_captions(tmp_path, size=8, progress=False)
    tokenizer = sources.make_tokenizer([Told("abcd"), Told("efgh"), files], 24)
    assert isinstance(tokenizer, UnigramTokenizer)
    for letter in "abcdefghijkl":
        assert tokenizer.unk_id not in tokenizer.encode(letter).ids, letter
    texts = ["red circle above it", "blue square left of that", "green ring below both"]
    many, few = (sources.make_tokenizer([Told(texts * 2)], size, eos=False, lower=False) for size in (28, 24))
    assert (many.vocab_size, few.vocab_size) == (28, 24) and not few.eos and not few.lower


@pytest.mark.parametrize("flags, eos, lower", [((), True, True), (("--no-eos",), False, True), (("--no-lower",), True, False)])
def test_a_sentencepiece_model_is_read_as_asked(handed_on, tmp_path, flags, eos, lower):
    UnigramTokenizer.train(["red circle", "blue square"] * 20, 20).save(tmp_path)
    got = handed_on("--tokenizer", str(tmp_path / "tokenizer.model"), *flags)
    assert (got.tokenizer.kind, got.tokenizer.eos, got.tokenizer.lower) == ("unigram", eos, lower)


# ------------------------------------------------------------------------------------------------- evaluate and explain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    data = DrawnScenes(size=16, count=12, style="short")
    tokenizer = WordTokenizer(data.vocabulary())
    config = replace(PRESETS["tiny"], image_size=16, vision_width=16, vision_depth=1, text_width=16, text_depth=1,
                     vocab_size=tokenizer.vocab_size, max_tokens=10)
    options = TrainConfig(steps=1, batch=4, eval_every=0, shards=1, lr=0.1, warmup=0)
    train(config, options, [data], tokenizer, out, say=lambda text: None)
    return out


def close(got, wanted):
    """Another batch or other shards sum in another order, in float32."""
    return got.keys() == wanted.keys() and all(got[k] == pytest.approx(x, rel=1e-4, abs=1e-5) for k, x in wanted.items())


def test_evaluate_measures_the_split_and_the_sets_that_are_named(run, tmp_path, capsys):
    params, config, tokenizer, found = load_run(run)
    for split, other in (("unseen", "test"), ("validation", "train")):
        file = tmp_path / f"{split}.json"
        status = cli.run(["evaluate", "--checkpoint", str(run), "--data", "drawn?style=short",
                          f"drawn?seed=3&captions=2&split={other}", "--split", split, "--limit", "7", "--batch", "3",
                          "--json", str(file)])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        content = json.loads(file.read_text())
        sets = [DrawnScenes(split, size=16, style="short"), DrawnScenes(other, size=16, seed=3, captions=2)]
        wanted = [evaluate(params, config, data, tokenizer, 7, 3) for data in sets]
        assert (content["step"], content["checkpoint"]) == (found.step, str(found.path)) == (1, str(found.path))
        assert list(content["results"]) == [f"drawn?style=short {sets[0].name}",
                                            f"drawn?seed=3&captions=2&split={other} {sets[1].name}"]
        for (name, got), numbers, data in zip(content["results"].items(), wanted, sets):
            assert data.name in name and close(got, numbers), name
        parts = re.split(r"^(?=.* on drawn-)", printed.out, flags=re.M)[-2:]
        for part, numbers, data in zip(parts, content["results"].values(), sets):
            assert f"on {data.name}, 7 examples:" in part.splitlines()[0] and numbers["images"] == 7
            lines = [re.match(rf"\s*(\w+)\s+{NUMBER}(?:\s+\(?(?:chance )?{NUMBER})?", line) for line in part.splitlines()[1:]]
            shown = {m[1]: m.groups()[1:] for m in lines if m and m[1] in numbers}
            assert {"i2t_r1", "t2i_r1", "t2i_r10", "miou", "pointing", "mass", "fine_loss", "grounding_gap"} <= shown.keys()
            for name, (value, chance) in shown.items():
                assert says(value, numbers[name]), name
                known = numbers.get(f"{name}_chance", 0.0 if name == "grounding_gap" else None)
                assert chance is None if known is None else says(chance, known) or name == "grounding_gap", name


NUMBER = r"(-?[\d.]+(?: %| nats| s)?)"


def says(text, x):
    """Whether a printed number, "12.3 %" or "0.123 nats", is x as far as its digits go."""
    digits, _, share = (text or "").partition(" ")
    places = len(digits.rstrip(".").partition(".")[2])
    return bool(digits) and abs(float(digits) - x * (100 if share == "%" else 1)) <= 0.501 * 10.0**-places


def test_evaluate_hands_on_how_to_go_about_it(run, monkeypatch):
    """The batch and its parts change no number, only time and memory."""
    given, how = [], inspect.signature(evaluate)

    def watched(*args, **options):
        given.append(how.bind(*args, **options).arguments)
        return evaluate(*args, **options)

    for module in (cli, measure):
        monkeypatch.setattr(module, "evaluate", watched, raising=False)
    argv = ["--checkpoint", str(run), "--data", "drawn", "--limit", "5", "--batch", "2", "--shards", "1"]
    assert cli.run(["evaluate", *argv]) == 0
    (call,) = given
    assert (call["limit"], call["batch"], call["shards"]) == (5, 2, 1)
    assert call["dataset"] == DrawnScenes("test", size=16), "test scenes, where no split is named"


def test_options_of_a_report_are_handed_on(monkeypatch, tmp_path):
    from sparc_ref.commands import report

    given, how = [], inspect.signature(report.report)
    monkeypatch.setattr(report, "report", lambda *args, **more: given.append(how.bind(*args, **more).arguments))
    out = tmp_path / "page.html"
    assert cli.run(["report", "a", "b", "--data", "drawn", "mosaic", "--limit", "7", "--out", str(out)]) == 0 == cli.run(
        ["report", "c"])
    assert given[0] == {"runs": (Path("a"), Path("b")), "data": ("drawn", "mosaic"), "limit": 7, "out": out}
    assert given[1] == {"runs": (Path("c"),), "data": (), "limit": None, "out": None}


def test_explain_draws_the_words_of_the_caption_over_the_picture(run, tmp_path, capsys):
    params, config, tokenizer, _ = load_run(run)
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(photo)
    with figures_asked_for() as figures:
        assert cli.run(["explain", str(photo), "A Red circle", "--checkpoint", str(run), "--out", str(tmp_path / "x.png")]) == 0
    (call,) = figures["explain"]
    image = load_image(photo, 16)
    seen = explain_caption(params, config, tokenizer, image, "A Red circle")
    assert np.array_equal(call.image, image) and tuple(call.words) == ("A", "Red", "circle") and call.grid == (2, 2)
    assert [row.kind for row in call.rows] == ["similarity", "weights"] and call.title == "A Red circle" and call.masks is None
    for row in call.rows:
        np.testing.assert_allclose(row.values, getattr(seen, row.kind), atol=1e-6, err_msg=row.kind)
