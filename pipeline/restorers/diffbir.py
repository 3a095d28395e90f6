"""DiffBIR: a ControlNet conditions a frozen denoiser on the latents of the LQ; DDIM sampling from pure noise.

Lin et al., DiffBIR (2023). The ControlNet sees cat(x_t, condition) through its first convolution and has no hint block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.params import UserError
from pipeline.restorers.cleaner import Cleaner, cleaner_from
from pipeline.restorers.denoiser import Denoiser, path_from
from pipeline.restorers.hooks import drift
from pipeline.restorers.protocol import CONFIG, Prediction, Rollout, RolloutSettings
from pipeline.restorers.replay import CudaGraph
from pipeline.restorers.schedule import ddim_step, timesteps
from pipeline.runtime import atomic, noise_like_ids, write_json

CLEANER = "cleaner.safetensors"


class NoHint(nn.Module):
    """Stands where diffusers expects the hint block: DiffBIR adds nothing to the first feature map."""

    def forward(self, conditioning: torch.Tensor) -> torch.Tensor:
        return conditioning.new_zeros(())


def new_controlnet(denoiser: Denoiser) -> ControlNetModel:
    """A ControlNet of the denoiser's shape: encoder copied, condition channels and zero convolutions zero."""
    unet = denoiser.unet
    # only shapes are taken here; from_unet can't widen conv_in to cat(x_t, condition)
    keys = (
        "down_block_types mid_block_type block_out_channels layers_per_block cross_attention_dim attention_head_dim "
        "use_linear_projection norm_num_groups flip_sin_to_cos freq_shift act_fn norm_eps only_cross_attention "
        "downsample_padding mid_block_scale_factor transformer_layers_per_block"
    )
    channels = unet.config.in_channels
    controlnet = ControlNetModel(in_channels=2 * channels, **{key: unet.config[key] for key in keys.split()})
    weights, source = controlnet.state_dict(), unet.state_dict()
    for name in weights.keys() & source.keys():
        if name == "conv_in.weight":
            weights[name] = torch.cat([source[name], torch.zeros_like(source[name])], dim=1)
        else:
            weights[name] = source[name]
    controlnet.load_state_dict(weights)
    return without_hint(controlnet)


def without_hint(controlnet: ControlNetModel) -> ControlNetModel:
    """Take the hint block out (DiffBIR's condition enters through conv_in)."""
    controlnet.controlnet_cond_embedding = NoHint()
    return controlnet


