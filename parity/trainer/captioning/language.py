"""Language models as the captioner sees them, and the command that trains ours on captions:

    python -m parity.trainer.captioning.language --data captions:photos/ --out DIR
    python -m parity.trainer.captioning.language --data text:captions.txt --out DIR          # one caption a line

A language model has embed(tokens), forward(x, before) -> logits, encode(text), decode(ids); start and end, the tokens around
a caption; image, the id that stands for a picture, one beyond its own; width, depth, rows, embed_width, longest.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.trainer.captioning.borrowed import Borrowed
from parity.trainer.captioning.fit import Training, fit, left_by
from parity.trainer.captioning.gpt import GPT, GPTConfig, draw
from sparc_ref.data import WordTokenizer, load_tokenizer
from sparc_ref.run import checkpoint
from sparc_ref.run.sources import absolute, make_tokenizer, open_source, texts_of

KIND = "parity.trainer.captioning.language"
IGNORE = -100                                             # of cross_entropy: a target that is not learned


class Own(nn.Module):
    """A GPT of ours with its tokenizer."""

    kind = "own"

    def __init__(self, model: GPT, tokenizer: Any, name: str = ""):
        super().__init__()
        c = model.config
        if tokenizer.vocab_size != c.vocab_size or not tokenizer.eos:
            raise ValueError(f"--language {name}: expected a tokenizer of {c.vocab_size} tokens that ends a text, got one of "
                             f"{tokenizer.vocab_size}{'' if tokenizer.eos else ' that does not'}")
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.width = self.embed_width = c.width
        self.depth, self.rows, self.longest = c.depth, c.vocab_size + 1, c.max_tokens
        self.start, self.end, self.image = c.vocab_size, tokenizer.eos_id, c.vocab_size + 1

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B,L) below rows -> (B,L,embed_width)"""
        return self.model.embedding(tokens)

    def forward(self, x: Tensor, before: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """x (B,L,embed_width) -> logits (B,L,rows)"""
        return self.model(x, before)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.pieces(text)[0]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i < self.tokenizer.vocab_size])

    @property
    def words_hash(self) -> str:
        return self.tokenizer.hash


Language: TypeAlias = Own | Borrowed


def open_language(folder: str | Path) -> Language:
    """A folder that the command here wrote, or one of a causal language model of Hugging Face's.   ValueError: neither"""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"--language {folder}: expected the folder of a language model, found none; train one: "
                         "python -m parity.trainer.captioning.language --data captions:... --out DIR")
    if (folder / "checkpoints").is_dir() or (folder / checkpoint.INDEX).exists():
        found = checkpoint.load(folder)
        record = found.record.get("config")
        if not isinstance(record, dict) or record.get("kind") != KIND:
            raise ValueError(f"--language {folder}: a checkpoint, but of no language model; expected what "
                             "python -m parity.trainer.captioning.language wrote")
        model = GPT(checkpoint.from_json(GPTConfig, record.get("model"), found.path))
        checkpoint.check_params(found.path, found.params | {"theta": np.zeros((), np.float32)},
                                {name: tuple(p.shape) for name, p in model.named_parameters()} | {"theta": ()})
        model.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in found.params.items()})
        tokenizer = load_tokenizer(found.tokenizer_dir)
        if tokenizer.hash != found.tokenizer:
            raise ValueError(f"--language {folder}: its tokenizer is not the one that it was trained with")
        return Own(model.eval(), tokenizer, str(folder))
    if (folder / "config.json").is_file():
        return Borrowed.open(folder)
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:3]) or "nothing"
    raise ValueError(f"--language {folder}: no language model: expected checkpoints/ (ours) or config.json and "
                     f"model.safetensors (Hugging Face's), found {there}")


