"""Learn a sentencepiece tokenizer from captions, of shards from a sample:

    python -m parity.trainer.tokenizer --data "shards:/data/cc3m/{00000..00331}.tar" --out tokenizer --vocab-size 32000
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.trainer.data.shards import ShardData, open_shards
from sparc_ref.data import UnigramTokenizer
from sparc_ref.run.sources import make_tokenizer, open_source, texts_of


def learn(
    sets: Sequence[Any], vocab_size: int, eos: bool = True, lower: bool = True, sample: int = 1_000_000, seed: int = 0
) -> Any:
    """The reference's choice: words where the vocabulary is known, else unigrams; of shards from `sample` pictures."""
    if not any(isinstance(d, ShardData) for d in sets):
        return make_tokenizer(sets, vocab_size, eos, lower)
    texts = (text for d in sets for text in (d.texts(sample, seed) if isinstance(d, ShardData) else texts_of(d)))
    return UnigramTokenizer.train(texts, vocab_size, eos, lower)


@dataclass(frozen=True)
class Learn:
    """Learn a tokenizer of sentencepiece unigrams and write it to a folder."""

    data: tuple[str, ...]           # where the captions are, as for the trainer
    out: Path                       # the folder to write
    vocab_size: int = 32_000        # pieces at most; a small corpus gives fewer
    sample: int = 1_000_000         # pictures whose captions are read, of shards
    eos: bool = True                # end every caption with an EOS token
    lower: bool = True              # lower-case captions
    seed: int = 0                   # which pictures


def main(argv: list[str] | None = None) -> int:
    import tyro

    given = tyro.cli(Learn, args=argv, prog="python -m parity.trainer.tokenizer")
    try:
        with tempfile.TemporaryDirectory() as index:
            sets = [open_shards(s, 224, index) if s.startswith("shards:") else open_source(s, 64) for s in given.data]
            tokenizer = learn(sets, given.vocab_size, given.eos, given.lower, given.sample, given.seed)
        tokenizer.save(given.out)
    except (ValueError, OSError) as error:
        print(f"tokenizer: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {tokenizer.describe()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
