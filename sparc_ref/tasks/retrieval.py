"""Image-text retrieval (section 4.3, Table 3): Karpathy's test splits of Flickr30k and COCO, any captions, webdatasets.

    karpathy:PATH     dataset_flickr30k.json or dataset_coco.json, with splits of its own; ?split=test&images=FOLDER
    flickr30k:PATH    CLIP_benchmark's flickr30k_test_karpathy.txt: "image,caption" lines whose captions hold commas
    coco:PATH         CLIP_benchmark's coco_test_karpathy.json, or any captions_val2014.json of COCO's form; ?images=val2014
    captions:PATH     whatever docs/data.md reads
    webdataset:PATH   CLIP_benchmark's layout, a .txt with a caption a line; see webdataset.py
"""

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparc_ref.data.captions import Listed, list_captions
from sparc_ref.data.load_report import LoadReport, Unusable
from sparc_ref.data.locate import Tree
from sparc_ref.data.names import is_picture
from sparc_ref.evaluate.check import chosen, unit
from sparc_ref.evaluate.retrieval import positive, retrieval, retrieval_chance, retrieval_of_scores
from sparc_ref.objectives.chosen import scores_of
from sparc_ref.run.files import writing
from sparc_ref.run.measure import own_arrays
from sparc_ref.tasks.embedder import Embedder, batches
from sparc_ref.tasks.result import Result
from sparc_ref.tasks.stream import Source, read, spread
from sparc_ref.tasks.webdataset import open_shards, read_text, text_of

PAGE = "docs/tasks/retrieval.md"
SCORES = ("both", "cosine")
KARPATHY = {"Flickr30k": 1000, "COCO": 5000}              # pictures of the test splits
open_model = Embedder.open


@dataclass(frozen=True)
class Protocol:
    """Every choice that moves the numbers."""

    captions: int = 5               # of a picture at most, the first ones; some of COCO's have 6 or 7. 0: all (25,010 of COCO)
    ks: tuple[int, ...] = (1, 5, 10)  # of R@K, as in Table 3
    eval_resize: str = "squash"     # as in training: "images are resized to 224" | "crop": the largest centred square
    scores: str = "both"            # the cosine of the global embeddings, and under native_ the scores of the objective's own
    #                                 where it has some (FILIP, PACL, GLoRIA, FLAIR; slow) | "cosine"

    def __post_init__(self):
        chosen("scores", self.scores, SCORES)
        chosen("eval_resize", self.eval_resize, ("squash", "crop"))
        positive(self.ks)
        if self.captions < 0:
            raise ValueError(f"captions: expected at least 1 of each picture, or 0 for all, got {self.captions}")


@dataclass
class CaptionSet:
    """Pictures, none of them decoded, each with its captions, at least one."""

    kind: str
    path: Path
    name: str                       # what tables call it
    pictures: list[Source]
    captions: list[tuple[str, ...]]
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------------------- layouts


def open_listed(kind: str, path: Path, *, images: str | None = None, split: str | None = None,
                name: str | None = None) -> CaptionSet:
    """A caption file, or the folder that holds one.      split: of its own splits, test where none is named; else "all"

    ValueError: nothing there, no such split, no picture with a caption
    """
    listed = list_captions(path, images, split=split, own_split="test")
    if kind == "karpathy" and not listed.splits:
        raise ValueError(f"{path}: expected Karpathy's splits, a JSON with \"images\", each with \"split\" and \"sentences\"; "
                         f"it has no splits. Open it as captions:{path}. See {PAGE}")
    stem = path.stem.lower()
    known = "Flickr30k" if "flickr30k" in stem else "COCO" if kind == "coco" or "coco" in stem else ""
    known += f" {listed.split}" if known and listed.split not in ("", "test") else ""
    return from_listed(kind, path, name or known or listed.name, listed)


