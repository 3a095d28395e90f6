"""The key of a training's resumable state in `.scratch`: what it trains on, how, and the code that does it."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.runtime import fingerprint


def key(*parts: object) -> str:
    """`fingerprint` of the parts and of the project's loaded modules: changed code never takes up old weights."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "pipeline"]
    return fingerprint(*parts, *sorted(Path(module.__file__) for module in modules if module.__file__))
