"""The GAN-class base restorer: its params, and its training by pixels, perception and a discriminator beside it.

Non-saturating logistic loss (Goodfellow et al. 2014) with the R1 gradient penalty (Mescheder et al. 2018), as in
StyleGAN2 and GFPGAN.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import conv2d, leaky_relu, softplus

from pipeline.base.fit import fit
from pipeline.base.measure import Rows
from pipeline.base.params import TrainParams
from pipeline.evaluation.dataset import Dataset
from pipeline.metrics.perceptual import PerceptualDistance
from pipeline.params import Params, UserError, one_line
from pipeline.restorers.gfpgan import GFPGAN, OFFICIAL, Size
from pipeline.runtime import atomic, noise_like_ids, stable_seed
from pipeline.training import Images, Loss, Stateful, drawn_batch, images_of, require_split, warmup_cosine


class NetworkParams(Params):
    """GFPGANv1Clean, by its own names; its `out_size` is `image_size`."""

    num_style_feat: int = Field(ge=1)
    channel_multiplier: int = Field(ge=1)  # of the channels from 64 px upwards
    narrow: float = Field(gt=0)  # of all channels: 512 · narrow up to 32 px


class DiscriminatorParams(Params):
    """The discriminator, used in training only."""

    channels: list[int] = Field(min_length=1)  # from full size downwards, halving the side each time
    learning_rate: float = Field(gt=0)
    r1: float = Field(ge=0)  # weight of the gradient penalty


class GanWeightParams(Params):
    """Weights of the restorer's losses."""

    pixel: float = Field(ge=0)
    perceptual: float = Field(ge=0)
    adversarial: float = Field(ge=0)


class GanParams(Params):
    """The `gan` group."""

    pretrained: str | None  # path of GFPGANv1.4.pth: official weights instead of training
    checkpoint_every: int = Field(ge=1)  # steps
    validation_batch: int = Field(ge=1)  # images
    network: NetworkParams
    discriminator: DiscriminatorParams
    weights: GanWeightParams
    perceptual_net: Literal["alex", "vgg"]  # of ST-LPIPS
    train: TrainParams

    def must_fit(self, size: int) -> None:
        """Raise UserError where these networks don't restore or judge images of `size` px; only shapes are computed."""
        if self.pretrained:
            if size != OFFICIAL.out_size:
                raise UserError(f"gan.pretrained restores {OFFICIAL.out_size} px, image_size is {size}; set it to null")
            return
        if 2 ** len(self.discriminator.channels) > size:
            raise UserError(f"gan.discriminator.channels: each of them halves the side, too many for {size} px")
        try:
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # no channel at all is but a warning
                network = GFPGAN(Size(size, **self.network.model_dump()))
                network.decode(network.encode(torch.zeros(1, 3, size, size)), torch.zeros(1, network.noise_size))
        # the package checks nothing itself
        except (ValueError, RuntimeError, TypeError, LookupError, ArithmeticError) as error:
            raise UserError(f"gan.network: no such network works for {size} px: {one_line(error)}") from None


class Discriminator(nn.Module):
    """Convolutions that halve the side, to one logit for each patch that is left."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        convs = [nn.Conv2d(3, channels[0], 3, padding=1)]
        for narrow, wide in zip(channels, [*channels[1:], channels[-1]], strict=True):
            convs.append(nn.Conv2d(narrow, wide, 4, stride=2, padding=1))
        self.convs = nn.ModuleList([*convs, nn.Conv2d(channels[-1], 1, 3, padding=1)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, 1, h, w] of images [N, 3, H, W] in [-1, 1]: above zero means real."""
        x = images
        for place, conv in enumerate(self.convs):
            assert isinstance(conv, nn.Conv2d)
            # not called as modules: FlopCounterMode hooks those, and its hooks refuse the penalty's autograd.grad
            x = conv2d(leaky_relu(x, 0.2) if place else x, conv.weight, conv.bias, conv.stride, conv.padding)
        return x


