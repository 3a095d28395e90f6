"""`diffusionreward score`: what a trained Face Reward Model thinks of your own images."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from pipeline.faces.folder import image_names, read_caption
from pipeline.images import Pixels, decode
from pipeline.params import UserError, printable
from pipeline.reward.model import FaceRewardModel
from pipeline.runtime import (
    Device,
    RuntimeParams,
    configure,
    device,
    one_line_errors,
    progress,
    require_writable,
    write_text,
)


@one_line_errors
def score(
    images: Annotated[Path, typer.Argument(help="An aligned face, or a folder of them; captions as .txt beside them.")],
    reward: Annotated[Path, typer.Option(help="Folder of a saved reward model.")] = Path("data/frm/reward"),
    out: Annotated[Path, typer.Option(help="CSV file: file, reward.")] = Path("scores.csv"),
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    on: Annotated[Device, typer.Option("--device", help="auto is CUDA when there is one.")] = "auto",
) -> None:
    """Score aligned faces by a Face Reward Model: rewards in [-1, 1], of use only beside each other."""
    if os.path.isdir(images):
        names = image_names(images)
        root = images
    else:
        names, root = [images.name], images.parent
    if not names:
        raise UserError(f"{images} holds no image")
    require_writable(out.parent, "--out")
    configure(RuntimeParams(device=on))
    model = FaceRewardModel.from_pretrained(reward, device(on))
    rows: list[tuple[str, float]] = []
    bar = progress(range(0, len(names), batch_size), "score")
    for start in bar:
        rows += _scored(model, root, names[start : start + batch_size])
        bar.set_postfix(scored=len(rows))
    if not rows:
        raise UserError(f"{images}: no image could be scored; the reasons are above")
    found = pd.DataFrame(rows, columns=["file", "reward"])
    try:
        write_text(out, found.to_csv(index=False, float_format="%.6g"))
    except OSError as error:
        raise UserError(f"--out {out}: can't be written ({error.strerror}); name another file") from None
    ranked = found.sort_values(["reward", "file"], ascending=[False, True])
    mean, labels = found["reward"].mean(), model.config.labels
    print(f"{len(found)} of {len(names)} images, mean reward {mean:.4f} (by {labels} labels)")
    for what, row in (("highest", ranked.iloc[0]), ("lowest", ranked.iloc[-1])):
        print(f"{what}: {row['reward']:.4f} {row['file']}")
    print(f"written to {out}")


def _scored(model: FaceRewardModel, root: Path, names: Sequence[str]) -> list[tuple[str, float]]:
    """File and reward of those of `names` that are aligned faces; the others are said and left out."""
    readable: dict[str, tuple[Pixels, str]] = {}
    for name in names:
        shown = printable(name)
        try:
            image = decode((root / name).read_bytes(), shown)
            height, width = image.shape[:2]
            if height != width:
                raise UserError(f"{shown}: not square ({width} × {height}), so no aligned face")
            readable[name] = image, read_caption(root / name)
        except OSError as error:
            print(f"skipped: {shown}: not readable ({error.strerror})", file=sys.stderr)
        except UserError as error:
            print(f"skipped: {error}", file=sys.stderr)
    rewards: dict[str, float] = {}
    for side in sorted({image.shape[0] for image, _ in readable.values()}):
        alike = [name for name, (image, _) in readable.items() if image.shape[0] == side]
        pictures, captions = zip(*(readable[name] for name in alike), strict=True)
        rewards |= dict(zip(alike, model.score(pictures, captions, len(alike)).tolist(), strict=True))
    return [(printable(name), rewards[name]) for name in readable]
