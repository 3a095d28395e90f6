"""The perceptual distance that models are trained on and scored by: shift-tolerant LPIPS.

Source: Ghildyal & Liu, "Shift-tolerant Perceptual Similarity Metric" (ECCV 2022); weights of the `stlpips_pytorch`
wheel; networks of pyiqa, whose forward pass `PerceptualDistance` equals, split in two so that the features of a
reference are computed once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.compat import package_file
from pipeline.params import UserError

Net = Literal["alex", "vgg"]


def weights_file(net: Net) -> Path:
    """The ST-LPIPS weights inside the `stlpips_pytorch` wheel. Raises UserError where they are missing."""
    return package_file("stlpips_pytorch", "weights", "vST0.0", f"{net}_shift_tolerant.pth")


class PerceptualDistance(nn.Module):
    """ST-LPIPS: Σ_l mean_xy w_l·(f_l(a) − f_l(b))², features normalised over channels; 0 for equal images.

    Frozen, in evaluation mode, differentiable in the images.
    """

    def __init__(self, net: Net, device: torch.device | str = "cpu") -> None:
        super().__init__()
        from pyiqa.archs.stlpips_arch import STLPIPS

        with torch.device("meta"):  # skips the initial draw of VGG16's unused classifier: seconds, and random numbers
            self.net = STLPIPS(net=net, pretrained=False)
        weights = torch.load(weights_file(net), map_location="cpu", weights_only=True)
        missing, unexpected = self.net.load_state_dict(weights, strict=False, assign=True)
        # `lins` lists the very modules that the file names lin0, lin1, …
        if unexpected or any(not name.startswith("lins.") for name in missing):
            raise UserError(f"{weights_file(net)}: not the ST-LPIPS weights that pyiqa's network expects")
        self.requires_grad_(False).eval().to(device)

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in evaluation mode: the layers hold dropout that must never run."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Channel-normalised features of each layer of images [N, 3, H, W] in [-1, 1]; H, W ≥ 16."""
        layers = self.net.net(self.net.scaling_layer(images))
        return [_normalise(layer) for layer in layers]

    def distance(self, reference: list[Tensor], images: Tensor) -> Tensor:
        """Distance [N] of images [N, 3, H, W] in [-1, 1] to a reference given by its `features`."""
        layers = zip(self.net.lins, reference, self.features(images), strict=True)
        return torch.stack([lin((a - b) ** 2).mean(dim=(1, 2, 3)) for lin, a, b in layers]).sum(dim=0)

    def forward(self, reference: Tensor, images: Tensor) -> Tensor:
        """Distance [N] between two batches [N, 3, H, W] in [-1, 1]."""
        return self.distance(self.features(reference), images)


def _normalise(layer: Tensor) -> Tensor:
    layer = layer.to(torch.promote_types(layer.dtype, torch.float32))  # squares overflow fp16, 1e-20 underflows it
    # 1e-20 keeps the root's gradient finite where a ReLU silenced every channel; too small to change the value
    return layer / ((layer.square().sum(dim=1, keepdim=True) + 1e-20).sqrt() + 1e-10)
