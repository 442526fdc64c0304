"""Both tokenizers: ids, offsets into the original text, truncation, files."""

import gzip
import hashlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparc_ref.data import DrawnScenes, UnigramTokenizer, WordTokenizer, load_tokenizer
from sparc_ref.data.tokenizer import lowered

CORPUS = [DrawnScenes()[i].captions[0] for i in range(200)] + ["Crème brûlée, İstanbul & straße!", "a cat's toy; 12 dogs"]
NASTY = ["", " \t\n", "İ", "ﷺ", "ǆ ﬁ ½", "a\0b", "\ud800", "</s> <unk> <pad> <s>", "▁", "▁▁ a", "e\u0301", "👨‍👩‍👧", "\u2028",
         "x" * 3000, "\ufeffred", "red\u00a0circle", "ＲＥＤ circle"]


@pytest.fixture(scope="module")
def unigram():
    return UnigramTokenizer.train(CORPUS, vocab_size=300)


@pytest.fixture(scope="module", params=["word", "unigram"])
def tokenizer(request, unigram):
    return WordTokenizer.from_texts(CORPUS) if request.param == "word" else unigram


def checked(tokenizer, text, max_tokens=None):
    """The encoding of a text, after every rule that holds for all texts."""
    encoding = tokenizer.encode(text, max_tokens)
    ids, offsets = encoding.ids, encoding.offsets
    assert len(ids) == len(offsets) >= 1 and 0 not in ids and min(ids) > 0 and max(ids) < tokenizer.vocab_size
    assert all(0 <= a <= b <= len(text) for a, b in offsets)
    assert all(a[1] <= b[0] or a == b for a, b in pairwise(offsets)), "in order, without overlap"
    assert all(text[a:b] == text[a:b].strip() for a, b in offsets)
    if tokenizer.eos:
        assert ids[-1] == tokenizer.eos_id not in ids[:-1] and offsets[-1] == (len(text), len(text))
    if max_tokens is not None:
        assert len(ids) <= max_tokens
        whole = tokenizer.encode(text)
        assert encoding.dropped == len(whole.ids) - len(ids)
        body = len(ids) - tokenizer.eos
        assert ids[:body] == whole.ids[:body] and offsets[:body] == whole.offsets[:body]
    return encoding


def test_words_by_hand():
    t = WordTokenizer(["a", "red-circle", "left", "of", "red-circle", "it's"])
    assert t.vocab_size == 8 and (t.pad_id, t.unk_id, t.eos_id) == (0, 1, 2)
    e = t.encode("A Red-Circle, left of it's  moon.")
    assert e.ids == (3, 4, 1, 5, 6, 7, 1, 1, 2) and e.dropped == 0
    assert ["A Red-Circle, left of it's  moon."[a:b] for a, b in e.offsets] == [
        "A", "Red-Circle", ",", "left", "of", "it's", "moon", ".", ""]
    assert t.decode(e.ids) == "a red-circle <unk> left of it's <unk> <unk>"
    assert WordTokenizer(["a"], lower=False).encode("A a").ids == (1, 3, 2)
    assert WordTokenizer(["a"], eos=False).encode("a b").ids == (3, 1)


def test_words_of_texts_are_the_most_frequent():
    assert WordTokenizer.from_texts(["b a b", "C c b d"], max_words=3).words == ("b", "c", "a")
    assert WordTokenizer.from_texts(["b a", "A"], lower=False).words == ("A", "a", "b")


def test_every_character_between_tokens_is_white_space(tokenizer):
    for text in CORPUS:
        covered = np.zeros(len(text), bool)
        for a, b in checked(tokenizer, text).offsets:
            covered[a:b] = True
        assert not "".join(c for c, seen in zip(text, covered) if not seen).strip(), text


def test_unigram_offsets_are_the_surface_of_their_pieces(unigram):
    """On plain text a piece is its surface, up to case and the mark of a space."""
    for text in CORPUS[:200]:
        e = checked(unigram, text.title())
        for i, (a, b) in zip(e.ids[:-1], e.offsets):
            assert unigram.processor.id_to_piece(i).removeprefix("▁") == text[a:b]
        assert unigram.decode(e.ids) == text
    text = "Red ＲＥＤ İ red circle"
    spans = [text[a:b] for a, b in checked(unigram, text).offsets]
    assert "ＲＥＤ" in "".join(spans) and spans[-2].endswith("circle") and "İ" in spans


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(), max_size=60), max_tokens=st.none() | st.integers(1, 20), eos=st.booleans())
@example(text="", max_tokens=1, eos=True)
@example(text="", max_tokens=1, eos=False)
def test_any_text(unigram, text, max_tokens, eos):
    for tokenizer in (UnigramTokenizer(unigram.model, eos), WordTokenizer(["red", "circle"], eos)):
        checked(tokenizer, text, max_tokens)
        tokens, mask = tokenizer.batch([text], max_tokens or 30)
        assert mask.all() and tokens.shape == mask.shape


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_nasty_texts(tokenizer, text):
    checked(tokenizer, text)
    checked(tokenizer, text, 3)
    checked(tokenizer, "red " + text + " circle", 55)


