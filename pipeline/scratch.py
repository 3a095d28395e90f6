"""The key of a training's resumable state in `.scratch`: what it trains on, how, and the code that does it."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.runtime import fingerprint


def key(*parts: object) -> str:
    """`fingerprint` of the parts, the project's loaded modules and the stage that runs: changed code never takes up old
    weights."""
    files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "pipeline"]
    stage = getattr(sys.modules["__main__"], "__spec__", None)  # of `python -m stages.NAME`
    if stage and stage.name.partition(".")[0] == "stages":
        files.append(stage.origin)
    return fingerprint(*parts, *sorted(Path(file) for file in files if file))
