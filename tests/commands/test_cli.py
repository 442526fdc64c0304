"""The command line: complete help, unknown options with the nearest name, one clean line for what the user can mend."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest

from parity import __main__ as parity_main
from parity.commands import COMMANDS as parity_commands
from sparc_ref import __version__
from sparc_ref.commands import cli
from sparc_ref.data import DrawnScenes, UnigramTokenizer, WordTokenizer
from sparc_ref.model import PRESETS, SPARCConfig
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run import sources
from sparc_ref.run.telling import reasons
from sparc_ref.run.train import TrainConfig, train

SMALL = ["--image-size", "16", "--vision-width", "16", "--vision-depth", "1", "--text-width", "16", "--text-depth", "1",
         "--steps", "2", "--batch", "4", "--eval-limit", "4", "--warmup", "1"]


def tiny(count=12):
    """A model that takes milliseconds, its training, data and tokenizer."""
    data = DrawnScenes(size=16, count=count, style="short")
    tokenizer = WordTokenizer(data.vocabulary())
    config = replace(PRESETS["tiny"], image_size=16, vision_width=16, vision_depth=1, text_width=16, text_depth=1,
                     vocab_size=tokenizer.vocab_size, max_tokens=12)
    return config, TrainConfig(steps=1, batch=4, eval_every=0, warmup=1), data, tokenizer


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A run as the command line leaves it."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    config, options, data, tokenizer = tiny()
    train(config, options, [data], tokenizer, out, sources=sources.remembered(["drawn?style=short&count=12"]),
          say=lambda text: None)
    return out


def own_pictures(folder, count=5):
    """A folder with images/ and captions.jsonl."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / "images" / f"{i}.png")
    lines = [json.dumps({"image": f"{i}.png", "caption": f"a dog on the sofa number {i}"}) for i in range(count)]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def run(argv, capsys):
    """-> exit status, stdout, stderr; tyro's own exits included."""
    try:
        status = cli.run(argv)
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr()
    return status, out.out, out.err


def test_version(capsys):
    status, out, _ = run(["--version"], capsys)
    assert status == 0 and out == f"sparc_ref {__version__}\n"


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "report", "explain"])
def test_help_names_every_option_with_its_meaning(command, capsys):
    status, out, _ = run([command, "--help"], capsys)
    assert status == 0
    for f in fields(cli.COMMANDS[command]):
        if f.name not in ("training", "model", "compared", "image", "caption", "runs"):
            assert "--" + f.name.replace("_", "-") in out, f.name
    if command == "train":
        for cls in (TrainConfig, SPARCConfig, ObjectiveConfig):
            for f in fields(cls):
                assert "--" + f.name.replace("_", "-") in out, f.name


@pytest.mark.parametrize("cls", [TrainConfig, SPARCConfig, ObjectiveConfig])
def test_every_setting_has_a_reason(cls):
    assert set(reasons(cls)) == {f.name for f in fields(cls)}


@pytest.mark.parametrize("prog, command", [("sparc_ref", c) for c in cli.COMMANDS] + [("parity", c) for c in parity_commands])
def test_every_option_says_what_it_does(prog, command, capsys):
    """Between an option and its default there is a text."""
    with pytest.raises(SystemExit):
        {"sparc_ref": cli.run, "parity": parity_main.run}[prog]([command, "--help"])
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    options, bare = [], []
    for line in lines:
        if re.match(r"(-h, )?--[a-z]", line):
            options.append(line)
        elif options:
            options[-1] += "   " + line
    assert len(options) > 2
    for option in options:
        meaning = re.sub(r"\(default: .*\)|\(required\)", "", option.partition("  ")[2]).strip()
        bare += [option] * (len(meaning) < 4)
    assert not bare


def test_help_shows_what_the_presets_say(capsys):
    _, out, _ = run(["train", "--help"], capsys)
    text = " ".join(line.strip("│ ") for line in out.splitlines())
    for name in ("vision_width", "vocab_size", "embed_dim"):
        option = text.partition("--" + name.replace("_", "-"))[2].partition("--")[0]
        for preset, config in PRESETS.items():
            assert re.search(rf"\b{getattr(config, name)} [^;)]*{preset}", option), (name, preset, option)
    assert "1/P in every preset" in text and "None" not in text.partition("model options")[2].replace("None: 1/P", "")


