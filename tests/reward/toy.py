"""A toy preference set: sharp noise beats its blurred copies, so that a small model learns it in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

from pipeline import tables
from pipeline.images import Pixels, encode_png
from pipeline.reward.params import Architecture, DamageParams, RewardParams, TrainingParams

SIZE = 32
RESTORERS = ("hq", "sharper", "softer", "smooth")


def architecture(**vision: Any) -> Architecture:
    return Architecture(
        embed_dim=16,
        vision_cfg={"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8} | vision,
        text_cfg={"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    )


def reward_params(**changes: Any) -> RewardParams:
    values: dict[str, Any] = {
        "architecture": architecture(),
        "pretrained": None,
        "unlocked_image_groups": None,
        "unlocked_text_layers": 0,
        "seed": 0,
        "annotators": None,
        "svm_labels": True,
        "learning_rate": 3e-3,
    }
    return RewardParams(**(values | changes))


def damage_params(**changes: Any) -> DamageParams:
    values: dict[str, Any] = {
        "blur": (0.5, 2.0),
        "noise": (5.0, 40.0),
        "jpeg": (20.0, 80.0),
        "oversharpen": (1.0, 4.0),
        "pattern": (2.0, 20.0),
    }
    return DamageParams(**(values | {"weight": 0.5} | changes))


def training_params(**changes: Any) -> TrainingParams:
    values: dict[str, Any] = {
        "batch_size": 8,
        "pairs_together": 4,
        "steps": 12,
        "warmup_steps": 2,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "hq_pairs": 0.5,
        "damage": damage_params(weight=0.0),
        "flip": True,
        "shift": 1,
        "gradient_checkpointing": False,
        "precision": "fp32",
        "evaluate_every": 4,
        "patience": 100,
        "checkpoint_every": 4,
    }
    return TrainingParams(**(values | changes))


def noise_image(seed: int, sigma: float) -> Pixels:
    image = np.random.default_rng(seed).uniform(0, 255, (SIZE, SIZE, 3))
    return np.clip(ndimage.gaussian_filter(image, (sigma, sigma, 0)), 0, 255).astype(np.uint8)


def face_row(face: str, index: int, split: str = "preference") -> dict[str, Any]:
    image = tables.image_cell(encode_png(noise_image(index, 0.0)), face)
    row = {"face_id": face, "image": image, "width": SIZE, "height": SIZE, "source": "", "group_id": face}
    return row | {"caption": "", "split": split}


def candidate_row(face: str, restorer: str, image: Pixels) -> dict[str, Any]:
    name = f"{face}-{restorer}-0"
    row = {"candidate_id": name, "face_id": face, "restorer": restorer, "anchor": restorer in ("hq", "smooth")}
    return row | {"sample": 0, "seed": 0, "image": tables.image_cell(encode_png(image), name)}


def vote_row(pair: str, annotator: str, winner: str) -> dict[str, Any]:
    row = {"event_id": f"{pair}-{annotator}", "round_id": "", "pair_id": pair, "annotator": annotator}
    row |= {"annotator_kind": "simulated", "winner": winner, "displayed_left": "a", "shown_reference": True}
    return row | {"response_ms": 0, "round": 0, "at": "", "undone_by": ""}
