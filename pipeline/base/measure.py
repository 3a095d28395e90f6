"""What a restorer is worth on split val: base restorers beside the LQ, with how flat their loss had become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.base.fit import flattening
from pipeline.evaluation.dataset import Dataset
from pipeline.images import Pixels, to_tensor
from pipeline.metrics.identity import distance, embed, impostors
from pipeline.metrics.landmarks import landmarks_68, lmd
from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.restorers.batches import restore_all
from pipeline.restorers.protocol import Restorer
from pipeline.runtime import whole_fp32

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
        with whole_fp32():
            stlpips = torch.cat([self.perceptual(hq.to(self.device), image.to(self.device)) for hq, image in pairs])
        return {
            "stlpips_vgg": float(stlpips.mean()),
            "id_dlib": float(distance(embed(restored), self.identity).mean()),
            "lmd_68": float(lmd(landmarks_68(restored), self.landmarks).mean()),
        }


def measure(
    restorers: Mapping[str, Restorer], curve: Rows, val: Dataset, seed: int, device: torch.device, batch: int
) -> dict[str, Any]:
    """Validation figures of each restorer beside the LQ's and the chance level of identity (`impostor`); `flattening`
    of those that have rows in `curve`."""
    assert val.hq is not None
    likeness = Likeness(val.hq, device, batch)
    metrics: dict[str, Any] = {
        "val": {"lq": likeness(val.lq)},
        "impostor": {"id_dlib": impostors(likeness.identity, val.people)},
        "flattening": {},
    }
    for name, restorer in restorers.items():
        metrics["val"][name] = likeness(list(restore_all(restorer, val.lq, val.ids, seed, batch)))
        if rows := [row for row in curve if row["restorer"] == name]:
            metrics["flattening"][name] = flattening(rows)
    return metrics
