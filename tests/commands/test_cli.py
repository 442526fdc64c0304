"""The command line: complete help, unknown options with the nearest name, one clean line for what the user can mend."""

import json
import os
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from sparc_ref import __version__
from sparc_ref.commands import cli
from sparc_ref.data import DrawnScenes, UnigramTokenizer, WordTokenizer
from sparc_ref.model import SPARCConfig
from sparc_ref.run import sources
from sparc_ref.run.train import TrainConfig, reasons

SMALL = ["--image-size", "16", "--vision-width", "16", "--vision-depth", "1", "--text-width", "16", "--text-depth", "1",
         "--steps", "2", "--batch", "4", "--eval-limit", "4", "--warmup", "1"]


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


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "explain"])
def test_help_names_every_option_with_its_meaning(command, capsys):
    status, out, _ = run([command, "--help"], capsys)
    assert status == 0
    for f in fields(cli.COMMANDS[command]):
        if f.name not in ("training", "model", "image", "caption"):
            assert "--" + f.name.replace("_", "-") in out, f.name
    if command == "train":
        for cls in (TrainConfig, SPARCConfig):
            for f in fields(cls):
                assert "--" + f.name.replace("_", "-") in out, f.name


def test_every_training_option_has_a_reason():
    assert set(reasons(TrainConfig)) == {f.name for f in fields(TrainConfig)}


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
    (["train", "--batch", "0"], "batch: expected at least 1"),
    (["train", "--patch-size", "7"], "patch_size: expected a divisor of image_size"),
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


def test_device_cuda_without_a_gpu(capsys, tmp_path):
    from sparc_ref.backend import get_device
    try:
        get_device("cuda")
    except ValueError:
        status, _, err = run(["train", "--out", str(tmp_path / "run"), *SMALL, "--device", "cuda"], capsys)
        assert status == 2 and "pip install 'sparc_ref[cuda" in err and "Traceback" not in err
        return
    pytest.skip("a GPU is present")


def test_missing_extras_are_named(tmp_path):
    """Without tyro the command says what to install, and nothing else."""
    (tmp_path / "tyro.py").write_text("raise ModuleNotFoundError(\"No module named 'tyro'\", name='tyro')")
    done = subprocess.run([sys.executable, "-m", "sparc_ref", "--help"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "sparc-ref: the package tyro is missing; the command line needs: pip install 'sparc_ref[run]'\n"


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
