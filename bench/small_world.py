"""The small world: does the fine-grained loss teach a model where things are?  docs/experiments/small-world.md is the page.

    python bench/small_world.py list
    python bench/small_world.py run main --seeds 0-9            every row of a group; finished rows are skipped
    python bench/small_world.py run main --row mosaic/SPARC --seeds 0,1 --jobs 2
    python bench/small_world.py blind                           how low L_f gets without any picture
    python bench/small_world.py draw                            every table and figure of the page, from the stored results

A row is a world, a model and a way to train. Seeds below 100 are measured on test scenes and are for reports; seeds from 100 on
are measured on validation scenes and are for choosing. Rows of one world and seed start from the same weights (where they have
the same parameters) and see the same batches. Emoji are looked for in ../shared/data, or $SPARC_REF_DATA.
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from small_world_losses import instead

from sparc_ref import PRESETS, __version__
from sparc_ref.objectives.chosen import ObjectiveConfig
from sparc_ref.run.measure import evaluate
from sparc_ref.run.sources import make_tokenizer, open_source
from sparc_ref.run.train import TrainConfig, train

HERE = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPARC_REF_DATA", HERE.parent / "shared" / "data"))
RESULTS = HERE / "docs" / "experiments" / "results"
EMOJI = f"wallpaper:{DATA}/emoji/noto.zip?names={DATA}/emoji/emoji.jsonl"

# The recipe, chosen on validation scenes with seeds from 100 on; the same for every loss.
MODEL = {"image_size": 48, "patch_size": 8, "vision_depth": 2, "mlp_ratio": 2, "text_depth": 0, "text_positions": "none",
         "h_v": "none", "lambda_f": 0.25, "max_tokens": 32}
TRAIN = {"steps": 300, "lr": 2e-3, "warmup": 50, "attention_start": 0.0}
DEFAULTS = {"h_v": "dense_gelu", "text_depth": 2, "text_positions": "learned", "lambda_f": 1.0}  # the library's
USUAL = {"attention_start": 1.0}
MOSAIC, DRAWN = "mosaic?coverage=0.3", "drawn?style=short&fused=true&objects=2,4"
SCENES = "scenes?style=short&objects=2,4"
WALLPAPER, TWO = "wallpaper?coverage=0.3&period=8", MOSAIC + "&words=2"
LOSSES = {"SPARC": {}, "global loss alone": {"lambda_f": 0.0}, "no threshold": {"align": "no_threshold"},
          "threshold on weights": {"threshold_on": "weights"}, "softmax": {"align": "softmax"}}
RATES = (1e-3, 2e-3, 4e-3)                                # of which each objective gets its best on validation scenes
FAMILY = {name: {"objective": name} for name in ("clip", "filip", "clip_filip", "pacl", "gloria", "mgca", "siglip", "flair")}
TRAINED_ON, MEASURED_ON = 10_000, 400                     # scenes


@dataclass(frozen=True)
class Row:
    """What is trained: `world` (a data source, "wallpaper" for papered mosaics of emoji), what differs from MODEL and TRAIN."""

    name: str
    world: str
    model: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    curve: int = 0                                        # updates between two looks at validation scenes; 0: none
    why: bool = False                                     # also the interventions of small_world_why.py
    loss: str = ""                                        # of small_world_losses.py; "": eq. 6
    objective: dict = field(default_factory=dict)         # ObjectiveConfig's settings; none: SPARC's


def groups() -> dict[str, list[Row]]:
    """Every row of the experiment, by group."""
    alone = LOSSES["global loss alone"]

    def both(name, world, model=(), train=(), **more):
        """The same with L_f and without."""
        return [Row(f"{name}/SPARC", world, dict(model), dict(train), **more),
                Row(f"{name}/global loss alone", world, dict(model) | alone, dict(train))]

    worlds = {"mosaic": MOSAIC, "wallpaper": WALLPAPER, "drawn": DRAWN}
    main = [Row(f"{name}/{loss}", world, model, curve=50 if loss in ("SPARC", "global loss alone") else 0)
            for loss, model in LOSSES.items() for name, world in worlds.items()]
    family = [Row(f"{world}/{loss}/lr {lr:g}", data, LOSSES.get(loss, {}), {"lr": lr}, objective=FAMILY.get(loss, {}))
              for world, data in (("scenes", SCENES), ("wallpaper", WALLPAPER))
              for loss in (*(loss for loss in LOSSES if loss != "global loss alone"), *FAMILY) for lr in RATES]
    return {
        "family": family,
        "main": main,
        "coverage": [row for c in (1.0, 0.6, 0.15) for row in both(f"{c:g}", f"mosaic?coverage={c:g}")],
        "start": [row for name, world in worlds.items() for row in both(name, world, train=USUAL)],
        "words": [*both("two", TWO), Row("two, merged/SPARC", TWO, loss="merged phrases"),
                  Row("one, h_v, lambda_f 1/SPARC", MOSAIC, {"h_v": "dense_gelu", "lambda_f": 1.0}),
                  Row("one, lambda_f 1/SPARC", MOSAIC, {"lambda_f": 1.0}),
                  Row("two, lambda_f 1/SPARC", TWO, {"lambda_f": 1.0})],
        "text": [row for depth, places in ((0, "learned"), (1, "none"), (2, "none"), (2, "learned")) for row in both(
                 f"depth {depth}, positions {places}", MOSAIC, {"text_depth": depth, "text_positions": places})],
        "h_v": both("dense_gelu", MOSAIC, {"h_v": "dense_gelu"}) + both("all defaults, named whole", "mosaic", DEFAULTS, USUAL)
        + both("all defaults", MOSAIC, DEFAULTS, USUAL) + [
            Row(f"{name}, no word positions/SPARC", world, DEFAULTS | {"text_positions": "none"}, USUAL)
            for name, world in (("all defaults", MOSAIC), ("all defaults, named whole", "mosaic"))],
        "negatives": [Row(f"{name}/other pictures", *options, loss="other pictures") for name, *options in (
            ("recipe", MOSAIC), ("mosaic, usual start", MOSAIC, {}, USUAL), ("wallpaper, usual start", WALLPAPER, {}, USUAL),
            ("all defaults, named whole", "mosaic", DEFAULTS, USUAL),
            ("text depth 2, positions", MOSAIC, {"text_depth": 2, "text_positions": "learned"}))],
        "why": [Row("recipe", MOSAIC, why=True), Row("usual start", MOSAIC, {}, USUAL, why=True),
                Row("text depth 2, positions", MOSAIC, {"text_depth": 2, "text_positions": "learned"}, why=True),
                Row("all defaults", MOSAIC, DEFAULTS, USUAL, why=True)],
    }


def source(world: str, split: str, size: int):
    """The data set behind a row's world."""
    head, _, query = world.partition("?")
    if head == "scenes":
        return emoji_scenes(query, split, size)
    spec = "&".join(filter(None, (EMOJI, query))) if head == "wallpaper" else world
    return open_source(spec, size, split=split)


