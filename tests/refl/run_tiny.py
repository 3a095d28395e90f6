"""`python -m tests.refl.run_tiny FOLDER`: a tiny ReFL run in a process of its own, which tests kill or launch twice.

Writes `weights-<process>.pt` (restorer and FRM) when it gets to the end; `log.jsonl` shows how far it is.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from pipeline.refl.evaluation import Evaluation
from pipeline.refl.logs import JsonLines, Log
from pipeline.refl.loop import Curve, train
from pipeline.refl.params import VARIANTS
from pipeline.refl.trainer import ReFL
from pipeline.restorers.protocol import Restorer
from pipeline.training import Checkpoint, images_of
from tests import tiny
from tests.refl.recipe import in_double, params


def watch(restorer: Restorer) -> Evaluation:
    """A landmark distance that depends on the weights alone."""
    size = sum(float(p.detach().double().abs().sum()) for p in restorer.trained().parameters())
    return Evaluation({"val_lmd_68": size, "val_reward": 0.0, "val_id_dlib": 0.5})


@dataclass(frozen=True)
class Ended:
    """What a run leaves behind: weights of restorer and FRM, the curve, and fp16's scale of the loss."""

    weights: dict[str, torch.Tensor]
    curve: Curve
    scale: float


def _not_mine(*_: object, **__: object) -> None:
    raise AssertionError("the first process alone writes checkpoints")


def run(folder: Path, double: bool = False, **changes: object) -> Ended:
    """Train DiffBIR in `folder`, taking up what is there."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    restorer, frm = tiny.diffbir(), tiny.frm()
    if double:
        restorer, frm = restorer.double(), frm.double()
    trainer = ReFL(restorer, frm, params(**changes), VARIANTS["full"], images_of(tiny.dataset(size=64)), 0, accelerator)
    if double:
        in_double(trainer)
    if not accelerator.is_main_process:
        Checkpoint.save = _not_mine  # type: ignore[method-assign]
    folder.mkdir(parents=True, exist_ok=True)
    curve = train(trainer, watch if accelerator.is_main_process else None, folder, "tiny", Log([JsonLines(folder)]))
    weights = {f"restorer.{name}": p for name, p in trainer.restorer.trained().state_dict().items()}
    weights |= {f"frm.{name}": p for name, p in trainer.frm.state_dict().items()}
    torch.save(weights, folder / f"weights-{accelerator.process_index}.pt")
    return Ended(weights, curve, trainer.scaler.get_scale())


if __name__ == "__main__":
    run(Path(sys.argv[1]), **json.loads(sys.argv[2]))
