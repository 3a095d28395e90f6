"""Official weights in, ours out: DiffBIR's ControlNet and cleaner, Stable Diffusion 2.1-base, OSEDiff's adapters."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.params import UserError, one_line
from pipeline.restorers.cleaner import Cleaner, cleaner_from
from pipeline.restorers.denoiser import Denoiser, load_denoiser
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.ldm import controlnet_from, denoiser_from, unet_keys
from pipeline.restorers.osediff import ADAPTERS, ENCODER, OSEDiff, adapted_encoder, own_conv_in, put_adapters
from pipeline.runtime import atomic

ORIGIN = {  # what each file is and where it comes from; `diffusionreward weights import` takes them by these names
    "stable_diffusion": "Stable Diffusion 2.1-base: one file (v2-1_512-ema-pruned, .ckpt or .safetensors) or a "
    "diffusers folder of stabilityai/stable-diffusion-2-1-base, whose original page is gone: bring a copy",
    "diffbir": "DiffBIR's ControlNet for faces: v1_face.pth of XPixelGroup/DiffBIR (model lxq007/DiffBIR-v2), or a "
    "ControlNet after ReFL with the same keys",
    "cleaner": "DiffBIR's SwinIR for faces: face_swinir_v1.ckpt of XPixelGroup/DiffBIR (model lxq007/DiffBIR)",
    "osediff": "OSEDiff's adapters: osediff_face.pkl or osediff.pkl of cswry/OSEDiff (preset/models in the repository)",
}
OSEDIFF_ALPHA = 8  # peft's default, which OSEDiff leaves as it is: LoRA counts alpha / rank = 2 times
OSEDIFF_KEYS = (
    "vae_lora_encoder_modules unet_lora_encoder_modules unet_lora_decoder_modules unet_lora_others_modules "
    "rank_unet rank_vae state_dict_unet state_dict_vae"
).split()
UNET_LISTS = dict(zip(ADAPTERS, OSEDIFF_KEYS[1:4], strict=True))


@dataclass(frozen=True)
class Files:
    """Where the official files lie; a restorer without its file is not made."""

    stable_diffusion: Path
    diffbir: Path | None
    cleaner: Path | None
    osediff: Path | None

    def check(self) -> None:
        """Raises UserError, one line, naming every file that is missing and where it comes from."""
        named = {kind: path for kind in ORIGIN if (path := getattr(self, kind)) is not None}
        if absent := [f"{path}: missing ({ORIGIN[kind]})" for kind, path in named.items() if not path.exists()]:
            raise UserError("; ".join(absent) + "; put it there, or name its place")
        if folders := [path for kind, path in named.items() if path.is_dir() and kind != "stable_diffusion"]:
            raise UserError(f"{folders[0]}: is a folder; name the file in it")
        if (self.diffbir is None) != (self.cleaner is None):
            given, other = ("cleaner", "diffbir") if self.diffbir is None else ("diffbir", "cleaner")
            raise UserError(f"{given} needs {other} beside it: {ORIGIN[other]}")


@dataclass(frozen=True)
class Settings:
    """What the files don't say. The defaults are official."""

    native_size: int = 512  # px
    prediction_type: str = "epsilon"  # of Stable Diffusion 2.1-base
    steps: int = 50  # DDIM steps of a DiffBIR restoration
    eta: float = 1.0
    timestep: int = 999  # of OSEDiff's step
    rank: int | None = None  # that OSEDiff's adapters must have; None: any


def import_weights(files: Files, out: Path, settings: Settings, device: torch.device) -> None:
    """Write `out/denoiser`, and `out/diffbir` and `out/osediff` where their files are given.

    Raises UserError for a missing, truncated or foreign file, naming it.
    """
    files.check()
    denoiser = import_denoiser(files.stable_diffusion, settings.prediction_type)
    source = out / "denoiser"
    denoiser.save(source)
    denoiser.to(device).eval().requires_grad_(False)
    if files.diffbir and files.cleaner:
        controlnet, cleaner = import_controlnet(files.diffbir, denoiser), import_cleaner(files.cleaner)
        restorer = DiffBIR(denoiser, controlnet, settings.native_size, settings.steps, settings.eta, source, cleaner)
        restorer.save(out / DiffBIR.kind)
    if files.osediff:  # last, since it changes the denoiser
        import_osediff(files.osediff, denoiser, settings, source).save(out / OSEDiff.kind)


