"""One ReFL micro-step at full Stable Diffusion 2.1 size, ours against the published schedule.

`python -m bench.refl_step` prints, each on its own, never multiplied into one number:
- FLOPs of a micro-step at 512 px, batch 1 (torch.utils.flop_counter, meta device), the same gradient both ways;
- how many micro-batches' gradients an optimiser step applies, from a real run of a tiny model;
- FLOPs per gradient and gradient variance with `rollout.renoise`;
- on a GPU: seconds and peak memory of a micro-step with randomly initialised full-size weights, of OSEDiff and GFPGAN
  too, and whether optimiser steps, updates of the FRM and a restoration keep within a card of 24 GB.

The authors' published schedule is rebuilt here: the frozen ControlNet runs at every rollout step, HQ is
VAE-encoded for its shape, HQ perceptual features and both texts are recomputed, the loop clears gradients at every
micro-batch. Perceptual net on both sides: ST-LPIPS VGG. No cleaner on either side (it would favour ours).
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import typer
from accelerate import Accelerator
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.refl.cache import PerFace
from pipeline.refl.params import VARIANTS, ReflParams
from pipeline.refl.trainer import GradientStep, MicroBatch, ReFL
from pipeline.restorers.denoiser import Denoiser, PromptEncoder
from pipeline.restorers.diffbir import DiffBIR, new_controlnet
from pipeline.restorers.gfpgan import GFPGAN
from pipeline.restorers.gfpgan import OFFICIAL as OFFICIAL_GFPGAN
from pipeline.restorers.osediff import OSEDiff, add_adapters
from pipeline.restorers.protocol import Restorer
from pipeline.restorers.schedule import sd21_scheduler
from pipeline.reward.model import FaceRewardModel
from pipeline.reward.params import RewardConfig
from pipeline.runtime import RuntimeParams, configure
from pipeline.training import Images, count_flops, images_of
from tests import tiny
from tests.refl.recipe import params as tiny_params

SIZE, STEPS, WINDOW = 512, 50, 2
CARD = 23.4  # GiB that a card of 24 GB (24 GiB) leaves beside the CUDA context of about 0.5
WITHIN = "DiffBIR bf16 within 24 GB"
UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 1024,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": SIZE,
    "scaling_factor": 0.18215,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
OFFICIAL: dict[str, object] = {
    "batch_size": 1,
    "accumulation": 4,
    "learning_rate": 5e-5,
    "weights": {"reward": 0.005, "lowpass": 0.01, "perceptual": 0.01, "regulariser": 1e-4},
    "lowpass_levels": 3,
    "lowpass_norm": "l1",
    "perceptual_nets": {"vgg": 1.0},
    "cache_mb": 4000,
    "condition_cache_mb": 100,
}


def sd21(device: str) -> Denoiser:
    """SD 2.1-base, randomly initialised on `device`."""
    with torch.device(device):
        unet = UNet2DConditionModel(**UNET)
        text = PromptEncoder(CLIPTextModel(CLIPTextConfig(**TEXT)))
        denoiser = Denoiser(unet, AutoencoderKL(**VAE), text, sd21_scheduler("epsilon"))
    denoiser.alpha_bar = denoiser.alpha_bar.to(device)
    return denoiser.eval()


def diffbir(device: str, kind: type[DiffBIR] = DiffBIR) -> DiffBIR:
    """A ControlNet over SD 2.1."""
    denoiser = sd21(device)
    with torch.device(device):
        controlnet = new_controlnet(denoiser)
    return kind(denoiser, controlnet.eval(), SIZE, STEPS, 1.0, Path("denoiser"))


def osediff(device: str) -> OSEDiff:
    """OSEDiff's adapters, of its official rank, on SD 2.1."""
    denoiser, rank = sd21(device), 4
    add_adapters(denoiser, rank)
    return OSEDiff(denoiser.to(device), SIZE, 999, rank, Path("denoiser"))


def gfpgan(device: str) -> GFPGAN:
    """GFPGANv1Clean at its official size."""
    return GFPGAN(OFFICIAL_GFPGAN).to(device).eval()


def face_reward(device: str) -> FaceRewardModel:
    """HPSv2's architecture, randomly initialised."""
    with torch.device(device):
        model = FaceRewardModel.from_config(RewardConfig(architecture="ViT-H-14", default_caption="a face"))
    return model.eval().requires_grad_(False)