@pytest.mark.parametrize("message, said", [
    ("eval_limit: expected at least 1, got 0", "--eval-limit: expected at least 1, got 0"),
    ("batch: too large", "--batch: too large"), ("batch_size: too large", "--batch: too large"),
    ("a batch: too large", "a batch: too large"),
    ("--resume: other settings; train.lr: 1 there, 2 here; model.lambda_f: 1 there, 2 here",
     "--resume: other settings; --lr: 1 there, 2 here; --lambda-f: 1 there, 2 here"),
    ("patch_size: expected a divisor of image_size 64", "--patch-size: expected a divisor of --image-size 64"),
    ("/tmp/eval_limit/x, '/image_size', image_size.png: no file", "/tmp/eval_limit/x, '/image_size', image_size.png: no file"),
    ("data 'drawn?seed=-1': seed: expected", "data 'drawn?seed=-1': seed: expected"),
])
def test_messages_spell_options_as_they_are_given(message, said):
    command = cli.Train("out", cli.TrainOptions(), cli.ModelOptions())
    assert cli.as_options(message, command) == said


@pytest.mark.parametrize("command", ["-m sparc_ref --help", "-m sparc_ref train --help", "-m parity --help",
                                     "-m parity check --help", "-m sparc_ref evaluate --checkpoint {run}"])
