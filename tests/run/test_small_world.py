"""The small world's runner at a tiny size: what it stores, what it skips, what it changes of the loss."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import family_page
import small_world
import small_world_page
from small_world_losses import eq_6, instead, merged_pairs, other_pictures
from small_world_why import blind

from sparc_ref import losses

TINY = {"image_size": 16, "patch_size": 8, "vision_width": 16, "text_width": 16, "embed_dim": 16, "vision_depth": 1}
FEW = {"steps": 3, "batch": 4, "warmup": 1}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(small_world, "TRAINED_ON", 8)
    monkeypatch.setattr(small_world.measure, "__defaults__", ((8, 6),))


def test_a_row_is_stored_once_and_in_full(few, tmp_path, capsys):
    rows = [small_world.Row("mosaic/SPARC", "mosaic?coverage=0.5", TINY, FEW, curve=2, why=True),
            small_world.Row("two/h_v", "mosaic?words=2", TINY | {"h_v": "dense_gelu"}, FEW, loss="merged phrases")]
    small_world.run("tiny", rows, [3, 100], 1, tmp_path)
    stored = small_world.read("tiny", tmp_path)
    assert {(r["row"], r["seed"], r["split"], r["head"]) for r in stored} == {
        ("mosaic/SPARC", 3, "test", "g_v"), ("mosaic/SPARC", 100, "validation", "g_v"),
        *(("two/h_v", *rest, head) for rest in ((3, "test"), (3, "unseen"), (100, "validation")) for head in ("g_v", "h_v"))}
    sparc = next(r for r in stored if r["row"] == "mosaic/SPARC")
    assert [c["step"] for c in sparc["curve"]] == [0, 2, 3]
    assert {"true", "other pictures", "ground blanked", "no attention", "grey pictures"} <= sparc["why"].keys()
    assert all(np.isfinite(x) for r in stored for x in r["numbers"].values())
    before = (tmp_path / "tiny.jsonl").read_text()
    small_world.run("tiny", rows, [3, 100], 1, tmp_path)
    assert (tmp_path / "tiny.jsonl").read_text() == before and "0 runs of 4 to do" in capsys.readouterr().out
    assert not any("/work" in line or "SPARC_REF_DATA" in line for line in before.splitlines()), "no path of this machine"


def test_the_same_row_and_seed_give_the_same_numbers(few):
    row, changed = (small_world.Row("a", "mosaic", TINY, FEW, loss=loss) for loss in ("", "other pictures"))
    first, second, third = (small_world.measure("tiny", r, 5)[0]["numbers"] for r in (row, row, changed))
    assert first == second and first != third


@pytest.mark.parametrize("loss", [lambda *x: other_pictures(*x, shifts=2), merged_pairs])
def test_gradients_of_the_changed_losses(loss):
    rng = np.random.default_rng(1)
    v, t = rng.normal(size=(3, 5, 4)), rng.normal(size=(3, 4, 4))
    mask, theta = np.arange(4) < np.array([4, 2, 2])[:, None], np.asarray(1.3)
    dv, dt, dtheta = (rng.normal(size=np.shape(x)) for x in (v, t, theta))
    value, _, back = loss(v, t, mask, theta)
    got = back(0.7)
    h = 1e-6
    up, down = (loss(v + s * dv, t + s * dt, mask, theta + s * dtheta)[0] for s in (h, -h))
    assert np.isfinite(value) and sum(float(np.sum(a * b)) for a, b in zip(got, (dv, dt, dtheta))) == pytest.approx(
        0.7 * (up - down) / (2 * h), rel=1e-7)


def test_without_other_pictures_it_is_eq_6():
    rng = np.random.default_rng(2)
    v, t, theta = rng.normal(size=(3, 5, 4)), rng.normal(size=(3, 4, 4)), np.asarray(0.4)
    mask = np.arange(4) < np.array([4, 3, 2])[:, None]
    with pytest.raises(ValueError, match="stack"):
        other_pictures(v, t, mask, theta, shifts=0)
    same = np.repeat(v[:1], 3, axis=0)                    # pictures that are all alike
    plain = eq_6(same, t, mask, theta)[0]
    assert other_pictures(same, t, mask, theta)[0] > plain
    with instead("other pictures"):
        assert losses.fine_grained_loss is other_pictures
    assert losses.fine_grained_loss is eq_6


def test_every_row_can_be_asked_for(capsys):
    assert small_world.main(["list"]) == 0
    out = capsys.readouterr().out
    rows = [row for group in small_world.groups().values() for row in group]
    assert all(row.name in out for row in rows) and len(rows) > 30
    names = [(g, row.name) for g, group in small_world.groups().items() for row in group]
    assert len(set(names)) == len(names)
    assert json.dumps(small_world.seeds_of("0-2,7")) == "[0, 1, 2, 7]"
    with pytest.raises(SystemExit):
        small_world.main(["run", "main", "--row", "nothing"])


def test_the_page_shows_what_is_stored():
    text = small_world_page.PAGE.read_text()
    assert small_world_page.filled(text, small_world.read()) == text, "python bench/small_world.py draw"
    assert all(f"<!-- {name} -->" in text for name in small_world_page.TABLES)
    assert all((small_world_page.PAGE.parent / f"small-world-{name}.svg").exists() for name in small_world_page.FIGURES)


def test_the_familys_page_shows_what_is_stored():
    text, records = family_page.PAGE.read_text(), small_world.read("family")
    assert small_world_page.filled(text, records, family_page.TABLES) == text, "python bench/small_world.py draw"
    assert len(records) > 100 and all(f"<!-- {name} -->" in text for name in family_page.TABLES)


def test_every_stored_number_belongs_to_the_recipe_of_the_runner():
    rows = {(g, r.name): r for g, group in small_world.groups().items() for r in group}
    for record in small_world.read():
        if record["group"] in ("blind", "search"):        # no rows of the runner
            continue
        row = rows[record["group"], record["row"]]
        assert (row.world, row.model, row.train, row.loss) == tuple(record[k] for k in ("world", "model", "train", "loss"))
        assert row.objective == record.get("objective", {})
        assert record["recipe"] == [small_world.MODEL, small_world.TRAIN]
        assert (record["split"] == "validation") == (record["seed"] >= 100), "the protocol's splits"


def test_the_head_is_chosen_on_validation_scenes_alone():
    def record(seed, split, head, pointing, miou):
        return {"group": "g", "row": "r", "seed": seed, "split": split, "head": head,
                "numbers": {"pointing": pointing, "miou": miou}}

    records = [record(100, "validation", "g_v", 0.9, 0.1), record(100, "validation", "h_v", 0.2, 0.3),
               record(0, "test", "g_v", 0.5, 0.6), record(0, "test", "h_v", 0.7, 0.4)]
    assert small_world_page.values(records, "g", "r", "pointing") == {0: 0.5}, "worse on test scenes, and still the one chosen"
    assert small_world_page.values(records, "g", "r", "miou") == {0: 0.4}
    assert small_world_page.heads(records, "g", "r") == "h_v; words g_v"


def test_the_learning_rate_is_chosen_on_validation_scenes_alone():
    def record(row, split, pointing, native, plain=0.0):
        return {"row": row, "split": split, "seed": 100 if split == "validation" else 0, "numbers": {
            "pointing": pointing, "i2t_r1": plain, "t2i_r1": plain, "native_i2t_r1": native, "native_t2i_r1": native}}

    records = [record("scenes/filip/lr 1", "validation", 0.5, 0.4),
               record("scenes/filip/lr 2", "validation", 0.3, 0.5, plain=1.0),
               record("scenes/filip/lr 2", "test", 1.0, 1.0)]
    assert family_page.best(records) == {("scenes", "filip"): "scenes/filip/lr 1"}
    with pytest.raises(ValueError, match=r"expected validation seeds of every row .* none of scenes/filip/lr 2"):
        family_page.best([records[0], records[2]])


def test_intervals_are_students():
    mean, half = small_world_page.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert small_world_page.cell([0.5, 0.5]) == ".500 ± .000" and small_world_page.number(-0.25) == "-.250"


def test_patches_that_never_change_solve_it():
    before, after = blind(8, words=10, updates=100)
    assert after < before / 5
