"""K-Precision end to end: taggers by their interfaces, tagged files, perfect and blind models, real captions."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sparc_ref.data import WordTokenizer
from sparc_ref.evaluate.faithfulness import k_precision, words
from sparc_ref.tasks import faithfulness as task
from sparc_ref.tasks.spec import open_data
from sparc_ref.tasks.taggers import NLTK, SPACY, open_tagger

CAPTIONS = {"a": ["A red cat sits.", "The cat is red."], "b": ["A blue dog runs!", "Red cat sits is blue."],
            "c": ["They run.", "A big, big dog."]}
TAGS = {"red": "ADJ", "blue": "ADJ", "big": "ADJ", "cat": "NOUN", "dog": "NOUN"}


def tokens(text):
    """Words and punctuation apart, as taggers have them."""
    return "".join(f" {c}" if c in ".,!" else c for c in text).split()


@pytest.fixture
def where(tmp_path):
    """Three pictures of one colour each, two captions each."""
    for i, name in enumerate(CAPTIONS):
        Image.new("RGB", (20, 16), (80 * i + 20,) * 3).save(tmp_path / f"{name}.png")
    rows = [json.dumps({"image": f"{name}.png", "caption": text}) for name, texts in CAPTIONS.items() for text in texts]
    (tmp_path / "captions.jsonl").write_text("\n".join(rows))
    tagged = [json.dumps({"caption": text, "tags": [[t, TAGS.get(t.lower(), "X")] for t in tokens(text)]})
              for texts in CAPTIONS.values() for text in texts]
    (tmp_path / "tags.jsonl").write_text("\n".join(tagged))
    return tmp_path


class Told:
    """A model that was told which caption comes first for each picture."""

    config = SimpleNamespace(image_size=16, max_tokens=30)
    tokenizer, batch = WordTokenizer(["cat"]), 2

    def __init__(self, first):
        self.known = [text for texts in CAPTIONS.values() for text in texts]
        self.first = np.eye(6)[[self.known.index(text) for text in first]]

    def images(self, pictures):
        return {"v_bar": self.first[[round((float(p.mean()) - 20) / 80) for p in pictures]]}

    def texts(self, texts):
        self.tokenizer.batch(texts, 30)                           # counts what is cut
        return {"t_bar": np.eye(6)[[self.known.index(text) for text in texts]]}


def measured(spec, first=("A red cat sits.", "A big, big dog.", "They run."), **options):
    data, protocol = open_data(task, spec)
    return task.measure(Told(first), data, protocol, say=lambda line: None, **options)


def test_by_hand_with_a_tagged_file(where):
    """a finds its own; b finds c's "big big dog", of which it has one word; c finds its own, without a noun or adjective."""
    r = measured(f"captions:{where}?tagger={where / 'tags.jsonl'}")
    assert r.numbers == {"kp": pytest.approx(7 / 9), "kp_na": pytest.approx(2 / 3), "i2t_r1": 2 / 3} and r.examples == 3
    assert r.counts["first captions without a noun or adjective"] == 1 and r.counts["captions"] == 6 and r.notes == ()
    assert 0 < r.chance["kp"] < 1 and 0 < r.chance["kp_na"] < 1 and r.chance["i2t_r1"] == pytest.approx(1 / 3)


def test_white_space_of_a_tagged_caption_is_as_that_of_captions(where):
    """Both are read with single spaces, so that either may hold runs of them."""
    spaced = (where / "tags.jsonl").read_text().replace("A red cat sits.", " A red  cat\\tsits. ")
    (where / "tags.jsonl").write_text(spaced)
    assert "  cat" in spaced
    assert measured(f"captions:{where}?tagger={where / 'tags.jsonl'}").numbers["kp_na"] == pytest.approx(2 / 3)


FIRST = ("Red cat sits is blue.", "A big, big dog.", "A blue dog runs!")


@pytest.mark.parametrize("choice, kp, kp_na", [
    ("", (4 / 5 + 1 / 3 + 1 / 3) / 3, (2 / 3 + 1 / 3 + 1 / 2) / 3),
    ("ref=max&", (3 / 5 + 1 / 3 + 1 / 3) / 3, (2 / 3 + 1 / 3 + 1 / 2) / 3),
    ("count=set&", (4 / 5 + 1 / 2 + 1 / 3) / 3, (2 / 3 + 1 / 2 + 1 / 2) / 3),
])
def test_what_each_choice_changes_by_hand(where, choice, kp, kp_na):
    r = measured(f"captions:{where}?{choice}tagger={where / 'tags.jsonl'}", FIRST)
    assert r.numbers["kp"] == pytest.approx(kp) and r.numbers["kp_na"] == pytest.approx(kp_na)