def import_denoiser(path: Path, prediction_type: str) -> Denoiser:
    """Stable Diffusion 2.1-base from one file or a diffusers folder; offline.

    Raises UserError for a variant that takes more than latents, and where a folder's scheduler predicts something else
    than `prediction_type`; of one file nothing but its name tells.
    """
    if path.is_dir():
        denoiser = load_denoiser(path, torch.device("cpu"))
    elif prediction_type == "epsilon" and "2-1_768" in path.name:
        raise UserError(f"{path}: by its name the 768 px model, which predicts v; v2-1_512-ema-pruned.ckpt is needed")
    else:
        denoiser = denoiser_from(read(path, "stable_diffusion"), path, prediction_type)
    unet = denoiser.unet.config
    if unet.in_channels != unet.out_channels:
        raise UserError(
            f"{path}: its UNet takes {unet.in_channels} channels and gives {unet.out_channels}, as one for inpainting "
            "or depth does; Stable Diffusion 2.1-base is needed"
        )
    if (predicts := denoiser.scheduler.config.prediction_type) != prediction_type:
        raise UserError(f"{path / 'scheduler'}: predicts {predicts}, not the {prediction_type} asked for")
    return denoiser


def import_controlnet(path: Path, denoiser: Denoiser) -> ControlNetModel:
    """DiffBIR's ControlNet. Raises UserError where its shape is not that of the denoiser's encoder."""
    controlnet = controlnet_from(read(path, "diffbir"), path)
    unet = denoiser.unet.config
    for key in ("block_out_channels", "layers_per_block", "cross_attention_dim", "attention_head_dim"):
        if _plain(controlnet.config[key]) != _plain(unet[key]):
            raise UserError(f"{path}: its {key} is {controlnet.config[key]}, the UNet's {unet[key]}: not made for it")
    return controlnet.to(denoiser.device).eval().requires_grad_(False)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def import_cleaner(path: Path) -> Cleaner:
    """DiffBIR's SwinIR."""
    return cleaner_from(read(path, "cleaner"), path)


def import_osediff(path: Path, denoiser: Denoiser, settings: Settings, source: Path) -> OSEDiff:
    """OSEDiff's LoRA adapters on UNet and VAE encoder, and its conv_in; `denoiser` gets them.

    Raises UserError for a file without one of the official entries, and for layers or shapes that are not there.
    """
    content = _open(path, "osediff")
    if missing := [key for key in OSEDIFF_KEYS if not isinstance(content, dict) or key not in content]:
        raise UserError(f"{path}: has no {missing[0]}; it must be {ORIGIN['osediff']}")
    if settings.rank not in (None, content["rank_unet"]):
        raise UserError(f"{path}: its adapters have rank {content['rank_unet']}, not {settings.rank}")
    unet, vae = denoiser.unet, denoiser.vae
    try:
        targets = {adapter: list(content[key]) for adapter, key in UNET_LISTS.items()}
        put_adapters(unet, targets, content["rank_unet"], OSEDIFF_ALPHA)
        put_adapters(vae, {ENCODER: list(content["vae_lora_encoder_modules"])}, content["rank_vae"], OSEDIFF_ALPHA)
    except ValueError as error:  # peft: no such layer
        raise UserError(f"{path}: made for another network: {one_line(error)}") from None
    _copy(unet, content["state_dict_unet"], path)
    _copy(vae, content["state_dict_vae"], path)
    vae.disable_adapters()
    denoiser.requires_grad_(False)
    return OSEDiff(denoiser, settings.native_size, settings.timestep, content["rank_unet"], source)


