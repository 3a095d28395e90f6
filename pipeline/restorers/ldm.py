"""The original latent-diffusion (LDM) layout of weights, against diffusers' and transformers' names.

Stable Diffusion 2.1 as one file, DiffBIR's ControlNets and what is trained from them come in this layout. A model's
architecture is read off its tensors' shapes; what shapes don't tell (heads 64 wide, 32 groups in a norm) is SD 2's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.params import UserError
from pipeline.restorers.denoiser import Denoiser, PromptEncoder
from pipeline.restorers.diffbir import without_hint
from pipeline.restorers.schedule import sd21_scheduler

Weights = Mapping[str, torch.Tensor]
HEAD_WIDTH, GROUPS = 64, 32
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"}
TEXT_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn": "attn", "fc1": "c_fc", "fc2": "c_proj"}


def unet_key(name: str, layers: int, attending: frozenset[int]) -> str:
    """LDM's key of a diffusers UNet's or ControlNet's tensor.

    `layers`: resnets of a down block; `attending`: the up blocks with attention.
    """
    match name.split("."):
        case ["conv_in", leaf]:
            return f"input_blocks.0.0.{leaf}"
        case ["time_embedding", linear, leaf]:
            return f"time_embed.{0 if linear == 'linear_1' else 2}.{leaf}"
        case ["down_blocks", block, "resnets", index, inner, leaf]:
            return f"input_blocks.{1 + int(block) * (layers + 1) + int(index)}.0.{RESNET[inner]}.{leaf}"
        case ["down_blocks", block, "attentions", index, *rest]:
            return f"input_blocks.{1 + int(block) * (layers + 1) + int(index)}.1.{'.'.join(rest)}"
        case ["down_blocks", block, "downsamplers", "0", "conv", leaf]:
            return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{leaf}"
        case ["mid_block", "resnets", index, inner, leaf]:
            return f"middle_block.{2 * int(index)}.{RESNET[inner]}.{leaf}"
        case ["mid_block", "attentions", "0", *rest]:
            return f"middle_block.1.{'.'.join(rest)}"
        case ["up_blocks", block, "resnets", index, inner, leaf]:
            return f"output_blocks.{int(block) * (layers + 1) + int(index)}.0.{RESNET[inner]}.{leaf}"
        case ["up_blocks", block, "attentions", index, *rest]:
            return f"output_blocks.{int(block) * (layers + 1) + int(index)}.1.{'.'.join(rest)}"
        case ["up_blocks", block, "upsamplers", "0", "conv", leaf]:
            last = int(block) * (layers + 1) + layers
            return f"output_blocks.{last}.{2 if int(block) in attending else 1}.conv.{leaf}"
        case ["conv_norm_out", leaf]:
            return f"out.0.{leaf}"
        case ["conv_out", leaf]:
            return f"out.2.{leaf}"
        case ["controlnet_down_blocks", index, leaf]:
            return f"zero_convs.{index}.0.{leaf}"
        case ["controlnet_mid_block", leaf]:
            return f"middle_block_out.0.{leaf}"
    raise ValueError(f"{name}: not a tensor of an SD 2 UNet")


def unet_keys(model: UNet2DConditionModel | ControlNetModel) -> dict[str, str]:
    """diffusers' name → LDM's key for every tensor of a UNet or a ControlNet."""
    names = list(model.state_dict())
    attending = frozenset(int(name.split(".")[1]) for name in names if name.startswith("up_blocks.") and "attn" in name)
    return {name: unet_key(name, model.config.layers_per_block, attending) for name in names}


def vae_key(name: str, levels: int) -> str:
    """LDM's key of a diffusers AutoencoderKL's tensor; the decoder's blocks are counted from the other end."""
    match name.split("."):
        case [side, "down_blocks", block, "downsamplers", "0", "conv", leaf]:
            return f"{side}.down.{block}.downsample.conv.{leaf}"
        case [side, "up_blocks", block, "upsamplers", "0", "conv", leaf]:
            return f"{side}.up.{levels - 1 - int(block)}.upsample.conv.{leaf}"
        case [side, "down_blocks", block, "resnets", index, *rest]:
            return f"{side}.down.{block}.block.{index}.{'.'.join(rest)}".replace("conv_shortcut", "nin_shortcut")
        case [side, "up_blocks", block, "resnets", index, *rest]:
            block = str(levels - 1 - int(block))
            return f"{side}.up.{block}.block.{index}.{'.'.join(rest)}".replace("conv_shortcut", "nin_shortcut")
        case [side, "mid_block", "resnets", index, *rest]:
            return f"{side}.mid.block_{int(index) + 1}.{'.'.join(rest)}"
        case [side, "mid_block", "attentions", "0", "to_out", "0", leaf]:
            return f"{side}.mid.attn_1.proj_out.{leaf}"
        case [side, "mid_block", "attentions", "0", inner, leaf]:
            return f"{side}.mid.attn_1.{VAE_ATTENTION[inner]}.{leaf}"
    return name.replace("conv_norm_out", "norm_out")