def weights_hash(module: nn.Module) -> str:
    """sha256 of every parameter's and buffer's name, shape and bytes."""
    digest = hashlib.sha256()
    for name, x in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sequences(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Lists of ids, padded with 0 on the right.      -> tokens (B,L) int64, mask (B,L) bool"""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, :len(row)], mask[i, :len(row)] = torch.tensor(row), True
    return tokens, mask


def next_word_loss(logits: Tensor, tokens: Tensor, learned: Tensor) -> Tensor:
    """Mean cross entropy of the words that follow.      logits (B,L,V), tokens (B,L), learned (B,L) bool: of which -> ()"""
    targets = torch.where(learned[:, 1:], tokens[:, 1:], IGNORE)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


# ------------------------------------------------------------------------------------------------------------ the command


class Texts:
    """An endless iterator of token sequences: <BOS> text <EOC>, shuffled each epoch by (seed, epoch).

    Every other one begins with two <BOS>, by chance: the captioner's <image> starts as a copy of <BOS>, and stands there.
    """

    def __init__(self, language: Own, texts: Sequence[str], batch: int, seed: int):
        if len(texts) < batch:
            raise ValueError(f"batch: expected at most {len(texts)}, the number of captions, got {batch}")
        self.language, self.batch, self.seed, self.epoch, self.position = language, batch, seed, 0, 0
        room = language.longest - 3
        self.ids = [language.encode(text)[:room] for text in texts]
        self.deal()

    def deal(self) -> None:
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, self.epoch)))
        self.order, self.twice = rng.permutation(len(self.ids)), rng.random(len(self.ids)) < 0.5

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        if (self.position + 1) * self.batch > len(self.ids):
            self.epoch, self.position = self.epoch + 1, 0
            self.deal()
        chosen = self.order[self.position * self.batch:][:self.batch]
        self.position += 1
        start, end = self.language.start, self.language.end
        return sequences([[start] * (1 + int(self.twice[i])) + self.ids[i] + [end] for i in chosen])

    def state(self) -> dict:
        return {"epoch": self.epoch, "position": self.position}

    def restore(self, state: dict) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
        self.deal()


@dataclass(frozen=True)
class Options:
    """Train a small language model on captions."""

    data: tuple[str, ...]           # captions: data as for sparc-ref train, or text:FILE with one caption a line
    out: Path                       # the folder to write
    model: GPTConfig = field(default_factory=GPTConfig)
    training: Training = field(default_factory=lambda: Training(steps=1_000, batch=64, lr=1e-3, warmup=100))
    resume: bool = False            # continue the run in --out


def run(given: Options, say: Callable[[str], Any] = print) -> Own:
    """The command.   ValueError: what the user can mend"""
    texts, scenes = [], []
    for spec in given.data:
        if spec.startswith("text:"):
            texts += lines_of(Path(spec.removeprefix("text:")))
        else:
            scenes.append(open_source(spec, 32))
            texts += texts_of(scenes[-1])
    if not texts:
        raise ValueError(f"--data: expected captions, found none in {', '.join(given.data)}")
    size = given.model.vocab_size
    known = len(scenes) == len(given.data) and all(hasattr(d, "vocabulary") for d in scenes)
    tokenizer = make_tokenizer(scenes, size) if known else learned_words(texts, size)
    config = replace(given.model, vocab_size=tokenizer.vocab_size)
    model = GPT(config)
    draw(model, given.training.seed)
    language = Own(model, tokenizer, str(given.out))
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    record = {"kind": KIND, "model": asdict(config), "train": asdict(given.training), "tokenizer": tokenizer.hash,
              "data": {"sources": [s if s.startswith("text:") else absolute(s) for s in given.data], "captions": len(texts),
                       "sha256": digest}}

    def loss(batches: list) -> Tensor:
        tokens, mask = batches[0]
        return next_word_loss(language(language.embed(tokens)), tokens, mask & (tokens != language.start))

    say(f"{len(texts):,} captions, {tokenizer.vocab_size:,} words or pieces, {sum(p.numel() for p in model.parameters()):,} "
        "parameters")
    fit(dict(model.named_parameters()), loss, [Texts(language, texts, given.training.batch, given.training.seed)],
        given.training, given.out, record, tokenizer, resume=given.resume, say=say)
    return language


def lines_of(file: Path) -> list[str]:
    """The lines that say something.   ValueError"""
    try:
        return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--data text:{file}: expected a text in UTF-8 with one caption a line ({error})") from error


def learned_words(texts: Sequence[str], most: int) -> Any:
    """Whole words where they fit into the vocabulary, sentencepiece unigrams otherwise."""
    words = WordTokenizer.from_texts(texts, 1 << 30)
    if words.vocab_size <= most:
        return words
    from sparc_ref.data import UnigramTokenizer

    return UnigramTokenizer.train(texts, most)


def main(argv: list[str] | None = None) -> int:
    import tyro

    given = tyro.cli(Options, args=argv, prog=f"python -m {KIND}", config=(tyro.conf.OmitArgPrefixes,))
    with left_by("language") as status:
        run(given)
    return status[0]


if __name__ == "__main__":
    sys.exit(main())
