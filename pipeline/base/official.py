"""`base.source: import`: the restorers that ReFL starts from are the official ones."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.base.measure import Rows
from pipeline.base.objectives import diffbir_validation, osediff_validation
from pipeline.base.params import BaseParams
from pipeline.evaluation.dataset import Dataset
from pipeline.restorers.checkpoints import Files, Settings, import_weights
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.load import load
from pipeline.restorers.protocol import Restorer
from pipeline.training import images_of


def import_base(
    params: BaseParams, seed: int, size: int, val: Dataset, out: Path, device: torch.device
) -> tuple[dict[str, Restorer], Rows]:
    """Write `out/denoiser`, `out/diffbir` and `out/osediff` from the files that `base.weights` names.

    Returns the restorers and rows like training's, one each and of no step: its validation loss. Raises UserError for a
    missing or foreign file, and for adapters of another rank than `base.osediff.rank`.
    """
    assert params.weights  # source: import
    settings = Settings(
        native_size=size,
        prediction_type=params.prediction_type,
        steps=params.diffbir.steps,
        eta=params.diffbir.eta,
        timestep=params.osediff.timestep,
        rank=params.osediff.rank,
    )
    files = Files(**{kind: Path(path) for kind, path in params.weights.model_dump().items()})
    restorers: dict[str, Restorer] = {}
    rows: Rows = []
    images = images_of(val)
    for name in import_weights(files, out, settings, device):
        restorer = load(out / name, device)
        validation = diffbir_validation if isinstance(restorer, DiffBIR) else osediff_validation
        loss = validation(restorer, images, params.validation_batch, seed)  # type: ignore[arg-type]
        restorers[name] = restorer
        rows.append({"restorer": name, "step": None, "train_loss": None, "val_loss": loss})
    return restorers, rows
