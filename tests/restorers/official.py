"""Official checkpoints with random weights, and what they compute, written straight from the published layouts.

Keys and shapes are generated from the layout alone, and the computations use torch functions on those keys: nothing of
the library under test. Sizes are parameters; the defaults are small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

Shapes = dict[str, tuple[int, ...]]
Weights = dict[str, torch.Tensor]
MULTIPLIERS, HEAD = (1, 2, 4, 4), 64
MEAN = torch.tensor([0.4488, 0.4371, 0.4040])[None, :, None, None]


def random_weights(shapes: Shapes, seed: int = 0) -> Weights:
    """Weights that keep activations near one: N(0, 1/fan-in), norms near one, small biases."""
    rng = torch.Generator().manual_seed(seed)
    made = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=rng)
        if key.endswith(("bias", "positional_embedding", "token_embedding.weight", "bias_table")):
            made[key] = 0.1 * noise
        elif len(shape) == 1:
            made[key] = 1 + 0.1 * noise
        else:
            made[key] = noise / math.sqrt(math.prod(shape[1:]))
    return made


def both(key: str, *shape: int) -> Shapes:
    """A layer's weight and bias."""
    return {f"{key}.weight": shape, f"{key}.bias": shape[:1]}


# --- UNet and ControlNet


def _resnet(key: str, inside: int, outside: int, time: int) -> Shapes:
    shapes = both(f"{key}.in_layers.0", inside) | both(f"{key}.in_layers.2", outside, inside, 3, 3)
    shapes |= both(f"{key}.emb_layers.1", outside, time)
    shapes |= both(f"{key}.out_layers.0", outside) | both(f"{key}.out_layers.3", outside, outside, 3, 3)
    return shapes if inside == outside else shapes | both(f"{key}.skip_connection", outside, inside, 1, 1)


def _transformer(key: str, width: int, context: int) -> Shapes:
    block = f"{key}.transformer_blocks.0"
    shapes = both(f"{key}.norm", width) | both(f"{key}.proj_in", width, width) | both(f"{key}.proj_out", width, width)
    for name, source in (("attn1", width), ("attn2", context)):
        shapes |= {f"{block}.{name}.to_q.weight": (width, width)}
        shapes |= {f"{block}.{name}.to_{part}.weight": (width, source) for part in "kv"}
        shapes |= both(f"{block}.{name}.to_out.0", width, width)
    shapes |= both(f"{block}.ff.net.0.proj", 8 * width, width) | both(f"{block}.ff.net.2", width, 4 * width)
    for name in ("norm1", "norm2", "norm3"):
        shapes |= both(f"{block}.{name}", width)
    return shapes


def _encoder(model: int, channels: int, context: int) -> tuple[Shapes, list[int]]:
    """time_embed, input_blocks.0 … 11, middle_block.0 … 2; and the channels of each input block's output."""
    time, width = 4 * model, model
    shapes = both("time_embed.0", time, model) | both("time_embed.2", time, time)
    shapes |= both("input_blocks.0.0", model, channels, 3, 3)
    outputs, index = [model], 0
    for level, multiplier in enumerate(MULTIPLIERS):
        for _ in range(2):
            index += 1
            shapes |= _resnet(f"input_blocks.{index}.0", width, multiplier * model, time)
            width = multiplier * model
            if level < 3:
                shapes |= _transformer(f"input_blocks.{index}.1", width, context)
            outputs.append(width)
        if level < 3:
            index += 1
            shapes |= both(f"input_blocks.{index}.0.op", width, width, 3, 3)
            outputs.append(width)
    shapes |= _resnet("middle_block.0", width, width, time) | _resnet("middle_block.2", width, width, time)
    return shapes | _transformer("middle_block.1", width, context), outputs


def controlnet_shapes(model: int = 32, context: int = 64) -> Shapes:
    """DiffBIR's v1_face.pth: eight input channels, no hint block."""
    shapes, outputs = _encoder(model, 8, context)
    for index, width in enumerate(outputs):
        shapes |= both(f"zero_convs.{index}.0", width, width, 1, 1)
    return shapes | both("middle_block_out.0", outputs[-1], outputs[-1], 1, 1)


