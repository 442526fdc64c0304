"""The tables and the picture of docs/tasks/segmentation.md:  python docs/draw_segmentation.py CHECKPOINT

Writes 128 mosaics as a folder of pictures and masks, measures the checkpoint on them under every choice of the protocol, prints
the table and draws docs/images/segmentation.png.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from sparc_ref.data import MosaicScenes
from sparc_ref.tasks import segmentation
from sparc_ref.tasks.spec import open_data

OUT = Path(__file__).parent / "images"
CHOICES = ("", "background=ignore", "background=class", "average=dataset", "average=dataset&background=ignore",
           "upsample=bilinear", "size=96", "size=192", "classes=present", "prompt=clip7", "resolution=48")


def write_folder(where: Path, count: int = 128, coverage: float = 0.6) -> None:
    """Mosaics as the layout `folder` reads them."""
    scenes = MosaicScenes("test", 96, count, coverage=coverage)
    for name in ("images", "masks"):
        (where / name).mkdir(parents=True)
    for i in range(count):
        example = scenes[i]
        mask = np.zeros(example.image.shape[:2], np.uint8)
        for region in example.regions:
            mask[region.mask] = 1 + scenes.classes.index(region.label)
        Image.fromarray(example.image).save(where / "images" / f"{i:03d}.png")
        Image.fromarray(mask).save(where / "masks" / f"{i:03d}.png")
    (where / "classes.json").write_text(json.dumps(dict(enumerate(scenes.classes, 1))))


def table(checkpoint: str, where: Path) -> str:
    model = segmentation.open_model(checkpoint, batch=64, shards=4)
    lines = ["| choice | mIoU, h_v then g_v | mIoU, g_v alone | chance |", "| --- | ---: | ---: | ---: |"]
    for choice in CHOICES:
        data, protocol = open_data(segmentation, f"folder:{where}?{choice}")
        r = segmentation.measure(model, data, protocol, pictures=None if choice else where)
        shown = [f"{100 * x:.1f}" for x in (r.numbers["miou"], r.numbers["miou_g_v"], r.chance["miou"])]
        lines.append(f"| {f'`{choice}`' if choice else 'the defaults'} | {' | '.join(shown)} |")
        if choice == "":
            with Image.open(where / "segmentation.png") as picture:
                picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(OUT / "segmentation.png", optimize=True)
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "mosaics")
        print(table(sys.argv[1], Path(folder) / "mosaics"))
