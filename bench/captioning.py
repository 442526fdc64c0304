"""Captioning end to end on real pictures: does a captioner say what it was taught, and does it look at what it was not?

    .venv/bin/python bench/captioning.py --out /tmp/captioning        # minutes on two cores; goes on where it stopped

photos   a captioner is trained until it says the one caption of each of 24 COCO photos again.  Control: its captions dealt to
         other photos, and the caption of a grey picture under all.
scenes   scenes of one or two of 24 emoji animals: trained on the train split, measured on scenes that it never saw.  The same
         controls, and the same training without eyes: every picture replaced by grey while it is trained.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np

from parity.trainer.__main__ import main as train_tower
from parity.trainer.captioning import language, task, train
from parity.trainer.captioning.fit import Training
from parity.trainer.captioning.gpt import GPTConfig
from parity.trainer.captioning.language import Options as LanguageOptions
from parity.trainer.captioning.model import CaptionerConfig
from sparc_ref.run import checkpoint
from sparc_ref.run.files import write_whole
from sparc_ref.tasks.spec import open_data

DATA = Path(__file__).parents[2] / "shared" / "data"
SMALL = CaptionerConfig(latents=16, resampler_depth=2, heads=4, head_width=16)


def done(folder: Path) -> bool:
    return bool(checkpoint.steps(folder / "checkpoints"))


def photos_with_one_caption(data: Path, out: Path, count: int = 24) -> Path:
    """COCO's first photos with captions, the first caption of each."""
    content = json.loads((data / "coco" / "captions.json").read_text())
    files, first = {p["id"]: p["file_name"] for p in content["images"]}, {}
    for row in content["annotations"]:
        first.setdefault(row["image_id"], row["caption"])
    file = out / "photos.jsonl"
    rows = [{"image": files[i], "caption": first[i]} for i in sorted(first)[:count]]
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
    return file


def animals(data: Path, out: Path, count: int) -> Path:
    rows = [json.loads(line) for line in (data / "emoji" / "emoji.jsonl").read_text().splitlines()]
    rows = [r for r in rows if r["group"] == "Animals & Nature" and r["split"] == "train" and "face" not in r["name"]][:count]
    file = out / f"animals-{count}.jsonl"
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
    return file


class Blind:
    """A data set whose pictures are all the same grey."""

    def __init__(self, dataset):
        self.dataset, self.name, self.classes = dataset, f"{dataset.name} unseen", dataset.classes

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        from dataclasses import replace

        example = self.dataset[i]
        return replace(example, image=np.full_like(example.image, 127))

    def describe(self):
        return {"blind": self.dataset.describe()}


def words(data: tuple[str, ...], out: Path, model: GPTConfig, steps: int, lr: float) -> float:
    began = time.perf_counter()
    if not done(out):
        language.run(LanguageOptions(data, out, model, Training(steps=steps, batch=48, lr=lr, warmup=50)))
    return time.perf_counter() - began


def captioner(tower: Path, words: Path, data: str, out: Path, training: Training, blind: bool = False) -> float:
    began = time.perf_counter()
    if not done(out):
        sound = train.open_source
        if blind:
            train.open_source = lambda *given, **options: Blind(sound(*given, **options))
        try:
            train.run(train.Options(tower, words, (data,), out, max_tokens=48, space=0, model=SMALL, training=training))
        finally:
            train.open_source = sound
    return time.perf_counter() - began


def measured(folder: Path, spec: str, pages: Path) -> dict:
    pages.mkdir(parents=True, exist_ok=True)
    data, protocol = open_data(task, spec)
    found = task.measure(task.open_model(folder), data, protocol, pictures=pages)
    return {"numbers": found.numbers, "chance": found.chance, "counts": found.counts, "protocol": found.protocol,
            "notes": found.notes, "pictures": found.examples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of sample data")
    parser.add_argument("--tower-steps", type=int, default=300)
    given = parser.parse_args()
    out, results, seconds = given.out, {}, {}
    out.mkdir(parents=True, exist_ok=True)
    noto, few = (f"pictures:{given.data}/emoji/noto.zip?names={animals(given.data, out, n)}&objects=1,2" for n in (64, 24))
    if not done(out / "tower"):
        train_tower(["--data", noto, "--out", str(out / "tower"), "--preset", "tiny", "--steps", str(given.tower_steps),
                     "--batch", "32", "--workers", "0", "--eval-limit", "64", "--device", "cpu"])
    with gzip.open(given.data / "captions" / "coco_captions_val2017.jsonl.gz", "rt") as rows:
        texts = [" ".join(text.split()) for row in rows for text in json.loads(row)["captions"][:2]]
    write_whole(out / "coco.txt", "\n".join(texts) + "\n")
    seconds["words of photos"] = words((f"text:{out / 'coco.txt'}",), out / "words-photos",
                                       GPTConfig(width=128, depth=3, max_tokens=64, vocab_size=800), 300, 3e-3)
    seconds["words of scenes"] = words((f"{noto}&count=4000",), out / "words-scenes",
                                       GPTConfig(width=96, depth=3, heads=3, max_tokens=48), 200, 2e-3)
    photos = f"captions:{photos_with_one_caption(given.data, out)}?images={given.data}/coco/images"
    seconds["photos"] = captioner(out / "tower", out / "words-photos", photos, out / "photos",
                                  Training(steps=400, batch=24, lr=3e-3, warmup=40, checkpoint_every=100))
    for name, blind in (("scenes", False), ("scenes-blind", True)):
        seconds[name] = captioner(out / "tower", out / "words-scenes", f"{few}&split=train", out / name,
                                  Training(steps=100 if blind else 500, batch=32, lr=2e-3, warmup=20, checkpoint_every=100),
                                  blind)
    for name, spec in (("photos", f"{photos}&most=40"), ("scenes", f"{few}&split=test&count=200"),
                       ("scenes-blind", f"{few}&split=test&count=200")):
        results[name] = measured(out / name, spec, out / "pages" / name)
        n, c = results[name]["numbers"], results[name]["chance"]
        print(f"{name}: CIDEr {n['cider']:.1f}, dealt to other pictures {c['cider']:.1f}, of a grey picture "
              f"{n['blank_cider']:.1f}; BLEU-4 {n['bleu4']:.3f} ({c['bleu4']:.3f}), ROUGE-L {n['rouge_l']:.3f} "
              f"({c['rouge_l']:.3f})")
    write_whole(out / "results.json", json.dumps({"results": results, "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
