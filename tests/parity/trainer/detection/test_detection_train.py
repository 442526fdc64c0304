"""The detector's gradient, its loop, its checkpoints, and what is measured of it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from parity.trainer.detection import __main__ as command
from parity.trainer.detection import augment, predict, task, train
from parity.trainer.detection.data import open_scenes
from parity.trainer.detection.heads import Detector
from parity.trainer.detection.train import Examples, Machine, Run, Training
from parity.trainer.launch import ranks
from parity.trainer.model import SPARC, dump_params, init_weights
from parity.trainer.ranks import run_ranks
from sparc_ref.data import DrawnScenes, WordTokenizer
from sparc_ref.model import PRESETS
from sparc_ref.run import checkpoint
from sparc_ref.tasks.spec import open_data

torch.set_num_threads(1)
SMALL = Training(steps=4, batch=2, size=32, lr=1e-3, warmup=1, droplayer_image=0.0, droplayer_text=0.0, tokens=6)
PLAIN = replace(augment.NONE, negatives=5, prompts="bare")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """An untrained SPARC's checkpoint."""
    tokenizer = WordTokenizer(DrawnScenes().vocabulary())
    config = replace(PRESETS["tiny"], vocab_size=tokenizer.vocab_size, vision_width=32, text_width=16, embed_dim=24,
                     image_size=32)
    params = dump_params(init_weights(SPARC(config), 0))
    zeros = {name: np.zeros_like(x) for name, x in params.items()}
    folder = tmp_path_factory.mktemp("run")
    from dataclasses import asdict

    record = {"model": asdict(config), "train": {"warmup": 0, "eval_limit": 0}, "tokenizer": tokenizer.hash, "data": {},
              "validation": {}}
    checkpoint.save(folder / "checkpoints", 1, params, {"step": 1, "m": zeros, "v": zeros}, {"config": record}, tokenizer)
    return folder


def scenes(tmp_path, **options):
    return open_scenes(tmp_path / "drawn", size=64, count=6, **options)


def one_batch(detector, tokenizer, tmp_path, training=SMALL, options=PLAIN, count=3):
    examples = Examples([scenes(tmp_path)], training, options)
    return train.collate([examples(0, n) for n in range(count)], tokenizer, training.tokens)


