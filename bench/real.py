"""Train on real input and check what comes out: 76 captioned photos until they are retrieved; scenes of emoji, held out.

    python bench/real.py [photos] [emoji] [--out runs]      the sample data folder is ../shared/data, or $SPARC_REF_DATA

photos  preset small with a sentencepiece tokenizer of its own: R@1 >= 0.95 both ways on the training photos (memory, not skill)
emoji   preset tiny on pasted pictures: R@1 on 500 test scenes at least 20 times chance both ways
Exits with 1 where a bound is missed, 0 otherwise; each command is printed and can be run by hand.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

DATA = Path(os.environ.get("SPARC_REF_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def sparc_ref(*arguments):
    print("$ sparc-ref " + shlex.join(map(str, arguments)), flush=True)
    subprocess.run([sys.executable, "-m", "sparc_ref", *map(str, arguments)], check=True)


def last(run):
    """The last evaluation of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if r["kind"] == "eval"][-1]


def photos(out, steps=300):
    """-> R@1 image to text, text to image, on the photos that were trained on, and the bound."""
    sparc_ref("train", "--preset", "small", "--data", f"captions:{DATA}/coco/captions.json", "--batch", 76, "--steps", steps,
              "--eval-every", steps // 6, "--out", out / "photos", "--resume")
    numbers = last(out / "photos")
    return numbers["i2t_r1"], numbers["t2i_r1"], 0.95


def emoji(out, steps=1500):
    """-> R@1 image to text, text to image, on test scenes, and the bound."""
    source = f"pictures:{DATA}/emoji/noto.zip?names={DATA}/emoji/emoji.jsonl&style=short&objects=1,2"
    run, measured = out / "emoji", out / "emoji" / "test.json"
    sparc_ref("train", "--preset", "tiny", "--data", source, "--steps", steps, "--eval-every", steps // 5, "--out", run,
              "--resume")
    sparc_ref("evaluate", "--checkpoint", run, "--data", source, "--limit", 500, "--json", measured)
    (numbers,) = json.loads(measured.read_text())["results"].values()
    return numbers["i2t_r1"], numbers["t2i_r1"], 20 * numbers["t2i_r1_chance"]


def main(arguments):
    out = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else Path("runs")
    if not DATA.is_dir():
        print(f"{DATA} is missing: set SPARC_REF_DATA to the sample data folder")
        return 1
    missed = 0
    for job in (photos, emoji):
        if job.__name__ in arguments or not {"photos", "emoji"} & set(arguments):
            began = time.perf_counter()
            i2t, t2i, bound = job(out)
            ok = min(i2t, t2i) >= bound
            missed += not ok
            print(f"{job.__name__}: R@1 image to text {i2t:.3f}, text to image {t2i:.3f}, bound {bound:.3f}, "
                  f"{time.perf_counter() - began:.0f} s: {'reached' if ok else 'MISSED'}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
