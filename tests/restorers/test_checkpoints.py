"""Official weights in and out, against straight-line computations on the official keys (official.py beside this)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.base.official import import_base
from pipeline.base.params import BaseParams
from pipeline.params import UserError, validate
from pipeline.params import load as load_params
from pipeline.restorers import checkpoints, ldm
from pipeline.restorers.checkpoints import Files, Settings, import_weights
from pipeline.restorers.cleaner import cleaner_from
from pipeline.restorers.denoiser import load_denoiser
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.load import load
from pipeline.restorers.osediff import ENCODER, OSEDiff, put_adapters
from pipeline.restorers.protocol import Rollout
from pipeline.restorers.schedule import sd21_scheduler
from pipeline.runtime import noise_like_ids
from tests import tiny
from tests.restorers import official

CPU, ROOT = torch.device("cpu"), Path(__file__).resolve().parents[2]
SMALL = Settings(native_size=64)
CLOSE = {"atol": 2e-4, "rtol": 1e-3}


class Zoo:
    """The official files with random weights on disk, and their tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sd = official.stable_diffusion()
        self.controlnet = official.random_weights(official.controlnet_shapes(), 3)
        self.swinir = official.swinir_weights()
        self.write("sd.ckpt", {"state_dict": self.sd, "global_step": 3})
        self.write("v1_face.pth", self.controlnet)
        self.write("swinir.ckpt", {"state_dict": {f"module.{key}": value for key, value in self.swinir.items()}})
        diffusers = checkpoints.import_denoiser(folder / "sd.ckpt", "epsilon")
        self.unet, self.vae = diffusers.unet.state_dict(), diffusers.vae.state_dict()
        self.osediff = official.osediff(self.unet, self.vae)
        self.write("osediff.pkl", self.osediff)
        self.files = Files(*(folder / name for name in ("sd.ckpt", "v1_face.pth", "swinir.ckpt", "osediff.pkl")))
        import_weights(self.files, folder / "out", SMALL, CPU)

    def write(self, name: str, content: Any) -> Path:
        torch.save(content, self.folder / name)
        return self.folder / name

    def part(self, prefix: str) -> official.Weights:
        return official.below(prefix, self.sd)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def diffbir(zoo: Zoo) -> DiffBIR:
    restorer = load(zoo.folder / "out/diffbir", CPU)
    assert isinstance(restorer, DiffBIR)
    return restorer


@pytest.fixture
def osediff(zoo: Zoo) -> OSEDiff:
    restorer = load(zoo.folder / "out/osediff", CPU)
    assert isinstance(restorer, OSEDiff)
    return restorer


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(count: int = 1, size: int = 64, seed: int = 4) -> torch.Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- what is loaded computes what its authors' layout says