def grads(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.fixture
def parts(towers, tmp_path):
    detector, tokenizer, _ = train.new_detector(towers, replace(SMALL, clip_by="vmap"), Machine())
    torch.manual_seed(1)
    with torch.no_grad():                                 # heads that say something, so that gradients are no accident
        for p in [*detector.class_head.parameters(), *detector.box_head.parameters()]:
            p += 0.2 * torch.randn_like(p)
    return detector, one_batch(detector, tokenizer, tmp_path)


def test_each_examples_gradient_is_clipped(parts):
    """loop and vmap against gradients taken alone with backward(), clipped by hand."""
    detector, batch = parts
    images = train.normalized(batch.images)
    alone, norms = [], []
    for b in range(3):
        logits, boxes = detector(images[b:b + 1], batch.tokens[b:b + 1], batch.mask[b:b + 1], batch.real[b:b + 1])
        train.losses_of(logits[0], boxes[0], batch.labels[b], batch.boxes[b], train.ONES)["loss"].backward()
        alone.append(grads(detector))
        norms.append(float(torch.sqrt(sum((g**2).sum() for g in alone[-1].values()))))
    clip = sorted(norms)[1] * 0.99                        # one example stays as it is, two are scaled
    wanted = {name: sum(g[name] * min(1, clip / norm) for g, norm in zip(alone, norms)) / 3 for name in alone[0]}
    assert sum(norm > clip for norm in norms) == 2
    for by in ("loop", "vmap"):
        told = train.gradient(detector, batch, clip, by, 3)
        got = grads(detector)
        assert told["clipped"] == 2 and told["example_norm"] == pytest.approx(sum(norms), rel=1e-4)
        assert got.keys() == wanted.keys()
        for name, g in got.items():
            torch.testing.assert_close(g, wanted[name], rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    train.gradient(detector, batch, clip, "batch", 3)
    whole = grads(detector)
    for name, g in whole.items():
        torch.testing.assert_close(g, sum(a[name] for a in alone) / 3, rtol=1e-3, atol=1e-6)
    assert any(not torch.allclose(whole[name], wanted[name], rtol=1e-2) for name in whole)


def test_padding_queries_of_a_batch_change_no_gradient(parts, towers, tmp_path):
    detector, batch = parts
    train.gradient(detector, batch, 1.0, "loop", 3)
    known = grads(detector)
    wider = train.Batch(batch.images, *(torch.nn.functional.pad(x, (0, 0, 0, 4)) for x in (batch.tokens, batch.mask)),
                        torch.nn.functional.pad(batch.real, (0, 4)),
                        tuple(torch.nn.functional.pad(x, (0, 4)) for x in batch.labels), batch.boxes)
    train.gradient(detector, wider, 1.0, "loop", 3)
    for name, g in grads(detector).items():
        torch.testing.assert_close(g, known[name], rtol=1e-4, atol=1e-7)


def go(towers, out, tmp_path, training=SMALL, resume=False, stop_at=None, say=lambda text: None, **machine):
    machine = Machine(**{"log_every": 1, "checkpoint_every": 2, "workers": 2} | machine)
    with ranks("cpu") as place:
        detector, tokenizer, about = train.new_detector(towers, training, machine)
        run = Run(detector, tokenizer, about, Examples([scenes(tmp_path)], training, PLAIN), training, machine, out, place, say)
        run.begin(resume)
        if stop_at:
            steps = run.update

            def update(items):
                if run.step == stop_at:
                    raise KeyboardInterrupt
                return steps(items)
            run.update = update
        return run.go()


def test_a_run_that_is_killed_ends_as_one_that_is_not(towers, tmp_path):
    training = replace(SMALL, droplayer_image=0.4, droplayer_text=0.2)
    whole = go(towers, tmp_path / "whole", tmp_path, training)
    with pytest.raises(KeyboardInterrupt):
        go(towers, tmp_path / "killed", tmp_path, training, stop_at=3)
    assert [p.name for p in checkpoint.steps(tmp_path / "killed" / "checkpoints")] == ["step_00000002"]
    with pytest.raises(ValueError, match="holds a run already"):
        go(towers, tmp_path / "killed", tmp_path, training)
    with pytest.raises(ValueError, match="started with other settings"):
        go(towers, tmp_path / "killed", tmp_path, replace(training, lr=1e-2), resume=True)
    again = go(towers, tmp_path / "killed", tmp_path, training, resume=True)
    for name, x in whole.state_dict().items():
        assert torch.equal(x, again.state_dict()[name]), name
    rows = [[{k: x for k, x in json.loads(line).items() if k != "seconds"} for line in
             (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("whole", "killed")]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [1, 2, 3, 4]
    loaded, tokenizer, about, found = train.load_detector(tmp_path / "whole")
    assert found.step == 4 and about["size"] == 32 and tokenizer.hash == about["tokenizer"]
    assert all(torch.equal(x, whole.state_dict()[name]) for name, x in loaded.state_dict().items())


def test_a_run_whose_configuration_is_lost_is_not_written_over(towers, tmp_path):
    go(towers, tmp_path / "run", tmp_path, replace(SMALL, steps=2))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for content in (None, '{"model":'):
        (tmp_path / "run" / "config.json").unlink(missing_ok=True)
        if content:
            (tmp_path / "run" / "config.json").write_text(content)
        with pytest.raises(ValueError, match="holds a run already"):
            go(towers, tmp_path / "run", tmp_path, replace(SMALL, steps=1))
        with pytest.raises(ValueError, match=r"has checkpoints, but config\.json is missing or damaged"):
            go(towers, tmp_path / "run", tmp_path, replace(SMALL, steps=2), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_data_sets_of_one_name_keep_their_own_pictures(tmp_path):
    data = scenes(tmp_path)
    plain = [replace(data, open=lambda i, size, grey=grey: np.full((size, size, 3), grey, np.uint8)) for grey in (10, 200)]
    both = Examples(plain, SMALL, PLAIN)
    seen = {int(both.read(which, np.random.default_rng(0))[0].max()) for which in (0, 1)}
    assert seen == {10, 200}


def test_towers_that_are_frozen_stay(towers, tmp_path):
    before, _, _ = train.new_detector(towers, SMALL, Machine())
    after = go(towers, tmp_path / "run", tmp_path, replace(SMALL, lr_image=0.0, lr_text=0.0, steps=2))
    moved = {name.partition(".")[0] for name, x in before.state_dict().items() if not torch.equal(x, after.state_dict()[name])}
    assert moved == {"class_head", "box_head"}
    after = go(towers, tmp_path / "text", tmp_path, replace(SMALL, lr_text=1e-3, steps=2))
    moved = {name.partition(".")[0] for name, x in before.state_dict().items() if not torch.equal(x, after.state_dict()[name])}
    assert moved == {"class_head", "box_head", "vision", "text", "g_t"}


def test_settings_that_do_not_go_together(towers, tmp_path):
    for changes, said in (({"size": 33}, "multiple of the model's patches"), ({"mix": (.5, .5)}, "mix"), ({"lr": 0.0}, "lr"),
                          ({"clip": -1.0}, "clip"), ({"droplayer_text": 1.0}, "droplayer_text")):
        with pytest.raises(ValueError, match=said):
            training = replace(SMALL, **changes)
            train.new_detector(towers, training, Machine())
            Examples([scenes(tmp_path)], training, PLAIN)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "letter.txt").write_text("")
    with pytest.raises(ValueError, match=r"letter\.txt"):
        go(towers, tmp_path / "others", tmp_path)


def test_pictures_that_are_missing_are_counted_or_end_it(tmp_path):
    data = scenes(tmp_path)
    read = data.open

    def some(index, size, broken):
        if index in broken:
            raise train.Unusable("image missing")
        return read(index, size)
    examples = Examples([replace(data, open=lambda i, size: some(i, size, {0, 1}))], SMALL, PLAIN)
    for n in range(20):
        examples(0, n)
    assert examples.skipped["image missing"] > 0
    examples = Examples([replace(data, open=lambda i, size: some(i, size, set(range(6))))], SMALL, PLAIN)
    with pytest.raises(ValueError, match="50 pictures in a row cannot be used, the last one: image missing"):
        examples(0, 0)


# ------------------------------------------------------------------------------------------------------------------- prediction


class Stub(torch.nn.Module):
    """A detector whose answers are given."""

    def __init__(self, logits, boxes):
        super().__init__()
        self.logits, self.boxes, self.weight = logits, boxes, torch.nn.Parameter(torch.zeros(1))

    def detect(self, images, queries, real=None):
        return self.logits, self.boxes


def test_boxes_come_back_in_the_pictures_own_pixels():
    boxes = torch.tensor([[[0.5, 0.25, 1.0, 0.5], [0.25, 0.125, 0.25, 0.25], [0.9, 0.9, 0.4, 0.4]]])
    logits = torch.tensor([[[2.0, -1.0], [0.0, 1.0], [-3.0, -2.0]]])
    given = Stub(logits, boxes), np.zeros((20, 40, 3), np.uint8), (640, 320), torch.zeros(1, 2, 4), 64
    box, label, score = predict.detect(*given)
    assert label.tolist() == [0, 1, 0, 1, 1, 0] and np.allclose(score, 1 / (1 + np.exp([-2, -1, 0, 1, 2, 3])))
    assert np.allclose(box[0], [0, 0, 640, 320]) and np.allclose(box[1], [80, 0, 160, 160])
    assert (box[:, :2] + box[:, 2:] <= [640, 320]).all() and box[4, 3] == 0               # what lies in the grey has no height
    box, label, _ = predict.detect(*given, 2)
    assert label.tolist() == [0, 1] and len(box) == 2


def test_templates_are_averaged_as_logits_or_as_probabilities():
    logits, boxes = torch.tensor([[[4.0, 0.0, -2.0, 0.0]]]), torch.full((1, 1, 4), 0.5)    # 2 templates, 2 classes
    def score(how):
        return predict.detect(Stub(logits, boxes), np.zeros((8, 8, 3), np.uint8), (8, 8), torch.zeros(2, 2, 4), 8, 9, how)[2]

    def p(z):
        return 1 / (1 + np.exp(-z))
    assert np.allclose(score("logits"), [p(1), p(0)]) and np.allclose(score("probs"), [(p(4) + p(-2)) / 2, p(0)])


@pytest.fixture(scope="module")
def model(towers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    go(towers, folder / "run", folder, replace(SMALL, steps=1))
    return task.open_model(folder / "run")


def test_a_perfect_detector_scores_one_and_chance_nearly_nothing(model, tmp_path, monkeypatch):
    data, protocol = open_data(task, f"scenes:{tmp_path}/drawn?size=64&count=8&prompt=bare&per_class=true&most=40")
    own = iter(data.pictures)

    def perfect(*_):
        a = next(own)
        return a.box, a.label, np.ones(len(a.label))
    monkeypatch.setattr(task, "detect", perfect)
    result = task.measure(model, data, protocol, pictures=tmp_path, say=lambda text: None)
    assert list(result.numbers.values()) == pytest.approx([1.0] * len(result.numbers)) and result.examples == 8
    assert result.chance["ap50"] < 0.1 and (tmp_path / "detections.png").stat().st_size > 10_000
    assert result.counts["boxes"] == sum(len(a.label) for a in data.pictures) and len(result.numbers) > 7


def test_the_first_class_is_predicted(model, tmp_path, monkeypatch):
    """Label 0 is a class like the others: every number of the file comes back."""
    data, protocol = open_data(task, f"scenes:{tmp_path}/drawn?size=64&count=20&most=20")
    zero = [n for n, a in enumerate(data.pictures) if 0 in a.label]
    assert zero
    monkeypatch.setattr(task, "detect", lambda *_: (np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)))
    none = task.measure(model, data, protocol, say=lambda text: None)
    assert none.numbers["ap"] == 0
    own = iter(data.pictures)

    def only_zero(*_):
        a = next(own)
        return a.box[a.label == 0], a.label[a.label == 0], np.ones((a.label == 0).sum())
    monkeypatch.setattr(task, "detect", only_zero)
    found = task.measure(model, data, replace(protocol, per_class=True), say=lambda text: None)
    assert found.numbers[f"ap of {data.classes[0]}"] == pytest.approx(1) and found.numbers["ap"] < 0.1


def test_an_untrained_detector_is_measured_and_its_choices_kept(model, tmp_path):
    data, protocol = open_data(task, f"scenes:{tmp_path}/drawn?size=64&count=4&ensemble=probs&most=50&pixels=48")
    result = task.measure(model, data, protocol, limit=3, say=lambda text: None)
    assert result.examples == 3 and result.numbers["ap"] < 0.2
    assert result.protocol["pixels"] == 48 and result.protocol["ensemble"] == "probs"
    for wrong, said in (("ensemble=mean", "ensemble"), ("prompt=x", "prompt"), ("most=0", "most"), ("split=none", "split")):
        with pytest.raises(ValueError, match=said):
            open_data(task, f"scenes:{tmp_path}/drawn?{wrong}")


def test_pictures_without_boxes_cannot_be_measured(model, tmp_path):
    data, protocol = open_data(task, f"scenes:{tmp_path}/drawn?count=2&size=32&prompt=bare")
    bare = [replace(p, crowd=np.ones(len(p.label), bool)) for p in data.pictures]
    none = [replace(p, **{name: getattr(p, name)[:0] for name in ("box", "label", "area", "crowd")}) for p in data.pictures]
    for pictures in (bare, none):
        with pytest.raises(ValueError, match="none of the 2 pictures has a box to be found"):
            task.measure(model, replace(data, pictures=tuple(pictures)), protocol, say=lambda text: None)


def test_a_checkpoint_that_holds_no_detector(towers, tmp_path):
    with pytest.raises(ValueError, match="holds no detector; train one"):
        task.open_model(towers)
    for step in (0, 1):                                   # an earlier one is no reason to delete what is somebody's towers
        shutil.copytree(towers / "checkpoints" / "step_00000001", tmp_path / "run" / "checkpoints" / f"step_{step:08d}")
    with pytest.raises(ValueError, match="holds no detector") as refused:
        task.open_model(tmp_path / "run" / "checkpoints" / "step_00000001")
    assert "delete" not in str(refused.value)
    with pytest.raises(ValueError, match="no such directory"):
        task.open_model(tmp_path / "nothing")


def test_the_command_trains_and_refuses(towers, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("red circle\n")
    common = ["--checkpoint", str(towers), "--out", str(tmp_path / "run"), "--steps", "1", "--batch", "2", "--size", "32",
              "--warmup", "0", "--prompts", "bare", "--without", str(tmp_path / "names.txt")]
    said = []
    assert command.main([*common, "--data", f"scenes:{tmp_path}/drawn?count=4"], said.append) == 0
    assert "done: 1 updates" in said[-1]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["forbidden"] == ["red circle"]
    for argv, words in (([*common, "--data", f"coco:{tmp_path}/nothing"], "expected a JSON file"),
                        ([*common, "--data", "cocoa:x"], "did you mean coco"),
                        ([*common, "--data", f"scenes:{tmp_path}/drawn?count=4"], "holds a run already")):
        assert command.main(argv, said.append) == 2
        assert words in capsys.readouterr().err


def test_a_detector_sees_positions_resized(towers):
    detector, _, _ = train.new_detector(towers, SMALL, Machine())
    assert isinstance(detector, Detector)
    queries = torch.randn(3, 24)
    for size in (32, 64):
        logits, boxes = detector.detect(torch.zeros(1, 3, size, size), queries)
        assert logits.shape == (1, (size // 8) ** 2, 3) and boxes.shape == (1, (size // 8) ** 2, 4)


@pytest.mark.slow
def test_two_ranks_train_as_one(towers, tmp_path):
    argv = ["--checkpoint", str(towers), "--data", f"scenes:{tmp_path}/drawn?count=6", "--steps", "2", "--batch", "4",
            "--size", "32", "--warmup", "1", "--prompts", "bare", "--droplayer-image", "0", "--droplayer-text", "0",
            "--lr-text", "1e-3"]
    assert command.main([*argv, "--out", str(tmp_path / "one")], lambda text: None) == 0
    run_ranks(2, "detector_rank:run", {}, {"argv": [*argv, "--out", str(tmp_path / "two")]}, timeout=600)
    one, two = (train.load_detector(tmp_path / name)[0].state_dict() for name in ("one", "two"))
    for name, x in one.items():
        torch.testing.assert_close(two[name], x, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