def text_key(name: str) -> str:
    """OpenCLIP's key of a transformers CLIPTextModel's tensor, its in_proj split in three (`split_attention`)."""
    match name.removeprefix("text_model.").split("."):
        case ["embeddings", "token_embedding", leaf]:
            return f"token_embedding.{leaf}"
        case ["embeddings", "position_embedding", _]:
            return "positional_embedding"
        case ["encoder", "layers", index, *rest]:
            return f"transformer.resblocks.{index}.{'.'.join(TEXT_LAYER.get(part, part) for part in rest)}"
        case ["final_layer_norm", leaf]:
            return f"ln_final.{leaf}"
    raise ValueError(f"{name}: not a tensor of a CLIP text model")


def split_attention(state: Weights) -> dict[str, torch.Tensor]:
    """OpenCLIP's joint `in_proj_weight` and `in_proj_bias` as `q_proj.weight`, `q_proj.bias`, `k_proj.weight`, …"""
    split = dict(state)
    for key in [key for key in state if ".in_proj_" in key]:
        parts = zip("qkv", split.pop(key).chunk(3), strict=True)
        split |= {key.replace("in_proj_", f"{part}_proj."): third.clone() for part, third in parts}
    return split


def fill(model: nn.Module, keys: Mapping[str, str], state: Weights, path: Path) -> None:
    """Put a file's tensors into a model, in float32; `keys`: the model's name → the file's key.

    1×1 convolutions fill linear layers (attention of the autoencoder).
    Raises UserError naming the file and the first tensor that is missing or has another shape.
    """
    if missing := [key for key in keys.values() if key not in state]:
        raise UserError(f"{path}: {len(missing)} of {len(keys)} tensors are missing, the first is {missing[0]}")
    filled = {}
    for name, expected in model.state_dict().items():
        value = state[keys[name]]
        if value.ndim == expected.ndim + 2 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]
        if value.shape != expected.shape:
            raise UserError(f"{path}: {keys[name]} has the shape {list(value.shape)}, not {list(expected.shape)}")
        filled[name] = value.float() if value.is_floating_point() else value
    model.load_state_dict(filled, assign=True)


