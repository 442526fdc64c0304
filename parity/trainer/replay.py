"""A batch that stopped a run, through the model again:  python -m parity.trainer.replay --run RUN --batch RUN/offending/FILE

Says what is the first that is not finite: which embedding, loss or gradient, and of which of the batch's samples.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from parity.trainer import checkpoint as sharded
from parity.trainer import optim
from parity.trainer.evaluate import normalized
from parity.trainer.model import SPARC
from parity.trainer.objectives import objective_loss
from sparc_ref.model import SPARCConfig
from sparc_ref.run import checkpoint
from sparc_ref.run.inventory import CONFIG
from sparc_ref.run.rundir import objective_of


@dataclass(frozen=True)
class Replay:
    """Send a saved batch through the newest checkpoint of its run, in float32 and alone."""

    run: Path                       # the run directory
    batch: Path                     # a file of its folder offending/


def replay(run: Path, file: Path) -> str:
    """What is not finite, in words."""
    from parity.trainer.launch import ranks

    record = json.loads((run / CONFIG).read_text("utf-8"))
    config = checkpoint.from_json(SPARCConfig, record["model"], run / CONFIG)
    saved = load_file(file)
    with ranks("cpu"):
        model = SPARC(config, objective=objective_of(record, run / CONFIG))
        optimizer = optim.make_adamw(model, 1e-3, fused=False)
        if not (found := sharded.steps(run / sharded.FOLDER)):
            raise ValueError(f"{run}: holds no checkpoint to replay with")
        sharded.load(found[-1], sharded.read_about(found[-1]), model, optimizer)
        out = model(normalized(saved["images"]), saved["tokens"], saved["mask"])
        loss, stages = objective_loss(out, saved["mask"], optim.loss_params(model), config, model.objective)
        loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, x in {**out, **stages, "loss": loss, **gradients}.items():
        wrong = ~torch.isfinite(x.detach())
        if name in ("logits_vt", "logits_tv") or not wrong.any():
            continue
        rows = torch.nonzero(wrong.flatten(1).any(1))[:, 0].tolist() if x.ndim > 1 and len(x) == len(saved["items"]) else []
        of = f", samples {saved['items'][rows].tolist()}" if rows else ""
        return f"{file.name} on {found[-1].name}: the first that is not finite is {name}{of}"
    return f"{file.name} on {found[-1].name}: everything is finite, loss {float(loss.detach()):g}"


def main(argv: list[str] | None = None) -> int:
    import tyro

    given = tyro.cli(Replay, args=argv, prog="python -m parity.trainer.replay")
    try:
        print(replay(given.run, given.batch))
    except (ValueError, OSError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
