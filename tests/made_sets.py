"""Sets for the tests of the tasks: classes and captions as colours, packed in every layout; models that know nothing or all."""

import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from sparc_ref.data import WordTokenizer
from sparc_ref.data.encoding import Counts
from sparc_ref.model import SPARCConfig, init_params
from sparc_ref.objectives.chosen import ObjectiveConfig, init_own
from sparc_ref.tasks.embedder import Embedder


def colour(n: int) -> tuple[int, int, int]:
    """Different for every n below 343."""
    return (n % 7 * 40, n // 7 % 7 * 40, n // 49 % 7 * 40)


def png(n: int, size: int = 8) -> bytes:
    """A picture all of one colour, that of number n."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour(n)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def webdataset(root: Path, samples: list[tuple[str, bytes, str]], *, shards: int = 2, split: str = "test",
               names: list[str] | None = None, templates: list[str] | None = None) -> Path:
    """CLIP_benchmark's layout.      samples: (extension, picture, what comes with it); names: of the classes, else retrieval"""
    suffix = "cls" if names else "txt"
    put(root / split / "nshards.txt", str(shards))
    for s in range(shards):
        part = samples[s * len(samples) // shards:(s + 1) * len(samples) // shards]
        members = {f"s{n:07d}.{end}": data for n, (extension, picture, text) in enumerate(part)
                   for end, data in ((extension, picture), (suffix, text.encode()))}
        tar(root / split / f"{s}.tar", members)
    if names:
        put(root / "classnames.txt", "\n".join(names))
        put(root / "zeroshot_classification_templates.txt", "\n".join(templates or ["a photo of {c}"]))
    else:
        put(root / "dataset_type.txt", "retrieval")
    return root


@dataclass
class Knows:
    """Embeds the picture of number n, and every text in which "number n" stands, as the same random direction.

    blind: pictures get random directions of their own instead.
    """

    blind: bool = False
    batch: int = 7
    config: SPARCConfig = field(default_factory=lambda: SPARCConfig(image_size=8, patch_size=8, max_tokens=99))
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    tokenizer: object = field(default_factory=lambda: type("T", (), {"counts": Counts()})())
    seen: list = field(default_factory=list)

    def __post_init__(self):
        self.directions = np.random.default_rng(1).normal(size=(343, 64))
        self.rng = np.random.default_rng(2)

    def images(self, pictures):
        self.seen.append(len(pictures))
        red, green, blue = (np.array([p[0, 0] for p in pictures], int) // 40).T
        v = self.directions[red + 7 * green + 49 * blue]
        return {"v_bar": self.rng.normal(size=v.shape) if self.blind else v, "v": v[:, None]}

    def texts(self, texts):
        t = np.stack([self.directions[int(text.split("number ")[1].split()[0].strip(".,"))] for text in texts])
        return {"t_bar": t, "t": t[:, None], "mask": np.ones((len(t), 1), bool)}

    def pooled_texts(self, texts):
        return self.texts(texts)["t_bar"]


def untrained(words: list[str], objective: str = "sparc", seed: int = 0) -> Embedder:
    """A tiny real model as it is drawn."""
    tokenizer = WordTokenizer(words)
    config = SPARCConfig(image_size=16, patch_size=8, vision_width=16, vision_depth=1, vision_heads=2, text_width=16,
                         text_depth=1, text_heads=2, embed_dim=16, max_tokens=12, vocab_size=tokenizer.vocab_size)
    chosen, rng = ObjectiveConfig(objective=objective), np.random.default_rng(seed)
    params = init_params(config, rng) | init_own(chosen, config.embed_dim, rng)
    return Embedder(params, config, tokenizer, chosen, "untrained", batch=16, shards=1)


def captions_of(count: int, each: int = 2) -> list[list[str]]:
    """Captions of pictures 0, 1, ...; the last picture has one more."""
    return [[f"view {k}, of number {n}" for k in range(each + (n == count - 1))] for n in range(count)]


def caption_layouts(root: Path, pictures: list[tuple[str, bytes]], captions: list[list[str]]) -> dict[str, str]:
    """The same pictures and captions in every layout of retrieval.      pictures: (file name, bytes)   -> {kind: spec}"""
    for name, data in pictures:
        put(root / "images" / name, data)
    names = [name for name, _ in pictures]
    karpathy = [{"filename": n, "split": "test", "sentences": [{"raw": c} for c in some]} for n, some in zip(names, captions)]
    other = {"filename": names[0], "split": "train", "sentences": [{"raw": "not read"}]}
    coco = {"images": [{"id": i, "file_name": n} for i, n in enumerate(names)],
            "annotations": [{"image_id": i, "id": 9 * i + k, "caption": c} for i, some in enumerate(captions)
                            for k, c in enumerate(some)]}
    lines = [f"{n},{c}" for n, some in zip(names, captions) for c in some]
    files = {"karpathy": put(root / "dataset_flickr30k.json", json.dumps({"images": [*karpathy, other]})),
             "coco": put(root / "coco_test_karpathy.json", json.dumps(coco)),
             "flickr30k": put(root / "flickr30k_test_karpathy.txt", "\n".join(["image,caption", *lines, ""])),
             "captions": put(root / "captions.jsonl", "\n".join(json.dumps({"image": n, "captions": some})
                                                                for n, some in zip(names, captions)))}
    samples = [(Path(n).suffix[1:], data, "\n".join(some)) for (n, data), some in zip(pictures, captions)]
    files["webdataset"] = webdataset(root / "wds", samples, shards=3)
    return {kind: f"{kind}:{path}" for kind, path in files.items()}
