"""Reading what the stages wrote to metrics/ and plots/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.params import UserError

WRITERS = {"svm": "label", "frm_learning": "learning"}  # stages that are not named as their metrics file is


def read_json(path: Path) -> Any:
    """A metrics file. Raises UserError naming it and its stage when it is missing or broken."""
    stage = f"refl@{path.stem}" if path.parent.name == "refl" else WRITERS.get(path.stem, path.stem)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `dvc repro {stage}` (or `dvc pull`)") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); delete it and rerun `dvc repro {stage}`") from None


def read_csv(path: Path, may_be_empty: bool = False) -> pd.DataFrame:
    """A plots file. Raises UserError naming it when it is broken, or has no rows and may not."""
    try:
        frame = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table ({error}); delete it and rerun its stage") from None
    if frame.empty and not may_be_empty:
        raise UserError(f"{path}: no rows; rerun its stage")
    return frame
