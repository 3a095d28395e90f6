"""Load any saved restorer: what stages `base`, `gan` and `refl` or an import of official weights wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipeline.params import UserError, one_line
from pipeline.restorers.denoiser import load_denoiser
from pipeline.restorers.diffbir import DiffBIR, load_diffbir
from pipeline.restorers.gfpgan import GFPGAN, load_gfpgan
from pipeline.restorers.osediff import OSEDiff, load_osediff
from pipeline.restorers.protocol import CONFIG

BaseRestorer = DiffBIR | OSEDiff | GFPGAN
CLASSES = (DiffBIR, OSEDiff, GFPGAN)
KINDS = tuple(one.kind for one in CLASSES)
SAMPLERS = frozenset(one.kind for one in CLASSES if one.samples)


def load(folder: Path, device: torch.device) -> BaseRestorer:
    """The restorer saved in `folder`, in eval mode on `device`.

    Raises UserError when the folder holds no restorer, one of an unknown kind, or a file of it or of its denoiser is
    missing or damaged; or when the device's memory is too small.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"{file}: missing; train one by `make repro`, or name another saved restorer")
    try:
        return _load(folder, json.loads(file.read_text()), device)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged, or no restorer's ({one_line(error)}); name another model") from None
    except torch.OutOfMemoryError:
        raise UserError(f"{folder}: does not fit into the memory of {device}; use the CPU") from None
    except (OSError, SafetensorError, RuntimeError) as error:  # diffusers, safetensors and torch on a file's trouble
        raise UserError(f"{folder}: can't be loaded ({one_line(error)}); name another model") from None


def _load(folder: Path, config: dict[str, Any], device: torch.device) -> BaseRestorer:
    if config["kind"] not in KINDS:
        raise UserError(f"{folder / CONFIG}: unknown kind {config['kind']!r}; known: {', '.join(KINDS)}")
    if config["kind"] == GFPGAN.kind:  # the one without a denoiser
        return load_gfpgan(folder, config, device)
    source = (folder / config["denoiser"]).resolve()
    denoiser = load_denoiser(source, device)
    if config["kind"] == DiffBIR.kind:
        return load_diffbir(folder, config, denoiser, source)
    return load_osediff(folder, config, denoiser, source)