class DiffBIR(nn.Module):
    """ControlNet over a frozen denoiser.

    `steps` and `eta` are the DDIM defaults of `restore` (official: 50, 1); `source` is the denoiser's folder; the
    condition is what `cleaner` makes of the LQ (official: SwinIR), the LQ itself where there is none.
    """

    kind = "diffbir"
    samples = True

    def __init__(
        self, denoiser: Denoiser, controlnet: ControlNetModel, native_size: int, steps: int, eta: float, source: Path,
        cleaner: Cleaner | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.denoiser = denoiser
        self.controlnet = controlnet
        self.native_size = native_size
        self.steps = steps
        self.eta = eta
        self.source = source
        self.cleaner = cleaner
        self.frozen: ControlNetModel | None = None
        self.graph: CudaGraph | None = None  # of `denoise`, for rollouts on a GPU
        self._held = torch.float32  # precision of the frozen weights

    def controls(
        self, network: ControlNetModel, latents: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor,
        prompts: torch.Tensor,
    ) -> list[torch.Tensor]:  # fmt: skip
        """The ControlNet's outputs c_k: one per skip connection, then the middle block's (13 for SD 2.1)."""
        down, middle = network(
            torch.cat([latents, condition], dim=1),
            timestep,
            encoder_hidden_states=prompts,
            controlnet_cond=latents,  # read by NoHint only
            return_dict=False,
        )
        return [*down, middle]

    def output(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompts: torch.Tensor, controls: list[torch.Tensor]
    ) -> torch.Tensor:
        """The UNet's output under these controls."""
        return self.denoiser.unet(
            latents,
            timestep,
            encoder_hidden_states=prompts,
            down_block_additional_residuals=tuple(controls[:-1]),
            mid_block_additional_residual=controls[-1],
        ).sample

    def denoise(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor, prompts: torch.Tensor
    ) -> torch.Tensor:
        """The UNet's output under the trained ControlNet."""
        return self.output(
            latents, timestep, prompts, self.controls(self.controlnet, latents, timestep, condition, prompts)
        )

    def condition(self, lq: torch.Tensor) -> torch.Tensor:
        """Latent mode of the (cleaned) LQ, scaled."""
        with torch.no_grad():
            return self.denoiser.encode(lq if self.cleaner is None else self.cleaner(lq))

    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token features of the prompts (cached)."""
        return self.denoiser.text(prompts)

    @torch.no_grad()
    def _step(
        self, latents: torch.Tensor, now: int, after: int | None, condition: torch.Tensor, prompts: torch.Tensor,
        eta: float, noise: torch.Tensor | None, denoise: Callable[..., torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        alpha_bar = self.denoiser.alpha_bar
        time = torch.full((len(latents),), now, device=latents.device)
        x0, eps = self.denoiser.split(latents, denoise(latents, time, condition, prompts), now)
        return x0 if after is None else ddim_step(x0, eps, alpha_bar[now], alpha_bar[after], eta, noise)

    def restore(
        self, lq: torch.Tensor, prompts: Sequence[str], ids: Sequence[str], seed: int, **setting: float
    ) -> torch.Tensor:
        """Sample: LQ [N, 3, H, W] in [-1, 1] → restored, clipped. Settings: `steps`, `eta`.

        The last step returns x0 itself, where diffusers' DDIM would mix in noise of ᾱ at t = 0.
        """
        lq = lq.to(self.denoiser.device)
        times = timesteps(int(setting.get("steps", self.steps)))
        eta = float(setting.get("eta", self.eta))
        text = self.encode_prompts(prompts)
        shape = self.denoiser.latent_shape(lq)
        latents = noise_like_ids(list(ids), shape, seed, "diffbir", 0).to(lq)
        with torch.autocast(lq.device.type, self._held, enabled=self._held != torch.float32):
            condition = self.condition(lq).to(lq.dtype)
            for index, now in enumerate(times):
                after = times[index + 1] if index + 1 < len(times) else None
                noise = noise_like_ids(list(ids), shape, seed, "diffbir", index + 1).to(lq) if eta and after else None
                latents = self._step(latents, now, after, condition, text, eta, noise, self.denoise)
            return self.denoiser.decode(latents).to(lq.dtype).clamp(-1, 1)

    def rollout(
        self, condition: torch.Tensor, prompts: torch.Tensor, settings: RolloutSettings, rng: torch.Generator
    ) -> Rollout:
        """DDIM from noise, no gradient, up to a step drawn uniformly from the last `gradient_window`."""
        times = timesteps(settings.steps)
        stop = settings.steps - 1 - int(torch.randint(settings.gradient_window, (), generator=rng))
        latents = torch.randn(condition.shape, generator=rng).to(condition)
        low, high = settings.eta
        for now, after in pairwise(times[: stop + 1]):
            eta = low + (high - low) * float(torch.rand((), generator=rng))
            noise = torch.randn(condition.shape, generator=rng).to(condition)
            latents = self._step(latents, now, after, condition, prompts, eta, noise, self.graph or self.denoise)
        return Rollout(latents, times[stop])

    def predict(self, rollout: Rollout, condition: torch.Tensor, prompts: torch.Tensor) -> Prediction:
        """The step with gradient; regulariser Σ_k mean((c_k − c_k^frozen)²) over the ControlNet's outputs."""
        latents = rollout.latents
        time = torch.full((len(latents),), rollout.timestep, device=latents.device)
        controls = self.controls(self.controlnet, latents, time, condition, prompts)
        x0, _ = self.denoiser.split(latents, self.output(latents, time, prompts, controls), rollout.timestep)
        if self.frozen is None:
            raise RuntimeError("predict needs start_training()")
        with torch.no_grad():
            anchors = self.controls(self.frozen, latents, time, condition, prompts)
        gain = self.denoiser.gain(rollout.timestep)
        return Prediction(self.denoiser.decode(x0), drift(controls, anchors), x0.detach(), gain)

    def renoise(self, rollout: Rollout, latents: torch.Tensor, rng: torch.Generator) -> Rollout:
        """x_t = sqrt(ᾱ)·x0 + sqrt(1 − ᾱ)·noise at the rollout's timestep (DRaFT-LV, Clark et al. 2024)."""
        alpha_bar = self.denoiser.alpha_bar[rollout.timestep].to(latents)
        noise = torch.randn(latents.shape, generator=rng).to(latents)
        return Rollout(alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise, rollout.timestep)

    def trained(self) -> nn.Module:
        """The ControlNet."""
        return self.controlnet

    def start_training(self) -> None:
        """Freeze the denoiser and a copy of the ControlNet; the ControlNet trains."""
        self.frozen = copy.deepcopy(self.controlnet).eval().requires_grad_(False)
        self.denoiser.eval().requires_grad_(False)
        self.controlnet.train().requires_grad_(True)
        if self.denoiser.device.type == "cuda":
            self.graph = CudaGraph(self.denoise)

    def hold_frozen(self, dtype: torch.dtype) -> None:
        """Hold the weights of the UNet, the autoencoder and the ControlNet's frozen copy in `dtype`.

        Only those that autocast would cast at every call; norms compute in fp32, so theirs stay. No value changes.
        """
        if self.frozen is None:
            raise RuntimeError("hold_frozen needs start_training()")
        self._held = dtype
        for network in (self.denoiser.unet, self.denoiser.vae, self.frozen):
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.data = parameter.data.to(dtype)

    def save(self, folder: Path) -> None:
        """Write the ControlNet in diffusers' layout, and what `pipeline.restorers.load.load` needs beside it."""
        self.controlnet.save_pretrained(folder / "controlnet")
        defaults: dict[str, Any] = {"native_size": self.native_size, "steps": self.steps, "eta": self.eta}
        if self.cleaner is not None:
            with atomic(folder / CLEANER) as temporary:
                save_file(self.cleaner.network.state_dict(), temporary)
            defaults["cleaner"] = CLEANER
        write_json(folder / CONFIG, {"kind": self.kind, "denoiser": path_from(folder, self.source), **defaults})


def load_diffbir(folder: Path, config: dict[str, Any], denoiser: Denoiser, source: Path) -> DiffBIR:
    """A DiffBIR that `DiffBIR.save` wrote. Raises UserError where a file is missing or the cleaner damaged."""
    path = folder / "controlnet"
    if not (weights := path / "diffusion_pytorch_model.safetensors").is_file():
        raise UserError(f"{weights}: missing; restore it with `dvc checkout` or name another saved restorer")
    controlnet = without_hint(ControlNetModel.from_config(ControlNetModel.load_config(path)))
    controlnet.load_state_dict(load_file(weights))
    controlnet.to(denoiser.device).eval().requires_grad_(False)
    cleaner = None
    if "cleaner" in config:
        file = folder / config["cleaner"]
        if not file.is_file():
            raise UserError(f"{file}: missing; {folder / CONFIG} names it as DiffBIR's first stage")
        cleaner = cleaner_from(load_file(file), file).to(denoiser.device)
    return DiffBIR(denoiser, controlnet, config["native_size"], config["steps"], config["eta"], source, cleaner)
