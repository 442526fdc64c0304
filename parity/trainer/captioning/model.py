"""The captioner: frozen tower, frozen language model, and between them what is trained.

    <BOS> <image> a dog on a mat <EOC>      the tower's patches f_v, after its last norm and before g_v, go through the
                                            resampler and are looked at before every `every`-th block of the language model

Own parameters, and all that its checkpoints hold:
    image_token                                        what is embedded where <image> stands; starts as a copy of <BOS>
    resampler.latents, .time, .norm.*                  resampler.layers.<i>.{norm_features,norm_latents,attn.*,ffn.*}
    gated.<i>.{norm,attn.*,ffn.*,alpha,beta}           the layer before block i of the language model
attn is query, key, value, out; ffn is norm, up, down.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.trainer.captioning.gated import Gated, seen_by
from parity.trainer.captioning.gpt import draw
from parity.trainer.captioning.language import Language, open_language, weights_hash
from parity.trainer.captioning.resampler import Resampler
from parity.trainer.model import SPARC, VisionTower
from sparc_ref.model import SPARCConfig
from sparc_ref.run import checkpoint
from sparc_ref.run.rundir import load_run

KIND = "parity.trainer.captioning"


@dataclass(frozen=True)
class CaptionerConfig:
    """Sizes of what is trained."""

    latents: int = 64               # R, that every picture becomes; Flamingo, table 13
    resampler_depth: int = 6        # layers of the resampler; Flamingo, table 13
    heads: int = 8                  # of every cross-attention; open_flamingo's (Flamingo: 16 of 128)
    head_width: int = 64            # of one head; open_flamingo's
    ratio: int = 4                  # of a feed-forward's hidden width; Flamingo
    activation: str = "gelu"        # "gelu": open_flamingo's, "squared_relu": Flamingo's
    every: int = 1                  # blocks of the language model to one gated layer; Flamingo: 1, 4 or 7 by size

    def __post_init__(self):
        for name in ("latents", "resampler_depth", "heads", "head_width", "ratio", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.activation not in ("gelu", "squared_relu"):
            raise ValueError(f"activation: expected gelu or squared_relu, got {self.activation!r}")


@dataclass(frozen=True)
class Tower:
    """A frozen vision tower, and where it came from."""

    model: VisionTower
    config: SPARCConfig
    path: str
    sha256: str

    @classmethod
    def open(cls, path: str | Path) -> "Tower":
        """Of a checkpoint or a run directory that sparc-ref opens.   ValueError for anything that is wrong with it"""
        params, config, _, found = load_run(path)
        with torch.device("meta"):                        # the rest of the model takes no memory
            model = SPARC(config).vision
        model.to_empty(device="cpu")
        model.load_state_dict({name.removeprefix("vision."): torch.from_numpy(np.array(x, np.float32))
                               for name, x in params.items() if name.startswith("vision.")})
        return cls(model.eval(), config, str(found.path.resolve()), weights_hash(model))


class Captioner(nn.Module):
    """See above.  tower, language: frozen here, and never in training mode."""

    def __init__(self, config: CaptionerConfig, tower: Tower, language: Language, seed: int = 0):
        super().__init__()
        if config.every > language.depth:
            raise ValueError(f"every: expected at most the {language.depth} blocks of the language model, got {config.every}")
        self.config, self.about = config, tower
        self.tower = tower.model.requires_grad_(False)
        self.language = language.requires_grad_(False)
        width = tower.config.vision_width
        self.image_token = nn.Parameter(torch.zeros(language.embed_width))
        self.resampler = Resampler(width, config)
        self.gated = nn.ModuleDict({str(i): Gated(language.width, width, config)
                                    for i in range(config.every - 1, language.depth, config.every)})
        for part in (self.resampler, self.gated):
            draw(part, seed)
        with torch.no_grad():
            self.image_token.copy_(language.embed(torch.tensor([[language.start]]))[0, 0])

    def train(self, mode: bool = True) -> "Captioner":
        super().train(mode)
        self.tower.eval()
        self.language.eval()
        return self

    def own(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith(("tower.", "language."))}

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """images (B,T,3,H,W) of each sequence, in order of their <image>; tokens (B,L) padded on the right -> logits (B,L,V)

        A sequence with fewer pictures than T has any pixels in the places left over: no word looks at them.
        """
        return self.read(self.media(images), tokens)

    def media(self, images: Tensor) -> Tensor:
        """images (B,T,3,H,W) -> latents (B,T,R,C)"""
        with torch.no_grad():
            features = self.tower(images.flatten(0, 1))                                    # (B*T,P,C)
        return self.resampler(features).unflatten(0, images.shape[:2])

    def read(self, media: Tensor, tokens: Tensor) -> Tensor:
        """media (B,T,R,C), tokens (B,L) -> logits (B,L,V)"""
        is_picture = tokens == self.language.image
        most = int(is_picture.sum(1).max())
        if len(media) != len(tokens) or most > media.shape[1]:
            raise ValueError(f"images: expected pictures for {len(tokens)} sequences with up to {most} <image> each, got "
                             f"{media.shape[1]} for each of {len(media)}")
        x = torch.where(is_picture[..., None], self.image_token, self.language.embed(torch.where(is_picture, 0, tokens)))
        latents, mask = media.flatten(1, 2), seen_by(is_picture, media.shape[1], media.shape[2])

        def before(i: int, y: Tensor) -> Tensor:
            return self.gated[str(i)](y, latents, mask) if str(i) in self.gated else y

        return self.language(x, before)


def open_captioner(path: str | Path) -> tuple[Captioner, checkpoint.Checkpoint]:
    """A trained captioner with its tower and language model, which must be the very ones that it was trained with.

    CheckpointError (a ValueError) for anything that is wrong with any of them.
    """
    found = checkpoint.load(path)
    record = found.record.get("config")
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise checkpoint.CheckpointError(f"{path}: a checkpoint, but of no captioner; train one on it: "
                                         f"python -m parity.trainer.captioning --checkpoint {path} --language DIR --data ...")
    config = checkpoint.from_json(CaptionerConfig, record.get("model"), found.path)
    tower, language = Tower.open(came_from(found, "tower")), open_language(came_from(found, "language"))
    for name, got in (("tower", tower.sha256), ("language", weights_hash(language))):
        if got != record[name].get("sha256"):
            raise checkpoint.CheckpointError(f"{found.path}: was trained on another {name} than the one that now lies at "
                                             f"{record[name]['path']}: put back what was there, or train anew")
    if language.words_hash != record["language"].get("tokenizer"):
        raise checkpoint.CheckpointError(f"{found.path}: the tokenizer in {record['language']['path']} is not the one that it "
                                         "was trained with: put back what was there, or train anew")
    model = Captioner(config, tower, language)
    own: dict[str, Any] = model.own()
    checkpoint.compare(found.path, "a captioner of these sizes", {name: list(x.shape) for name, x in found.params.items()},
                       {name: list(p.shape) for name, p in own.items()})
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(torch.from_numpy(found.params[name].copy()))
    return model.eval(), found


def came_from(found: checkpoint.Checkpoint, name: str) -> Path:
    """Where the record says that a part lies."""
    part = found.record["config"].get(name)
    if not isinstance(part, dict) or not isinstance(part.get("path"), str):
        raise checkpoint.CheckpointError(f"{found.path}: does not say where its {name} is; expected a captioner of ours")
    if not Path(part["path"]).exists():
        raise checkpoint.CheckpointError(f"{found.path}: its {name} was {part['path']}, where nothing is now: put it back")
    return Path(part["path"])
