"""Both commands and the task, end to end on drawn scenes: trained, killed, resumed, measured; and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch

from parity.trainer.captioning import __main__ as command
from parity.trainer.captioning import fit, language, task, train, words
from parity.trainer.captioning.language import open_language, weights_hash
from parity.trainer.captioning.model import CaptionerConfig, Tower, open_captioner
from sparc_ref.commands.cli import run as sparc_ref
from sparc_ref.tasks.spec import open_data

SCENES = "drawn?count=24&style=short"
TINY = ["--image-size", "16", "--patch-size", "8", "--vision-width", "16", "--vision-depth", "1", "--vision-heads", "2",
        "--text-width", "16", "--text-depth", "1", "--text-heads", "2", "--embed-dim", "8", "--max-tokens", "9", "--batch", "6",
        "--steps", "1", "--eval-limit", "8"]  # fmt: skip
GPT = ["--width", "16", "--depth", "2", "--heads", "2", "--max-tokens", "24", "--batch", "8", "--warmup", "2", "--lr", "0.01"]
SIZES = ["--latents", "3", "--resampler-depth", "1", "--heads", "2", "--head-width", "4", "--ratio", "2", "--batch", "6",
         "--warmup", "2", "--lr", "0.03", "--checkpoint-every", "3", "--log-every", "1", "--max-tokens", "12"]  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A tower of sparc-ref train, and a language model of the command."""
    folder = tmp_path_factory.mktemp("parts")
    assert sparc_ref(["train", "--data", SCENES, "--out", str(folder / "tower"), *TINY]) == 0
    assert language.main(["--data", SCENES, "--out", str(folder / "words"), "--steps", "12", *GPT]) == 0
    return folder


def arguments(parts, out, *more, data=SCENES):
    return ["--checkpoint", str(parts / "tower"), "--language", str(parts / "words"), "--data", data, "--out", str(out), *SIZES,
            *more]


@pytest.fixture(scope="module")
def trained(parts):
    assert command.main(arguments(parts, parts / "captioner", "--steps", "8")) == 0
    return parts / "captioner"


def parameters(out, step=8):
    return (out / "checkpoints" / f"step_{step:08d}" / "parameters.safetensors").read_bytes()


