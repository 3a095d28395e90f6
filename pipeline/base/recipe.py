"""The base restorers' recipe: denoiser and ControlNet jointly, then OSEDiff's adapters over the frozen denoiser."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline.base.fit import fit
from pipeline.base.measure import Rows
from pipeline.base.objectives import OsediffObjective, diffbir_loss, diffbir_validation
from pipeline.base.params import BaseParams
from pipeline.evaluation.dataset import Dataset
from pipeline.restorers.denoiser import load_denoiser, new_denoiser
from pipeline.restorers.diffbir import DiffBIR, new_controlnet
from pipeline.restorers.osediff import OSEDiff, add_adapters
from pipeline.runtime import stable_seed
from pipeline.training import images_of, require_split


def train_diffbir(
    params: BaseParams, seed: int, size: int, train: Dataset, val: Dataset, out: Path, scratch: Path,
    device: torch.device,
) -> tuple[DiffBIR, Rows]:  # fmt: skip
    """Train denoiser and ControlNet together; write `out/denoiser` and `out/diffbir`; return it and the curve's rows.

    Jointly, because a ControlNet over a finished, frozen denoiser is not shown to learn within this budget
    (docs/searches.md).
    Raises UserError unless `train` is split train.
    """
    require_split(train, "train", "base")
    torch.manual_seed(stable_seed(seed, "base", "diffbir"))
    unet, vae, text = (one.model_dump() for one in (params.unet, params.vae, params.text) if one)  # source: train
    denoiser = new_denoiser(unet, vae, text, params.prediction_type).to(device)
    controlnet = new_controlnet(denoiser).to(device)
    settings = params.diffbir
    restorer = DiffBIR(denoiser, controlnet, size, settings.steps, settings.eta, out / "denoiser")
    images, held_out = images_of(train), images_of(val)
    loss = diffbir_loss(
        restorer, images, settings.train.batch_size, settings.control_dropout, params.prompt_dropout, seed, "diffbir"
    )
    jointly = nn.ModuleList([denoiser.unet, controlnet])

    def validate() -> float:
        return diffbir_validation(restorer, held_out, params.validation_batch, seed)

    curve = fit(jointly, loss, validate, settings.train, params.checkpoint_every, scratch, "diffbir")
    denoiser.save(out / "denoiser")
    restorer.save(out / "diffbir")
    return restorer, [{"restorer": "diffbir", **row} for row in curve]


def train_osediff(
    params: BaseParams, seed: int, size: int, train: Dataset, val: Dataset, out: Path, scratch: Path,
    device: torch.device,
) -> tuple[OSEDiff, Rows]:  # fmt: skip
    """Train OSEDiff's adapters over `out/denoiser`; write `out/osediff`; return it and the curve's rows.

    Raises UserError unless `train` is split train.
    """
    require_split(train, "train", "base")
    torch.manual_seed(stable_seed(seed, "base", "osediff"))
    denoiser = load_denoiser(out / "denoiser", device)
    settings = params.osediff
    add_adapters(denoiser, settings.rank)
    restorer = OSEDiff(denoiser, size, settings.timestep, settings.rank, out / "denoiser")
    restorer.start_training()
    images, held_out = images_of(train), images_of(val)
    objective = OsediffObjective(restorer, settings)
    loss = objective.loss(images, settings.train.batch_size, params.prompt_dropout, seed, "osediff")

    def validate() -> float:
        return objective.validation(held_out, params.validation_batch)

    curve = fit(denoiser.unet, loss, validate, settings.train, params.checkpoint_every, scratch, "osediff")
    restorer.save(out / "osediff")
    return restorer, [{"restorer": "osediff", **row} for row in curve]
