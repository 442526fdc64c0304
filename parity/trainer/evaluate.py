"""Retrieval, under an objective's own score too, and the grounding gap, while training, by the trainer's towers on all ranks.

sparc_ref.evaluate, which takes plain arrays and knows no model, turns them into numbers.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from parity.trainer.launch import Place, gathered
from parity.trainer.loss import token_losses
from parity.trainer.model import bare
from parity.trainer.optim import loss_params
from parity.trainer.scores import native_scores
from sparc_ref.data.images import resize
from sparc_ref.data.load_report import Unusable
from sparc_ref.evaluate.grounding import grounding_gap
from sparc_ref.evaluate.retrieval import retrieval, retrieval_chance, retrieval_of_scores

GROUNDING = 256                                           # pictures of the grounding gap
SCORED = 64                                               # pictures that an objective scores at a time


@torch.no_grad()
def evaluate(model: Any, dataset: Any, tokenizer: Any, limit: int, batch: int, device: torch.device, place: Place,
             autocast: torch.dtype | None = None, seed: int = 0) -> dict[str, float]:
    """The numbers of sparc-ref evaluate that need no masks, on the first `limit` examples.  All ranks call it; rank 0 has them.

    A rank embeds every world-th batch; one that has none left embeds the last one again, as shards want all ranks to call.
    """
    config = bare(model).config
    starts = list(range(0, min(limit, len(dataset)), batch))
    if not starts:
        return {}
    rounds = -(-len(starts) // place.world)
    mine = []
    for n in range(rounds):
        number = n * place.world + place.rank
        at = starts[min(number, len(starts) - 1)]
        part = embed(model, dataset, tokenizer, range(at, min(at + batch, limit, len(dataset))), device, autocast)
        if number < len(starts) and part:
            mine.append((number, part))
    if isinstance(model, FSDPModule):
        model.reshard()                                   # without a backward pass the outer parameters stay gathered
    parts = sorted((part for each in shared(mine, place, device) for part in each), key=lambda part: part[0])
    if not place.first or not parts:
        return {}
    v_bar, t_bar, owners, count, fine = [], [], [], 0, []
    for _, part in parts:
        v_bar.append(part["v_bar"])
        t_bar.append(part["t_bar"])
        owners.append(part["of"] + count)
        first = np.searchsorted(part["of"], np.arange(len(part["v_bar"])))
        if count < GROUNDING:
            fine.append((part["v"], part["t"][first], part["mask"][first]))
        count += len(part["v_bar"])
    owner = np.concatenate(owners)
    out = {"images": float(count), "captions": float(len(owner))}
    out |= retrieval(np.concatenate(v_bar), np.concatenate(t_bar), owner)
    chance = {f"{name}_chance": x for name, x in retrieval_chance(owner, count).items()}
    out |= chance
    if scores := scored(model, [part for _, part in parts], device):
        out |= {f"native_{name}": x for name, x in (retrieval_of_scores(*scores, owner) | chance).items()}
    if config.lambda_f and count > 1:
        out |= gap(model, config, fine, seed)
    return {name: float(x) for name, x in out.items() if np.isfinite(x)}


def embed(model: Any, dataset: Any, tokenizer: Any, items: range, device: torch.device, autocast: torch.dtype | None) -> dict:
    """Embeddings as NumPy: v, v_bar of pictures; t, t_bar, mask of all their captions; of: whose caption each is."""
    config = bare(model).config
    images: list[np.ndarray] = []
    texts: list[str] = []
    of: list[int] = []
    for item in items:
        try:
            example = dataset[item]
        except Unusable:
            continue
        image = example.image if example.image.shape[0] == config.image_size else resize(example.image, config.image_size)
        of += [len(images)] * len(example.captions)
        texts += example.captions
        images.append(image)
    usable = bool(images)
    if not usable:                                        # shards of the model wait for this rank all the same
        images, texts, of = [np.zeros((config.image_size, config.image_size, 3), np.uint8)], [""], [0]
    tokens, mask = tokenizer.batch(texts, config.max_tokens)
    x = normalized(torch.from_numpy(np.stack(images)).to(device)).to(bare(model).theta.dtype)
    tokens, mask = torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device)
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        out = model(x, tokens, mask)
    if not usable:
        return {}
    found = {name: out[name].float().cpu().numpy() for name in ("v", "v_bar", "t", "t_bar")}
    return found | {"mask": mask.cpu().numpy(), "of": np.array(of)}


def normalized(images: Tensor) -> Tensor:
    """(b,S,S,3) uint8 -> (b,3,S,S) float32 in [-1, 1], (x / 255 - 0.5) / 0.5, rounded as the reference does."""
    return images.permute(0, 3, 1, 2).to(torch.float32).contiguous().mul_(1 / 127.5).sub_(1)


def shared(mine: list, place: Place, device: torch.device) -> list[list]:
    """Every rank's parts, on all ranks: shapes as JSON, numbers by gloo."""
    if place.world == 1:
        return [mine]
    import torch.distributed as dist

    flat = [(number, name, np.ascontiguousarray(x)) for number, part in mine for name, x in part.items()]
    told = gathered([[number, name, list(x.shape), x.dtype.name] for number, name, x in flat])
    data = torch.from_numpy(np.frombuffer(b"".join(x.tobytes() for _, _, x in flat), np.uint8).copy())
    longest = max(sum(np.dtype(d).itemsize * int(np.prod(shape)) for _, _, shape, d in each) for each in told)
    padded = torch.zeros(max(1, longest), dtype=torch.uint8)
    padded[: len(data)] = data
    every = [torch.empty_like(padded) for _ in range(place.world)]
    dist.all_gather(every, padded)
    out = []
    for each, block in zip(told, every):
        parts: dict[int, dict] = {}
        at = 0
        for number, name, shape, dtype in each:
            size = np.dtype(dtype).itemsize * int(np.prod(shape))
            parts.setdefault(number, {})[name] = block[at : at + size].numpy().view(dtype).reshape(shape)
            at += size
        out.append(list(parts.items()))
    return out