def unet_shapes(model: int = 32, context: int = 64) -> Shapes:
    """SD 2.1's UNet, without its prefix."""
    shapes, outputs = _encoder(model, 4, context)
    width, index = outputs[-1], 0
    for level in reversed(range(4)):
        for block in range(3):
            shapes |= _resnet(f"output_blocks.{index}.0", width + outputs.pop(), MULTIPLIERS[level] * model, 4 * model)
            width = MULTIPLIERS[level] * model
            if level < 3:
                shapes |= _transformer(f"output_blocks.{index}.1", width, context)
            if level and block == 2:
                shapes |= both(f"output_blocks.{index}.{2 if level < 3 else 1}.conv", width, width, 3, 3)
            index += 1
    return shapes | both("out.0", model) | both("out.2", 4, model, 3, 3)


def _conv(w: Weights, key: str, x: torch.Tensor, **how: Any) -> torch.Tensor:
    return F.conv2d(x, w[f"{key}.weight"], w[f"{key}.bias"], **how)


def _linear(w: Weights, key: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w[f"{key}.weight"], w.get(f"{key}.bias"))


def _groups(w: Weights, key: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.group_norm(x, 32, w[f"{key}.weight"], w[f"{key}.bias"], eps)


def _layers(w: Weights, key: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{key}.weight"], w[f"{key}.bias"], 1e-5)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, bias: Any = 0.0) -> torch.Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-2, -3) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    return (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2)


def _residual(w: Weights, key: str, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
    h = _conv(w, f"{key}.in_layers.2", F.silu(_groups(w, f"{key}.in_layers.0", x, 1e-5)), padding=1)
    h = h + _linear(w, f"{key}.emb_layers.1", F.silu(emb))[:, :, None, None]
    h = _conv(w, f"{key}.out_layers.3", F.silu(_groups(w, f"{key}.out_layers.0", h, 1e-5)), padding=1)
    skip = f"{key}.skip_connection"
    return h + (_conv(w, skip, x) if f"{skip}.weight" in w else x)


def _spatial(w: Weights, key: str, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    block, width = f"{key}.transformer_blocks.0", x.shape[1]
    h = _linear(w, f"{key}.proj_in", _groups(w, f"{key}.norm", x, 1e-6).flatten(2).transpose(1, 2))
    for name, norm in (("attn1", "norm1"), ("attn2", "norm2")):
        n = _layers(w, f"{block}.{norm}", h)
        source = n if name == "attn1" else context
        q, k, v = (_linear(w, f"{block}.{name}.to_{part}", x) for part, x in (("q", n), ("k", source), ("v", source)))
        h = h + _linear(w, f"{block}.{name}.to_out.0", _attention(q, k, v, max(1, width // HEAD)))
    value, gate = _linear(w, f"{block}.ff.net.0.proj", _layers(w, f"{block}.norm3", h)).chunk(2, -1)
    h = h + _linear(w, f"{block}.ff.net.2", value * F.gelu(gate))
    return x + _linear(w, f"{key}.proj_out", h).transpose(1, 2).unflatten(2, x.shape[2:])


def _block(w: Weights, key: str, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """One entry of input_blocks, output_blocks or middle_block: whatever its keys say, in their order."""
    for part in sorted({k.removeprefix(f"{key}.").split(".")[0] for k in w if k.startswith(f"{key}.")}, key=int):
        if f"{key}.{part}.in_layers.0.weight" in w:
            x = _residual(w, f"{key}.{part}", x, emb)
        elif f"{key}.{part}.transformer_blocks.0.norm1.weight" in w:
            x = _spatial(w, f"{key}.{part}", x, context)
        elif f"{key}.{part}.op.weight" in w:
            x = _conv(w, f"{key}.{part}.op", x, stride=2, padding=1)
        elif f"{key}.{part}.conv.weight" in w:
            x = _conv(w, f"{key}.{part}.conv", F.interpolate(x, scale_factor=2, mode="nearest"), padding=1)
        else:
            x = _conv(w, f"{key}.{part}", x, padding=1)
    return x


def _time(w: Weights, timestep: torch.Tensor) -> torch.Tensor:
    half = w["time_embed.0.weight"].shape[1] // 2
    angle = timestep[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return _linear(w, "time_embed.2", F.silu(_linear(w, "time_embed.0", torch.cat([angle.cos(), angle.sin()], 1))))


def controlnet(
    w: Weights, x: torch.Tensor, hint: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
) -> list[torch.Tensor]:
    """DiffBIR's thirteen controls."""
    emb, h, controls = _time(w, timestep), torch.cat([x, hint], 1), []
    for index in range(12):
        h = _block(w, f"input_blocks.{index}", h, emb, context)
        controls.append(_conv(w, f"zero_convs.{index}.0", h))
    return [*controls, _conv(w, "middle_block_out.0", _block(w, "middle_block", h, emb, context))]


def unet(
    w: Weights, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, controls: list[torch.Tensor]
) -> torch.Tensor:
    """eps, the controls added to the skip connections and the middle."""
    emb, h, skips, controls = _time(w, timestep), x, [], list(controls)
    for index in range(12):
        h = _block(w, f"input_blocks.{index}", h, emb, context)
        skips.append(h)
    h = _block(w, "middle_block", h, emb, context) + controls.pop()
    for index in range(12):
        h = _block(w, f"output_blocks.{index}", torch.cat([h, skips.pop() + controls.pop()], 1), emb, context)
    return _conv(w, "out.2", F.silu(_groups(w, "out.0", h, 1e-5)), padding=1)


# --- autoencoder


def _vae_resnet(key: str, inside: int, outside: int) -> Shapes:
    shapes = both(f"{key}.norm1", inside) | both(f"{key}.conv1", outside, inside, 3, 3)
    shapes |= both(f"{key}.norm2", outside) | both(f"{key}.conv2", outside, outside, 3, 3)
    return shapes if inside == outside else shapes | both(f"{key}.nin_shortcut", outside, inside, 1, 1)


def vae_shapes(model: int = 32) -> Shapes:
    """SD's first stage, without its prefix."""
    wide = 4 * model
    shapes = both("encoder.conv_in", model, 3, 3, 3) | both("decoder.conv_in", wide, 4, 3, 3)
    width = model
    for level, multiplier in enumerate(MULTIPLIERS):
        for block in range(2):
            shapes |= _vae_resnet(f"encoder.down.{level}.block.{block}", width, multiplier * model)
            width = multiplier * model
        if level < 3:
            shapes |= both(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    for level in reversed(range(4)):
        for block in range(3):
            shapes |= _vae_resnet(f"decoder.up.{level}.block.{block}", width, MULTIPLIERS[level] * model)
            width = MULTIPLIERS[level] * model
        if level:
            shapes |= both(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    for side in ("encoder", "decoder"):
        shapes |= _vae_resnet(f"{side}.mid.block_1", wide, wide) | _vae_resnet(f"{side}.mid.block_2", wide, wide)
        shapes |= both(f"{side}.mid.attn_1.norm", wide)
        for part in ("q", "k", "v", "proj_out"):
            shapes |= both(f"{side}.mid.attn_1.{part}", wide, wide, 1, 1)
    shapes |= both("encoder.norm_out", wide) | both("encoder.conv_out", 8, wide, 3, 3)
    shapes |= both("decoder.norm_out", model) | both("decoder.conv_out", 3, model, 3, 3)
    return shapes | both("quant_conv", 8, 8, 1, 1) | both("post_quant_conv", 4, 4, 1, 1)


def _vae_residual(w: Weights, key: str, x: torch.Tensor) -> torch.Tensor:
    h = _conv(w, f"{key}.conv1", F.silu(_groups(w, f"{key}.norm1", x, 1e-6)), padding=1)
    h = _conv(w, f"{key}.conv2", F.silu(_groups(w, f"{key}.norm2", h, 1e-6)), padding=1)
    return h + (_conv(w, f"{key}.nin_shortcut", x) if f"{key}.nin_shortcut.weight" in w else x)


def _vae_middle(w: Weights, side: str, h: torch.Tensor) -> torch.Tensor:
    h = _vae_residual(w, f"{side}.mid.block_1", h)
    n = _groups(w, f"{side}.mid.attn_1.norm", h, 1e-6)
    q, k, v = (_conv(w, f"{side}.mid.attn_1.{part}", n).flatten(2).transpose(1, 2) for part in "qkv")
    seen = _attention(q, k, v, 1).transpose(1, 2).unflatten(2, h.shape[2:])
    return _vae_residual(w, f"{side}.mid.block_2", h + _conv(w, f"{side}.mid.attn_1.proj_out", seen))


def vae_mode(w: Weights, images: torch.Tensor) -> torch.Tensor:
    """The posterior's mean, not scaled."""
    h = _conv(w, "encoder.conv_in", images, padding=1)
    for level in range(4):
        for block in range(2):
            h = _vae_residual(w, f"encoder.down.{level}.block.{block}", h)
        if level < 3:
            h = _conv(w, f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    h = F.silu(_groups(w, "encoder.norm_out", _vae_middle(w, "encoder", h), 1e-6))
    return _conv(w, "quant_conv", _conv(w, "encoder.conv_out", h, padding=1))[:, :4]


def vae_decode(w: Weights, latents: torch.Tensor) -> torch.Tensor:
    """Unscaled latents → images."""
    h = _vae_middle(w, "decoder", _conv(w, "decoder.conv_in", _conv(w, "post_quant_conv", latents), padding=1))
    for level in reversed(range(4)):
        for block in range(3):
            h = _vae_residual(w, f"decoder.up.{level}.block.{block}", h)
        if level:
            h = F.interpolate(h, scale_factor=2, mode="nearest")
            h = _conv(w, f"decoder.up.{level}.upsample.conv", h, padding=1)
    return _conv(w, "decoder.conv_out", F.silu(_groups(w, "decoder.norm_out", h, 1e-6)), padding=1)


# --- OpenCLIP's text model


def text_shapes(width: int = 64, layers: int = 3) -> Shapes:
    """OpenCLIP's text tower, without its prefix."""
    shapes: Shapes = {"positional_embedding": (77, width), "token_embedding.weight": (49408, width)}
    shapes |= both("ln_final", width) | {"text_projection": (width, width)}
    for layer in range(layers):
        key = f"transformer.resblocks.{layer}"
        shapes |= both(f"{key}.ln_1", width) | both(f"{key}.ln_2", width)
        shapes |= {f"{key}.attn.in_proj_weight": (3 * width, width), f"{key}.attn.in_proj_bias": (3 * width,)}
        shapes |= both(f"{key}.attn.out_proj", width, width)
        shapes |= both(f"{key}.mlp.c_fc", 4 * width, width) | both(f"{key}.mlp.c_proj", width, 4 * width)
    return shapes


def text(w: Weights, tokens: torch.Tensor) -> torch.Tensor:
    """All layers but the last, then the final norm: [N, 77, width]."""
    layers = len({key.split(".")[2] for key in w if key.startswith("transformer.")})
    h = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    causal = torch.full((77, 77), -torch.inf).triu(1)
    for layer in range(layers - 1):
        key = f"transformer.resblocks.{layer}"
        n = F.linear(_layers(w, f"{key}.ln_1", h), w[f"{key}.attn.in_proj_weight"], w[f"{key}.attn.in_proj_bias"])
        seen = _attention(*n.chunk(3, -1), heads=max(1, h.shape[-1] // HEAD), bias=causal)
        h = h + _linear(w, f"{key}.attn.out_proj", seen)
        h = h + _linear(w, f"{key}.mlp.c_proj", F.gelu(_linear(w, f"{key}.mlp.c_fc", _layers(w, f"{key}.ln_2", h))))
    return _layers(w, "ln_final", h)


def stable_diffusion(seed: int = 0) -> Weights:
    """One file: the three parts with their prefixes, and what else such files hold."""
    w = {f"model.diffusion_model.{k}": v for k, v in random_weights(unet_shapes(), seed).items()}
    w |= {f"first_stage_model.{k}": v for k, v in random_weights(vae_shapes(), seed + 1).items()}
    w |= {f"cond_stage_model.model.{k}": v for k, v in random_weights(text_shapes(), seed + 2).items()}
    return w | {"betas": torch.ones(1000), "cond_stage_model.model.logit_scale": torch.tensor(4.6)}


def below(prefix: str, w: Weights) -> Weights:
    return {key.removeprefix(prefix): value for key, value in w.items() if key.startswith(prefix)}


# --- SwinIR


def _windows(x: torch.Tensor, side: int) -> torch.Tensor:
    """[N, H, W, C] → [N, windows, side², C]."""
    n, h, w, c = x.shape
    return x.reshape(n, h // side, side, w // side, side, c).transpose(2, 3).reshape(n, -1, side * side, c)


def _shift_mask(height: int, width: int, side: int) -> torch.Tensor:
    """[windows, side², side²]: −100 between positions that only the cyclic shift brought together."""
    zone = torch.zeros(height, width)
    for axis, size in ((0, height), (1, width)):
        place = torch.arange(size)
        part = (place >= size - side).float() + (place >= size - side // 2).float()
        zone += (3**axis) * (part[:, None] if axis == 0 else part[None, :])
    seen = _windows(zone[None, :, :, None], side)[0, :, :, 0]
    return torch.where(seen[:, None, :] == seen[:, :, None], 0.0, -100.0)


def _relative(side: int) -> torch.Tensor:
    """[side², side²]: row of the bias table for each pair of positions of a window."""
    y, x = (grid.flatten() for grid in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    span = 2 * side - 1
    return (y[:, None] - y[None] + side - 1) * span + x[:, None] - x[None] + side - 1


def swinir_weights(embed: int = 24, depths: tuple[int, ...] = (2, 2), heads: int = 6, resolution: int = 16) -> Weights:
    """face_swinir_v1.ckpt's state dict: window 8, mlp 2, unshuffle 8; masks for a feature map of `resolution`."""
    shapes = both("conv_first.1", embed, 192, 3, 3) | both("patch_embed.norm", embed) | both("norm", embed)
    for key in _swin_blocks(depths):
        shapes |= both(f"{key}.norm1", embed) | both(f"{key}.norm2", embed)
        shapes |= {f"{key}.attn.relative_position_bias_table": (225, heads)}
        shapes |= both(f"{key}.attn.qkv", 3 * embed, embed) | both(f"{key}.attn.proj", embed, embed)
        shapes |= both(f"{key}.mlp.fc1", 2 * embed, embed) | both(f"{key}.mlp.fc2", embed, 2 * embed)
    for group in range(len(depths)):
        shapes |= both(f"layers.{group}.conv", embed, embed, 3, 3)
    shapes |= both("conv_after_body", embed, embed, 3, 3) | both("conv_before_upsample.0", 64, embed, 3, 3)
    for name in ("conv_up1", "conv_up2", "conv_up3", "conv_hr"):
        shapes |= both(name, 64, 64, 3, 3)
    w = random_weights(shapes | both("conv_last", 3, 64, 3, 3), 5)
    for key in _swin_blocks(depths):
        w[f"{key}.attn.relative_position_index"] = _relative(8)
        if key.endswith("1"):
            w[f"{key}.attn_mask"] = _shift_mask(resolution, resolution, 8)
    return w


def _swin_blocks(depths: tuple[int, ...]) -> Iterator[str]:
    return (f"layers.{g}.residual_group.blocks.{b}" for g, depth in enumerate(depths) for b in range(depth))


def _swin_block(w: Weights, key: str, x: torch.Tensor, heads: int, shift: int) -> torch.Tensor:
    n, height, width, _ = x.shape
    h = _layers(w, f"{key}.norm1", x).roll((-shift, -shift), (1, 2))
    bias = w[f"{key}.attn.relative_position_bias_table"][_relative(8)].permute(2, 0, 1)
    if shift:
        bias = bias + _shift_mask(height, width, 8)[:, None]
    q, k, v = _linear(w, f"{key}.attn.qkv", _windows(h, 8)).chunk(3, -1)
    h = _linear(w, f"{key}.attn.proj", _attention(q, k, v, heads, bias))
    h = h.reshape(n, height // 8, width // 8, 8, 8, -1).transpose(2, 3).reshape(x.shape)
    x = x + h.roll((shift, shift), (1, 2))
    return x + _linear(w, f"{key}.mlp.fc2", F.gelu(_linear(w, f"{key}.mlp.fc1", _layers(w, f"{key}.norm2", x))))


def swinir(w: Weights, images: torch.Tensor, depths: tuple[int, ...] = (2, 2), heads: int = 6) -> torch.Tensor:
    """Images in [0, 1], sides of whole 64 px → cleaned."""
    first = _conv(w, "conv_first.1", F.pixel_unshuffle(images - MEAN, 8), padding=1)
    h = _layers(w, "patch_embed.norm", first.permute(0, 2, 3, 1))
    for group, depth in enumerate(depths):
        inner = h
        for block in range(depth):
            key = f"layers.{group}.residual_group.blocks.{block}"
            inner = _swin_block(w, key, inner, heads, 4 if block % 2 else 0)
        h = h + _conv(w, f"layers.{group}.conv", inner.permute(0, 3, 1, 2), padding=1).permute(0, 2, 3, 1)
    h = first + _conv(w, "conv_after_body", _layers(w, "norm", h).permute(0, 3, 1, 2), padding=1)
    h = F.leaky_relu(_conv(w, "conv_before_upsample.0", h, padding=1), 0.01)
    for name in ("conv_up1", "conv_up2", "conv_up3"):
        h = F.leaky_relu(_conv(w, name, F.interpolate(h, scale_factor=2, mode="nearest"), padding=1), 0.2)
    return _conv(w, "conv_last", F.leaky_relu(_conv(w, "conv_hr", h, padding=1), 0.2), padding=1) + MEAN


# --- OSEDiff


def _lora(layers: dict[str, tuple[int, ...]], adapter: str, rank: int, rng: torch.Generator) -> Weights:
    made = {}
    for name, (outside, inside, *kernel) in layers.items():
        ones = [1] * len(kernel)
        a = torch.randn((rank, inside, *kernel), generator=rng) / math.sqrt(inside * math.prod(kernel))
        made[f"{name}.lora_A.{adapter}.weight"] = a
        made[f"{name}.lora_B.{adapter}.weight"] = 0.2 * torch.randn((outside, rank, *ones), generator=rng)
    return made


def osediff(unet: Weights, vae: Weights, rank: int = 4) -> dict[str, Any]:
    """osediff.pkl for diffusers weights of a UNet and an autoencoder, its layers chosen as the authors' code does."""
    grep = "to_k to_q to_v to_out.0 conv proj_out proj_in ff.net.2 ff.net.0.proj".split()  # `conv` means all of them
    parts: dict[str, dict[str, tuple[int, ...]]] = {"encoder": {}, "decoder": {}, "others": {}}
    for name, value in unet.items():
        if "bias" in name or "norm" in name or not any(one in name for one in grep):
            continue
        if "down_blocks" in name or "conv_in" in name:
            part = "encoder"
        else:
            part = "decoder" if "up_blocks" in name or "conv_out" in name else "others"
        parts[part][name.removesuffix(".weight")] = tuple(value.shape)
    of_vae = {
        name.removesuffix(".weight"): tuple(value.shape)
        for name, value in vae.items()
        if "bias" not in name
        and "norm" not in name
        and (name.startswith("quant_conv") or ("encoder" in name and any(one in name for one in grep[:5])))
    }
    rng = torch.Generator().manual_seed(9)
    state = {
        "conv_in.base_layer.weight": unet["conv_in.weight"]
        + 0.1 * torch.randn(unet["conv_in.weight"].shape, generator=rng),
        "conv_in.base_layer.bias": unet["conv_in.bias"] + 0.1,
    }
    for part, layers in parts.items():
        state |= _lora(layers, f"default_{part}", rank, rng)
    return {
        "vae_lora_encoder_modules": list(of_vae),
        **{f"unet_lora_{part}_modules": list(layers) for part, layers in parts.items()},
        "rank_unet": rank,
        "rank_vae": rank,
        "state_dict_unet": state,
        "state_dict_vae": _lora(of_vae, "default_encoder", rank, rng),
    }


def merged(weights: Weights, lora: Weights, scale: float) -> Weights:
    """W + scale · B A for every layer, and the layers that the file replaces whole."""
    done = dict(weights)
    for name, value in lora.items():
        if ".base_layer." in name:
            done[name.replace(".base_layer", "")] = value
    for name in [name for name in lora if ".lora_A." in name]:
        a, b = lora[name], lora[name.replace("lora_A", "lora_B")]
        layer = f"{name.split('.lora_A.')[0]}.weight"
        product = (b.flatten(1) @ a.flatten(1)).reshape(done[layer].shape)
        done[layer] = done[layer] + scale * product
    return done
