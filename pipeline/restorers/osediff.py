"""OSEDiff: one step from the encoded LQ with LoRA adapters on the denoiser; no noise, no rollout.

Wu et al., One-Step Effective Diffusion Network for Real-World Image Super-Resolution (2024). The LQ's latents are taken
for x_t at a fixed timestep (official: 999), and x0 follows in closed form.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.params import UserError
from pipeline.restorers.denoiser import Denoiser
from pipeline.restorers.protocol import Prediction, Rollout, RolloutSettings
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


def add_adapters(denoiser: Denoiser, rank: int) -> None:
    """Put the three LoRA adapters on the denoiser's UNet; `conv_in` itself trains too (official).

    Seed torch before the call: LoRA's A matrices are drawn, its B matrices are zero.
    """
    unet = denoiser.unet
    for adapter, part in ADAPTERS.items():
        names = [
            name
            for name, module in unet.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
            and name.startswith(part)
            and any(name == layer or name.endswith(f".{layer}") for layer in LORA_LAYERS)
        ]
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=names)
        with warnings.catch_warnings():  # several adapters are what we want
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            unet.add_adapter(config, adapter_name=adapter)
    unet.set_adapter(list(ADAPTERS))


class OSEDiff(nn.Module):
    """LoRA adapters over a frozen denoiser, one step at `timestep` (official: 999)."""

    kind = "osediff"

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
        with torch.no_grad():
            return self.denoiser.encode(lq)

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
        self, lq: torch.Tensor, captions: Sequence[str], ids: Sequence[str], seed: int, **setting: float
    ) -> torch.Tensor:
        """LQ [N, 3, H, W] in [-1, 1] → restored, clipped; the latents are a posterior sample (official)."""
        lq = lq.to(self.denoiser.device)
        noise = noise_like_ids(list(ids), self.denoiser.latent_shape(lq), seed, "osediff").to(lq)
        x0 = self.x0(self.denoiser.encode_sample(lq, noise), self.encode_prompts(captions))
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
        with BlockOutputs(self.denoiser.unet) as outputs:
            x0 = self.x0(rollout.latents, prompts)
        with torch.no_grad(), BlockOutputs(self.denoiser.unet) as anchors, self._frozen():
            self.x0(rollout.latents, prompts)
        drift = [(now - then).square().mean() for now, then in zip(outputs.kept, anchors.kept, strict=True)]
        gain = self.denoiser.gain(self.timestep)
        return Prediction(self.denoiser.decode(x0), torch.stack(drift).sum(), x0.detach(), gain)

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
        unet = self.denoiser.unet
        weights = {f"conv_in.{name}": tensor for name, tensor in unet.conv_in.state_dict().items()}
        for adapter in ADAPTERS:
            state = get_peft_model_state_dict(unet, adapter_name=adapter)
            weights |= {f"{adapter}/{name}": tensor.contiguous() for name, tensor in state.items()}
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(folder / "adapters.safetensors") as temporary:
            save_file(weights, temporary)
        config = {"native_size": self.native_size, "timestep": self.timestep, "rank": self.rank}
        write_json(
            folder / "restorer.json", {"kind": self.kind, "denoiser": os.path.relpath(self.source, folder), **config}
        )


class BlockOutputs:
    """Collects the outputs of a UNet's convolution-in, blocks and middle during one forward pass."""

    def __init__(self, unet: nn.Module) -> None:
        self.kept: list[torch.Tensor] = []
        self._modules = [unet.conv_in, *unet.down_blocks, unet.mid_block, *unet.up_blocks]  # type: ignore[misc]

    def __enter__(self) -> BlockOutputs:
        self._hooks = [module.register_forward_hook(self._keep) for module in self._modules]
        return self

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.kept.append(output[0] if isinstance(output, tuple) else output)

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()


class _Swapped:
    """Run with other parameter values, without autograd noticing (the live graph keeps its own tensors)."""

    def __init__(self, parameters: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
        self.pairs = [(parameters[name], value) for name, value in values.items()]

    def __enter__(self) -> None:
        self.live = [parameter.data for parameter, _ in self.pairs]
        for parameter, value in self.pairs:
            parameter.data = value

    def __exit__(self, *error: object) -> None:
        for (parameter, _), value in zip(self.pairs, self.live, strict=True):
            parameter.data = value


def load_osediff(folder: Path, config: dict[str, Any], denoiser: Denoiser, source: Path) -> OSEDiff:
    """An OSEDiff that `OSEDiff.save` wrote; `denoiser` gets the adapters."""
    add_adapters(denoiser, config["rank"])
    weights = load_file(folder / "adapters.safetensors")
    unet = denoiser.unet
    unet.conv_in.load_state_dict(
        {name.removeprefix("conv_in."): value for name, value in weights.items() if name.startswith("conv_in.")}
    )
    for adapter in ADAPTERS:
        state = {
            name.removeprefix(f"{adapter}/"): value for name, value in weights.items() if name.startswith(f"{adapter}/")
        }
        problems = set_peft_model_state_dict(unet, state, adapter_name=adapter)
        if problems.unexpected_keys:
            raise UserError(f"{folder / 'adapters.safetensors'}: unknown keys, e.g. {problems.unexpected_keys[0]}")
    unet.to(denoiser.device).requires_grad_(False)
    return OSEDiff(denoiser, config["native_size"], config["timestep"], config["rank"], source)