def test_no_traceback_where_nobody_reads(command, tiny_run):
    """`| head` goes away: status 141, as of any tool, and not a word."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, *command.format(run=tiny_run).split()], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_help_lists_the_commands(capsys):
    status, out, _ = run(["--help"], capsys)
    assert status == 0 and all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("argv, nearest", [
    (["train", "--out", "x", "--lambd-f", "2"], "--lambda-f"),
    (["train", "--out", "x", "--weight-decy", "2"], "--weight-decay"),
    (["demo", "--step", "3"], "--steps"),
    (["evaluate", "--checkpont", "x"], "--checkpoint"),
])
def test_unknown_options_are_errors_with_the_nearest_name(argv, nearest, capsys):
    status, out, err = run(argv, capsys)
    assert status == 2 and nearest in out + err and "Traceback" not in err


@pytest.mark.parametrize("argv", [["trian"], [], ["train", "--steps", "many", "--out", "x"], ["explain"],
                                  ["train", "--out", "x", "--preset", "huge"]])
def test_wrong_usage_is_status_2(argv, capsys):
    assert run(argv, capsys)[0] == 2


@pytest.mark.parametrize("argv, words", [
    (["train", "--data", "drwan"], "did you mean drawn?"),
    (["train", "--data", "drawn?styel=short"], "did you mean style?"),
    (["train", "--data", "drawn?style=long"], "style: expected full or short"),
    (["train", "--data", "drawn?count=many"], "count: expected int, got 'many'"),
    (["train", "--data", "drawn:here"], "expected drawn, without a path"),
    (["train", "--data", "captions"], "expected captions:PATH"),
    (["train", "--data", "captions:/nowhere"], "expected a folder or a file"),
    (["train", "--data", "pictures:/nowhere"], "nowhere"),
    (["train", "--data", "drawn?seed=-1"], "data 'drawn?seed=-1': seed: expected at least 0, got -1"),
    (["train", "--batch", "0"], "sparc-ref: --batch: expected at least 1, got 0\n"),
    (["train", "--eval-limit", "0"], "sparc-ref: --eval-limit: expected at least 1, got 0\n"),
    (["train", "--data", "drawn?count=8"], "sparc-ref: --batch: expected at most 8"),
    (["demo", "--examples", "1"], "sparc-ref: --examples: expected at least 2, got 1\n"),
    (["train", "--patch-size", "7"], "--patch-size: expected a divisor of --image-size 64, got 7"),
    (["train", "--align", "max"], "align"),
    (["train", "--tokenizer", "/nowhere"], "not a saved tokenizer"),
])
def test_errors_are_one_clean_line(argv, words, capsys, tmp_path):
    status, _, err = run([*argv, "--out", str(tmp_path / "run")], capsys)
    assert status == 2 and words in err and "Traceback" not in err


def test_an_option_given_twice_is_an_error(capsys):
    """Otherwise the last would win and a data set would be dropped without a word."""
    status, _, err = run(["train", "--data", "drawn", "--data=captions:x", "--out", "y"], capsys)
    assert status == 2 and err.startswith("sparc-ref: --data is given more than once") and err.count("\n") == 1


def test_errors_of_evaluate_and_explain(capsys, tmp_path):
    for argv in (["evaluate", "--checkpoint", "/nowhere"], ["explain", "x.png", "a dog", "--checkpoint", "/nowhere"]):
        status, _, err = run(argv, capsys)
        assert status == 2 and err.count("\n") == 1 and "no such directory" in err


def test_train_then_evaluate(capsys, tmp_path):
    out = str(tmp_path / "run")
    status, text, err = run(["train", "--out", out, *SMALL, "--data", "drawn?count=20", "drawn?count=8&seed=3&style=short"],
                            capsys)
    assert status == 0, err
    assert "lambda_f" in text and "done: 2 updates" in text
    status, _, err = run(["train", "--out", out, *SMALL], capsys)
    assert status == 2 and "--resume" in err and err.count("\n") == 1
    numbers = tmp_path / "numbers.json"
    status, text, err = run(["evaluate", "--checkpoint", out, "--data", "drawn?style=short", "--limit", "6", "--json",
                             str(numbers)], capsys)
    assert status == 0, err
    assert "t2i_r1" in text and "chance" in text and "grounding_gap" in text
    (result,) = json.loads(numbers.read_text())["results"].values()
    assert result["images"] == 6 and np.isfinite(result["miou"])


def test_a_run_is_measured_on_its_own_data(capsys, tmp_path, tiny_run, monkeypatch):
    """From any folder, without a word about data; --split and --data say otherwise."""
    monkeypatch.chdir(tmp_path)
    status, text, err = run(["evaluate", "--checkpoint", str(tiny_run), "--json", "n.json"], capsys)
    assert status == 0, err
    (name, numbers), = json.loads((tmp_path / "n.json").read_text())["results"].items()
    assert name == "drawn?style=short&count=12&split=test drawn-test" and numbers["images"] == 12 and name.split()[0] in text
    status, text, err = run(["evaluate", "--checkpoint", str(tiny_run), "--split", "unseen"], capsys)
    assert status == 0 and "drawn-unseen" in text, err
    status, text, err = run(["evaluate", "--checkpoint", str(tiny_run), "--data", "drawn?count=5"], capsys)
    assert status == 0 and "drawn?count=5" in text and "style=short" not in text, err


def test_own_pictures_are_found_again_and_named_as_trained_on(capsys, tmp_path, monkeypatch):
    folder = own_pictures(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    status, text, err = run(["train", "--out", "run", *SMALL, "--data", "captions:photos"], capsys)
    assert status == 0 and text.endswith("Measure it, and see it on a page:\n  sparc-ref report run\n"), err
    assert "R@1 i2t: share of pictures whose nearest caption is theirs" in text
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, text, err = run(["evaluate", "--checkpoint", "../run"], capsys)
    assert status == 0 and f"which it was trained on: captions:{folder}" in text, err
    (folder / "captions.jsonl").unlink()
    status, _, err = run(["evaluate", "--checkpoint", "../run"], capsys)
    assert status == 2 and str(folder) in err and err.count("\n") == 1


def test_what_was_kept_apart_is_what_is_measured(capsys, tmp_path, monkeypatch):
    """By hash, or by splits that the file brings: never called trained on, and told with the split that was opened."""
    folder = own_pictures(tmp_path / "photos", 12)
    records = [{"filename": f"{i}.png", "split": ("train", "test")[i > 7], "sentences": [{"raw": f"a dog number {i}"}]}
               for i in range(12)]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": records, "dataset": "own"}))
    monkeypatch.chdir(tmp_path)
    for spec, opened in ((f"captions:{folder}?split=train&share=0.4", f"captions:{folder}?split=validation&share=0.4"),
                         (f"captions:{tmp_path}/dataset.json?images={folder}/images",
                          f"captions:{tmp_path}/dataset.json?images={folder}/images&split=test")):
        status, _, err = run(["train", "--out", "run", *SMALL, "--data", spec, "--overwrite"], capsys)
        assert status == 0, err
        status, text, err = run(["evaluate", "--checkpoint", "run"], capsys)
        assert status == 0 and f": {opened}\n" in text and "trained on" not in text, (text, err)


def test_a_run_that_says_nothing_of_its_data(capsys, tmp_path):
    config, options, data, tokenizer = tiny()
    train(config, options, [data], tokenizer, tmp_path, say=lambda text: None)
    status, _, err = run(["evaluate", "--checkpoint", str(tmp_path)], capsys)
    assert status == 2 and err.endswith("name what to measure on with --data\n") and err.count("\n") == 1


def test_evaluate_explains_every_number(capsys, tiny_run):
    """Each key that is measured, other than chances and lifts, has a line and a meaning."""
    _, text, _ = run(["evaluate", "--checkpoint", str(tiny_run), "--json", str(tiny_run / "n.json")], capsys)
    (numbers,) = json.loads((tiny_run / "n.json").read_text())["results"].values()
    for key in numbers:
        if not key.endswith(("_chance", "_lift")):
            assert re.search(rf"^  {key} +-?[\d.]+ ?(%|nats|s|) .*[a-z]{{3}}", text, re.M), key


@pytest.mark.parametrize("again", ["--out a --steps 2 --resume", "--steps 2 --out=a --overwrite", "--steps 2 --out 'a b'"])
def test_the_place_of_a_run_is_no_part_of_it(again):
    assert cli.started("sparc-ref train " + again) == "sparc-ref train --steps 2"


def test_a_folder_that_holds_runs_names_them(capsys, tiny_run):
    status, _, err = run(["evaluate", "--checkpoint", str(tiny_run.parent)], capsys)
    assert status == 2 and f"the runs in it: {tiny_run}" in err


def test_device_cuda_without_a_gpu(capsys, tmp_path):
    from sparc_ref.backend import get_device
    try:
        get_device("cuda")
    except ValueError:
        status, _, err = run(["train", "--out", str(tmp_path / "run"), *SMALL, "--device", "cuda"], capsys)
        assert status == 2 and "pip install '.[run,cuda" in err and "Traceback" not in err
        return
    pytest.skip("a GPU is present")


def test_missing_extras_are_named(tmp_path):
    """Without tyro the command says what to install, and nothing else."""
    (tmp_path / "tyro.py").write_text("raise ModuleNotFoundError(\"No module named 'tyro'\", name='tyro')")
    done = subprocess.run([sys.executable, "-m", "sparc_ref", "--help"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == ("sparc-ref: the package tyro is missing; the command line needs, in a clone of sparc_ref: "
                           "pip install '.[run]'\n")


def test_help_imports_little():
    code = """
