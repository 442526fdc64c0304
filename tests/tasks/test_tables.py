"""Results laid out like the paper's tables: each in its column and no other, the paper's numbers as printed there."""

import re
from dataclasses import asdict
from importlib import import_module

import pytest

from sparc_ref.tasks.result import Result
from sparc_ref.tasks.tables import as_page, as_text, lay_out, paper_tables

ABOUT = {"checkpoint": "runs/mine", "trained_on": ["captions:/photos"]}


def kept(*results):
    return [(r, ABOUT) for r in results]


def result(task, data, numbers, examples=50_000, name=None, **choices):
    """Of a task with the protocol that it has by default."""
    protocol = asdict(import_module(f"sparc_ref.tasks.{task}").Protocol(**choices))
    return Result(task, data, name or data, examples, numbers, dict.fromkeys(numbers, 0.001), protocol)


def classification(name, top1, examples=50_000, **choices):
    return result("classification", f"imagenet:/{name}", {"top1": top1}, examples, name, **choices)


def cells(laid, model):
    return next(dict(zip(laid.columns, values)) for name, values, _ in laid.ours if name == model)


@pytest.mark.parametrize("number, model, size, column, value", [
    ("1", "SPARC", "B/16", "IN", 72.6), ("1", "CLIP", "L/14", "Sketch", 64.5), ("1", "PACL", "B/32", "A", 9.3),
    ("2", "SPARC", "B/16", "C", 51.31), ("2", "MGCA", "L/14", "V2 TI", 80.6), ("3", "SPARC", "L/14", "COCO t2i @1", 45.6),
    ("3", "FILIP", "B/32", "Flickr t2i @10", 84.9), ("4", "PACL", "B/16", "COCO, nouns and adjectives", 4.09),
    ("4", "MGCA", "B/16", "COCO, all words", 80.03), ("5", "SPARC", "B/16", "LVIS APr", 25.1),
    ("5", "CLIP", "B/16", "COCO AP", 38.5),
    ("6", "SPARC", "B/16", "VOC", 27.36), ("6", "PACL", "B/16", "Context", 1.61), ("7", "SPARC", "B/16", "Flickr", 13.6),
    ("8", "SPARC with softmax", "B/16", "IN", 70.6), ("8", "SPARC without sparsity", "B/16", "COCO i2t @5", 80.7)])
def test_the_papers_numbers(number, model, size, column, value):
    table = next(t for t in paper_tables() if t.number == number)
    values = next(v for m, s, v in table.rows if (m, s) == (model, size))
    assert dict(zip([c.label for c in table.columns], values))[column] == value


def test_every_table_has_a_number_for_every_column():
    assert [t.number for t in paper_tables()] == list("12345678")
    for table in paper_tables():
        assert all(len(values) == len(table.columns) for _, _, values in table.rows)
        assert all(0 < x < 100 for _, _, values in table.rows for x in values)


def test_each_result_is_in_its_column_and_no_other():
    columns = [(t.number, c) for t in paper_tables() for c in t.columns]
    where = {}
    for number, column in columns:
        value = len(where) / 1000
        where[number, column.label] = (column, value)
    for (number, label), (column, value) in where.items():
        result = Result(column.task, "x:/y", column.data, 10, {column.number: value}, {}, dict(column.protocol))
        for laid in lay_out({"mine": kept(result)}):
            found = cells(laid, "mine")
            n = re.match(r"Table (\d)", laid.title)
            assert n, laid.title
            fits = {c.label for m, c in columns if m == n[1] and c.fits(result)}
            shown = value if column.number == "cider" else 100 * value  # CIDEr is kept times 100
            assert set(found) == fits and set(found.values()) == {f"{shown:.1f}"}
            assert label in fits or n[1] != number


def test_another_protocol_or_data_is_in_a_table_of_its_own():
    laid = lay_out({"mine": kept(classification("ImageNet", 0.5, prompt="ensemble"), classification("pets", 0.4))})
    titles = [x.title.split(":")[0] for x in laid]
    assert titles == ["Table 2", "Classification on pets, 50,000 examples (prompt=bare, combine=embeddings, "
                      "eval_resize=squash, candidates=own, canonical=False), times 100"]
    assert cells(laid[0], "mine") == {"IN": "50.0"}
    assert laid[1].ours == (("mine", ("40.0",), ("chance 0.1",)),)


@pytest.mark.parametrize("task, data, number, choice", [
    ("retrieval", "COCO", "i2t_r1", {"captions": 1}), ("retrieval", "COCO", "i2t_r1", {"eval_resize": "crop"}),
    ("classification", "ImageNet", "top1", {"eval_resize": "crop"}),
    ("classification", "ImageNet", "top1", {"canonical": True}),
    ("faithfulness", "COCO", "kp", {"captions": 5}), ("segmentation", "VOC 2012", "miou", {"upsample": "bilinear"}),
    ("segmentation", "VOC 2012", "miou", {"prompt": "clip7"})])
