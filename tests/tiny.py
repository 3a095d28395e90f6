"""Tiny restorers and faces that tests share: 16 px images, networks of a few thousand parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.evaluation.dataset import Dataset
from pipeline.restorers.denoiser import Denoiser, new_denoiser
from pipeline.restorers.diffbir import DiffBIR, new_controlnet
from pipeline.restorers.gfpgan import GFPGAN, Size
from pipeline.restorers.osediff import OSEDiff, add_adapters
from pipeline.reward.model import FaceRewardModel
from pipeline.reward.params import Architecture, RewardConfig

SIZE = 16
UNET = {
    "sample_size": 4,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "layers_per_block": 1,
    "attention_head_dim": [1, 2],
    "norm_num_groups": 4,
    "use_linear_projection": True,
}
VAE = {"block": 4, "scaling_factor": 1.8, "posterior_std": 0.05}
TEXT = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
}


def denoiser(prediction_type: str = "v_prediction", seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return new_denoiser(UNET, VAE, TEXT, prediction_type).eval()


def shaken(module: torch.nn.Module, seed: int = 1) -> None:
    """Move every zero-initialised weight, so that nothing vanishes by accident."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))


def diffbir(source: Path = Path("denoiser"), prediction_type: str = "v_prediction") -> DiffBIR:
    base = denoiser(prediction_type)
    controlnet = new_controlnet(base).eval()
    shaken(controlnet)
    return DiffBIR(base, controlnet, SIZE, 3, 1.0, source)


def osediff(source: Path = Path("denoiser")) -> OSEDiff:
    base = denoiser()
    add_adapters(base, 2)
    return OSEDiff(base, SIZE, 249, 2, source)


def gfpgan(size: int = SIZE) -> GFPGAN:
    torch.manual_seed(0)
    restorer = GFPGAN(Size(size, num_style_feat=8, channel_multiplier=1, narrow=1 / 64)).eval()
    shaken(restorer)
    return restorer


def frm(seed: int = 0) -> FaceRewardModel:
    torch.manual_seed(seed)
    architecture = Architecture(
        embed_dim=8,
        vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        text_cfg={"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    )
    model = FaceRewardModel.from_config(RewardConfig(architecture=architecture, default_caption="a face"))
    return model.eval().requires_grad_(False)


def light_and_dark(name: str = "train", count: int = 6, size: int = SIZE) -> Dataset:
    """Every HQ is light and every LQ dark: which one a picture comes from is seen by its sign."""
    faces = dataset(name, count, size)
    assert faces.hq is not None
    hq = tuple(image // 4 + 190 for image in faces.hq)
    return replace(faces, hq=hq, lq=tuple(image // 4 + 10 for image in faces.lq))


def dataset(name: str = "train", count: int = 6, size: int = SIZE) -> Dataset:
    """Smooth random images and noisy copies of them."""
    rng = np.random.default_rng(count)
    coarse = rng.integers(40, 216, (count, 2, 2, 3)).repeat(size // 2, 1).repeat(size // 2, 2)
    hq = [image.astype(np.uint8) for image in coarse]
    lq = [np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8) for image in coarse]
    ids = tuple(f"face{index}" for index in range(count))
    return Dataset(name, ids, tuple(f"face number {index}" for index in range(count)), tuple(lq), tuple(hq), size)
