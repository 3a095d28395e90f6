"""OSEDiff: one step from the encoded LQ with LoRA adapters on the denoiser; no noise, no rollout.

Wu et al., One-Step Effective Diffusion Network for Real-World Image Super-Resolution (2024). The LQ's latents are taken
for x_t at a fixed timestep (official: 999), and x0 follows in closed form.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.params import UserError, one_line
from pipeline.restorers.denoiser import Denoiser, path_from
from pipeline.restorers.hooks import Outputs, drift
from pipeline.restorers.protocol import CONFIG, Prediction, Rollout, RolloutSettings
from pipeline.runtime import atomic, noise_like_ids, write_json

# official: separate adapters for the two halves of the UNet and its middle
ADAPTERS = {
    "default_encoder": ("down_blocks.",),
    "default_decoder": ("up_blocks.", "conv_out"),
    "default_others": ("mid_block.",),
}
LORA_LAYERS = (
    "to_q to_k to_v to_out.0 conv conv1 conv2 conv_shortcut conv_out proj_in proj_out ff.net.0.proj ff.net.2"
).split()


VAE_PART = "vae"  # its name in our file
ENCODER = "default_encoder"  # the adapter on the autoencoder's encoder, which official weights bring along


def add_adapters(denoiser: Denoiser, rank: int) -> None:
    """Put the three LoRA adapters on the denoiser's UNet; `conv_in` itself trains too (official).

    Seed torch before the call: LoRA's A matrices are drawn, its B matrices are zero.
    """
    targets = {
        adapter: [
            name
            for name, module in denoiser.unet.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
            and name.startswith(part)
            and any(name == layer or name.endswith(f".{layer}") for layer in LORA_LAYERS)
        ]
        for adapter, part in ADAPTERS.items()
    }
    put_adapters(denoiser.unet, targets, rank, rank)


def put_adapters(network: Any, targets: Mapping[str, list[str]], rank: int, alpha: int) -> None:
    """Add a LoRA adapter of these layers (by their full names) to a diffusers model; all are active at once."""
    for adapter, names in targets.items():
        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=names)
        with warnings.catch_warnings():  # several adapters are what we want
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            network.add_adapter(config, adapter_name=adapter)
    network.set_adapter(list(targets))


class OSEDiff(nn.Module):
    """LoRA adapters over a frozen denoiser, one step at `timestep` (official: 999)."""

    kind = "osediff"
    samples = False

    def __init__(self, denoiser: Denoiser, native_size: int, timestep: int, rank: int, source: Path) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.native_size = native_size
        self.timestep = timestep
        self.rank = rank
        self.source = source
        self.reference: dict[str, torch.Tensor] | None = None

    def condition(self, lq: torch.Tensor) -> torch.Tensor:
        """Latent mode of the LQ, scaled."""
        with self._lq_encoder():
            return self.denoiser.encode(lq)

    def encode_sample(self, lq: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Posterior sample of the LQ's latents, scaled, with the given noise (official)."""
        with self._lq_encoder():
            return self.denoiser.encode_sample(lq, noise)

    @contextmanager
    def _lq_encoder(self) -> Iterator[None]:
        """The encoder with the adapter that official weights bring; it stays frozen, and HQ is encoded without it."""
        adapted = adapted_encoder(self.denoiser)
        with torch.no_grad():
            if adapted:
                self.denoiser.vae.enable_adapters()
            try:
                yield
            finally:
                if adapted:
                    self.denoiser.vae.disable_adapters()

    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token features of the prompts (cached)."""
        return self.denoiser.text(prompts)

    def x0(self, latents: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """x0 of `latents`, taken for x_t at the fixed timestep."""
        time = torch.full((len(latents),), self.timestep, device=latents.device)
        output = self.denoiser.unet(latents, time, encoder_hidden_states=prompts).sample
        return self.denoiser.split(latents, output, self.timestep)[0]

    @torch.no_grad()
    def restore(
        self, lq: torch.Tensor, prompts: Sequence[str], ids: Sequence[str], seed: int, **setting: float
    ) -> torch.Tensor:
        """LQ [N, 3, H, W] in [-1, 1] → restored, clipped; the latents are a posterior sample (official)."""
        lq = lq.to(self.denoiser.device)
        noise = noise_like_ids(list(ids), self.denoiser.latent_shape(lq), seed, "osediff").to(lq)
        x0 = self.x0(self.encode_sample(lq, noise), self.encode_prompts(prompts))
        return self.denoiser.decode(x0).clamp(-1, 1)

    def rollout(
        self, condition: torch.Tensor, prompts: torch.Tensor, settings: RolloutSettings, rng: torch.Generator
    ) -> Rollout:
        """No rollout: the one step starts at the encoded LQ."""
        return Rollout(condition, self.timestep)

    def predict(self, rollout: Rollout, condition: torch.Tensor, prompts: torch.Tensor) -> Prediction:
        """The step with gradient; regulariser Σ_k mean((h_k − h_k^frozen)²) over the blocks LoRA changes."""
        if self.reference is None:
            raise RuntimeError("predict needs start_training()")
        unet = self.denoiser.unet
        blocks = [unet.conv_in, *unet.down_blocks, unet.mid_block, *unet.up_blocks, unet.conv_out]
        with Outputs(blocks) as outputs:
            x0 = self.x0(rollout.latents, prompts)
        with torch.no_grad(), Outputs(blocks) as anchors, self._frozen():
            self.x0(rollout.latents, prompts)
        images, gain = self.denoiser.decode(x0), self.denoiser.gain(self.timestep)
        return Prediction(images, drift(outputs.kept, anchors.kept), x0.detach(), gain)

    def trained(self) -> nn.Module:
        """The UNet: its adapters and conv_in have `requires_grad`."""
        return self.denoiser.unet

    def trained_names(self) -> list[str]:
        """Names of the trained parameters: LoRA's and conv_in's."""
        return [
            name for name, _ in self.denoiser.unet.named_parameters() if "lora_" in name or name.startswith("conv_in.")
        ]

    def start_training(self) -> None:
        """Only adapters and conv_in train; a copy of them is kept for the regulariser."""
        self.denoiser.eval().requires_grad_(False)
        names = set(self.trained_names())
        self.reference = {}
        for name, parameter in self.denoiser.unet.named_parameters():
            if name in names:
                parameter.requires_grad_(True)
                self.reference[name] = parameter.detach().clone()

    def _frozen(self) -> _Swapped:
        assert self.reference is not None
        return _Swapped(dict(self.denoiser.unet.named_parameters()), self.reference)

    def save(self, folder: Path) -> None:
        """Write adapters and conv_in as safetensors, and what `pipeline.restorers.load.load` needs beside them."""
        unet, vae = self.denoiser.unet, self.denoiser.vae
        weights = {f"conv_in.{name}": tensor for name, tensor in own_conv_in(unet).state_dict().items()}
        config: dict[str, Any] = {"native_size": self.native_size, "timestep": self.timestep, "rank": self.rank}
        for adapter in ADAPTERS:
            weights |= _adapter_state(unet, adapter, adapter)
        if (alpha := unet.peft_config[ENCODER].lora_alpha) != self.rank:
            config["alpha"] = alpha
        if adapted_encoder(self.denoiser):
            weights |= _adapter_state(vae, ENCODER, VAE_PART)
            config["vae"] = {"rank": vae.peft_config[ENCODER].r, "alpha": vae.peft_config[ENCODER].lora_alpha}
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / "adapters.safetensors") as temporary:
            save_file(weights, temporary)
        write_json(folder / CONFIG, {"kind": self.kind, "denoiser": path_from(folder, self.source), **config})


def own_conv_in(unet: nn.Module) -> nn.Module:
    """The UNet's first convolution, which trains whole, without the LoRA that official weights put on it as well."""
    first = unet.get_submodule("conv_in")
    return getattr(first, "base_layer", first)