def scored(model: Any, parts: list[dict], device: torch.device) -> tuple[np.ndarray, np.ndarray] | None:
    """The scores of every picture and caption, N x M, by the objective's own rule; None where it has none."""
    params, objective = loss_params(model), bare(model).objective
    longest = max(part["t"].shape[1] for part in parts)

    def all_of(name: str, longer: bool = False) -> Tensor:
        found = [part[name] for part in parts]
        if longer:
            found = [np.pad(x, ((0, 0), (0, longest - x.shape[1]), *((0, 0),) * (x.ndim - 2))) for x in found]
        return torch.from_numpy(np.concatenate(found)).to(device)

    x = {"t": all_of("t", longer=True), "t_bar": all_of("t_bar")}
    mask = all_of("mask", longer=True)
    rows = []
    for v, v_bar in zip(all_of("v").split(SCORED), all_of("v_bar").split(SCORED)):
        if (found := native_scores(objective, x | {"v": v, "v_bar": v_bar}, mask, params)) is None:
            return None
        rows.append([s.float().cpu().numpy() for s in found])
    i2t, t2i = (np.concatenate(each) for each in zip(*rows))
    return i2t, t2i


def gap(model: Any, config: Any, parts: list, seed: int) -> dict[str, float]:
    """The grounding gap of the first pictures, under the model's own options."""
    longest = max(t.shape[1] for _, t, _ in parts)
    v = np.concatenate([v for v, _, _ in parts])[:GROUNDING]
    t = np.concatenate([np.pad(t, ((0, 0), (0, longest - t.shape[1]), (0, 0))) for _, t, _ in parts])[:GROUNDING]
    mask = np.concatenate([np.pad(m, ((0, 0), (0, longest - m.shape[1]))) for _, _, m in parts])[:GROUNDING]
    own = bare(model)
    theta = (own.theta if own.theta_fine is None else own.theta_fine).detach().cpu()
    sigma = 0.0 if config.align == "no_threshold" else 1 / v.shape[1] if config.sigma is None else config.sigma
    options = {name: getattr(config, name) for name in ("similarity", "align", "threshold_on", "flat", "ties")}

    def fine_loss(v, t, mask):
        v, t, mask = (torch.from_numpy(np.ascontiguousarray(x)) for x in (v, t, mask))
        stages = token_losses(v, t, mask, theta.to(t.dtype), sigma=sigma, **options)
        each = stages["loss_vt"] + stages["loss_tv"]      # (N,L)
        if config.reduction == "token":
            return float(each.sum() / mask.sum().clamp(min=1) / 2)
        return float((each.sum(1) / mask.sum(1).clamp(min=1)).mean() / 2)

    got = grounding_gap(fine_loss, v, t, mask, np.random.default_rng(seed), 4)
    names = {"gap": "grounding_gap", "true": "fine_loss", "shuffled": "fine_loss_shuffled", "shuffled_sd": "grounding_gap_sd"}
    return {names[name]: x for name, x in got.items()}
