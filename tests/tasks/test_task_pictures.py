"""What the tasks' pictures are asked to show: each with its own words, truth and numbers, computed again from the model."""

import io
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from made_sets import Knows, caption_layouts, colour, png, put
from PIL import Image

pytest.importorskip("matplotlib")

from sparc_ref.evaluate.check import unit
from sparc_ref.show import plots, sheets
from sparc_ref.tasks import classification, faithfulness, retrieval, segmentation
from sparc_ref.tasks.spec import open_data

WRONG = {1: 3, 4: 0}                                              # the first is seen as the second


class Mistaken(Knows):
    """Takes some pictures for others."""

    def images(self, pictures):
        seen = [WRONG.get(number_of(p), number_of(p)) for p in pictures]
        v = self.directions[seen]
        return {"v_bar": v, "v": v[:, None]}


def number_of(picture):
    red, green, blue = (int(x) // 40 for x in picture[0, 0])
    return red + 7 * green + 49 * blue


def measured(task, spec, model, out, **more):
    data, protocol = open_data(task, spec)
    return task.measure(model, data, protocol, pictures=out, say=lambda line: None, **more)


@pytest.fixture
def asked_for(monkeypatch):
    """{function: its arguments}, nothing drawn."""
    calls = {}

    def spy(name):
        def asked(*args, **options):
            calls.setdefault(name, []).append(SimpleNamespace(args=args, **options))
            return plots.new_figure((1, 1))
        return asked

    for room, name in ((sheets, "sheet"), (sheets, "confusions"), (sheets, "found_for"), (plots, "masks")):
        monkeypatch.setattr(room, name, spy(name))
    return calls


def test_classified_pictures_stand_beside_what_they_were_taken_for(tmp_path, asked_for):
    for n in range(5):
        for k in range(2):
            put(tmp_path / "set" / f"number_{n}" / f"{k}.png", png(n))
    r = measured(classification, f"folders:{tmp_path / 'set'}", Mistaken(), tmp_path)
    assert r.pictures == ("predictions.png", "confusions.png") and r.numbers["top1"] == 0.6
    title, rows = asked_for["sheet"][0].args
    assert title == "set: the nearest class" and list(rows) == ["Right: 6 of 10 pictures", "Wrong: 4"]
    right, wrong = rows.values()
    assert [(number_of(t.image), t.said, t.truth) for t in right] == [(n, f"number {n}", "") for n in (0, 0, 2, 2, 3, 3)]
    assert [(number_of(t.image), t.said, t.truth) for t in wrong] == [
        (n, f"number {WRONG[n]}", f"is: number {n}") for n in (1, 1, 4, 4)]
    _, pairs, classes = asked_for["confusions"][0].args
    assert pairs == {(n, WRONG.get(n, n)): 2 for n in range(5)} and classes == tuple(f"number {n}" for n in range(5))


def test_what_is_found_first_stands_beside_what_was_asked(tmp_path, asked_for):
    """Some picture cannot be read, so that rows are not the set's; captions ask with their own words."""
    captions = [[f"first of number {n}", f"second of number {(n + 1) % 9}"] for n in range(9)]
    spec = caption_layouts(tmp_path, [(f"{n}.png", png(n)) for n in range(9)], captions)["captions"]
    put(tmp_path / "images" / "2.png", b"broken")
    model = Mistaken()
    r = measured(retrieval, spec, model, tmp_path, limit=8)
    assert r.pictures == ("pictures-ask.png", "captions-ask.png") and r.examples == 7
    kept = [n for n in range(9) if n not in (2, 8)]
    texts = [text for n in kept for text in captions[n]]
    own = {text: n for n in kept for text in captions[n]}
    v = unit(np.array([model.directions[WRONG.get(n, n)] for n in kept]))
    s = v @ unit(model.texts(texts)["t"][:, 0]).T
    (title, i2t), (other, t2i) = (call.args for call in asked_for["found_for"])
    assert "pictures and the captions nearest" in title and "captions and the pictures nearest" in other
    assert len(i2t) == len(t2i) == 5
    for row in i2t:
        n = number_of(row.query)
        best = np.argsort(-s[kept.index(n)], kind="stable")[:3]
        for (text, right, score), m in zip(row.answers, best, strict=True):
            assert (text, right, score) == (texts[m], own[text] == n, pytest.approx(s[kept.index(n), m]))
    for row in t2i:
        m = texts.index(row.query)
        assert row.query.startswith("first")
        for (image, right, score), n in zip(row.answers, np.argsort(-s[:, m], kind="stable")[:3], strict=True):
            assert (number_of(image), right, score) == (kept[n], own[row.query] == kept[n], pytest.approx(s[n, m]))
    assert {number_of(row.query) for row in i2t} == {own[row.query] for row in t2i}


CAPTIONS = {0: ["A red cat sits.", "The cat is red."], 1: ["A blue dog runs!", "Red cat sits is blue."],
            2: ["They run.", "A big, big dog."], 3: ["not read", "nor this"]}
FIRST = {0: "Red cat sits is blue.", 1: "A big, big dog.", 2: "A big, big dog."}
SAID = {0: ("0.80", "Red cat sits is [blue.]"), 1: ("0.33", "A [big,] [big] dog."), 2: ("1.00", "A big, big dog.")}


class Told(Knows):
    """Finds FIRST for each picture."""

    def images(self, pictures):
        return {"v_bar": np.stack([self.of(FIRST[number_of(p)]) for p in pictures])}

    def texts(self, texts):
        return {"t_bar": np.stack([self.of(text) for text in texts])}

    def of(self, text):
        return np.eye(8)[[text for each in CAPTIONS.values() for text in each].index(text)]


@pytest.mark.parametrize("choice, score", [("", "0.80"), ("?ref=max", "0.60")])
def test_the_first_caption_stands_under_its_picture_with_its_score(tmp_path, monkeypatch, choice, score):
    order = (3, 0, 1, 2)
    spec = caption_layouts(tmp_path, [(f"{n}.png", png(n)) for n in order], [CAPTIONS[n] for n in order])["captions"]
    put(tmp_path / "images" / "3.png", b"broken")
    figures = []
    monkeypatch.setattr(plots, "png", lambda figure, dpi=150: figures.append(figure) or b"")
    assert measured(faithfulness, spec + choice, Told(), tmp_path).pictures == ("first-captions.png",)
    assert len(figures[0].axes) == 3
    for n, ax in enumerate(figures[0].axes):
        assert number_of(ax.images[0].get_array()) == n
        wanted = score if n == 0 else SAID[n][0]
        assert (ax.get_title(), ax.get_xlabel().replace("\n", " ")) == (f"K-P {wanted}", SAID[n][1])


class Painted:
    """A patch is the colour of its class; h_v sees the first two classes, g_v takes one for the other."""

    config = SimpleNamespace(image_size=16, patch_size=8, h_v="dense_gelu", embed_dim=3, max_tokens=8)
    objective, params, name, batch = Knows().objective, {}, "painted", 2

    def images(self, pictures):
        v = np.stack([p[4::8, 4::8].reshape(-1, 3) for p in pictures]).astype(float)
        return {"segment": v, "v": v[..., [1, 0, 2]]}

    def pooled_texts(self, texts):
        return np.eye(3)[[("red", "green", "blue").index(text) for text in texts]] * 255


def test_masks_are_those_of_their_picture_and_head(tmp_path, asked_for):
    """Truths that are not square, a pixel that is not counted, a mask that cannot be read."""
    rng, truths = np.random.default_rng(5), []
    for i in range(4):
        truth = np.kron(rng.integers(0, 3, (2, 2)), np.ones((8, 16), int)).astype(np.uint8)
        colours = (np.eye(3) * 255).astype(np.uint8)[truth]
        truth[0, :4] = 255
        truths.append(truth)
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(colours).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(truth).save(tmp_path / "masks" / f"{i}.png")
    put(tmp_path / "masks" / "0.png", b"broken")
    put(tmp_path / "classes.json", '["red", "green", "blue"]')
    r = measured(segmentation, f"folder:{tmp_path}?background_label=-1", Painted(), tmp_path)
    assert r.pictures == ("segmentation.png",) and r.numbers["miou"] == 1 and r.examples == 3
    (photos, drawn, predictions, classes) = asked_for["masks"][0].args
    assert list(predictions) == ["h_v, g_v", "g_v"] and tuple(classes) == ("red", "green", "blue")
    for n, truth in enumerate(truths[1:]):
        at = (np.arange(224) * 16 // 224)[:, None], (np.arange(224) * 32 // 224)[None]
        wanted = np.where(truth == 255, -1, truth.astype(int))[at]
        assert np.array_equal(drawn[n], wanted) and np.array_equal(predictions["h_v, g_v"][n], wanted)
        swapped = np.array([1, 0, 2, -1])[wanted]
        assert np.array_equal(predictions["g_v"][n], swapped)
        centres = photos[n][56::112, 56::112]
        assert np.array_equal(np.argmax(centres, -1), truth[4::8, 8::16])


def test_where_nothing_is_confused_no_confusions_are_drawn(tmp_path, asked_for):
    for n in range(3):
        put(tmp_path / "set" / f"number_{n}" / "0.png", png(n))
    r = measured(classification, f"folders:{tmp_path / 'set'}", Knows(), tmp_path)
    assert r.pictures == ("predictions.png",)
    assert Counter(number_of(t.image) for t in next(iter(asked_for["sheet"][0].args[1].values()))) == Counter(range(3))


def wide(n, others):
    """A picture of number n in its middle third, of another number beside it."""
    image = Image.new("RGB", (24, 8), colour(others))
    image.paste(colour(n), (8, 0, 16, 8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_are_drawn_as_the_model_saw_them(tmp_path, asked_for, monkeypatch):
    """Their middle squares."""
    for n in range(3):
        put(tmp_path / "set" / f"number_{n}" / "0.png", wide(n, 7 - n))
    assert measured(classification, f"folders:{tmp_path / 'set'}?eval_resize=crop", Knows(), tmp_path).numbers["top1"] == 1
    assert [number_of(t.image) for rows in asked_for["sheet"][0].args[1].values() for t in rows] == [0, 1, 2]
    captions = [CAPTIONS[n] for n in range(3)]
    spec = caption_layouts(tmp_path, [(f"{n}.png", wide(n, 7 - n)) for n in range(3)], captions)["captions"]
    spec += "?eval_resize=crop"
    measured(retrieval, spec, Told(), tmp_path)
    i2t, t2i = (call.args[1] for call in asked_for["found_for"])
    assert [number_of(row.query) for row in i2t] == [0, 1, 2]
    assert {number_of(image) for row in t2i for image, *_ in row.answers} == {0, 1, 2}
    figures = []
    monkeypatch.setattr(plots, "png", lambda figure, dpi=150: figures.append(figure) or b"")
    measured(faithfulness, spec, Told(), tmp_path)
    assert [number_of(ax.images[0].get_array()[100:, 60:]) for ax in figures[0].axes] == [0, 1, 2]