@pytest.mark.parametrize("ref, count", [("joined", "clipped"), ("max", "clipped"), ("joined", "set"), ("max", "set")])
def test_chance_is_that_of_the_choice_by_hand(where, ref, count):
    """Every caption is as likely to be the first of any picture."""
    r = measured(f"captions:{where}?ref={ref}&count={count}&tagger={where / 'tags.jsonl'}", FIRST)
    texts = [text for each in CAPTIONS.values() for text in each]
    content = [[w for w in words(text) if w in TAGS] for text in texts]
    for name, said in (("kp", [words(text) for text in texts]), ("kp_na", [c for c in content if c])):
        scores = [k_precision(s, [words(text) for text in each], ref=ref, count=count)
                  for each in CAPTIONS.values() for s in said]
        assert r.chance[name] == pytest.approx(np.mean(scores)), name


def test_captions_and_pixels_are_those_that_are_asked_for(where):
    """One caption of each; of a wide picture its middle, which is another one's colour."""
    own = [texts[0] for texts in CAPTIONS.values()]
    r = measured(f"captions:{where}?captions=1", own)
    assert r.counts["captions"] == 3 and r.counts["captions beyond the first of a picture"] == 3
    for name, grey in (("a", 180), ("c", 20)):
        image = Image.new("RGB", (48, 16), (grey,) * 3)
        image.paste((200 - grey,) * 3, (16, 0, 32, 16))
        image.save(where / f"{name}.png")
    assert [measured(f"captions:{where}{how}", own).numbers["i2t_r1"] for how in ("?eval_resize=crop", "")] == [1, 1 / 3]


def test_what_was_chosen_and_left_out_is_told(where):
    """Every field of the protocol off its default; captions without a word, wherever they stand."""
    (where / "captions.jsonl").write_text((where / "captions.jsonl").read_text().replace("The cat is red.", "The?")
                                          .replace("A big, big dog.", "An, a!"))
    (where / "tags.jsonl").write_text("\n".join(json.dumps({"caption": text, "tags": [[t, TAGS.get(t.lower(), "X")]
                                                for t in tokens(text.replace("?", " ?"))]}) for text in SAID))
    chosen = {"ref": "max", "count": "set", "tagger": str(where / "tags.jsonl"), "captions": 2, "eval_resize": "crop"}
    data, protocol = open_data(task, f"captions:{where}?" + "&".join(f"{k}={v}" for k, v in chosen.items()))
    assert all(getattr(protocol, k) == v != getattr(task.Protocol(), k) for k, v in chosen.items())

    class Other(Told):
        def texts(self, texts):
            return {"t_bar": np.eye(6)[[SAID.index(text) for text in texts]]}

    r = task.measure(Other(["A red cat sits.", "A blue dog runs!", "They run."]), data, protocol, say=print)
    assert r.protocol == chosen and r.task == "faithfulness" and r.data == f"captions:{where}"
    assert (r.examples, r.counts["captions"], r.counts["captions without a word besides articles"]) == (3, 6, 2)


SAID = ["A red cat sits.", "The?", "A blue dog runs!", "Red cat sits is blue.", "They run.", "An, a!"]


def test_perfect_and_blind_models(where):
    own = [texts[0] for texts in CAPTIONS.values()]
    assert measured(f"captions:{where}?tagger={where / 'tags.jsonl'}", own).numbers == {"kp": 1, "kp_na": 1, "i2t_r1": 1}

    class Blind(Told):
        def texts(self, texts):
            return {"t_bar": np.ones((len(texts), 6))}

    data, protocol = open_data(task, f"captions:{where}?tagger={where / 'tags.jsonl'}")
    r = task.measure(Blind(own), data, protocol, say=print)
    assert {k: pytest.approx(x) for k, x in r.chance.items()} == r.numbers


def test_without_a_tagger_kp_alone_is_measured_and_the_command_is_said(where, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)               # as where it is not installed
    r = measured(f"captions:{where}")
    assert "kp_na" not in r.numbers and "kp_na" not in r.chance and r.numbers["kp"] == pytest.approx(7 / 9)
    assert any(SPACY in note for note in r.notes) and r.protocol["tagger"] == ""


def stand_in(monkeypatch, name, **members):
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def test_spacy_by_its_interface(where, monkeypatch):
    """load(name, exclude=...) -> nlp; nlp.pipe(texts) -> documents of tokens with .text and .pos_"""
    asked = []

    def load(name, exclude):
        asked.append((name, exclude))
        def document(text):
            return [SimpleNamespace(text=t, pos_=TAGS.get(t.lower(), "X")) for t in tokens(text)]

        return SimpleNamespace(pipe=lambda texts: map(document, texts))

    stand_in(monkeypatch, "spacy", load=load)
    for tagger in ("", "?tagger=spacy"):
        assert measured(f"captions:{where}{tagger}").numbers["kp_na"] == pytest.approx(2 / 3)
    twice = ["a cat", "a dog", "a cat"]
    assert open_tagger("spacy")(twice) == [[(t, TAGS.get(t, "X")) for t in text.split()] for text in twice], "each in its place"
    assert asked == [("en_core_web_sm", ["parser", "ner", "lemmatizer"])] * 3


