"""The key of a training's resumable state in `.scratch`: what it trains on, how, and the code that does it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from pipeline.runtime import fingerprint


def key(*parts: object) -> str:
    """`fingerprint` of the parts, the project's loaded modules and the stage that runs, and whether TF32 is on: changed
    code never takes up old weights."""
    loaded = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "pipeline"}
    files = [module.__file__ for name, module in loaded.items() if name != "pipeline.cli"]  # it only starts stages
    stage = getattr(sys.modules["__main__"], "__spec__", None)  # of `python -m stages.NAME`
    if stage and stage.name.partition(".")[0] == "stages":
        files.append(stage.origin)
    rounding = ["tf32"] if torch.backends.cuda.matmul.allow_tf32 else []
    return fingerprint(*parts, *rounding, *sorted(Path(file) for file in files if file))
