"""A tiny preference set: the tables that `labels round` copies from, with pictures that a person could tell apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline import tables
from pipeline.annotation.rounds import Round, RoundPlan, make_round
from pipeline.images import encode_png
from pipeline.runtime import rng

PLAN = {
    "seed": 0,
    "pairs": 30,
    "random": 0.2,
    "gold": 0.1,
    "repeats": 0.1,
    "overlap": 0.2,
    "annotators": 2,
    "evaluation": False,
}
SPLITS = ["fit", "fit", "fit", "select", "frm_test"]
RESTORERS = {"diffbir": 3, "osediff": 2, "hq": 1, "smooth": 1}
ANCHORS = {"hq", "smooth", "sharp"}


def plan(**changes: object) -> RoundPlan:
    return RoundPlan.model_validate(PLAN | changes)


def picture(*seed: object, size: int = 64) -> bytes:
    """A smooth face-like blob with seeded colours and some noise, as PNG bytes."""
    generator = rng("synthetic", *seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    face = np.exp(-3 * (x**2 * 1.5 + y**2))[..., None] * generator.uniform(120, 220, 3)
    eyes = sum(np.exp(-60 * ((x - side) ** 2 + (y + 0.2) ** 2)) for side in (-0.3, 0.3))[..., None]
    noise = generator.normal(0, generator.uniform(2, 18), (size, size, 3))
    return encode_png(np.clip(40 + face - 110 * eyes + noise, 0, 255).astype(np.uint8))


def write_data(data: Path, faces: int = 20, size: int = 64) -> None:
    """Every table that a round is made from, below `data`; the SVM is unsure of one pair a face."""
    names = ("faces", "degraded", "candidates", "features", "pairs", "notes")
    rows: dict[str, list[dict]] = {name: [] for name in names}
    for index in range(faces):
        face_id = f"face{index:03d}"
        rows["faces"].append(
            {"face_id": face_id, "image": tables.image_cell(picture(face_id, "hq", size=size), face_id), "width": size}
            | {"height": size, "source": face_id, "group_id": face_id, "caption": "a face", "split": "preference"}
        )
        rows["degraded"].append(
            {"face_id": face_id, "image": tables.image_cell(picture(face_id, "lq", size=size), face_id)}
            | {"blur_kind": "iso", "blur_sigma_x": 1.0, "blur_sigma_y": 1.0, "blur_angle": 0.0, "scale": 2.0}
            | {"noise_sigma": 3.0, "jpeg_quality": 80, "seed": index}
        )
        ids = [(name, sample) for name, count in RESTORERS.items() for sample in range(count)]
        for restorer, sample in ids:
            candidate_id = f"{face_id}-{restorer}-{sample}"
            rows["candidates"].append(
                {"candidate_id": candidate_id, "face_id": face_id, "restorer": restorer, "anchor": restorer in ANCHORS}
                | {"sample": sample, "seed": sample, "image": tables.image_cell(picture(candidate_id, size=size), "c")}
            )
            sharpness = float("nan") if restorer == "smooth" else float(sample)
            rows["features"].append({"candidate_id": candidate_id, "feature_set": "v1", "sharpness": sharpness})
        one = [f"{face_id}-{restorer}-{sample}" for restorer, sample in ids]
        asked = [(one[0], one[1], "random"), (one[3], one[2], "random"), (one[0], one[4], "random")]
        asked += [(one[1], one[5], "random"), (one[5], one[6], "gold"), (one[1], one[0], "repeat")]
        for number, (a, b, why) in enumerate(asked):
            pair_id = f"{face_id}p{number}"
            rows["pairs"].append(
                {"pair_id": pair_id, "face_id": face_id, "candidate_a": a, "candidate_b": b, "why": why}
                | {"split": SPLITS[index % len(SPLITS)]}
            )
            unsure = number == 0
            rows["notes"].append(
                {"pair_id": pair_id, "winner": "a", "p_a": 0.5 + 0.01 * index if unsure else 0.9, "source": "svm"}
                | {"confidence": 0.5, "abstained": unsure}
            )
    for table, name in (
        (tables.FACES, "faces"),
        (tables.DEGRADED, "degraded"),
        (tables.CANDIDATES, "candidates"),
        (tables.FEATURES, "features"),
        (tables.PAIRS, "pairs"),
        (tables.ANNOTATIONS, "notes"),
    ):
        tables.write(table, data / table.name, rows[name])


def write_round(root: Path, **changes: object) -> Round:
    """A round below `root/annotations/rounds`, made from new synthetic data below `root/data`."""
    write_data(root / "data")
    return make_round(plan(**changes), root / "data", root / "annotations" / "rounds")
