"""What the choices of the classification protocol do to two small models: the table of docs/tasks/classification.md.

    python bench/classification.py [--out runs/classification]   about ten minutes; the sample data folder as in bench/real.py

300 pets of 3 breeds and 1,477 emoji of 9 groups are trained on, with captions of their classes; the others are measured.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from real import DATA

from sparc_ref.tasks import classification
from sparc_ref.tasks.spec import open_data

CHOICES = ("", "prompt=clip7", "prompt=clip7&combine=similarities", "prompt=clip80", "prompt=clip80&combine=similarities",
           "prompt=filip", "prompt=ensemble7", "prompt=ensemble", "eval_resize=crop")
PHRASES = ("a photo of a {}, a type of pet.", "a {}.", "{}")


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def lay_out(out: Path, examples: list[tuple[bool, str, str, bytes, list[str]]]) -> None:
    """(trained on?, class, file name, picture, captions) as folders of classes, and captions of those that are trained on."""
    lines = []
    for train, name, file, data, captions in examples:
        place = out / ("train" if train else "test") / name.replace(" & ", "_and_").replace(" ", "_") / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        if train:
            lines.append(json.dumps({"image": place.relative_to(out).as_posix(), "captions": captions}))
    (out / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")


def pets(out: Path) -> None:
    lay_out(out, [(r["split"] == "trainval", r["breed"], Path(r["file"]).name, (DATA / "pets" / r["file"]).read_bytes(),
                   [phrase.format(r["breed"]) for phrase in PHRASES])
                  for r in rows(DATA / "pets" / "pets.jsonl") if r["split"] in ("trainval", "test")])


def emoji(out: Path) -> None:
    with zipfile.ZipFile(DATA / "emoji" / "noto.zip") as archive:
        there = set(archive.namelist())
        lay_out(out, [(r["split"] == "train", r["group"], f"{r['id']}.png", archive.read(f"{r['id']}.png"),
                       [r["name"], r["group"].replace("&", "and")])
                      for r in rows(DATA / "emoji" / "emoji.jsonl") if f"{r['id']}.png" in there])


def main(out: Path) -> None:
    for name, make, batch, steps in (("pets", pets, 48, 400), ("emoji", emoji, 64, 500)):
        data, run = out / name, out / f"{name}-run"
        make(data)
        options = ["--preset", "tiny", "--data", f"captions:{data}/captions.jsonl", "--batch", batch, "--steps", steps,
                   "--eval-every", steps // 2, "--out", run, "--resume"]
        subprocess.run([sys.executable, "-m", "sparc_ref", "train", *map(str, options)], check=True)
        model = classification.open_model(run)
        for choice in CHOICES:
            found = classification.measure(model, *open_data(classification, f"folders:{data / 'test'}?{choice}"))
            print(f"{name}: {choice or 'as it is'}: top-1 {100 * found.numbers['top1']:.1f} % of {found.examples}, "
                  f"chance {100 * found.chance['top1']:.1f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[2]) if sys.argv[1:2] == ["--out"] else Path("runs/classification"))