def unet_config(state: Weights) -> dict[str, Any]:
    """diffusers' configuration of the UNet or ControlNet whose LDM tensors these are."""
    channels: list[int] = []
    depths, attends = [0], [False]
    for index in range(1, 1 + max(int(key.split(".")[1]) for key in state if key.startswith("input_blocks."))):
        if f"input_blocks.{index}.0.op.weight" in state:
            depths.append(0)
            attends.append(False)
            continue
        depths[-1] += 1
        channels[len(depths) - 1 :] = [state[f"input_blocks.{index}.0.out_layers.3.weight"].shape[0]]
        attends[-1] |= f"input_blocks.{index}.1.norm.weight" in state
    return {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "block_out_channels": tuple(channels),
        "layers_per_block": depths[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attends),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "attention_head_dim": tuple(max(1, count // HEAD_WIDTH) for count in channels),  # the number of heads
        "cross_attention_dim": state["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "use_linear_projection": state["middle_block.1.proj_in.weight"].ndim == 2,
        "norm_num_groups": GROUPS,
    }


def vae_config(state: Weights) -> dict[str, Any]:
    """diffusers' configuration of the autoencoder whose LDM tensors these are."""
    blocks = [key.split(".") for key in state if key.startswith("encoder.down.") and key.endswith("conv1.weight")]
    levels = 1 + max(int(parts[2]) for parts in blocks)
    return {
        "block_out_channels": tuple(
            state[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)
        ),
        "layers_per_block": 1 + max(int(parts[4]) for parts in blocks),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "norm_num_groups": GROUPS,
    }


def text_config(state: Weights) -> dict[str, Any]:
    """transformers' configuration of the text model whose OpenCLIP tensors these are, without its last layer.

    SD 2 conditions on the penultimate layer's output, normalised.
    """
    width = state["ln_final.weight"].shape[0]
    layers = {int(key.split(".")[2]) for key in state if key.startswith("transformer.resblocks.")}
    return {
        "vocab_size": state["token_embedding.weight"].shape[0],
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "hidden_size": width,
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": len(layers) - 1,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "hidden_act": "gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 0,
    }


def build(
    cls: Callable[..., Any], config: Callable[[Weights], dict[str, Any]], state: Weights, path: Path, what: str
) -> Any:
    """An empty model of the architecture that the tensors' shapes tell.

    Raises UserError where the tensors that tell it are missing: the file is another model's.
    """
    try:
        chosen = config(state)
    except (KeyError, ValueError, IndexError):
        raise UserError(f"{path}: holds no {what} in the LDM layout; is it another file?") from None
    with init_empty_weights():
        return cls(**chosen)


def unet_from(state: Weights, path: Path) -> UNet2DConditionModel:
    """The UNet of an LDM state dict (keys without their prefix).

    Raises UserError also for a tensor that it has no place for (a class embedding's, say).
    """
    unet = build(UNet2DConditionModel, _whole_unet_config, state, path, "UNet")
    _fill_whole(unet, state, path, "the UNet of Stable Diffusion 2")
    return unet


def _whole_unet_config(state: Weights) -> dict[str, Any]:
    config = unet_config(state)
    ups = [one.replace("Down", "Up") for one in reversed(config["down_block_types"])]
    return config | {"out_channels": state["out.2.weight"].shape[0], "up_block_types": tuple(ups), "sample_size": 64}


def controlnet_from(state: Weights, path: Path) -> ControlNetModel:
    """DiffBIR's ControlNet: no hint block, the condition's channels come after x_t's in its first convolution.

    Raises UserError also for a tensor that it has no place for (a hint block's, say).
    """
    controlnet = without_hint(build(ControlNetModel, unet_config, state, path, "ControlNet"))
    _fill_whole(controlnet, state, path, "DiffBIR's ControlNet")
    return controlnet


def _fill_whole(network: UNet2DConditionModel | ControlNetModel, state: Weights, path: Path, what: str) -> None:
    keys = unet_keys(network)
    if unknown := sorted(set(state) - set(keys.values())):
        raise UserError(f"{path}: {len(unknown)} tensors are unknown to {what}, e.g. {unknown[0]}")
    fill(network, keys, state, path)


def denoiser_from(state: Weights, path: Path, prediction_type: str) -> Denoiser:
    """Stable Diffusion 2 as one file: UNet, autoencoder and the text model up to its penultimate layer.

    What is left over (EMA copies, the schedule, the last text layer, the projection) isn't needed.
    """
    unet = unet_from(_below(UNET, state), path)
    inside = _below(VAE, state)
    vae = build(AutoencoderKL, vae_config, inside, path, "autoencoder")
    fill(vae, {name: vae_key(name, len(vae.config.block_out_channels)) for name in vae.state_dict()}, inside, path)
    words = split_attention(_below(TEXT, state))
    text = build(_text_model, text_config, words, path, "OpenCLIP text model")
    fill(text, {name: text_key(name) for name in text.state_dict()}, words, path)
    return Denoiser(unet, vae, PromptEncoder(text), sd21_scheduler(prediction_type))


def _text_model(**config: Any) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**config))


def _below(prefix: str, state: Weights) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