import sys
sys.argv[1:] = ["--help"]
from sparc_ref.__main__ import main
try:
    main()
except SystemExit:
    pass
print(sorted({"torch", "cupy", "matplotlib", "scipy", "PIL", "sentencepiece"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ------------------------------------------------------------------------------------------------ data by name


def test_sources():
    scenes = sources.open_source("drawn?style=short&objects=2,3&clutter=false&count=7", 32, split="validation")
    assert scenes == DrawnScenes("validation", 32, 7, objects=(2, 3), clutter=False, style="short")
    assert sources.open_source("drawn?split=test", 32, split="validation").split == "test"


def test_what_a_run_remembers_of_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = sources.remembered(["captions:photos?images=jpg&size=32", "drawn?style=short", "pictures:a.zip?names=n.jsonl"])
    assert kept["data"] == [f"captions:{tmp_path}/photos?images={tmp_path}/jpg&size=32", "drawn?style=short",
                            f"pictures:{tmp_path}/a.zip?names={tmp_path}/n.jsonl"]
    assert list(kept["measured"].values()) == [kept["data"][0], "drawn?style=short&split=test", kept["data"][2] + "&split=test"]
    assert [sources.trained_on(spec, kept) for spec in kept["measured"].values()] == [True, False, False]
    kept = sources.remembered(["captions:a"], ["captions:b"])
    assert list(kept["measured"].values()) == [f"captions:{tmp_path}/b"]
    assert not sources.trained_on(f"captions:{tmp_path}/b", kept)


def test_the_place_of_the_data_does_not_stop_a_resumed_run(tmp_path):
    config, options, data, tokenizer = tiny()
    for place, resume in (("/here", False), ("/there", True)):
        train(config, options, [data], tokenizer, tmp_path, sources={"data": [place], "measured": {}}, resume=resume,
              say=lambda text: None)


def test_tokenizer_for_the_data(tmp_path):
    scenes = DrawnScenes(size=16, count=4)
    words = sources.make_tokenizer([scenes], 100, eos=False)
    assert isinstance(words, WordTokenizer) and not words.eos

    class Told:
        """Captions without a known vocabulary."""
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return scenes[i]
    assert isinstance(sources.make_tokenizer([scenes, Told()], 60), UnigramTokenizer)
    words.save(tmp_path)
    assert sources.open_tokenizer(tmp_path).hash == words.hash