class PublishedDiffBIR(DiffBIR):
    """The frozen ControlNet runs at every rollout step, though only the gradient step uses it; the gradient step keeps
    no activations of residual and transformer blocks (`use_checkpoint: True` in the authors' configuration); no CUDA
    graph."""

    def denoise(self, latents: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor,
                prompts: torch.Tensor) -> torch.Tensor:  # fmt: skip
        assert self.frozen is not None
        self.controls(self.frozen, latents, timestep, condition, prompts)
        return super().denoise(latents, timestep, condition, prompts)

    def start_training(self) -> None:
        super().start_training()
        self.graph = None
        self.denoiser.unet.enable_gradient_checkpointing()
        self.controlnet.enable_gradient_checkpointing()

    def hold_frozen(self, dtype: torch.dtype) -> None:
        """They stay fp32, as published."""


class Published(ReFL):
    """Nothing is kept between steps (the caches hold 0 MB, texts are forgotten), and HQ is encoded for its shape."""

    def gradient_steps(self, batch: MicroBatch) -> Iterator[GradientStep]:
        restorer = cast(DiffBIR, self.restorer)
        restorer.denoiser.text._cached.cache_clear()
        self.frm._text_cache.clear()
        with torch.no_grad(), self.autocast():
            restorer.denoiser.encode(batch.hq)
        yield from super().gradient_steps(batch)


def trainer(
    published: bool, device: str, steps: int, window: int = 1, restorer: Restorer | None = None, **changes: object
) -> ReFL:
    """A full-size trainer, by default of DiffBIR, without Accelerate: it knows no meta device, and keeps the one that
    it was first given."""
    restorer = restorer or diffbir(device, PublishedDiffBIR if published else DiffBIR)
    rollout: dict[str, Any] | None = None
    renoise = changes.pop("renoise", 1)
    if isinstance(restorer, DiffBIR):
        rollout = {"steps": steps, "gradient_window": window, "eta": (0.0, 1.0), "renoise": renoise}
    keeps = {"cache_mb": 0, "condition_cache_mb": 0} if published else {}
    settings: ReflParams = tiny_params(**(OFFICIAL | keeps | {"rollout": rollout} | changes))
    accelerator: Any = SimpleNamespace(device=torch.device(device), num_processes=1, process_index=0)
    made = (Published if published else ReFL)(
        restorer, face_reward(device), settings, VARIANTS["full"], faces(), 0, accelerator
    )
    if device == "meta":
        made.autocast = contextlib.nullcontext  # type: ignore[assignment]
        made.lowpass.forward = lambda images: made.lowpass.transform(images)[0]  # type: ignore[method-assign]
        _texts_on_meta(cast(DiffBIR, restorer).denoiser.text)
    return made


def faces() -> Images:
    return images_of(tiny.dataset(count=2, size=SIZE))


def flops(published: bool, renoise: int = 1, warm: bool = True) -> float:
    """FLOPs of one micro-step with its backward pass, the mean over the gradient window.

    `warm`: the face was seen before, so what is kept of it is there (with FFHQ's 70,000 faces none returns in 14,000
    micro-batches; with a few thousand most do).

    Every rollout step costs the same, so rollouts of 1 and 2 steps give the cost of any.
    """
    short, longer = (_counted(published, steps, renoise, warm) for steps in (2, 3))
    rollout_steps = STEPS - 1 - (WINDOW - 1) / 2
    return short + (rollout_steps - 1) * (longer - short)


def _counted(published: bool, steps: int, renoise: int, warm: bool) -> int:
    made = trainer(published, "meta", steps, renoise=renoise)
    batch = made.micro_batch(0)
    for cache in (made.cache, made.conditions):
        _on_meta(cache, published)
    if warm:
        made.cache.get(batch.keys, batch.hq, made.perceptual.features)
        made.conditions.get(batch.keys, batch.lq, lambda lq: [made.restorer.condition(lq)])
    made.restorer.encode_prompts(batch.prompts)
    made.frm.text_features(batch.captions)

    def micro_step() -> None:
        for one in made.gradient_steps(batch):
            one.loss.backward()

    return count_flops(micro_step)


def _texts_on_meta(text: PromptEncoder) -> None:
    """Keep features of prompts where they are computed, for the reason that `_on_meta` gives; only shapes count."""
    tokens = torch.zeros(1, text.text_model.config.max_position_embeddings, dtype=torch.long, device="meta")
    text._cached = lru_cache(lambda prompt: text.text_model(tokens).last_hidden_state[0])


def _on_meta(cache: PerFace, recompute: bool) -> None:
    """Meta tensors can't be moved to the CPU, where `PerFace` keeps what it computed: keep them as they are."""
    kept: dict[str, list[torch.Tensor]] = {}

    @torch.no_grad()
    def get(keys: object, batch: torch.Tensor, compute: Callable[[torch.Tensor], list[torch.Tensor]]) -> Any:
        if recompute or not kept:
            kept["all"] = compute(batch)
        return kept["all"]

    cache.get = get  # type: ignore[method-assign]