def adapted_encoder(denoiser: Denoiser) -> bool:
    """Whether the autoencoder's encoder has an adapter."""
    return ENCODER in getattr(denoiser.vae, "peft_config", {})


def _adapter_state(network: Any, adapter: str, part: str) -> dict[str, torch.Tensor]:
    state = get_peft_model_state_dict(network, adapter_name=adapter)
    return {f"{part}/{name}": tensor.contiguous() for name, tensor in state.items()}


class _Swapped:
    """Run with other parameter values, without autograd noticing (the live graph keeps its own tensors).

    Autocast keeps half-precision copies of parameters by identity, so it must forget them at both ends.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
        self.pairs = [(parameters[name], value) for name, value in values.items()]

    def __enter__(self) -> None:
        self.live = [parameter.data for parameter, _ in self.pairs]
        for parameter, value in self.pairs:
            parameter.data = value
        torch.clear_autocast_cache()

    def __exit__(self, *error: object) -> None:
        for (parameter, _), value in zip(self.pairs, self.live, strict=True):
            parameter.data = value
        torch.clear_autocast_cache()


def load_osediff(folder: Path, config: dict[str, Any], denoiser: Denoiser, source: Path) -> OSEDiff:
    """An OSEDiff that `OSEDiff.save` wrote; `denoiser` gets the adapters.

    Raises UserError for a missing file, for adapters that the denoiser has no layers for, and for some that lack
    matrices.
    """
    file = folder / "adapters.safetensors"
    if not file.is_file():
        raise UserError(f"{file}: missing; restore it with `dvc checkout` or name another saved restorer")
    weights = load_file(file)
    unet = denoiser.unet
    rank, encoder = config["rank"], config.get("vae")
    _put_saved(unet, {name: name for name in ADAPTERS}, weights, rank, config.get("alpha", rank), file)
    if encoder:
        _put_saved(denoiser.vae, {ENCODER: VAE_PART}, weights, encoder["rank"], encoder["alpha"], file)
        denoiser.vae.disable_adapters()
    own_conv_in(unet).load_state_dict(
        {name.removeprefix("conv_in."): value for name, value in weights.items() if name.startswith("conv_in.")}
    )
    denoiser.to(denoiser.device).requires_grad_(False)
    return OSEDiff(denoiser, config["native_size"], config["timestep"], rank, source)


def _put_saved(
    network: Any, parts: Mapping[str, str], weights: Mapping[str, torch.Tensor], rank: int, alpha: int, file: Path
) -> None:
    """Add the adapters that the file holds, layers and all."""
    states = {
        adapter: {name.split("/")[1]: value for name, value in weights.items() if name.startswith(f"{part}/")}
        for adapter, part in parts.items()
    }
    try:
        targets = {adapter: sorted({name.split(".lora_")[0] for name in state}) for adapter, state in states.items()}
        put_adapters(network, targets, rank, alpha)
    except ValueError as error:  # peft: no such layer
        raise UserError(f"{file}: its adapters are another network's: {one_line(error)}") from None
    for adapter, state in states.items():
        if odd := sorted(get_peft_model_state_dict(network, adapter_name=adapter).keys() ^ state.keys()):
            raise UserError(f"{file}: {adapter} is not whole or another network's, e.g. {odd[0]}")
        set_peft_model_state_dict(network, state, adapter_name=adapter)