def emoji_scenes(query: str, split: str, size: int):
    """Scenes of the same 40 emoji as the wallpapers', pasted onto clutter."""
    used = set(open_source(EMOJI, size).classes)
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "names.jsonl"
        lines = (DATA / "emoji" / "emoji.jsonl").read_text().splitlines()
        names.write_text("\n".join(line for line in lines if json.loads(line)["name"] in used))
        return open_source(f"pictures:{DATA}/emoji/noto.zip?names={names}&{query}", size, split=split)


class Kept:
    """A data set whose scenes are drawn once and kept: every row of a world shows the same."""

    def __init__(self, dataset, count: int):
        self.dataset, self.name, self.classes = dataset, dataset.name, dataset.classes
        self.examples = [dataset[i] for i in range(count)]

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    def digest(self):
        return repr(sorted(self.dataset.describe().items()))

    def describe(self):
        return self.dataset.describe()

    def vocabulary(self):
        if hasattr(self.dataset, "vocabulary"):
            return self.dataset.vocabulary()
        return sorted({word for e in self.examples for text in e.captions for word in re.findall(r"\w+|[^\w\s]", text)})


kept: dict[tuple, Kept] = {}                              # one world at a time


def scenes(world: str, split: str, size: int, count: int) -> Kept:
    """Scenes of a world, drawn where they are not kept yet; those of other worlds are let go."""
    for key in [k for k in kept if k[0] != world]:
        del kept[key]
    if (world, split, size, count) not in kept:
        kept[world, split, size, count] = Kept(source(world, split, size), count)
    return kept[world, split, size, count]


