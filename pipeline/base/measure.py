"""What a restorer is worth on split val: base restorers beside the LQ, with how flat their loss had become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.base.fit import flattening
from pipeline.evaluation.dataset import Dataset
from pipeline.images import Pixels, to_tensor, to_uint8
from pipeline.metrics.identity import distance, embed, impostors
from pipeline.metrics.landmarks import landmarks_68, lmd
from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.restorers.protocol import Restorer

Rows = list[dict[str, Any]]


class Likeness:
    """How near restorations are to their originals (HQ), of which everything but the perceptual features is kept."""

    def __init__(self, hq: Sequence[Pixels], device: torch.device, batch: int) -> None:
        self.hq, self.device, self.batch = hq, device, batch
        self.perceptual = PerceptualDistance("vgg", device)
        self.identity, self.landmarks = embed(hq), landmarks_68(hq)

    @torch.no_grad()
    def __call__(self, restored: Sequence[Pixels]) -> dict[str, float]:
        """Mean ST-LPIPS (VGG), identity distance (dlib) and landmark distance (px) of uint8 images, in HQ order."""
        pairs = zip(to_tensor(self.hq).split(self.batch), to_tensor(restored).split(self.batch), strict=True)
        stlpips = torch.cat([self.perceptual(hq.to(self.device), image.to(self.device)) for hq, image in pairs])
        return {
            "stlpips_vgg": float(stlpips.mean()),
            "id_dlib": float(distance(embed(restored), self.identity).mean()),
            "lmd_68": float(lmd(landmarks_68(restored), self.landmarks).mean()),
        }


def restore(
    restorer: Restorer, lq: torch.Tensor, captions: Sequence[str], ids: Sequence[str], seed: int, batch: int
) -> list[Pixels]:
    """Restored uint8 images of LQs [N, 3, H, W] in [-1, 1], `batch` at a time, at the restorer's own settings."""
    parts = []
    for start in range(0, len(ids), batch):
        part = slice(start, start + batch)
        parts.append(to_uint8(restorer.restore(lq[part], list(captions[part]), list(ids[part]), seed)))
    return list(np.concatenate(parts))


def measure(
    restorers: Mapping[str, Restorer], curve: Rows, val: Dataset, seed: int, device: torch.device, batch: int
) -> dict[str, Any]:
    """Validation figures of each restorer beside the LQ's and the chance level of identity (`impostor`); `flattening`
    of those that have rows in `curve`."""
    assert val.hq is not None
    likeness, lq = Likeness(val.hq, device, batch), to_tensor(val.lq)
    metrics: dict[str, Any] = {
        "val": {"lq": likeness(val.lq)},
        "impostor": {"id_dlib": impostors(likeness.identity, val.people)},
        "flattening": {},
    }
    for name, restorer in restorers.items():
        metrics["val"][name] = likeness(restore(restorer, lq, val.captions, val.ids, seed, batch))
        if rows := [row for row in curve if row["restorer"] == name]:
            metrics["flattening"][name] = flattening(rows)
    return metrics
