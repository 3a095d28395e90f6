"""The `base` group: the small restorers that ReFL starts from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.params import Params


class UnetParams(Params):
    """diffusers' UNet2DConditionModel, by its own names; the ControlNet takes the same shape."""

    sample_size: int = Field(ge=1)  # latents' side
    block_out_channels: list[int] = Field(min_length=1)
    down_block_types: list[str]
    up_block_types: list[str]
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"]
    layers_per_block: int = Field(ge=1)
    attention_head_dim: list[int]  # diffusers' name for the number of heads
    norm_num_groups: int = Field(ge=1)
    use_linear_projection: bool


class AutoencoderParams(Params):
    """The lossless pixel-unshuffle autoencoder."""

    block: int = Field(ge=1)  # px of one latent
    scaling_factor: float = Field(gt=0)
    posterior_std: float = Field(gt=0)


class TextParams(Params):
    """transformers' CLIPTextModel, by its own names; frozen at its random initialisation."""

    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    max_position_embeddings: int = Field(ge=3)  # tokens


class TrainParams(Params):
    """One training run."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=1)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    ema_decay: float = Field(ge=0, lt=1)  # of the averaged weights that are kept
    validate_every: int = Field(ge=1)  # steps


class DiffbirParams(Params):
    """DiffBIR: denoiser and ControlNet trained jointly, so that a small budget suffices."""

    steps: int = Field(ge=1, le=500)  # DDIM steps of a restoration
    eta: float = Field(ge=0, le=1)
    control_dropout: float = Field(ge=0, lt=1)  # share of batches without controls: the denoiser stays a prior
    train: TrainParams


class OsediffWeightParams(Params):
    """Weights of OSEDiff's losses. Official: pixels' squared distance 1 and LPIPS 2, beside a distillation."""

    latents: float = Field(ge=0)
    perceptual: float = Field(ge=0)

    @model_validator(mode="after")
    def _something_counts(self) -> OsediffWeightParams:
        if not self.latents + self.perceptual:
            raise ValueError("latents and perceptual are both 0, so there is nothing to minimise")
        return self


class OsediffParams(Params):
    """OSEDiff: LoRA over the frozen denoiser, one step."""

    timestep: int = Field(ge=1, le=999)
    rank: int = Field(ge=1)
    weights: OsediffWeightParams
    perceptual_net: Literal["alex", "vgg"]  # of ST-LPIPS
    train: TrainParams


class OfficialFiles(Params):
    """Paths of the official files; where one is missing, the message says where it comes from."""

    stable_diffusion: str
    diffbir: str
    cleaner: str
    osediff: str


class BaseParams(Params):
    """The `base` group: small models trained here (`source: train`), or the official ones (`source: import`)."""

    source: Literal["train", "import"]
    weights: OfficialFiles | None  # import only
    prompt_dropout: float = Field(ge=0, le=1)  # share of faces trained with the empty prompt
    checkpoint_every: int = Field(ge=1)
    validation_batch: int = Field(ge=1)
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    unet: UnetParams | None  # these three: train only; what is imported tells its own shape
    vae: AutoencoderParams | None
    text: TextParams | None
    diffbir: DiffbirParams
    osediff: OsediffParams

    @model_validator(mode="after")
    def _of_one_source(self) -> BaseParams:
        for name, source in {"unet": "train", "vae": "train", "text": "train", "weights": "import"}.items():
            wanted = "given" if source == self.source else "null"
            if (getattr(self, name) is not None) != (wanted == "given"):
                raise ValueError(f"{name} must be {wanted} for source: {self.source}")
        return self