class Adversary:
    """The discriminator and its optimizer."""

    def __init__(self, params: DiscriminatorParams, device: torch.device, seed: int) -> None:
        self.params = params
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(seed, "gan", "discriminator"))
            self.network = Discriminator(params.channels).to(device)
        # StyleGAN2's betas: no momentum
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=params.learning_rate, betas=(0.0, 0.99))

    def update(self, real: torch.Tensor, fake: torch.Tensor, rate: float) -> None:
        """One step on softplus(−D(real)) + softplus(D(fake)) + r1/2·|∂D(real)/∂real|², at `rate` · learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.learning_rate * rate
        real = real.detach().requires_grad_(True)
        of_real, of_fake = self.network.forward(real), self.network(fake.detach())
        (slope,) = torch.autograd.grad(of_real.mean(dim=(1, 2, 3)).sum(), real, create_graph=True)
        penalty = slope.square().sum(dim=(1, 2, 3)).mean()
        loss = softplus(-of_real).mean() + softplus(of_fake).mean() + self.params.r1 / 2 * penalty
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def loss(self, fake: torch.Tensor) -> torch.Tensor:
        """softplus(−D(fake)): what fools the discriminator. Its own weights get no gradient."""
        self.network.requires_grad_(False)
        loss = softplus(-self.network(fake)).mean()
        self.network.requires_grad_(True)
        return loss

    def states(self) -> dict[str, Stateful]:
        """What a checkpoint must hold."""
        return {"discriminator": self.network, "discriminator_optimizer": self.optimizer}

    def save(self, folder: Path) -> None:
        """Write the discriminator beside its restorer, for `more_base` to go on with."""
        with atomic(folder / "discriminator.safetensors") as temporary:
            save_file({name: value.cpu().contiguous() for name, value in self.network.state_dict().items()}, temporary)

    def load(self, folder: Path) -> bool:
        """Take up the discriminator saved in `folder`; False where there is none (official weights have none)."""
        path = folder / "discriminator.safetensors"
        if path.is_file():
            self.network.load_state_dict(load_file(path))
        return path.is_file()


class GanObjective:
    """The base objective of one GFPGAN, for training and for validation."""

    def __init__(self, restorer: GFPGAN, params: GanParams, seed: int) -> None:
        self.restorer, self.params, self.seed = restorer, params, seed
        self.perceptual = PerceptualDistance(params.perceptual_net, restorer.device)
        self.adversary = Adversary(params.discriminator, restorer.device, seed)

    def likeness(self, images: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
        """pixel · L1 + perceptual · ST-LPIPS, [N]."""
        weights = self.params.weights
        pixel = (images - hq).abs().mean(dim=(1, 2, 3))
        return weights.pixel * pixel + weights.perceptual * self.perceptual(hq, images)

    def loss(self, images: Images, train: TrainParams, *seed: object) -> Loss:
        """likeness + adversarial · softplus(−D(image)) on batch n, after one update of the discriminator on it."""
        restorer, size = self.restorer, train.batch_size

        def loss(step: int) -> torch.Tensor:
            hq, lq, _, rng = drawn_batch(images, size, step, 0.0, restorer.device, *seed)
            noise = torch.randn((size, restorer.noise_size), generator=rng).to(restorer.device)
            fake = restorer.decode(restorer.encode(lq), noise)
            self.adversary.update(hq, fake, warmup_cosine(step, train.warmup_steps, train.steps))
            return self.likeness(fake, hq).mean() + self.params.weights.adversarial * self.adversary.loss(fake)

        return loss

    @torch.no_grad()
    def validation(self, images: Images) -> float:
        """Mean likeness on held-out faces; the discriminator stays out, because it changes."""
        total, restorer = 0.0, self.restorer
        for rows, hq, lq in images.in_batches(self.params.validation_batch, restorer.device):
            ids = [images.ids[row] for row in rows]
            noise = noise_like_ids(ids, (restorer.noise_size,), self.seed, "gan-validation").to(restorer.device)
            total += float(self.likeness(restorer.decode(restorer.encode(lq), noise), hq).sum())
        return total / len(images.ids)


def train_gfpgan(
    params: GanParams, seed: int, size: int, train: Dataset, val: Dataset, out: Path, scratch: Path,
    device: torch.device,
) -> tuple[GFPGAN, Rows]:  # fmt: skip
    """Train U-Net and decoder together from scratch; write restorer and discriminator to `out`; the curve's rows.

    Raises UserError unless `train` is split train, and for networks that don't fit `size`.
    """
    require_split(train, "train", "gan")
    params.must_fit(size)
    torch.manual_seed(stable_seed(seed, "gan", "gfpgan"))
    restorer = GFPGAN(Size(size, **params.network.model_dump())).to(device)
    objective = GanObjective(restorer, params, seed)
    held_out, recipe = images_of(val), params.train
    loss = objective.loss(images_of(train), recipe, seed, "gfpgan")

    def validate() -> float:
        return objective.validation(held_out)

    states = objective.adversary.states()
    curve = fit(restorer, loss, validate, recipe, params.checkpoint_every, scratch, "gfpgan", states)
    restorer.save(out)
    objective.adversary.save(out)
    return restorer, [{"restorer": "gfpgan", **row} for row in curve]