def test_another_choice_is_not_in_the_papers_column_and_not_lost(task, data, number, choice):
    ours, other = result(task, data, {number: 0.5}), result(task, f"{data}?", {number: 0.25}, name=data, **choice)
    for order in ((ours, other), (other, ours)):
        *papers, own = lay_out({"mine": kept(*order)})
        assert papers and all(x.title.startswith("Table ") and set(cells(x, "mine").values()) == {"50.0"} for x in papers)
        assert not own.title.startswith("Table ") and cells(own, "mine") == {number: "25.0"}


def test_nothing_that_was_measured_is_lost():
    a = result("segmentation", "folder:/photos?of=voc", {"miou": .1}, name="photos")
    b = result("segmentation", "folder:/photos?of=coco", {"miou": .2}, name="photos")
    few = [(result("segmentation", "folder:/photos?of=voc", {"miou": .3}, 10, "photos"), ABOUT | {"limit": 10})]
    laid = lay_out({"mine": kept(a, b) + few})
    assert [cells(x, "mine") for x in laid] == [{"miou": "10.0"}, {"miou": "20.0"}, {"miou": "30.0"}]
    assert "[folder:/photos?of=voc]" in laid[0].title and "[folder:/photos?of=coco]" in laid[1].title
    assert "10 examples" in laid[2].title
    limited = lay_out({"mine": kept(classification("ImageNet", 0.1, examples=100), classification("ImageNet", 0.6))})
    assert cells(limited[0], "mine") == {"IN": "60.0"} and cells(limited[-1], "mine") == {"top1": "10.0"}


def test_models_keep_their_own_numbers_and_a_missing_one_is_a_dash():
    a = kept(classification("ImageNet", 0.61), classification("ImageNet-A", 0.2))
    b = kept(classification("ImageNet", 0.55, examples=100))
    table = lay_out({"a": a, "b": b})[0]
    assert cells(table, "a") == {"IN": "61.0", "A": "20.0"} and cells(table, "b") == {"IN": "55.0", "A": "–"}
    assert table.ours[1][2] == ("100 examples", "")
    paper = dict(table.paper)
    assert paper["SPARC, B/16"] == ("72.6", "33.8") and paper["CLIP, B/32"] == ("66.7", "15.1")


def test_of_two_that_fit_the_one_with_most_examples():
    table = lay_out({"a": kept(classification("ImageNet", 0.1, examples=100), classification("ImageNet", 0.6))})[0]
    assert table.ours == (("a", ("60.0",), ("50,000 examples",)),)


def test_text_and_page_say_what_is_not_comparable_and_escape_names():
    models = {"<b>mine</b>\x1b[31m": kept(classification("ImageNet", 0.61))}
    text, page = as_text(models), as_page(models)
    assert "\x1b" not in text + page and "<b>mine" not in page
    for said in ("61.0", "paper: SPARC, B/16", "not comparable", "trained on captions:/photos"):
        assert said in text
    assert page.index("61.0") < page.index("not comparable</th>") < page.index("72.6")


def test_every_cell_of_results_with_several_numbers():
    """Two models, two data sets of other sizes: each column its own number, each cell its own size."""
    keys = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]

    def measured(data, start, examples):
        return result("retrieval", data, {key: start + n / 100 for n, key in enumerate(keys)} | {"extra": start / 2}, examples)

    ours = {"a": [measured("COCO", 0.1, 5000), measured("Flickr30k", 0.2, 1000)], "b": [measured("COCO", 0.3, 4999)]}
    models = {name: [(r, {"checkpoint": f"runs/{name}", "trained_on": [f"captions:/{name}"]}) for r in found]
              for name, found in ours.items()}
    (table,) = [laid for laid in lay_out(models) if laid.title.startswith("Table 3")]
    columns = {c.label: c for t in paper_tables() if t.number == "3" for c in t.columns}
    assert len(table.columns) == 12 and [name for name, *_ in table.ours] == ["a", "b"]
    for name, values, small in table.ours:
        for label, value, below in zip(table.columns, values, small, strict=True):
            r = next((r for r in ours[name] if r.name == columns[label].data), None)
            assert value == (f"{100 * r.numbers[columns[label].number]:.1f}" if r else "–"), (name, label)
            assert below == (f"{r.examples:,} examples" if r else ""), (name, label)
    whole = [laid for laid in lay_out(models) if not laid.title.startswith("Table")]
    assert {(name, cells(laid, name)["extra"]) for laid in whole for name, *_ in laid.ours} == {
        ("a", "5.0"), ("a", "10.0"), ("b", "15.0")}, "in no column, and not lost"
    for name in "ab":
        assert f"{name}: runs/{name}, trained on captions:/{name}." in as_text(models)
