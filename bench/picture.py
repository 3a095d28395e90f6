"""The README's picture, docs/result.jpg: the first test faces in order of face id, not chosen.

`python -m bench.picture [--faces 10] [--side 96]` after `make repro`. Rows: LQ, base and ReFL of each restorer, HQ.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import typer
from PIL import Image

from pipeline.evaluation import restoring
from pipeline.evaluation.dataset import from_tables
from pipeline.params import value


def main(faces: int = 10, side: int = 96, out: Path = Path("docs/result.jpg")) -> None:
    """Write the grid as JPEG, each face `side` px."""
    test = from_tables("data/faces", "data/degraded")
    assert test.hq is not None
    ids = test.ids[:faces]
    models = [f"{name}/{variant}" for name in value("refl.restorers") for variant in ("base", "full")]
    restored = restoring.read(Path("data/restored"), test.name, models, sample=0, ids=ids)
    rows = [test.lq[:faces], *([restored[model][face] for face in ids] for model in models), test.hq[:faces]]
    grid = Image.fromarray(np.vstack([np.hstack(list(row)) for row in rows]))
    scale = side / test.size
    size = round(grid.width * scale), round(grid.height * scale)
    grid.resize(size, Image.Resampling.BICUBIC).save(out, quality=92)


if __name__ == "__main__":
    typer.run(main)
