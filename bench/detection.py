"""Detectors trained from scratch on a CPU: do heads, losses and measure work together?  the numbers: docs/tasks/detection.md

    python bench/detection.py photos            40 COCO photos by heart: AP on the very photos
    python bench/detection.py scenes            scenes of ten emoji: AP on scenes that were not trained on
    python bench/detection.py photos --measure  only measure what was trained before; --steps 500: train shorter

Every AP is taken by sparc_ref.evaluate.detection and once more by pycocotools, and the two are compared. The data are looked
for in ../shared/data, or $SPARC_REF_DATA; runs and pictures go to --out. One process; OMP_NUM_THREADS=1 beside other work.
"""

import argparse
import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

from parity.trainer.detection import task
from parity.trainer.detection.__main__ import main as train
from sparc_ref.evaluate.detection import average_precision
from sparc_ref.tasks.spec import open_data

HERE = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPARC_REF_DATA", HERE.parent / "shared" / "data"))
EMOJI = ("dog face", "cat face", "soccer ball", "red apple", "umbrella", "rocket", "key", "clown face", "bicycle",
         "alarm clock")
TOWERS = shlex.split("--image-size 96 --patch-size 12 --vision-width 128 --vision-depth 3 --vision-heads 4 --text-width 64 "
                     "--text-depth 1 --max-tokens 16 --batch 8")
HEADS = shlex.split("--batch 8 --size 96 --lr 8e-4 --clip-by vmap --warmup 50 --negatives 20 --droplayer-image 0 "
                    "--droplayer-text 0 --mosaics 1 --crop 0 --prompts bare --workers 1 --log-every 25 --checkpoint-every 250")


def photos(out: Path) -> dict:
    """Where it learns from, with what options, and what it is measured on."""
    coco = f"coco:{DATA}/coco?first=40"
    return {"towers": f"captions:{DATA}/coco/captions.json", "data": coco, "measured": f"{coco}&prompt=bare",
            "options": ["--steps", "5000", "--flip", "0", "--lr-text", "0"]}


def scenes(out: Path) -> dict:
    pictures = some_emoji(out / "emoji.zip")
    return {"towers": f"pictures:{pictures}", "data": f"scenes:{pictures}?size=96&count=2000",
            "measured": f"scenes:{pictures}?size=96&count=200&split=test&prompt=bare",
            "options": ["--steps", "500", "--flip", "0", "--lr-text", "0"]}


def some_emoji(file: Path) -> Path:
    """A zip of them, each under its own name; these are names that picture scenes do not hold out."""
    known = {r["name"]: r["id"] for r in map(json.loads, (DATA / "emoji" / "emoji.jsonl").read_text().splitlines())}
    with zipfile.ZipFile(DATA / "emoji" / "noto.zip") as source, zipfile.ZipFile(file, "w") as target:
        for name in EMOJI:
            target.writestr(f"{name}.png", source.read(f"{known[name]}.png"))
    return file


def by_pycocotools(truth, found, classes: int) -> tuple[float, float]:
    """AP and AP50 of the same detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = {"images": [{"id": int(i)} for i in np.unique(np.concatenate([truth.image, found.image]))],
                       "categories": [{"id": k} for k in range(classes)],
                       "annotations": [{"id": n + 1, "image_id": int(truth.image[n]), "category_id": int(truth.label[n]),
                                        "bbox": truth.box[n].tolist(), "area": float(truth.area[n]),
                                        "iscrowd": int(truth.crowd[n])} for n in range(len(truth.label))]}
        api.createIndex()
        rows = [{"image_id": int(i), "category_id": int(k), "bbox": box.tolist(), "score": float(s)}
                for i, k, box, s in zip(found.image, found.label, found.box, found.score)]
        run = COCOeval(api, api.loadRes(rows), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0]), float(run.stats[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("photos", "scenes"))
    parser.add_argument("--out", type=Path, default=Path("runs/detection"))
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--steps", default="")
    given = parser.parse_args()
    out = given.out / given.what
    out.mkdir(parents=True, exist_ok=True)
    plan = {"photos": photos, "scenes": scenes}[given.what](out)
    began = time.time()
    if not given.measure:
        if not (out / "towers").exists():
            subprocess.run([sys.executable, "-m", "sparc_ref", "train", "--data", plan["towers"], "--out", str(out / "towers"),
                            "--steps", "2", *TOWERS], check=True)
        argv = ["--checkpoint", str(out / "towers"), "--data", plan["data"], "--out", str(out / "run"), "--resume"]
        if train([*argv, *HEADS, *plan["options"], *(["--steps", given.steps] if given.steps else [])]):
            raise SystemExit(2)
    trained = time.time() - began

    kept = {}
    taken = task.scores

    def remembered(truth, found, data, most):             # the first call is of the detector, the second of chance
        kept.setdefault("pair", (truth, found))
        return taken(truth, found, data, most)

    task.scores = remembered
    data, protocol = open_data(task, plan["measured"])
    result = task.measure(task.open_model(out / "run"), data, protocol, pictures=out)
    truth, found = kept["pair"]
    theirs = by_pycocotools(truth, found, len(data.classes))
    own = average_precision(truth, found, len(data.classes))
    print(json.dumps({"numbers": result.numbers, "chance": result.chance, "counts": result.counts,
                      "pycocotools": theirs, "differs by": abs(float(np.nanmean(own)) - theirs[0]),
                      "training, seconds": round(trained)}, indent=1))


if __name__ == "__main__":
    main()
