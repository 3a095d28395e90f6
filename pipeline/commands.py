"""`diffusionreward restore`: the faces of anybody's photos, outside the DAG and outside a project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.faces.detection import load_detector
from pipeline.faces.params import DetectorName
from pipeline.params import UserError
from pipeline.photos import Finder, output_paths, restore_photos
from pipeline.restorers.load import load as load_restorer
from pipeline.runtime import Device, RuntimeParams, configure, device, one_line_errors, require_writable


@one_line_errors
def restore(
    photos: Annotated[Path, typer.Argument(help="A photo, or a folder of photos.")],
    out: Annotated[Path, typer.Option(help="Folder of the results, PNG files.")],
    model: Annotated[Path, typer.Option(help="A saved restorer.")] = Path("data/refl/diffbir/full"),
    aligned: Annotated[bool, typer.Option(help="The images are aligned crops: restore each as a whole.")] = False,
    detector: Annotated[DetectorName, typer.Option(help="dlib works offline; facexlib needs --weights.")] = "dlib",
    weights: Annotated[Path | None, typer.Option(help="facexlib's detection_Resnet50_Final.pth.")] = None,
    min_score: Annotated[
        float, typer.Option(min=0, help="Least score of a face: dlib's margin, facexlib's probability.")
    ] = 0.5,
    detection_size: Annotated[
        int, typer.Option(min=64, max=8192, help="px, longer side of a photo while faces are found.")
    ] = 1024,
    on: Annotated[Device, typer.Option("--device", help="auto is CUDA when there is one.")] = "auto",
    seed: Annotated[int, typer.Option(help="Another seed draws other details.")] = 0,
) -> None:
    """Find the faces of your photos, restore them with a trained restorer, and paste them back softly."""
    if detector == "facexlib" and weights is None:
        raise UserError("--detector facexlib needs --weights, the path of detection_Resnet50_Final.pth")
    if detector == "facexlib" and min_score > 1:
        raise UserError(f"--min-score {min_score:g}: facexlib's score is a probability, at most 1")
    targets = output_paths(photos, out)  # what is wrong with them is said before a model is loaded
    require_writable(out, "--out")
    configure(RuntimeParams(device=on, tf32=True))  # pictures, no measurements
    where = device(on)
    finder = None if aligned else Finder(load_detector(detector, str(weights or ""), detection_size), min_score)
    restorer = load_restorer(model, where)
    try:
        restore_photos(targets, restorer, finder, where, seed)
    except OSError as error:
        raise UserError(f"--out {out}: can't be written ({error.strerror}); name another folder") from None
