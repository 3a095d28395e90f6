"""Load any saved restorer: what stages `base`, `gan` and `refl` or an import of official weights wrote."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pipeline.params import UserError
from pipeline.restorers.denoiser import load_denoiser
from pipeline.restorers.diffbir import DiffBIR, load_diffbir
from pipeline.restorers.gfpgan import GFPGAN, load_gfpgan
from pipeline.restorers.osediff import OSEDiff, load_osediff

BaseRestorer = DiffBIR | OSEDiff | GFPGAN


def load(folder: Path, device: torch.device) -> BaseRestorer:
    """The restorer saved in `folder`, in eval mode on `device`.

    Raises UserError when the folder holds no restorer, one of an unknown kind, or its denoiser is missing.
    """
    try:
        config = json.loads((folder / "restorer.json").read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder / 'restorer.json'}: missing; run `dvc repro base gan` or name a saved restorer"
        ) from None
    if config["kind"] == "gfpgan":  # the one without a denoiser
        return load_gfpgan(folder, config, device)
    source = (folder / config["denoiser"]).resolve()
    denoiser = load_denoiser(source, device)
    if config["kind"] == "diffbir":
        return load_diffbir(folder, config, denoiser, source)
    if config["kind"] == "osediff":
        return load_osediff(folder, config, denoiser, source)
    raise UserError(f"{folder / 'restorer.json'}: unknown kind {config['kind']!r}; known: diffbir, osediff, gfpgan")
