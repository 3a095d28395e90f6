"""What is watched while ReFL runs: validation faces restored as users restore them. No test face is ever seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.base.measure import Likeness
from pipeline.images import Pixels
from pipeline.metrics.identity import impostors
from pipeline.restorers.batches import restore_all
from pipeline.restorers.protocol import Restorer
from pipeline.reward.model import FaceRewardModel
from pipeline.training import Images

WATCHED = ("id_dlib", "lmd_68", "stlpips_vgg")  # in the order of the curve's columns


@dataclass(frozen=True)
class Evaluation:
    """Figures of one evaluation, and a picture: columns are faces, rows LQ, output, HQ."""

    figures: dict[str, float]
    picture: Pixels | None = None


class Watcher:
    """Measures a restorer on the first faces of split val; whatever belongs to the HQ is computed once.

    Its reward models wait on the CPU between evaluations: two of ViT-H-14's size would take 8 GB from the training.
    """

    def __init__(
        self, images: Images, frm: FaceRewardModel, heldout: FaceRewardModel, count: int, seed: int, batch: int,
        pictures: int = 0,
    ) -> None:  # fmt: skip
        self.ids, self.captions = images.ids[:count], images.captions[:count]
        self.lq, self.hq = (list(side[:count].numpy()) for side in (images.lq, images.hq))
        self.rewards, self.device = {"val_reward": frm, "val_reward_heldout": heldout}, frm.device
        self.seed, self.batch, self.pictures = seed, batch, pictures
        self.likeness = Likeness(self.hq, frm.device, batch)
        people = images.people and images.people[:count]
        self.impostor = {"id_dlib": impostors(self.likeness.identity, people)}  # what chance scores on these faces
        self.of_hq = {f"{name}_hq": mean for name, mean in self._rewards_of(self.hq).items()}

    def restore(self, restorer: Restorer) -> list[np.ndarray]:
        """Restored uint8 images at the restorer's own settings."""
        return list(restore_all(restorer, self.lq, self.ids, self.seed, self.batch))

    @torch.no_grad()
    def __call__(self, restorer: Restorer) -> Evaluation:
        """Means over the faces: both rewards (beside the HQ's own), identity, landmarks, ST-LPIPS."""
        restored = self.restore(restorer)
        likeness = self.likeness(restored)
        figures = self._rewards_of(restored) | self.of_hq | {f"val_{name}": likeness[name] for name in WATCHED}
        rows = [list(side[: self.pictures]) for side in (self.lq, restored, self.hq)]
        return Evaluation(figures, np.vstack([np.hstack(row) for row in rows]) if self.pictures else None)

    def _rewards_of(self, images: Sequence[np.ndarray]) -> dict[str, float]:
        means = {}
        for name, model in self.rewards.items():
            model.to(self.device)
            means[name] = float(np.mean(model.score(images, self.captions, self.batch)))
            model.to("cpu")
        return means