def open_flickr30k(path: Path, *, images: str | None = None, name: str | None = None) -> CaptionSet:
    """A line for each caption, "1007129816.jpg,The man, ...", after a header; what follows the first comma is the caption."""
    report = LoadReport(str(path), page=PAGE)
    if images and not Path(images).is_dir():
        raise ValueError(f"images: expected a folder, got {images}. See {PAGE}")
    folders = [Path(images)] if images else [path.parent / "flickr30k_images", path.parent / "images"]
    tree = Tree([*filter(Path.is_dir, folders), path.parent])
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        picture, comma, text = line.strip().partition(",")
        text = " ".join(unquoted(text.strip()).split())
        if not line.strip() or (number == 1 and not is_picture(picture)):
            continue                                      # the header
        if not comma or not is_picture(picture.strip()):
            report.skip("line without a picture and a caption", f"line {number}")
        elif not text:
            report.skip("caption empty", f"line {number}")
        else:
            captions.setdefault(picture.strip(), []).append(text)
    pictures, kept = [], []
    for picture, texts in captions.items():
        try:
            pictures.append(Source(str(tree.find(picture).file)))
            kept.append(tuple(texts))
        except Unusable as error:
            report.skip(error.reason, picture)
            report.skip("captions of skipped images", picture, count=len(texts))
    if not pictures:
        raise ValueError(f"{path}: expected lines \"picture.jpg,caption\" and the pictures in flickr30k_images/, images/, "
                         f"beside the file or in ?images=; none can be used\n{report}")
    return CaptionSet("flickr30k", path, name or "Flickr30k", pictures, kept, Counter(report.skipped))


def open_webdataset(path: Path, *, split: str = "test", name: str | None = None) -> CaptionSet:
    """CLIP_benchmark's layout.   ValueError: another layout, no picture with a caption"""
    shards = open_shards(path, split, "retrieval")
    pictures, captions = [], []
    for picture, member in zip(shards.pictures, shards.texts):
        text = text_of(member)
        if text is None:
            shards.counts["caption is not valid UTF-8"] += 1
        elif found := tuple(" ".join(line.split()) for line in text.splitlines() if line.strip()):
            pictures.append(picture)
            captions.append(found)
        else:
            shards.counts["image without a usable caption"] += 1
    if not pictures:
        raise ValueError(f"{path}: expected a caption in the .txt of a picture, found none. See {PAGE}")
    return CaptionSet("webdataset", path, name or path.resolve().name, pictures, captions, shards.counts)


def unquoted(text: str) -> str:
    """A cell of a CSV file without its quotes."""
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


KINDS: dict[str, Callable[..., CaptionSet]] = {
    "karpathy": partial(open_listed, "karpathy"), "flickr30k": open_flickr30k, "coco": partial(open_listed, "coco"),
    "captions": partial(open_listed, "captions"), "webdataset": open_webdataset}


def from_listed(kind: str, path: Path, name: str, listed: Listed) -> CaptionSet:
    if not listed.pictures:
        raise ValueError(f"{path}: expected at least one picture with a caption, found none\n{listed.report}")
    counts = Counter(listed.report.skipped) + Counter(listed.report.converted)
    return CaptionSet(kind, path, name, [Source(str(p.file)) for p in listed.pictures],
                      [p.captions for p in listed.pictures], counts, list(listed.report.notes))


# ---------------------------------------------------------------------------------------------------------------- measure


@dataclass
class Embedded:
    """What retrieval is measured on: every picture that could be read, every caption of those.

    at (N,): which of the data set's pictures; texts (M,) with the row of each one's picture, owner (M,)
    """

    at: np.ndarray
    v_bar: np.ndarray
    texts: list[str]
    owner: np.ndarray
    t_bar: np.ndarray