def measure(group: str, row: Row, seed: int, counts: tuple[int, int] = (TRAINED_ON, MEASURED_ON)) -> list[dict]:
    """Train one row with one seed.      -> a record for every split and head"""
    model = MODEL | row.model
    shown = scenes(row.world, "train", model["image_size"], counts[0])
    tokenizer = make_tokenizer([shown], 0, eos=False)
    config = replace(PRESETS["tiny"], vocab_size=tokenizer.vocab_size, **model)
    options = TrainConfig(**{"eval_every": row.curve, "eval_limit": 96, "shards": 1, "checkpoint_every": 10**9, "seed": seed,
                             **TRAIN, **row.train})
    objective = ObjectiveConfig(**row.objective)
    watched = {"validation": scenes(row.world, "validation", config.image_size, counts[1])} if row.curve else {}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as out, instead(row.loss):
        params = train(config, options, [shown], tokenizer, out, validation=watched, overwrite=True, say=lambda _: None,
                       objective=objective)
        log = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    seconds = round(time.perf_counter() - began, 1)
    last = [r for r in log if r["kind"] == "train"][-1]
    last = {k: last[k] for k in last if k.startswith("loss") or k in ("temperature", "zeroed")}
    common = {"group": group, "row": row.name, "world": row.world, "seed": seed, "model": row.model, "train": row.train,
              "loss": row.loss, "recipe": [MODEL, TRAIN], "seconds": seconds, "last_loss": rounded(last),
              "versions": {"sparc_ref": __version__, "numpy": np.__version__, "python": platform.python_version(),
                           "machine": platform.machine()}}
    if row.objective:
        common["objective"] = row.objective
    records = []
    splits = ["validation"] if seed >= 100 else ["test"]
    if seed < 100 and "words=2" in row.world:
        splits.append("unseen")                           # materials that were never shown, of known words
    for split in splits:
        looked = scenes(row.world, split, config.image_size, counts[1])
        for head in ("g_v",) if config.h_v == "none" else ("g_v", "h_v"):
            numbers = evaluate(params, config, looked, tokenizer, head=head, seed=seed, objective=objective)
            records.append(common | {"split": split, "head": head, "numbers": rounded(numbers)})
    if row.curve:
        wanted = ("step", "pointing", "choice", "miou", "grounding_gap", "fine_loss", "i2t_r1")
        records[0]["curve"] = [rounded({k: r[k] for k in wanted if k in r}) for r in log if r["kind"] == "eval"]
    if row.why:
        from small_world_why import interventions

        looked = scenes(row.world, splits[0], config.image_size, counts[1])
        records[0]["why"] = {k: rounded(v) for k, v in interventions(params, config, looked, tokenizer, seed).items()}
    return records


def rounded(numbers: dict) -> dict:
    """Five digits, without what follows from other numbers (lifts) and ranks that the page does not use."""
    return {k: float(f"{x:.5g}") if isinstance(x, float) else x for k, x in numbers.items()
            if not any(part in k for part in ("_lift", "_r5", "_r10", "caption_", "foreground_chance"))}