def counted_micro_batches(published: bool, accumulation: int = 4) -> np.ndarray:
    """Share of each micro-batch's gradient in the one that a tiny model's optimiser step applies."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    made = ReFL(tiny.diffbir(), tiny.frm(), tiny_params(accumulation=accumulation), VARIANTS["full"],
                images_of(tiny.dataset(size=64)), 0, accelerator)  # fmt: skip
    single = []
    for index in range(accumulation):
        made.optimizer.zero_grad()
        next(made.gradient_steps(made.micro_batch(index))).loss.backward()
        single.append(gradient(made))
    made.optimizer.zero_grad()
    if published:
        module, optimizer = accelerator.prepare(made.restorer.trained(), made.optimizer)
        for index in range(accumulation):
            with accelerator.accumulate(module):
                loss = next(made.gradient_steps(made.micro_batch(index))).loss
                optimizer.zero_grad()
                accelerator.backward(loss)
                applied = gradient(made)
                optimizer.step()
    else:
        made.step(0)
        applied = gradient(made)
    shares, *_ = np.linalg.lstsq(torch.stack(single).double().T.numpy(), applied.double().numpy(), rcond=None)
    return shares


def gradient(made: ReFL) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in made.trained if p.grad is not None]).clone()


def variance_ratio(renoise: int, draws: int) -> float:
    """Total variance of a tiny model's micro-batch gradient with `renoise` steps a rollout, relative to one."""
    rollout = {"steps": 10, "gradient_window": 2, "eta": (0.0, 1.0), "renoise": renoise}
    made = ReFL(tiny.diffbir(), tiny.frm(), tiny_params(rollout=rollout), VARIANTS["full"],
                images_of(tiny.dataset(size=64)), 0, Accelerator(cpu=True))  # fmt: skip
    found = []
    for index in range(draws):
        each = []
        for one in made.gradient_steps(made.micro_batch(index)):
            made.optimizer.zero_grad()
            one.loss.backward()
            each.append(gradient(made).double())
        found.append(torch.stack(each))
    gradients = torch.stack(found)  # [draws, renoise, parameters]
    return float(gradients.mean(1).var(0).sum() / gradients[:, 0].var(0).sum())


@dataclass(frozen=True)
class Timing:
    """Seconds of a micro-step on the GPU (median after two to warm up), its peak GiB, and that of the FRM's update."""

    seconds: float
    step: float
    update: float


def timed(published: bool, precision: str, repeats: int, tf32: bool = False, checkpointed: bool = False,
          renoise: int = 1, build: Callable[[str], Restorer] | None = None) -> Timing:  # fmt: skip
    """As stage refl runs it, with what it keeps of a face: optimiser steps of 4 micro-batches, one update of the FRM.

    Memory is what tensors hold; the captured graph's own pool, which nothing else can use, comes on top.
    """
    configure(RuntimeParams(tf32=tf32))
    restorer = build("cuda") if build else None
    made = trainer(published, "cuda", STEPS, WINDOW, restorer, precision=precision, renoise=renoise)
    if checkpointed:
        cast(DiffBIR, made.restorer).denoiser.checkpoint_decoder()
    seconds, update = [], 0.0
    for index in range(repeats + 2):
        if index == 2:  # both optimisers have their state from here on, as in all but the first steps of a run
            torch.cuda.reset_peak_memory_stats()
            made.update_reward([(made.micro_batch(0), made.micro_batch(0).hq)])
            update = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for one in made.gradient_steps(made.micro_batch(index % 2)):
            one.loss.backward()
        if index % 4 == 1:
            made.optimizer.step()
            made.optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    made.optimizer.step()
    step = torch.cuda.max_memory_allocated() / 2**30
    del made, one, restorer
    gc.collect()
    torch.cuda.empty_cache()
    return Timing(float(np.median(seconds[2:])), step, update)


def reserved(limit: float, steps: int) -> float:
    """GiB that torch takes from the GPU, at most `limit`, for `steps` optimiser steps of 4 micro-batches, each followed
    by an update of the FRM, and a restoration; bf16, decoder checkpointed. The CUDA context comes on top.

    Unlike `Timing`, this counts the captured graph's pool and what lies unused between tensors.
    Raises torch.OutOfMemoryError where the limit is too small.
    """
    configure(RuntimeParams())
    torch.cuda.set_per_process_memory_fraction(limit * 2**30 / torch.cuda.mem_get_info()[1])
    torch.cuda.reset_peak_memory_stats()
    made = trainer(False, "cuda", STEPS, WINDOW, precision="bf16")
    cast(DiffBIR, made.restorer).denoiser.checkpoint_decoder()
    for number in range(steps):
        _, outputs = made.step(number)
        made.update_reward(outputs)
    face = made.micro_batch(0)
    made.restorer.restore(face.lq, [""], ["face"], 0)
    return torch.cuda.max_memory_reserved() / 2**30