@torch.no_grad()
def test_the_controlnet_and_the_unet_under_its_controls(zoo: Zoo, diffbir: DiffBIR) -> None:
    x, hint, context, time = (
        drawn(2, 4, 8, 8),
        drawn(2, 4, 8, 8, seed=1),
        drawn(2, 77, 64, seed=2),
        torch.tensor([981, 21]),
    )
    expected = official.controlnet(zoo.controlnet, x, hint, time, context)
    controls = diffbir.controls(diffbir.controlnet, x, time, hint, context)
    assert len(controls) == 13
    for ours, theirs in zip(controls, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    eps = official.unet(zoo.part("model.diffusion_model."), x, time, context, expected)
    torch.testing.assert_close(diffbir.output(x, time, context, controls), eps, **CLOSE)


@torch.no_grad()
def test_the_autoencoder(zoo: Zoo, diffbir: DiffBIR) -> None:
    weights, picture, latents = zoo.part("first_stage_model."), images(), drawn(1, 4, 8, 8)
    torch.testing.assert_close(diffbir.denoiser.encode(picture), 0.18215 * official.vae_mode(weights, picture), **CLOSE)
    decoded = official.vae_decode(weights, latents / 0.18215)
    torch.testing.assert_close(diffbir.denoiser.decode(latents), decoded, atol=1e-3, rtol=1e-3)


def test_the_text_model_gives_the_penultimate_layer(zoo: Zoo, diffbir: DiffBIR) -> None:
    prompts = ["", "a sharp photo of a face"]
    expected = official.text(zoo.part("cond_stage_model.model."), open_clip.tokenize(prompts))
    torch.testing.assert_close(diffbir.encode_prompts(prompts), expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("size", [128, 192])  # the stored attention masks' size, and another
def test_the_cleaner(zoo: Zoo, size: int) -> None:
    cleaner = cleaner_from(zoo.swinir, Path("swinir"))
    picture = images(2, size)
    expected = official.swinir(zoo.swinir, (picture + 1) / 2)
    torch.testing.assert_close((cleaner(picture) + 1) / 2, expected, **CLOSE)
    assert expected.std() > 0.1  # says something


@torch.no_grad()
def test_the_cleaner_pads_to_whole_windows_and_cuts_back(zoo: Zoo) -> None:
    cleaner = cleaner_from(zoo.swinir, Path("swinir"))
    picture = images(1, 100)
    black = torch.nn.functional.pad((picture + 1) / 2, (0, 28, 0, 28))
    expected = official.swinir(zoo.swinir, black)[:, :, :100, :100]
    torch.testing.assert_close((cleaner(picture) + 1) / 2, expected, **CLOSE)


def test_the_condition_is_the_latent_of_the_cleaned_lq(zoo: Zoo, diffbir: DiffBIR) -> None:
    lq = images()
    clean = 2 * official.swinir(zoo.swinir, (lq + 1) / 2) - 1
    expected = 0.18215 * official.vae_mode(zoo.part("first_stage_model."), clean)
    torch.testing.assert_close(diffbir.condition(lq), expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(expected, diffbir.denoiser.encode(lq), atol=0.01)
    diffbir.start_training()
    assert all(name.startswith("controlnet.") for name, p in diffbir.named_parameters() if p.requires_grad)


@torch.no_grad()
def test_osediff_computes_with_its_adapters_merged(zoo: Zoo, osediff: OSEDiff) -> None:
    lq, noise, prompts = images(), drawn(1, 4, 8, 8), osediff.encode_prompts([""])
    file = zoo.osediff
    vae = AutoencoderKL.from_config(osediff.denoiser.vae.config)
    vae.load_state_dict(official.merged(zoo.vae, file["state_dict_vae"], 8 / 4))
    unet = UNet2DConditionModel.from_config(osediff.denoiser.unet.config)
    unet.load_state_dict(official.merged(zoo.unet, file["state_dict_unet"], 8 / 4))
    posterior = vae.encode(lq).latent_dist
    latents = 0.18215 * (posterior.mean + posterior.std * noise)
    torch.testing.assert_close(osediff.encode_sample(lq, noise), latents, **CLOSE)
    torch.testing.assert_close(osediff.condition(lq), 0.18215 * posterior.mean, **CLOSE)
    alpha_bar = osediff.denoiser.alpha_bar[999]
    eps = unet(latents, torch.tensor([999]), encoder_hidden_states=prompts).sample
    x0 = (latents - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    torch.testing.assert_close(osediff.x0(latents, prompts), x0, atol=2e-3, rtol=1e-3)
    # and so does what users call, from a posterior sample by the adapted encoder
    own = noise_like_ids(["a"], (4, 8, 8), 5, "osediff")
    latents = 0.18215 * (posterior.mean + posterior.std * own)
    eps = unet(latents, torch.tensor([999]), encoder_hidden_states=prompts).sample
    x0 = (latents - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    restored = osediff.restore(lq, [""], ["a"], 5)
    torch.testing.assert_close(restored, osediff.denoiser.decode(x0).clamp(-1, 1), atol=2e-2, rtol=1e-2)
    plain = osediff.denoiser.encode_sample(lq, own)
    assert not torch.allclose(restored, osediff.denoiser.decode(osediff.x0(plain, prompts)).clamp(-1, 1), atol=4e-2)


def test_the_768_px_model_is_refused_by_its_name(tmp_path: Path) -> None:
    """It predicts v, has the same tensors, and would be taken for noise."""
    path = tmp_path / "v2-1_768-ema-pruned.ckpt"
    path.touch()
    with pytest.raises(UserError, match=r"v2-1_768-ema-pruned\.ckpt: by its name the 768 px model"):
        checkpoints.import_denoiser(path, "epsilon")


def test_only_the_lq_goes_through_the_adapted_encoder(zoo: Zoo, osediff: OSEDiff) -> None:
    picture = images()
    plain = 0.18215 * official.vae_mode(zoo.part("first_stage_model."), picture)
    torch.testing.assert_close(osediff.denoiser.encode(picture), plain, **CLOSE)
    assert not torch.allclose(osediff.condition(picture), plain, atol=0.01)
    torch.testing.assert_close(osediff.denoiser.encode(picture), plain, **CLOSE)  # and it is plain again afterwards


def test_imported_osediff_trains_its_adapters_and_conv_in_alone(osediff: OSEDiff) -> None:
    osediff.start_training()
    condition, prompts = osediff.condition(images()), osediff.encode_prompts([""])
    prediction = osediff.predict(Rollout(condition, 999), condition, prompts)
    assert float(prediction.regulariser.detach()) == pytest.approx(0, abs=1e-9)
    prediction.images.square().mean().backward()
    moved = {name for name, p in osediff.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    trained = {f"denoiser.unet.{name}" for name in osediff.trained_names()}
    assert moved == trained
    assert {"denoiser.unet.conv_in.base_layer.weight", "denoiser.unet.conv_in.lora_B.default_encoder.weight"} < moved


@pytest.mark.parametrize("how", ["safetensors", "folder", "older folder"])
def test_stable_diffusion_in_its_other_forms(zoo: Zoo, tmp_path: Path, how: str) -> None:
    path = tmp_path / "sd.safetensors"
    if how == "safetensors":
        save_file(zoo.sd, path)
    else:
        path = tmp_path / "sd"
        load_denoiser(zoo.folder / "out/denoiser", CPU).save(path)
    if how == "older folder":  # as transformers 4 wrote them
        file = path / "text_encoder/model.safetensors"
        old = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
        save_file(old, file, metadata={"format": "pt"})
    again, first = checkpoints.import_denoiser(path, "epsilon"), load_denoiser(zoo.folder / "out/denoiser", CPU)
    assert again.state_dict().keys() == first.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), first.state_dict().values(), strict=True))


# --- full size


def empty(shapes: official.Shapes) -> official.Weights:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def test_full_size_keys_and_shapes() -> None:
    shapes = official.controlnet_shapes(320, 1024)
    assert shapes["input_blocks.0.0.weight"] == (320, 8, 3, 3)
    controlnet = ldm.controlnet_from(empty(shapes), Path("v1_face.pth"))
    assert round(sum(p.numel() for p in controlnet.parameters()) / 1e6) == 363
    assert tuple(controlnet.config.attention_head_dim) == (5, 10, 20, 20)
    assert (controlnet.config.in_channels, controlnet.config.cross_attention_dim) == (8, 1024)
    unet = ldm.unet_from(empty(official.unet_shapes(320, 1024)), Path("sd.ckpt"))
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == 866
    assert {key: tuple(value.shape) for key, value in controlnet.state_dict().items() if "conv_in" in key} == {
        "conv_in.weight": (320, 8, 3, 3),
        "conv_in.bias": (320,),
    }
    vae = ldm.vae_config(empty(official.vae_shapes(128)))
    assert vae["block_out_channels"] == (128, 256, 512, 512)
    text = ldm.text_config(empty(official.text_shapes(1024, 24)))
    assert (text["num_hidden_layers"], text["num_attention_heads"], text["intermediate_size"]) == (23, 16, 4096)


# --- out again


def equal(a: official.Weights, b: official.Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in b)


def test_a_controlnet_comes_out_as_it_went_in(zoo: Zoo, diffbir: DiffBIR, tmp_path: Path) -> None:
    checkpoints.export_controlnet(diffbir.controlnet, tmp_path / "out.pth")
    assert equal(torch.load(tmp_path / "out.pth", weights_only=True), zoo.controlnet)


def test_osediff_comes_out_as_it_went_in(zoo: Zoo, osediff: OSEDiff, tmp_path: Path) -> None:
    checkpoints.export_osediff(osediff, tmp_path / "out.pkl")
    again = torch.load(tmp_path / "out.pkl", weights_only=True)
    assert again.keys() == zoo.osediff.keys()
    for key, value in zoo.osediff.items():
        if key.startswith("state_dict"):
            assert equal(again[key], value)
        else:
            assert again[key] == value


@torch.no_grad()
def test_our_own_adapters_come_out_in_osediffs_scale(zoo: Zoo, tmp_path: Path) -> None:
    """Ours count alpha / rank = 1 times, OSEDiff's 8 / rank times."""
    denoiser = load_denoiser(zoo.folder / "out/denoiser", CPU)
    put_adapters(denoiser.vae, {ENCODER: ["encoder.conv_in", "quant_conv"]}, 2, 2)
    put_adapters(
        denoiser.unet,
        {
            "default_encoder": ["down_blocks.0.resnets.0.conv1"],
            "default_decoder": ["conv_out"],
            "default_others": ["mid_block.resnets.0.conv1"],
        },
        2,
        2,
    )
    for network in (denoiser.vae, denoiser.unet):
        tiny.shaken(network)
    denoiser.vae.disable_adapters()
    ours = OSEDiff(denoiser, 64, 999, 2, tmp_path / "denoiser")
    checkpoints.export_osediff(ours, tmp_path / "osediff.pkl")
    file = torch.load(tmp_path / "osediff.pkl", weights_only=True)
    name = "conv_out.lora_B.default_decoder.weight"
    torch.testing.assert_close(file["state_dict_unet"][name] * 8, ours.denoiser.unet.state_dict()[name] * 2)
    name = "quant_conv.lora_B.default_encoder.weight"
    torch.testing.assert_close(file["state_dict_vae"][name] * 8, ours.denoiser.vae.state_dict()[name] * 2)


@torch.no_grad()
def test_diffusers_loads_the_exported_adapters(zoo: Zoo, osediff: OSEDiff, tmp_path: Path) -> None:
    names = checkpoints.export_adapters(osediff, tmp_path)
    plain = load_denoiser(zoo.folder / "out/denoiser", CPU)
    plain.unet.conv_in.load_state_dict(
        {key.removeprefix("conv_in."): value for key, value in load_file(tmp_path / "unet_conv_in.safetensors").items()}
    )
    for name in names[:-1]:
        part, adapter = name.removesuffix(".safetensors").split("_", 1)
        network = getattr(plain, part)
        network.load_lora_adapter(tmp_path, weight_name=name, adapter_name=adapter, prefix=None)
    plain.unet.set_adapter(["default_encoder", "default_decoder", "default_others"])
    lq, prompts = images(), osediff.encode_prompts([""])
    torch.testing.assert_close(plain.encode(lq), osediff.condition(lq))
    latents, time = drawn(1, 4, 8, 8), torch.tensor([999])
    theirs = plain.unet(latents, time, encoder_hidden_states=prompts).sample
    torch.testing.assert_close(theirs, osediff.denoiser.unet(latents, time, encoder_hidden_states=prompts).sample)


def test_osediffs_format_needs_an_adapted_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="adapter on the VAE's encoder"):
        checkpoints.export_osediff(tiny.osediff(), tmp_path / "x.pkl")


# --- mistakes


class Foreign:
    """An object that only code could restore."""


def cut(source: Path, to: Path) -> Path:
    to.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    return to


def without(w: official.Weights, key: str) -> official.Weights:
    return {name: value for name, value in w.items() if name != key}


WRONG: dict[str, tuple[Callable[[Zoo, Path], Files], str]] = {
    "missing": (
        lambda z, t: Files(t / "no.ckpt", z.files.diffbir, t / "no-swinir.ckpt", None),
        r"no\.ckpt: missing \(Stable Diffusion 2\.1-base.*no-swinir\.ckpt: missing \(DiffBIR's SwinIR.*put it there",
    ),
    "no cleaner": (lambda z, t: Files(z.files.stable_diffusion, z.files.diffbir, None, None), "diffbir needs cleaner"),
    "cut": (lambda z, t: Files(cut(z.files.stable_diffusion, t / "x.ckpt"), None, None, None), r"x\.ckpt: .*truncated"),
    "cut safetensors": (
        lambda z, t: Files(cut(saved(z.controlnet, t / "y"), t / "x.safetensors"), None, None, None),
        r"x\.safetensors: truncated",
    ),
    "empty file": (lambda z, t: Files(cut(touched(t / "e"), t / "x.ckpt"), None, None, None), r"x\.ckpt: .*truncated"),
    "cut, in torch's old format": (
        lambda z, t: Files(cut(written({"a": torch.zeros(9)}, t / "e", old=True), t / "x.ckpt"), None, None, None),
        r"x\.ckpt: ",
    ),
    "code inside": (
        lambda z, t: Files(written(Foreign(), t / "x.ckpt"), None, None, None),
        r"x\.ckpt: can't be read as tensors alone",
    ),
    "no tensors": (lambda z, t: Files(written({"a": 1}, t / "x.ckpt"), None, None, None), "no state dict of tensors"),
    "another model": (lambda z, t: Files(z.folder / "v1_face.pth", None, None, None), r"v1_face\.pth: holds no UNet"),
    "files swapped": (
        lambda z, t: Files(z.files.stable_diffusion, z.files.cleaner, z.files.diffbir, None),
        r"swinir\.ckpt: holds no ControlNet",
    ),
    "controlnet as cleaner": (
        lambda z, t: Files(z.files.stable_diffusion, z.files.diffbir, z.files.diffbir, None),
        r"v1_face\.pth: holds no SwinIR",
    ),
    "tensor missing": (
        lambda z, t: Files(
            z.files.stable_diffusion,
            written(without(z.controlnet, "zero_convs.7.0.bias"), t / "x.pth"),
            z.files.cleaner,
            None,
        ),
        r"x\.pth: 1 of \d+ tensors are missing, the first is zero_convs\.7\.0\.bias",
    ),
    "hint block": (
        lambda z, t: Files(
            z.files.stable_diffusion,
            written(z.controlnet | {"input_hint_block.0.weight": torch.ones(1)}, t / "x.pth"),
            z.files.cleaner,
            None,
        ),
        r"x\.pth: 1 tensors are unknown to DiffBIR's ControlNet, e\.g\. input_hint_block",
    ),
    "class embedding": (
        lambda z, t: Files(
            written(z.sd | {"model.diffusion_model.label_emb.0.0.weight": torch.ones(1)}, t / "x.ckpt"),
            z.files.diffbir,
            z.files.cleaner,
            None,
        ),
        r"x\.ckpt: 1 tensors are unknown to the UNet of Stable Diffusion 2, e\.g\. label_emb",
    ),
    "wrong shape": (
        lambda z, t: Files(
            z.files.stable_diffusion,
            written(z.controlnet | {"middle_block_out.0.bias": torch.ones(7)}, t / "x.pth"),
            z.files.cleaner,
            None,
        ),
        r"x\.pth: middle_block_out\.0\.bias has the shape \[7\], not \[128\]",
    ),
    "another UNet's controlnet": (
        lambda z, t: Files(
            z.files.stable_diffusion,
            written(official.random_weights(official.controlnet_shapes(32, 32)), t / "x.pth"),
            z.files.cleaner,
            None,
        ),
        r"x\.pth: its cross_attention_dim is 32, the UNet's 64",
    ),
    "cleaner's tensor missing": (
        lambda z, t: Files(
            z.files.stable_diffusion, z.files.diffbir, written(without(z.swinir, "conv_up3.bias"), t / "x.ckpt"), None
        ),
        r"x\.ckpt: 1 of \d+ tensors are missing, the first is conv_up3\.bias",
    ),
    "cleaner without its masks": (
        lambda z, t: Files(
            z.files.stable_diffusion,
            z.files.diffbir,
            written({k: v for k, v in z.swinir.items() if not k.endswith(".attn_mask")}, t / "x.ckpt"),
            None,
        ),
        r"x\.ckpt: holds no SwinIR",
    ),
    "a folder's file cut": (
        lambda z, t: Files(folder(t, "unet/diffusion_pytorch_model.safetensors", cut_file), None, None, None),
        r"unet: its files are missing or damaged",
    ),
    "a folder's file missing": (
        lambda z, t: Files(folder(t, "vae/diffusion_pytorch_model.safetensors", Path.unlink), None, None, None),
        r"vae: its files are missing or damaged",
    ),
    "a folder's tensor missing": (
        lambda z, t: Files(folder(t, "text_encoder/model.safetensors", drop_one), None, None, None),
        r"text_encoder: 1 tensors are missing or of another shape, e\.g\. ",
    ),
    "a folder's tensor of another shape": (
        lambda z, t: Files(folder(t, "text_encoder/model.safetensors", widen_one), None, None, None),
        r"text_encoder: 1 tensors are missing or of another shape, e\.g\. ",
    ),
    "a folder's config missing": (
        lambda z, t: Files(folder(t, "vae/config.json", Path.unlink), None, None, None),
        r"a config of vae or scheduler is missing or damaged",
    ),
    "osediff's entry missing": (
        lambda z, t: Files(z.files.stable_diffusion, None, None, written({"rank_unet": 4, "rank_vae": 4}, t / "x.pkl")),
        r"x\.pkl: has no vae_lora_encoder_modules; it must be OSEDiff's adapters",
    ),
    "osediff's tensor missing": (
        lambda z, t: Files(
            z.files.stable_diffusion,
            None,
            None,
            written(z.osediff | {"state_dict_vae": without(z.osediff["state_dict_vae"], QUANT)}, t / "x.pkl"),
        ),
        r"x\.pkl: quant_conv\.lora_B\.default_encoder\.weight is missing",
    ),
    "osediff for another network": (
        lambda z, t: Files(
            z.files.stable_diffusion,
            None,
            None,
            written(z.osediff | {"unet_lora_others_modules": ["mid_block.nowhere"]}, t / "x.pkl"),
        ),
        r"x\.pkl: made for another network",
    ),
}
QUANT = "quant_conv.lora_B.default_encoder.weight"


def folder(place: Path, file: str, spoil: Callable[[Path], object]) -> Path:
    """A diffusers folder of SD's layout in which one file was spoilt."""
    unet = UNet2DConditionModel(**tiny.UNET, in_channels=4, out_channels=4, cross_attention_dim=8)
    unet.save_pretrained(place / "sd/unet")
    blocks = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    AutoencoderKL(**blocks, block_out_channels=[8], norm_num_groups=4).save_pretrained(place / "sd/vae")
    CLIPTextModel(CLIPTextConfig(vocab_size=49408, **tiny.TEXT)).save_pretrained(place / "sd/text_encoder")
    sd21_scheduler("epsilon").save_pretrained(place / "sd/scheduler")
    load_denoiser(place / "sd", CPU)  # whole so far
    spoil(place / "sd" / file)
    return place / "sd"


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def widen_one(path: Path) -> None:
    tensors = load_file(path)
    name = max(tensors)
    save_file(tensors | {name: torch.zeros(3, *tensors[name].shape)}, path, metadata={"format": "pt"})


def drop_one(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(max(tensors))
    save_file(tensors, path, metadata={"format": "pt"})


def written(content: Any, path: Path, old: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def saved(content: official.Weights, path: Path) -> Path:
    save_file(content, path)
    return path


def touched(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize("case", list(WRONG))
def test_a_mistake_is_one_line_that_names_the_file(zoo: Zoo, tmp_path: Path, case: str) -> None:
    make, said = WRONG[case]
    with pytest.raises(UserError, match=said) as error:
        import_weights(make(zoo, tmp_path), tmp_path / "out", SMALL, CPU)
    assert "\n" not in str(error.value)


def test_a_lightning_checkpoint_is_read_without_lightning(zoo: Zoo, tmp_path: Path) -> None:
    """Old trainers name a class among the keys; it stands for nothing here."""
    path = tmp_path / "lightning.ckpt"
    code = (
        "import sys, types, torch\n"
        "module = types.ModuleType('pytorch_lightning.callbacks.model_checkpoint')\n"
        "class ModelCheckpoint: pass\n"
        "ModelCheckpoint.__module__ = module.__name__; module.ModelCheckpoint = ModelCheckpoint\n"
        "for name in ('pytorch_lightning', 'pytorch_lightning.callbacks'): sys.modules[name] = types.ModuleType(name)\n"
        "sys.modules[module.__name__] = module\n"
        f"torch.save({{'state_dict': {{'a': torch.ones(2)}}, 'callbacks': {{ModelCheckpoint: {{}}}}}}, {str(path)!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert checkpoints.read(path, "cleaner")["a"].tolist() == [1, 1]


def test_a_schedule_of_another_prediction_is_refused(zoo: Zoo) -> None:
    with pytest.raises(UserError, match="scheduler: predicts epsilon, not the v_prediction asked for"):
        checkpoints.import_denoiser(zoo.folder / "out/denoiser", "v_prediction")


def test_a_variant_for_inpainting_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    """It takes a mask and a masked picture's latents beside the latents."""
    wide = dict(zoo.sd)
    first = f"{ldm.UNET}input_blocks.0.0.weight"
    wide[first] = torch.cat([wide[first], wide[first], wide[first][:, :1]], dim=1)
    save_file({name: value.contiguous() for name, value in wide.items()}, tmp_path / "inpainting.safetensors")
    with pytest.raises(UserError, match=r"inpainting\.safetensors: its UNet takes 9 channels and gives 4"):
        checkpoints.import_denoiser(tmp_path / "inpainting.safetensors", "epsilon")


def test_a_lost_cleaner_is_named(zoo: Zoo, diffbir: DiffBIR, tmp_path: Path) -> None:
    diffbir.source = zoo.folder / "out/denoiser"
    diffbir.save(tmp_path / "mine")
    (tmp_path / "mine/cleaner.safetensors").unlink()
    with pytest.raises(UserError, match=r"cleaner\.safetensors: missing; .*restorer\.json names it"):
        load(tmp_path / "mine", CPU)


# --- the stage


def base_params(zoo: Zoo, **changes: Any) -> BaseParams:
    content = load_params("base", BaseParams, ROOT / "profiles/paper.yaml").model_dump()
    paths = {kind: str(getattr(zoo.files, kind)) for kind in ("stable_diffusion", "diffbir", "cleaner", "osediff")}
    return validate(BaseParams, content | {"weights": paths} | changes, "base")


def test_stage_base_imports(zoo: Zoo, tmp_path: Path) -> None:
    val = tiny.dataset("val", 2, 64)
    restorers, rows = import_base(base_params(zoo), 0, 64, val, tmp_path, CPU)
    assert list(restorers) == ["diffbir", "osediff"]
    assert [row["restorer"] for row in rows] == ["diffbir", "osediff"]
    assert all(row["step"] is None and 0 < row["val_loss"] < 1e6 for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"denoiser", "diffbir", "osediff"}
    restorer = load(tmp_path / "diffbir", CPU)
    assert isinstance(restorer, DiffBIR)
    assert (restorer.native_size, restorer.steps, restorer.eta) == (64, 50, 1.0)
    restored = restorer.restore(images(), ["a face"], ["id"], 0, steps=2)
    assert restored.shape == (1, 3, 64, 64)


def test_adapters_of_another_rank_than_the_params_say_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    other = base_params(zoo).model_dump()["osediff"] | {"rank": 8}
    with pytest.raises(UserError, match=r"osediff\.pkl: its adapters have rank 4, not 8"):
        import_base(base_params(zoo, osediff=other), 0, 64, tiny.dataset("val", 2, 64), tmp_path, CPU)


def test_each_source_asks_for_its_own_params(zoo: Zoo) -> None:
    with pytest.raises(UserError, match="weights must be given for source: import"):
        base_params(zoo, weights=None)
    with pytest.raises(UserError, match="unet must be given for source: train"):
        base_params(zoo, source="train")