def rows(out):
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in
            (out / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_says_how(trained):
    found = rows(trained)
    assert [row["step"] for row in found] == list(range(1, 9)) and found[-1]["lr"] < found[2]["lr"]
    first, last = (np.mean([row["loss"] for row in part]) for part in (found[:4], found[4:]))     # an epoch each
    assert last < first
    record = json.loads((trained / "config.json").read_text())
    assert record["model"]["latents"] == 3 and record["tower"]["sha256"] and record["language"]["tokenizer"]


def test_the_checkpoint_holds_what_was_trained_and_nothing_else(trained, parts):
    model, found = open_captioner(trained)
    assert set(found.params) == set(model.own()) and found.step == 8
    assert {name.split(".")[0] for name in found.params} == {"image_token", "resampler", "gated"}
    assert weights_hash(model.tower) == Tower.open(parts / "tower").sha256
    assert weights_hash(model.language) == weights_hash(open_language(parts / "words"))
    assert all(float(model.gated[i].alpha.detach()) for i in ("0", "1"))


def test_killed_and_resumed_it_ends_with_the_same_bits(trained, parts, tmp_path, monkeypatch):
    sound = train.loss_of
    calls = []

    def crash(*given):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("crash")
        return sound(*given)

    monkeypatch.setattr(train, "loss_of", crash)
    with pytest.raises(RuntimeError, match="crash"):
        command.main(arguments(parts, tmp_path / "run", "--steps", "8"))
    monkeypatch.undo()
    assert command.main(arguments(parts, tmp_path / "run", "--steps", "8", "--resume")) == 0
    assert parameters(tmp_path / "run") == parameters(trained)
    assert rows(tmp_path / "run") == rows(trained)


def test_only_matrices_outside_of_the_resampler_decay(parts, tmp_path, monkeypatch):
    """With a learning rate, no gradient and a decay of 1, just they shrink."""
    sound, seen = torch.optim.AdamW, {}

    def kept(groups, **options):
        seen["decayed"] = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        return sound(groups, **options)

    monkeypatch.setattr(torch.optim, "AdamW", kept)
    given = train.Options(parts / "tower", parts / "words", (SCENES,), tmp_path / "run", max_tokens=12,
                          model=CaptionerConfig(latents=3, resampler_depth=1, heads=2, head_width=4),
                          training=fit.Training(steps=1, batch=6))
    model = train.run(given, say=lambda text: None)
    decayed = {name for name, p in model.own().items() if id(p) in seen["decayed"]}
    assert decayed == {f"gated.{i}.{part}.weight" for i in (0, 1) for part in
                       ("attn.query", "attn.key", "attn.value", "attn.out", "ffn.up", "ffn.down")}


REFUSED = {
    "no folder": (lambda p: ["--language", str(p / "none")], "expected the folder of a language model, found none; train one"),
    "no language model": (lambda p: ["--language", str(p)], "no language model: expected checkpoints/"),
    "a tower for words": (lambda p: ["--language", str(p / "tower")], "a checkpoint, but of no language model"),
    "words for a tower": (lambda p: ["--checkpoint", str(p / "words")], "configuration is not one that sparc_ref wrote"),
    "too long": (lambda p: ["--max-tokens", "25"], "max_tokens: expected 4 to the language model's 24, got 25"),
    "every": (lambda p: ["--every", "3"], "every: expected at most the 2 blocks"),
    "no such data": (lambda p: ["--data", "captions:/none"], "/none"),
    "batch": (lambda p: ["--batch", "60"], "batch_size: expected at most 24"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_said(parts, tmp_path, capsys, case):
    change, said = REFUSED[case]
    assert command.main(arguments(parts, tmp_path / "run", "--steps", "1", *change(parts))) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_is_not_written_over(trained, parts, capsys):
    assert command.main(arguments(parts, trained, "--steps", "8")) == 2
    assert "holds a run already: continue it with --resume" in capsys.readouterr().err
    assert command.main(arguments(parts, trained, "--steps", "9", "--resume")) == 2
    assert "started with other settings; train.steps: 8 there, 9 here" in capsys.readouterr().err


def test_a_run_whose_configuration_is_lost_says_so(trained, parts, tmp_path, capsys):
    copy = shutil.copytree(trained, tmp_path / "run")
    (copy / "config.json").unlink()
    assert command.main(arguments(parts, copy, "--steps", "8", "--resume")) == 2
    assert "has checkpoints, but config.json is missing or damaged" in capsys.readouterr().err


def test_a_text_that_is_none_is_named(tmp_path, capsys):
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("words.txt", "none.txt"):
        assert language.main(["--data", f"text:{tmp_path / name}", "--out", str(tmp_path / "run")]) == 2
        assert f"{tmp_path / name}: expected a text in UTF-8" in capsys.readouterr().err


def test_towers_are_not_to_be_deleted_for_being_no_towers(trained, parts, tmp_path, capsys):
    assert len(list((trained / "checkpoints").iterdir())) > 1
    assert command.main([*arguments(parts, tmp_path / "run", "--steps", "1"), "--checkpoint", str(trained)]) == 2
    said = capsys.readouterr().err
    assert "configuration is not one that sparc_ref wrote" in said and "delete" not in said


def test_a_captioner_needs_its_own_tower_and_words(parts, trained, tmp_path, capsys):
    """Another tower at the place of the old one, another language model, none at all."""
    copy = shutil.copytree(parts, tmp_path / "parts")
    for name in ("captioner", "other"):
        shutil.rmtree(copy / name, ignore_errors=True)
    assert command.main(arguments(copy, copy / "captioner", "--steps", "1")) == 0
    assert open_captioner(copy / "captioner")[1].step == 1
    shutil.rmtree(copy / "tower")
    with pytest.raises(ValueError, match=r"its tower was .* where nothing is now: put it back"):
        open_captioner(copy / "captioner")
    assert sparc_ref(["train", "--data", SCENES, "--out", str(copy / "tower"), *TINY, "--seed", "1"]) == 0
    with pytest.raises(ValueError, match="was trained on another tower than the one that now lies at"):
        open_captioner(copy / "captioner")
    shutil.rmtree(copy / "tower")
    shutil.copytree(parts / "tower", copy / "tower")
    shutil.rmtree(copy / "words")
    assert language.main(["--data", SCENES, "--out", str(copy / "words"), "--steps", "2", *GPT]) == 0
    with pytest.raises(ValueError, match="was trained on another language than"):
        open_captioner(copy / "captioner")
    with pytest.raises(ValueError, match="of no captioner; train one"):
        task.open_model(parts / "tower")


# ------------------------------------------------------------------------------------------------------------- the task


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six pictures with captions."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    lines = []
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines += [json.dumps({"image": f"{i}.png", "caption": text}) for text in (f"A thing, number {i}.", "It's red")]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def test_the_task_measures(trained, photos, tmp_path):
    model = task.open_model(trained, batch=4)
    data, protocol = open_data(task, f"captions:{photos}/captions.jsonl?beams=2&most=6&words=plain&split=train&share=0.34")
    found = task.measure(model, data, protocol, pictures=tmp_path, say=lambda text: None)
    assert found.task == "captioning" and found.examples == 4 and found.counts["references"] == 8
    assert set(found.chance) | {f"blank_{k}" for k in found.chance} == set(found.numbers)
    assert {"cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"} == set(found.chance)
    assert found.protocol["words"].startswith("plain: words without punctuation") and found.protocol["beams"] == 2
    assert found.pictures == ("captions.png", "captions.txt") and (tmp_path / "captions.png").stat().st_size > 1000
    assert (tmp_path / "captions.txt").read_text().count("\n") == 4
    again = task.measure(model, data, protocol, say=lambda text: None)
    assert again.numbers == found.numbers and again.chance == found.chance
    assert task.measure(model, data, protocol, limit=2, say=lambda text: None).examples == 2
    assert model.identity and model.trained_on == (SCENES,)


def test_a_model_that_says_what_people_said_has_full_marks(photos):
    """And one that says the same of all has chance."""
    class Parrot(task.Model):
        def captions(self, pictures, protocol):
            texts = [self.identity.format(int(np.sum(p, dtype=int))) for p in pictures]
            return [(text, True) for text in texts]

        size = 20

    class Named:
        name, report = "named", None

        def __len__(self):
            return 8

        def __getitem__(self, i):
            from sparc_ref.data.example import Example

            image = np.full((20, 20, 3), i, np.uint8)
            n = int(np.sum(image, dtype=int))
            return Example(image, (f"w{n} x{n} y{n} z{n}",), (), str(i))

    protocol = task.Protocol(words="plain")
    perfect = task.measure(Parrot(None, "p", "w{0} x{0} y{0} z{0}", ()), Named(), protocol, say=lambda text: None)
    assert perfect.numbers["cider"] == pytest.approx(1000) and perfect.numbers["bleu4"] == pytest.approx(1)
    assert perfect.numbers["rouge_l"] == pytest.approx(1) and perfect.chance["cider"] == 0 == perfect.numbers["blank_cider"]
    same = task.measure(Parrot(None, "p", "w1200 x", ()), Named(), protocol, say=lambda text: None)
    assert same.numbers["cider"] == same.chance["cider"] == same.numbers["blank_cider"] > 0


def test_pictures_without_captions_and_too_few_of_them_are_refused(trained, photos):
    model = task.open_model(trained)

    class Bare:
        name = "bare"

        def __len__(self):
            return 2

        def __getitem__(self, i):
            from sparc_ref.data.example import Example

            return Example(np.zeros((16, 16, 3), np.uint8), (), (), f"{i}.png")

    with pytest.raises(ValueError, match=r"bare: expected a caption for every picture, got none for 0.png, 1.png"):
        task.measure(model, Bare(), task.Protocol(words="plain"), say=lambda text: None)
    data, protocol = open_data(task, f"captions:{photos}?words=plain")
    with pytest.raises(ValueError, match="expected at least 2 pictures, got 1"):
        task.measure(model, data, protocol, limit=1, say=lambda text: None)


@pytest.mark.parametrize("spec, said", [
    ("captions:/none", "/none: expected a file or a folder, found none"), ("drawn:x", "expected coco, flickr30k, captions"),
    ("captions:x?beam=3", "did you mean beams"), ("captions:x?beams=0", "beams: expected at least 1"),
    ("captions:x?penalty=nan", "penalty, seed: expected a finite"), ("captions:x?seed=-1", "penalty, seed: expected a finite"),
    ("captions:x?words=java", "words: expected auto, ptb or plain"),
])  # fmt: skip
def test_what_cannot_be_measured_is_said(spec, said):
    with pytest.raises(ValueError, match=said):
        open_data(task, spec)


def test_scenes_are_pictures_with_captions_too(trained, tmp_path):
    from PIL import Image

    for i in range(5):
        image = np.zeros((12, 12, 4), np.uint8)
        image[2:10, 2:10] = (40 * i, 200, 90, 255)
        Image.fromarray(image).save(tmp_path / f"thing-{'abcde'[i]}.png")
    data, protocol = open_data(task, f"pictures:{tmp_path}?split=train&count=5&objects=1,2&words=plain&most=4&beams=1")
    found = task.measure(task.open_model(trained), data, protocol, say=lambda text: None)
    assert found.examples == 5 and found.data == f"pictures:{tmp_path}?split=train&count=5&objects=1,2"


def test_words_say_how_they_were_cut(monkeypatch):
    monkeypatch.setattr(words.shutil, "which", lambda name: None)
    assert words.chosen("auto") == "plain" == words.chosen("plain")
    with pytest.raises(ValueError, match="words: ptb needs Java"):
        words.chosen("ptb")


def test_the_penn_treebank_s_words():
    if words.absent():
        pytest.skip(f"the Penn Treebank tokenizer needs {words.absent()}")
    texts = ["A man's dog (brown), isn't it?\nTwo lines\u2028of it", "", "Plain words.", ""]
    assert words.cut(texts, "ptb") == ["a man 's dog -lrb- brown -rrb- is n't it two lines of it", "", "plain words", ""]