def _official(network: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that osediff.pkl holds of a network: adapters, and all of the UNet's (not the VAE's) conv_in."""
    state = network.state_dict()
    return {key: value for key, value in state.items() if "lora" in key or key.startswith("conv_in")}


@torch.no_grad()
def _copy(network: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    places = _official(network)
    if odd := sorted(places.keys() ^ state.keys()):
        raise UserError(f"{path}: {odd[0]} is {'missing' if odd[0] in places else 'unknown'}")
    for key, place in places.items():
        if place.shape != state[key].shape:
            raise UserError(f"{path}: {key} has the shape {list(state[key].shape)}, not {list(place.shape)}")
        place.copy_(state[key])


def export_controlnet(controlnet: ControlNetModel, path: Path) -> None:
    """Write DiffBIR's format: a bare LDM state dict, which `v1_face.pth` and published ReFL weights are."""
    keys = unet_keys(controlnet)
    state = {keys[name]: value.detach().cpu().contiguous() for name, value in controlnet.state_dict().items()}
    with atomic(path) as temporary:
        torch.save(state, temporary)


def export_osediff(restorer: OSEDiff, path: Path) -> None:
    """Write OSEDiff's format. Another alpha than the official one goes into the B matrices: alpha / 8 of them.

    Raises UserError without an adapter on the VAE's encoder: the official code can't do without.
    """
    unet, vae = restorer.denoiser.unet, restorer.denoiser.vae
    if not adapted_encoder(restorer.denoiser):
        raise UserError("OSEDiff's own format needs an adapter on the VAE's encoder; this model has none")
    content: dict[str, Any] = {"vae_lora_encoder_modules": _targets(vae, ENCODER)}
    content |= {key: _targets(unet, adapter) for adapter, key in UNET_LISTS.items()}
    content |= {"rank_unet": restorer.rank, "rank_vae": vae.peft_config[ENCODER].r}
    for key, network in (("state_dict_unet", unet), ("state_dict_vae", vae)):
        factor = network.peft_config[ENCODER].lora_alpha / OSEDIFF_ALPHA
        state = {name: value.detach().cpu() for name, value in _official(network).items()}
        content[key] = {name: value * factor if ".lora_B." in name else value for name, value in state.items()}
    with atomic(path) as temporary:
        torch.save(content, temporary)


def _targets(network: Any, adapter: str) -> list[str]:
    """The adapted layers by their full names; peft's own list keeps only suffixes that tell them apart."""
    end = f".lora_A.{adapter}.weight"
    return [name.removesuffix(end) for name in network.state_dict() if name.endswith(end)]


def export_adapters(restorer: OSEDiff, folder: Path) -> list[str]:
    """Write the same for diffusers: one LoRA file an adapter (`load_lora_adapter` takes them), and conv_in's tensors.

    Returns the files' names.
    """
    unet, vae = restorer.denoiser.unet, restorer.denoiser.vae
    parts = [(unet, "unet", adapter) for adapter in ADAPTERS]
    if adapted_encoder(restorer.denoiser):
        parts.append((vae, "vae", ENCODER))
    names = [f"{part}_{adapter}.safetensors" for _, part, adapter in parts]
    for (network, _, adapter), name in zip(parts, names, strict=True):
        network.save_lora_adapter(folder, adapter_name=adapter, weight_name=name)
    state = {f"conv_in.{name}": value.contiguous() for name, value in own_conv_in(unet).state_dict().items()}
    with atomic(folder / "unet_conv_in.safetensors") as temporary:
        save_file(state, temporary)
    return [*names, "unet_conv_in.safetensors"]


def read(path: Path, kind: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or torch file, out of `state_dict` and `module.` where a trainer put them there.

    Raises UserError for a missing, truncated or foreign file.
    """
    content = _open(path, kind)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(torch.is_tensor(v) for v in content.values()):
        raise UserError(f"{path}: is no state dict of tensors; it must be {ORIGIN[kind]}")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


class _Trainer:
    """Stands for a Lightning class that old checkpoints name as a key; nothing of Lightning runs."""


def _open(path: Path, kind: str) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: missing; it must be {ORIGIN[kind]}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        named = [(_Trainer, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]
        with torch.serialization.safe_globals(named):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: can't be read as tensors alone: truncated, not a torch file, or with code inside, which we don't "
            f"run (then convert it to .safetensors); torch says: {one_line(error)}"
        ) from None
    except Exception as error:  # torch raises several unrelated kinds for a truncated or foreign file
        raise UserError(f"{path}: truncated or no weights file ({one_line(error)}); fetch it again") from None
