"""The `frm` group: two Face Reward Models, how they are trained and how they are judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.params import Params

Section = dict[str, int | float | bool | str | list[int] | None]


class Architecture(Params):
    """An OpenCLIP configuration written out, with OpenCLIP's own keys (see `open_clip/model_configs`)."""

    embed_dim: int = Field(ge=1)
    vision_cfg: Section
    text_cfg: Section


class RewardConfig(Params):
    """What is saved beside the weights: everything needed to rebuild the model."""

    architecture: str | Architecture  # a name OpenCLIP knows (ViT-H-14), or a configuration
    default_caption: str = Field(min_length=1)  # stands for an empty caption
    labels: str | None = None  # whose votes it learned from: human, simulated, human+simulated; null: published weights


class RewardParams(Params):
    """One Face Reward Model and the labels it learns from."""

    architecture: str | Architecture
    pretrained: str | None  # an HPSv2 or the published face reward checkpoint; null trains from scratch
    unlocked_image_groups: int | None = Field(ge=0)  # last groups of the image tower that train; null: all
    unlocked_text_layers: int | None = Field(ge=0)  # last layers of the text tower that train; null: all
    seed: int  # of initialisation, order and augmentation, with the global seed
    annotators: list[str] | None  # people or simulated annotators whose votes it learns from; null: data/annotations
    svm_labels: bool  # learn from the SVM's labels as well
    learning_rate: float = Field(gt=0)

    @property
    def files(self) -> list[Path]:
        """The checkpoint that it starts from, whose bytes count in the key of resumable state; none from scratch."""
        return [Path(self.pretrained)] if self.pretrained else []


class DamageParams(Params):
    """Pairs "intact before damaged": ranges [weakest, strongest] that two strengths are drawn from."""

    weight: float = Field(ge=0)  # of such a pair; 0: none
    blur: tuple[float, float]  # sigma in px of a 64 px face
    noise: tuple[float, float]  # sigma of 255
    jpeg: tuple[float, float]  # 100 − quality
    oversharpen: tuple[float, float]  # amount of unsharp masking
    pattern: tuple[float, float]  # amplitude of 255

    @field_validator("blur", "noise", "jpeg", "oversharpen", "pattern")
    @classmethod
    def _weakest_first(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= ends[0] <= ends[1]:  # else the more damaged picture would be taught as the better one
            raise ValueError("must be [weakest, strongest], 0 or more")
        return ends

    @field_validator("jpeg")
    @classmethod
    def _some_quality(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[1] > 99:
            raise ValueError("100 − quality is at most 99")
        return ends


class TrainingParams(Params):
    """How both models are trained."""

    batch_size: int = Field(ge=1)  # pairs
    pairs_together: int = Field(ge=1)  # of one face in a batch: more share images, fewer mix more faces
    steps: int = Field(ge=1)  # at most
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)  # none on biases, norms and other 1-D parameters
    max_grad_norm: float = Field(gt=0)
    hq_pairs: float = Field(ge=0)  # weight of added pairs "HQ before candidate", one for each candidate; 0: none
    damage: DamageParams
    flip: bool  # mirror half of the images
    shift: int = Field(ge=0)  # px by which images are moved at random, edges repeated
    gradient_checkpointing: bool
    precision: Literal["fp32", "bf16"]
    evaluate_every: int = Field(ge=1)  # steps
    patience: int | None = Field(ge=1)  # evaluations without a smaller loss on the select pairs before it stops
    checkpoint_every: int = Field(ge=1)  # steps between resumable checkpoints

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainingParams:
        if self.warmup_steps >= self.steps:
            raise ValueError("warmup_steps must be below steps")
        return self


class EvaluationParams(Params):
    """How the reward's meaning is measured."""

    batch_size: int = Field(ge=1)  # images
    min_annotators: int = Field(ge=1)  # who must be unanimous for a pair to count in the headline
    min_pairs: int = Field(ge=1)  # of the headline; with fewer, metrics and stage say that it is no evidence
    resamples: int = Field(ge=100)  # of the bootstrap, clustered by face
    margin_bins: int = Field(ge=2)
    calibration_bins: int = Field(ge=2)
    blur: list[float]  # sigma in px of a 64 px face (scaled with the image), growing
    noise: list[float]  # sigma of 255
    jpeg: list[int]  # quality, falling
    oversharpen: list[float]  # amount of unsharp masking, growing
    pattern: list[float]  # amplitude of a pattern 2 to 4 px fine, of 255, growing

    @field_validator("blur", "noise", "oversharpen", "pattern")
    @classmethod
    def _growing(cls, levels: list[float]) -> list[float]:
        if not _in_order(levels):
            raise ValueError("must be growing strengths above 0")
        return levels

    @field_validator("jpeg")
    @classmethod
    def _falling(cls, levels: list[int]) -> list[int]:
        if not _in_order([101 - level for level in levels]) or levels[-1] < 1:
            raise ValueError("must be falling qualities, 100 to 1")
        return levels


def _in_order(strengths: Sequence[float]) -> bool:
    return bool(strengths) and strengths[0] > 0 and sorted(set(strengths)) == list(strengths)


class FrmParams(Params):
    """The `frm` group."""

    default_caption: str = Field(min_length=1)
    reward: RewardParams  # trains the restorers
    heldout: RewardParams  # is never seen by them: the only reward that counts as evidence
    training: TrainingParams
    evaluation: EvaluationParams
