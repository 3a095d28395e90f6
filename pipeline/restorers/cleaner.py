"""DiffBIR's first stage: a SwinIR that takes the degradation off before the ControlNet sees the LQ.

Liang et al., SwinIR (2021), in the face model's shape: space to depth, Swin blocks, nearest-neighbour upsampling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import interpolate, pad

from pipeline.compat import basicsr
from pipeline.params import UserError

MEAN = (0.4488, 0.4371, 0.4040)  # RGB, of 1


class Cleaner(nn.Module):
    """SwinIR over `unshuffle`-fold space to depth; `network` has the official checkpoint's keys.

    basicsr's SwinIR upsamples four-fold at most and has no space to depth, so its head and tail are ours.
    """

    def __init__(
        self, embed_dim: int, depths: list[int], num_heads: list[int], window_size: int, mlp_ratio: float,
        unshuffle: int, resolution: int,
    ) -> None:  # fmt: skip
        """`resolution`: side of the feature map whose attention masks are stored; other sizes work, masks computed.

        Official: 180, [6]·8, [6]·8, 8, 2, 8, 64.
        """
        super().__init__()
        self.unshuffle, self.window_size = unshuffle, window_size
        self.network = basicsr("archs.swinir_arch").SwinIR(
            img_size=resolution,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            mlp_ratio=mlp_ratio,
            drop_path_rate=0.0,
            upscale=4,
            upsampler="nearest+conv",
        )
        first = nn.Conv2d(3 * unshuffle**2, embed_dim, 3, padding=1)
        self.network.conv_first = nn.Sequential(nn.PixelUnshuffle(unshuffle), first)
        features = self.network.conv_hr.in_channels
        for index in range(3, self.doublings + 1):
            setattr(self.network, f"conv_up{index}", nn.Conv2d(features, features, 3, padding=1))
        self.register_buffer("mean", torch.tensor(MEAN)[None, :, None, None], persistent=False)
        self.mean: torch.Tensor

    @property
    def doublings(self) -> int:
        """Upsampling steps back to the image's size."""
        return int(math.log2(self.unshuffle))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """LQ [N, 3, H, W] in [-1, 1] → cleaned, about [-1, 1], not clipped; padded to whole windows inside."""
        height, width = images.shape[2:]
        side = self.unshuffle * self.window_size  # px, 64 officially
        whole = pad((images + 1) / 2, (0, -width % side, 0, -height % side))
        net = self.network
        shallow = net.conv_first(whole - self.mean)
        features = net.conv_before_upsample(net.conv_after_body(net.forward_features(shallow)) + shallow)
        for index in range(1, self.doublings + 1):
            up = getattr(net, f"conv_up{index}")
            features = net.lrelu(up(interpolate(features, scale_factor=2, mode="nearest")))
        clean = net.conv_last(net.lrelu(net.conv_hr(features))) + self.mean
        return 2 * clean[:, :, :height, :width] - 1


def cleaner_from(state: Mapping[str, torch.Tensor], path: Path) -> Cleaner:
    """The cleaner whose tensors these are (`face_swinir_v1.ckpt`'s keys); its shape is read off theirs.

    Raises UserError naming what is missing, unknown or of another shape.
    """
    try:
        embed_dim, channels = state["conv_first.1.weight"].shape[:2]
        groups = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
        stems = [f"layers.{group}.residual_group.blocks" for group in range(groups)]
        depths = [len({key.split(".")[4] for key in state if key.startswith(f"{stem}.")}) for stem in stems]
        tables = [state[f"{stem}.0.attn.relative_position_bias_table"].shape for stem in stems]
        window = (math.isqrt(tables[0][0]) + 1) // 2
        hidden = state[f"{stems[0]}.0.mlp.fc1.weight"].shape[0]
        masks = [value.shape[0] for key, value in state.items() if key.endswith(".attn_mask")]
        cleaner = Cleaner(
            embed_dim=embed_dim,
            depths=depths,
            num_heads=[table[1] for table in tables],
            window_size=window,
            mlp_ratio=hidden / embed_dim,
            unshuffle=math.isqrt(channels // 3),
            resolution=window * math.isqrt(masks[0]),  # without its masks the network would not shift its windows
        )
    except (KeyError, ValueError, IndexError):
        raise UserError(f"{path}: holds no SwinIR with space to depth; is it another file?") from None
    wanted = cleaner.network.state_dict()
    if missing := sorted(wanted.keys() - state.keys()):
        raise UserError(f"{path}: {len(missing)} of {len(wanted)} tensors are missing, the first is {missing[0]}")
    if unknown := sorted(state.keys() - wanted.keys()):
        raise UserError(f"{path}: {len(unknown)} tensors are unknown to the cleaner, e.g. {unknown[0]}")
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise UserError(f"{path}: {key} has the shape {list(state[key].shape)}, not {list(value.shape)}")
    cleaner.network.load_state_dict(state)
    return cleaner.eval().requires_grad_(False)
