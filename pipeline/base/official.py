"""`base.source: import`: the restorers that ReFL starts from are the official ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pipeline.base.measure import Rows
from pipeline.base.objectives import OsediffObjective, diffbir_validation
from pipeline.base.params import BaseParams, OfficialFiles
from pipeline.evaluation.dataset import Dataset
from pipeline.restorers.checkpoints import Files, Settings, import_weights
from pipeline.restorers.denoiser import load_denoiser
from pipeline.restorers.diffbir import load_diffbir
from pipeline.restorers.osediff import load_osediff
from pipeline.restorers.protocol import CONFIG, Restorer
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
    files = official_files(params.weights)
    images = images_of(val)
    import_weights(files, out, settings, device)
    # not by `restorers.load`, which knows GFPGAN too: this stage would then be trained again when GFPGAN's code changes
    source = out / "denoiser"
    diffbir = load_diffbir(out / "diffbir", _config(out / "diffbir"), load_denoiser(source, device), source)
    osediff = load_osediff(out / "osediff", _config(out / "osediff"), load_denoiser(source, device), source)
    losses = {
        "diffbir": diffbir_validation(diffbir, images, params.validation_batch, seed),
        "osediff": OsediffObjective(osediff, params.osediff).validation(images, params.validation_batch),
    }
    rows = [{"restorer": name, "step": None, "train_loss": None, "val_loss": loss} for name, loss in losses.items()]
    return {"diffbir": diffbir, "osediff": osediff}, rows


def official_files(weights: OfficialFiles) -> Files:
    """The files that `base.weights` names; `check` on them says which are missing."""
    return Files(**{kind: Path(path) for kind, path in weights.model_dump().items()})


def _config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
