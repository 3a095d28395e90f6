"""What a base restorer is worth on split val, beside the LQ, and how flat its loss had become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipeline.base.fit import flattening
from pipeline.evaluation.dataset import Dataset
from pipeline.images import to_tensor, to_uint8
from pipeline.metrics.identity import distance, embed, impostors
from pipeline.metrics.landmarks import landmarks_68, lmd
from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.restorers.protocol import Restorer

Rows = list[dict[str, Any]]


def measure(
    restorers: Mapping[str, Restorer], curve: Rows, val: Dataset, seed: int, device: torch.device, batch: int
) -> dict[str, Any]:
    """Validation figures of each restorer beside the LQ's and the chance level of identity (`impostor`); `flattening`
    of those that have rows in `curve`."""
    assert val.hq is not None
    perceptual = PerceptualDistance("vgg", device)
    hq_identity, hq_landmarks = embed(val.hq), landmarks_68(val.hq)

    def figures(restored: torch.Tensor) -> dict[str, float]:
        pixels = list(to_uint8(restored))
        with torch.no_grad():
            pairs = zip(to_tensor(val.hq or ()).split(batch), to_tensor(pixels).split(batch), strict=True)
            stlpips = torch.cat([perceptual(hq.to(device), image.to(device)) for hq, image in pairs])
        return {
            "stlpips_vgg": float(stlpips.mean()),
            "id_dlib": float(distance(embed(pixels), hq_identity).mean()),
            "lmd_68": float(lmd(landmarks_68(pixels), hq_landmarks).mean()),
        }

    lq = to_tensor(val.lq)
    metrics: dict[str, Any] = {
        "val": {"lq": figures(lq)},
        "impostor": {"id_dlib": impostors(hq_identity, val.people)},
        "flattening": {},
    }
    for name, restorer in restorers.items():
        parts = [
            restorer.restore(images, captions, ids, seed).cpu()
            for images, captions, ids in zip(
                lq.split(batch), _chunks(val.captions, batch), _chunks(val.ids, batch), strict=True
            )
        ]
        metrics["val"][name] = figures(torch.cat(parts))
        if rows := [row for row in curve if row["restorer"] == name]:
            metrics["flattening"][name] = flattening(rows)
    return metrics


def _chunks(items: tuple[str, ...], size: int) -> list[list[str]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