def main(renoise: int = 4, draws: int = 48, repeats: int = 8, only: str | None = None) -> None:
    """Print all ratios; `repeats` micro-steps are timed on a GPU. `only`: nothing but the GPU's rows so named."""
    if only is not None:
        on_gpu(renoise, repeats, only)
        return
    published, ours = flops(published=True), flops(published=False)
    print(f"FLOPs per micro-step, {SIZE} px, batch 1, {STEPS} rollout steps, gradient over the last {WINDOW}:")
    print(f"  published {published / 1e12:.1f} T   ours {ours / 1e12:.1f} T   ours / published {ours / published:.3f}")
    cold = flops(published=False, warm=False)
    print(f"  where no face returns, so that nothing kept of one helps: {cold / 1e12:.1f} T   {cold / published:.3f}")
    several = flops(published=False, renoise=renoise) / renoise
    print(f"FLOPs per gradient, renoise {renoise}: {several / 1e12:.1f} T, of renoise 1: {several / ours:.3f}")
    ratio = variance_ratio(renoise, draws)
    print(f"  variance of a micro-step's gradient (tiny model, {draws} draws), of renoise 1: {ratio:.3f}")
    print(f"  variance × FLOPs per micro-step, of renoise 1: {ratio * renoise * several / ours:.3f} (below 1 pays)")
    print("Share of each of 4 micro-batches' gradients in what the optimiser applies:")
    for name, is_published in (("published", True), ("ours", False)):
        shares = counted_micro_batches(is_published)
        print(f"  {name:9} {np.round(shares, 3).tolist()}: {int((shares > 0.01).sum())} of 4")
    if torch.cuda.is_available():
        on_gpu(renoise, repeats)
    else:
        print("Seconds and memory: no GPU here")


def on_gpu(renoise: int, repeats: int, only: str = "") -> None:
    """Print seconds and memory of full-size micro-steps whose name holds `only`, and of a run within 24 GB."""
    where = f"{torch.cuda.get_device_name()}, {SIZE} px, batch 1"
    print(f"A micro-step on {where}: seconds, peak GiB, and that of the FRM's update")
    taken: dict[str, Timing] = {}
    for name, settings in {
        "published fp32, TF32 off": {"published": True, "precision": "fp32"},
        "published fp32, TF32 on": {"published": True, "precision": "fp32", "tf32": True},
        "published bf16": {"published": True, "precision": "bf16"},
        "ours fp32, TF32 off": {"published": False, "precision": "fp32"},
        "ours bf16": {"published": False, "precision": "bf16"},
        "ours bf16, decoder checkpointed": {"published": False, "precision": "bf16", "checkpointed": True},
        "ours fp16": {"published": False, "precision": "fp16"},
        f"ours bf16, renoise {renoise}": {"published": False, "precision": "bf16", "renoise": renoise},
        "OSEDiff fp32, TF32 off": {"published": False, "precision": "fp32", "build": osediff},
        "OSEDiff bf16": {"published": False, "precision": "bf16", "build": osediff},
        "GFPGAN fp32, TF32 off": {"published": False, "precision": "fp32", "build": gfpgan},
        "GFPGAN bf16": {"published": False, "precision": "bf16", "build": gfpgan},
    }.items():
        if only not in name:
            continue
        taken[name] = one = timed(**settings, repeats=repeats)  # type: ignore[arg-type]
        print(f"  {name:32} {one.seconds:7.3f}   {one.step:5.1f}   {one.update:5.1f}", flush=True)
    if ours := taken.get("ours bf16"):
        for name, one in taken.items():
            if name.startswith("published"):
                print(f"  {name} / ours bf16: {one.seconds / ours.seconds:.2f}")
        if several := taken.get(f"ours bf16, renoise {renoise}"):
            ratio = several.seconds / renoise / ours.seconds
            print(f"  seconds per gradient, renoise {renoise} of renoise 1: {ratio:.3f}")
    if only in WITHIN:
        print(f"  {WITHIN}: {reserved(CARD, 3):.1f} GiB reserved of {CARD} GiB, by three optimiser steps and updates")


if __name__ == "__main__":
    typer.run(main)