def measure(model: Embedder, data: CaptionSet, protocol: Protocol, *, limit: int | None = None, pictures: Path | None = None,
            say: Callable[[str], Any] = print) -> Result:
    """i2t_r1, ..., t2i_r10, and native_i2t_r1, ... where the objective scores by itself.

    limit: pictures at most, evenly spread.   ValueError: no picture could be read
    """
    counts, notes = Counter(data.counts), list(data.notes)
    scores = scores_of(model.objective) if protocol.scores == "both" else None
    with tempfile.TemporaryDirectory(prefix="sparc_ref-") as folder:
        store = Store(Path(folder)) if scores else None
        got = embed(model, data, protocol, limit, counts, store)
        numbers = retrieval(got.v_bar, got.t_bar, got.owner, protocol.ks)
        if scores and store:
            say(f"{len(got.at):,} x {len(got.texts):,} scores of {model.objective.objective}")
            i2t, t2i = native(partial(scores, own_arrays(model.params, model.config)), store, got, Path(folder))
            numbers |= {f"native_{k}": x for k, x in retrieval_of_scores(i2t, t2i, got.owner, protocol.ks).items()}
            del i2t, t2i                                  # files, which Windows does not delete while they are open
    if (whole := KARPATHY.get(data.name, len(got.at))) != len(got.at):
        notes.append(f"Karpathy's test split of {data.name} has {whole:,} pictures: not comparable with published numbers")
    if len(got.at) < len(data.pictures):
        notes.append(f"{len(got.at):,} of {len(data.pictures):,} pictures: a smaller gallery is easier")
    one = retrieval_chance(got.owner, len(got.at), protocol.ks)
    chance = {key: one[key.removeprefix("native_")] for key in numbers}
    counts["captions"] = len(got.texts)
    used = asdict(protocol) | {"ks": list(protocol.ks), "image_size": model.config.image_size,
                               "max_tokens": model.config.max_tokens}
    files = draw(pictures, data, got, model.config.image_size, protocol.eval_resize) if pictures else ()
    return Result("retrieval", f"{data.kind}:{data.path.resolve()}", data.name, len(got.at), numbers, chance, used,
                  {cause: n for cause, n in counts.items() if n}, tuple(notes), files)


def embed(model: Embedder, data: CaptionSet, protocol: Protocol, limit: int | None, counts: Counter[str],
          store: "Store | None") -> Embedded:
    """Pictures, then the captions of those that could be read, a batch at a time; their parts into the store."""
    from tqdm import tqdm

    keep = spread(len(data.pictures), limit)
    at, v_bar = [], []
    for batch in read([data.pictures[i] for i in keep], model.config.image_size, protocol.eval_resize, model.batch, counts):
        image = model.images(batch.pictures)
        at.append(keep[batch.at])
        v_bar.append(image["v_bar"])
        if store:
            store.add("v", image["v"])
    if not at:
        causes = ", ".join(f"{n} {cause}" for cause, n in counts.items() if n)
        raise ValueError(f"{data.path}: expected pictures, none of {len(keep)} could be read: {causes}. See {PAGE}")
    index = np.concatenate(at)
    most = protocol.captions or None
    owner = np.array([row for row, i in enumerate(index) for _ in data.captions[i][:most]])
    texts = [text for i in index for text in data.captions[i][:most]]
    counts["captions beyond the first of a picture" if most == 1 else f"captions beyond the first {most} of a picture"] += sum(
        len(data.captions[i]) for i in index) - len(texts)
    cut = model.tokenizer.counts.truncated
    t_bar = []
    with tqdm(total=len(texts), desc="captions", unit="text", disable=None, delay=1) as bar:
        for part in batches(texts, model.batch):
            text = model.texts(part)
            t_bar.append(text["t_bar"])
            if store:
                store.add("t", *(t[mask] for t, mask in zip(text["t"], text["mask"])))
            bar.update(len(part))
    counts[f"captions cut at {model.config.max_tokens} tokens"] = model.tokenizer.counts.truncated - cut
    return Embedded(index, np.concatenate(v_bar), texts, owner, np.concatenate(t_bar))