def test_nltk_by_its_interface(where, monkeypatch):
    """word_tokenize(text) -> tokens, pos_tag(tokens) -> pairs with Penn's tags; quotes become `` and ''."""
    penn = {"ADJ": "JJ", "NOUN": "NN"}
    stand_in(monkeypatch, "nltk", word_tokenize=lambda text: tokens(text.replace('"', "``")),
             pos_tag=lambda found: [(t, penn.get(TAGS.get(t.lower()), "VB")) for t in found])
    assert measured(f"captions:{where}?tagger=nltk").numbers["kp_na"] == pytest.approx(2 / 3)


def no_model(*_, **__):
    raise OSError("[E050] Can't find model 'en_core_web_sm'")


def no_data(*_):
    raise LookupError("\n***\n  Resource averaged_perceptron_tagger_eng not found.\n***")


@pytest.mark.parametrize("name, module, command", [
    ("spacy", None, SPACY), ("spacy", {"load": no_model}, SPACY), ("nltk", None, NLTK),
    ("nltk", {"word_tokenize": str.split, "pos_tag": no_data}, NLTK)])
def test_a_tagger_that_is_asked_for_and_missing_is_an_error_with_the_one_command(where, monkeypatch, name, module, command):
    if module is None:
        monkeypatch.setitem(sys.modules, name, None)
    else:
        stand_in(monkeypatch, name, **module)
    with pytest.raises(ValueError) as error:
        measured(f"captions:{where}?tagger={name}")
    assert command in str(error.value) and not {"\n", "*"} & set(str(error.value))


@pytest.mark.parametrize("content, message", [
    (None, "expected JSON lines of tagged captions"), ("[]", "line 1: expected"), ("{", "line 1: expected"),
    ('{"caption": "a", "tags": [["a"]]}', "line 1"), ('{"caption": 3, "tags": []}', "line 1"), ('{"tags": []}', "line 1"),
    ('{"caption": "a", "tags": [["a", 3]]}', "line 1"), ("\n" + "[" * 99999, "line 2"),
    ("", "none for 6 of 6, the first 'A red cat"),
    ('{"caption": "They run.", "tags": [["They", "PRON"]]}', "none for 5 of 6"),
])  # fmt: skip
def test_a_tagged_file_that_is_none(where, content, message):
    file = where / "other.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        measured(f"captions:{where}?tagger={file}")


def test_tags_of_other_captions_are_noticed(where):
    lines = (where / "tags.jsonl").read_text().replace('["red", "ADJ"]', '["green", "ADJ"]')
    (where / "tags.jsonl").write_text(lines)
    with pytest.raises(ValueError, match="in their order, got 'green', which does not follow"):
        measured(f"captions:{where}?tagger={where / 'tags.jsonl'}")


@pytest.mark.parametrize("choice", ["ref=all", "count=all", "tagger=treebank"])
def test_a_wrong_choice_is_refused(where, choice):
    with pytest.raises(ValueError, match=f"{choice.partition('=')[0]}: expected"):
        measured(f"captions:{where}?{choice}")


def test_left_out_pictures_are_counted_and_pictures_drawn(where, tmp_path):
    (where / "b.png").write_bytes(b"no picture")
    r = measured(f"captions:{where}", pictures=tmp_path)
    assert r.examples == 2 and any("not an image" in cause for cause in r.counts) and r.pictures == ("first-captions.png",)
    with Image.open(tmp_path / "first-captions.png") as image:
        assert min(image.size) > 300
    with pytest.raises(ValueError, match="expected pictures"):
        measured(f"captions:{where}", limit=0)


def test_photos_and_their_captions_end_to_end(sample_data, tmp_path):
    """Tags by a list of words that are no nouns or adjectives: enough to see the file read and a real model measured."""
    from test_segmentation_task import tiny

    data, protocol = open_data(task, f"captions:{sample_data / 'coco' / 'captions.json'}")
    function = {"a", "an", "the", "of", "on", "in", "and", "with", "is", "are", "at", "to", "from", "that", "by", "for", "it"}
    lines = [json.dumps({"caption": text, "tags": [[t, "X" if t.lower() in function else "NOUN"] for t in tokens(text)]})
             for texts in data.captions for text in texts]
    (tmp_path / "tags.jsonl").write_text("\n".join(lines))
    held = sorted({w for texts in data.captions for text in texts for w in words(text)})
    protocol = task.Protocol(tagger=str(tmp_path / "tags.jsonl"))
    r = task.measure(tiny(held, 32), data, protocol, limit=30, say=print)
    assert r.examples == 30 and r.counts["captions"] == 150
    assert 0.05 < r.numbers["kp_na"] < r.numbers["kp"] < 0.6 and r.numbers["kp"] >= r.numbers["i2t_r1"]
    assert abs(r.numbers["kp"] - r.chance["kp"]) < 0.15           # it was never trained
