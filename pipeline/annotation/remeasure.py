"""Features of judged pairs, computed anew from their rounds' images: votes outlive a change of the feature set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from pipeline.annotation.rounds import Round, read_round
from pipeline.images import Pixels, decode
from pipeline.metrics import compute


def remeasure(
    asked: pd.DataFrame, names: Sequence[str], rounds: Path, missing: Literal["error", "median"]
) -> pd.DataFrame:
    """Features `names` of both sides of `asked` pairs (round_id, pair_id, row_a, row_b), indexed by row_a and row_b.

    A round of images so small that a feature is not valid on them is left out, and so is an image with a feature that
    is no number, unless features.missing declares that it is imputed. Raises UserError as `read_round` does.
    """
    found = [pd.DataFrame(columns=list(names), dtype="float64")]
    for round_id, some in asked.groupby("round_id"):
        held = read_round(rounds / str(round_id))
        hq, lq = (_pictures(held, column, some["pair_id"]) for column in ("hq", "lq"))
        if compute.available(names, min(lq[0].shape[:2]))[1]:
            continue
        for side in ("a", "b"):
            images = _pictures(held, f"image_{side}", some["pair_id"])
            values = compute.score(names, images, hq, lq)  # as stage `features` does
            found.append(pd.DataFrame(values, index=some[f"row_{side}"]))
    measured = pd.concat(found)
    return measured.dropna() if missing == "error" else measured


def _pictures(held: Round, column: str, pairs: Iterable[str]) -> list[Pixels]:
    return [decode(held.png(pair_id, column), f"{held.folder}: pair {pair_id}") for pair_id in pairs]