class Store:
    """Patches and tokens of a whole data set in two files, read back some at a time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.shape: dict[str, tuple[int, ...]] = {}
        self.lengths: list[int] = []                      # tokens of each caption

    def add(self, name: str, *arrays: np.ndarray) -> None:
        self.shape[name] = arrays[0].shape[1:]
        self.lengths += [len(x) for x in arrays] * (name == "t")
        append(self.folder / name, *arrays)

    def patches(self, start: int, stop: int) -> np.ndarray:
        """-> (n,P,D)"""
        return self._read("v", start, stop)

    def tokens(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """-> (m,L,D) zeros at padding, mask (m,L)"""
        lengths = np.array(self.lengths[start:stop])
        first = sum(self.lengths[:start])
        mask = np.arange(lengths.max()) < lengths[:, None]
        out = np.zeros((*mask.shape, *self.shape["t"]), np.float32)
        out[mask] = self._read("t", first, first + int(lengths.sum()))
        return out, mask

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        shape = self.shape[name]
        each = int(np.prod(shape))
        numbers = np.fromfile(self.folder / name, np.float32, (stop - start) * each, offset=4 * start * each)
        return numbers.reshape(stop - start, *shape)


def append(path: Path, *arrays: np.ndarray) -> None:
    """float32 to the end of a file.   WriteFailed, with the remedy, where the disk is full"""
    with writing(path), open(path, "ab") as file:
        for x in arrays:
            file.write(np.ascontiguousarray(x, np.float32).tobytes())


def native(scores: Callable, store: Store, got: Embedded, folder: Path, images: int = 64, texts: int = 256,
           ) -> tuple[np.ndarray, np.ndarray]:
    """The objective's scores of every picture and caption, a block at a time, kept in files.      -> (N,M), (N,M)"""
    from tqdm import tqdm

    N, M = len(got.at), len(got.texts)
    files = folder / "i2t", folder / "t2i"
    with tqdm(total=N * M, desc="scores", unit="pair", disable=None, delay=1) as bar:
        for b in range(0, M, texts):
            columns = slice(b, min(b + texts, M))
            t, mask = store.tokens(columns.start, columns.stop)
            blocks = []
            for a in range(0, N, images):
                rows = slice(a, min(a + images, N))
                v = store.patches(rows.start, rows.stop)
                blocks.append(scores(v, t, mask, got.v_bar[rows], got.t_bar[columns]))
                bar.update(blocks[-1][0].size)
            for file, parts in zip(files, zip(*blocks)):
                append(file, np.concatenate(parts).T)     # captions x pictures, so that the file grows at its end
    i2t, t2i = (np.memmap(file, np.float32, "r", shape=(M, N)).T for file in files)
    return i2t, t2i


# ---------------------------------------------------------------------------------------------------------------- pictures


def draw(folder: Path, data: CaptionSet, got: Embedded, size: int, how: str, queries: int = 5,
         answers: int = 3) -> tuple[str, ...]:
    """Some pictures with the captions found for them, some captions with their pictures.      -> files in the folder"""
    from sparc_ref.show.plots import png
    from sparc_ref.show.sheets import Found, found_for

    x, y = unit(got.v_bar), unit(got.t_bar)
    asked = spread(len(got.at), queries)
    asking = np.array([np.flatnonzero(got.owner == n)[0] for n in asked])
    by_image, by_text = x[asked] @ y.T, y[asking] @ x.T
    best_texts, best_images = (np.argsort(-s, axis=1, kind="stable")[:, :answers] for s in (by_image, by_text))
    shown = np.unique(np.concatenate([asked, best_images.ravel()]))
    decoded: dict[int, np.ndarray] = {}
    for batch in read([data.pictures[got.at[n]] for n in shown], size, how, 16, Counter()):
        decoded |= {int(shown[i]): picture for i, picture in zip(batch.at, batch.pictures)}
    i2t = [Found(decoded[n], [(got.texts[m], got.owner[m] == n, s[m]) for m in row])
           for n, row, s in zip(asked, best_texts, by_image)]
    t2i = [Found(got.texts[m], [(decoded[n], got.owner[m] == n, s[n]) for n in row])
           for m, row, s in zip(asking, best_images, by_text)]
    files = {"pictures-ask.png": found_for(f"{data.name}: pictures and the captions nearest to them", i2t),
             "captions-ask.png": found_for(f"{data.name}: captions and the pictures nearest to them", t2i)}
    for name, figure in files.items():
        (folder / name).write_bytes(png(figure, dpi=110))
    return tuple(files)