def read(group: str | None = None, folder: Path = RESULTS) -> list[dict]:
    """Every stored record, of one group or of all."""
    files = [folder / f"{group}.jsonl"] if group else sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


def identity(record: dict) -> str:
    """What makes two results the same: the row with its options, and the seed."""
    names = ("group", "row", "world", "seed", "model", "train", "loss", "recipe")
    further = [record["objective"]] if record.get("objective") else []
    return json.dumps([record[k] for k in names] + further, sort_keys=True)


def run(group: str, rows: list[Row], seeds: list[int], jobs: int, folder: Path = RESULTS) -> None:
    """Measure what has not been measured yet, and append it to the group's file as it comes."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {identity(r) for r in read(group, folder)}
    todo = [(row, seed) for row in rows for seed in seeds if identity(
        {**asdict(row), "group": group, "row": row.name, "seed": seed, "recipe": [MODEL, TRAIN]}) not in done]
    todo.sort(key=lambda job: job[0].world)               # a world is drawn once; within it, row by row
    print(f"{group}: {len(todo)} runs of {len(rows) * len(seeds)} to do", flush=True)
    with ProcessPoolExecutor(jobs) as pool:
        results = (measure(group, *job) for job in todo) if jobs == 1 else pool.map(measure, [group] * len(todo), *zip(*todo))
        for n, records in enumerate(results, 1):
            with (folder / f"{group}.jsonl").open("a") as file:
                file.writelines(json.dumps(r, sort_keys=True) + "\n" for r in records)
            for r in records:
                shown = {k: round(r["numbers"][k], 3) for k in ("miou", "pointing", "iou", "choice", "i2t_r1", "t2i_r1",
                                                                 "grounding_gap") if k in r["numbers"]}
                print(f"{n}/{len(todo)} {r['row']}, seed {r['seed']}, {r['split']}, {r['head']}: {r['seconds']} s, {shown}",
                      flush=True)


def seeds_of(text: str) -> list[int]:
    """"0-2,7" -> [0, 1, 2, 7]"""
    ends = [part.partition("-") for part in text.split(",")]
    return [n for a, _, b in ends for n in range(int(a), int(b or a) + 1)]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="groups, rows and which seeds are stored")
    actions.add_parser("blind", help="how low L_f gets without any picture")
    actions.add_parser("draw", help="tables and figures of the page from the stored results")
    runs = actions.add_parser("run", help="train and measure")
    runs.add_argument("group", choices=sorted(groups()))
    runs.add_argument("--row", help="one row of the group, or the start of its name")
    runs.add_argument("--seeds", type=seeds_of, default=list(range(10)), help="such as 0-9 or 100,101")
    runs.add_argument("--chosen", action="store_true", help="of the family: each loss at its best learning rate")
    runs.add_argument("--jobs", type=int, default=1, help="processes side by side")
    asked = parser.parse_args(arguments)
    if asked.action == "draw":
        import family_page
        import small_world_page

        small_world_page.draw(read())
        family_page.draw(read("family"))
    elif asked.action == "blind":
        from small_world_why import blind

        both = {patches: blind(patches) for patches in (2, 3, 4, 6, 8, 12, 16, 25)}
        rows = [rounded({"group": "blind", "row": str(n), "split": "none", "patches": n, "first": a, "last": b})
                for n, (a, b) in both.items()]
        (RESULTS / "blind.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif asked.action == "list":
        for group, rows in groups().items():
            for row in rows:
                found = sorted({r["seed"] for r in read(group) if r["row"] == row.name})
                print(f"{group:12}{row.name:44} seeds {found or 'none yet'}")
    else:
        rows = [r for r in groups()[asked.group] if r.name.startswith(asked.row or "")]
        if asked.chosen:
            from family_page import best

            rows = [r for r in rows if r.name in best(read(asked.group)).values()]
        if not rows:
            parser.error(f"--row: expected the start of one of {', '.join(r.name for r in groups()[asked.group])}")
        run(asked.group, rows, asked.seeds, asked.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