def test_empty_texts_are_eos_or_unknown(tokenizer, unigram):
    for text in ("", "  \n"):
        assert tokenizer.encode(text).ids == (tokenizer.eos_id,)
    for bare in (WordTokenizer(["a"], eos=False), UnigramTokenizer(unigram.model, eos=False)):
        assert bare.encode("").ids == (bare.unk_id,)
        assert bare.batch(["", "a a"], 5)[1].any(1).all()


def test_batch_pads_cuts_and_counts(tokenizer):
    tokenizer = WordTokenizer(tokenizer.words) if tokenizer.kind == "word" else UnigramTokenizer(tokenizer.model)
    texts = ["circle", "", "a small red circle left of a large blue square ☃"]
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    tokens, mask = tokenizer.batch(texts, 55)
    assert tokens.dtype == np.int64 and mask.dtype == bool and tokens.shape == mask.shape == (3, max(lengths))
    assert mask.sum(1).tolist() == lengths and (tokens[~mask] == 0).all() and (tokens[mask] > 0).all()
    assert (np.diff(mask.astype(int), axis=1) <= 0).all(), "real tokens first"
    assert tokenizer.truncated == 0 and tokenizer.unknown == 1
    short, mask = tokenizer.batch(texts, 5)
    assert short.shape == (3, 5) and np.array_equal(short[2, :4], tokens[2, :4]) and short[2, 4] == tokenizer.eos_id
    assert tokenizer.truncated == 1 and tokenizer.counts.dropped == lengths[2] - 5 and tokenizer.counts.texts == 6
    assert "1 texts cut (16.7%)" in str(tokenizer.counts)
    assert tokenizer.counts.as_dict()["tokens"] == sum(lengths) * 2 - tokenizer.counts.dropped
    for bad in ([], "text", [3], [None]):
        with pytest.raises(ValueError, match="expected"):
            tokenizer.batch(bad, 5)
    for call in (lambda: tokenizer.batch(texts, 0), lambda: tokenizer.encode("a", 0)):
        with pytest.raises(ValueError, match="max_tokens: expected at least 1"):
            call()


@pytest.mark.parametrize(("corpus", "size"), [
    (["a"], 32_000), (["red circle"] * 3, 100), (["日本語"], 50), (["x" * 50_000], 100), (["", "a b"], 32_000),
    (["\ud800 ok \0"], 40), (CORPUS, 32_000)])
def test_small_corpora_give_small_vocabularies(corpus, size, capfd):
    tokenizer = UnigramTokenizer.train(corpus, size)
    assert 4 <= tokenizer.vocab_size <= size
    assert capfd.readouterr() == ("", ""), "training is silent"
    assert len(tokenizer.encode(corpus[-1][:50]).ids) > 1


def test_what_cannot_be_trained_is_a_clear_error():
    for corpus in ([], [""], [" ", "\n"]):
        with pytest.raises(ValueError, match="at least one caption with a visible character"):
            UnigramTokenizer.train(corpus)
    with pytest.raises(ValueError, match="vocab_size: expected enough pieces"):
        UnigramTokenizer.train(CORPUS, 10)


def test_lower_casing_is_an_option_and_keeps_lengths():
    upper = [text.upper() for text in CORPUS]
    with_case = UnigramTokenizer.train(upper, 200, lower=False)
    assert 1 in with_case.encode("red circle").ids and 1 not in with_case.encode("RED CIRCLE").ids
    folded = UnigramTokenizer.train(upper, 200)
    assert folded.encode("red circle").ids == folded.encode("RED Circle").ids
    for text in ("İstanbul ß ǅ ΑΣ", "ABC", *NASTY):
        assert len(lowered(text)) == len(text)
    assert lowered("ÀB İ") == "àb İ"


