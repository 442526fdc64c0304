"""A tower, language models and a captioner small enough for tests."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from parity.trainer.captioning.gpt import GPT, GPTConfig, draw
from parity.trainer.captioning.language import Own
from parity.trainer.captioning.model import Captioner, CaptionerConfig, Tower
from parity.trainer.model import SPARC
from sparc_ref.data import WordTokenizer
from sparc_ref.model import PRESETS

WORDS = ("a", "dog", "cat", "on", "the", "mat", "red")
SMALL = CaptionerConfig(latents=3, resampler_depth=2, heads=2, head_width=4, ratio=2)
SIZE = 16


def tower(seed: int = 1) -> Tower:
    config = replace(PRESETS["tiny"], image_size=SIZE, patch_size=8, vision_width=12, vision_depth=1, vision_heads=2)
    model = SPARC(config).vision
    draw(model, seed)
    return Tower(model.eval(), config, "nowhere", "")


def language(seed: int = 2) -> Own:
    words = WordTokenizer(WORDS)
    model = GPT(GPTConfig(width=16, depth=2, heads=2, ratio=2, max_tokens=20, vocab_size=words.vocab_size))
    draw(model, seed)
    with torch.no_grad():                                 # small random weights alone would hide what goes wrong
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2)
    return Own(model, words, "made")


def captioner(config: CaptionerConfig = SMALL, words=None) -> Captioner:
    return Captioner(config, tower(), words or language()).eval()


@torch.no_grad()
def opened(model: Captioner, seed: int = 5) -> Captioner:
    """With random values wherever training would have left them, gates open."""
    rng = torch.Generator().manual_seed(seed)
    for p in model.own().values():
        p.add_(torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype) * 0.5)
    return model


def pictures(batch: int, each: int = 1, seed: int = 3, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(batch, each, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch_of(texts: list[str], words) -> SimpleNamespace:
    """As sparc_ref.data.Batches gives it."""
    from parity.trainer.captioning.train import Sequences

    tokens, mask = Sequences(words, 0.0, 0).batch(texts, 12)
    return SimpleNamespace(tokens=tokens, mask=mask, images=pictures(len(texts))[:, 0].numpy())