def test_training_is_deterministic_across_processes(unigram):
    code = ("import sys; sys.path.insert(0, sys.argv[1])\n"
            "import test_tokenizer as t; print(t.UnigramTokenizer.train(t.CORPUS, 300).hash)")
    out = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == unigram.hash


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "deep" / "er")
    names = {p.name for p in (tmp_path / "deep" / "er").iterdir()}
    assert names == ({"tokenizer.json"} if tokenizer.kind == "word" else {"tokenizer.json", "tokenizer.model"})
    back = load_tokenizer(tmp_path / "deep" / "er")
    assert back.hash == tokenizer.hash and back.describe() == tokenizer.describe() and type(back) is type(tokenizer)
    for text in CORPUS[::20] + NASTY:
        assert back.encode(text) == tokenizer.encode(text)


def test_the_hash_covers_everything_that_decides_ids(unigram):
    words = [WordTokenizer(["a", "b"]), WordTokenizer(["b", "a"]), WordTokenizer(["a", "b"], eos=False),
             WordTokenizer(["a", "b"], lower=False), WordTokenizer(["ab"])]
    units = [unigram, UnigramTokenizer(unigram.model, eos=False), UnigramTokenizer(unigram.model, lower=False)]
    assert len({t.hash for t in words + units}) == 8 and len(unigram.hash) == 64
    assert WordTokenizer(["a", "b"]).hash == words[0].hash


@pytest.mark.parametrize("damage", ["missing", "json", "kind", "words", "hash", "list", "model", "no model", "types"])
def test_damaged_files_are_refused(damage, unigram, tmp_path):
    tokenizer = unigram if "model" in damage else WordTokenizer(["a", "b"])
    if damage != "missing":
        tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    if damage in ("kind", "words", "hash", "types"):
        content = json.loads(path.read_text())
        content[{"types": "words"}.get(damage, damage)] = {"kind": "bpe", "words": ["a", "c"], "hash": "0", "types": 5}[damage]
        path.write_text(json.dumps(content))
    elif damage in ("json", "list"):
        path.write_text("[1]" if damage == "list" else path.read_text()[:20])
    elif damage == "model":
        data = bytearray(unigram.model)
        data[len(data) // 2] ^= 1
        (tmp_path / "tokenizer.model").write_bytes(data)
    elif damage == "no model":
        (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json: (not a saved tokenizer|the content does not match)"):
        load_tokenizer(tmp_path)


def test_foreign_models(tmp_path):
    """sentencepiece's own layout: <unk> 0, <s> 1, </s> 2, no padding; and one without EOS."""
    from sentencepiece import SentencePieceTrainer
    for name, options in (("usual", {}), ("bare", {"eos_id": -1, "bos_id": -1})):
        with (tmp_path / f"{name}.model").open("wb") as stream:
            SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=stream, vocab_size=60,
                                       hard_vocab_limit=False, minloglevel=2, **options)
    usual = UnigramTokenizer.load(tmp_path / "usual.model")
    assert (usual.pad_id, usual.unk_id, usual.eos_id) == (0, 0, 2) and usual.encode("red ☃").ids[-1] == 2
    with pytest.raises(ValueError, match="no EOS token, expected eos=False"):
        UnigramTokenizer.load(tmp_path / "bare.model")
    assert UnigramTokenizer.load(tmp_path / "bare.model", eos=False).encode("red circle").ids
    (tmp_path / "bad.model").write_bytes(b"not a model")
    for name in ("bad", "absent"):
        with pytest.raises(ValueError, match=r"\.model: not a usable sentencepiece model"):
            UnigramTokenizer.load(tmp_path / f"{name}.model")


def test_real_captions(samples):
    path = samples / "captions" / "coco_captions_val2017.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [c for line in lines for c in json.loads(line)["captions"]]
    tokenizer = UnigramTokenizer.train(texts)
    assert 3000 < tokenizer.vocab_size <= 32_000
    _, mask = tokenizer.batch(texts[:2000], 55)
    assert tokenizer.unknown == 0 and tokenizer.truncated / 2000 < 0.01 and 9 < mask.sum(1).mean() < 16
    assert hashlib.sha256(UnigramTokenizer.train(texts).model).digest() == hashlib.sha256(tokenizer.model).digest()


@pytest.mark.parametrize("eos, lower", [(True, False), (False, True)])
def test_options_are_read_back_each_as_its_own(tmp_path, eos, lower):
    texts = ["a Red cat", "a blue dog on a mat"] * 5
    for made in (WordTokenizer(["a", "Red"], eos, lower), UnigramTokenizer.train(texts, 40, eos, lower)):
        made.save(tmp_path / made.kind)
        back = load_tokenizer(tmp_path / made.kind)
        assert (back.eos, back.lower, back.hash) == (eos, lower, made.hash)
        assert made.describe() == back.describe() and (made.describe()["eos"], made.describe()["lower"]) == (eos, lower)
