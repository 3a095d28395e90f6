"""`diffusionreward weights`: official weights in, ours out; pipeline/cli.py mounts them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
import typer
from diffusers import ControlNetModel

from pipeline import tables
from pipeline.params import UserError, read
from pipeline.report.sentences import label_sentence
from pipeline.restorers.card import Facts, card
from pipeline.restorers.checkpoints import (
    Files,
    Settings,
    export_adapters,
    export_controlnet,
    export_osediff,
    import_weights,
)
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.gfpgan import GFPGAN, from_official
from pipeline.restorers.load import load
from pipeline.restorers.osediff import OSEDiff, adapted_encoder
from pipeline.runtime import (
    Device,
    RuntimeParams,
    atomic,
    configure,
    device,
    one_line_errors,
    require_writable,
    write_text,
)

weights_app = typer.Typer(no_args_is_help=True, help="Official weights in, trained weights out.")
OFFICIAL = Settings()


@weights_app.command("import")
@one_line_errors
def import_(
    out: Annotated[Path, typer.Option(help="Gets denoiser/, diffbir/, osediff/ and gfpgan/.")],
    stable_diffusion: Annotated[
        Path | None, typer.Option(help="SD 2.1-base: .ckpt, .safetensors or a diffusers folder.")
    ] = None,
    diffbir: Annotated[
        Path | None, typer.Option(help="v1_face.pth, or a ControlNet after ReFL; needs --cleaner.")
    ] = None,
    cleaner: Annotated[Path | None, typer.Option(help="face_swinir_v1.ckpt.")] = None,
    osediff: Annotated[Path | None, typer.Option(help="osediff.pkl or osediff_face.pkl.")] = None,
    gfpgan: Annotated[Path | None, typer.Option(help="GFPGANv1.4.pth or v1.3; 512 px.")] = None,
    size: Annotated[int, typer.Option(help="px, side of the faces.", min=64)] = OFFICIAL.native_size,
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"], typer.Option(help="of the UNet; v_prediction is SD 2.1's at 768 px.")
    ] = "epsilon",
) -> None:
    """Turn the official files into restorers that every command and stage can load. Nothing is fetched."""
    configure(RuntimeParams())
    if size % 64:
        raise UserError(f"--size {size}: autoencoder and UNet halve it six times; choose a multiple of 64")
    if stable_diffusion is None and (diffbir or cleaner or osediff or not gfpgan):
        raise UserError("--stable-diffusion: missing; DiffBIR and OSEDiff are made of it (--gfpgan alone needs none)")
    wanted = {"denoiser": stable_diffusion, DiffBIR.kind: diffbir, OSEDiff.kind: osediff, GFPGAN.kind: gfpgan}
    if there := [out / name for name, given in wanted.items() if given and os.path.lexists(out / name)]:
        raise UserError(f"{there[0]}: already exists; remove it, or name another --out")
    require_writable(out, "--out")
    with TemporaryDirectory(dir=out, prefix=".import.") as folder:  # all of it, or nothing
        building = Path(folder)
        if gfpgan:
            from_official(gfpgan).save(building / GFPGAN.kind)
        if stable_diffusion:
            settings = Settings(native_size=size, prediction_type=prediction_type)
            import_weights(Files(stable_diffusion, diffbir, cleaner, osediff), building, settings, device("cpu"))
        for made in sorted(building.iterdir()):
            made.replace(out / made.name)
            print(out / made.name)


@weights_app.command("export")
@one_line_errors
def export(
    model: Annotated[Path, typer.Argument(help="A saved restorer, e.g. data/refl/diffbir/full.")],
    out: Annotated[Path, typer.Option(help="A new folder for the weights and their README.md.")],
    params: Annotated[Path | None, typer.Option(help="The run's params.yaml, for the card.")] = None,
    votes: Annotated[Path | None, typer.Option(help="The run's data/votes, for the card.")] = None,
    metrics: Annotated[Path | None, typer.Option(help="A JSON file of figures, for the card.")] = None,
    on: Annotated[Device, typer.Option("--device", help="auto is CUDA when there is one.")] = "cpu",
) -> None:
    """Write a restorer's trained weights in its authors' format and diffusers' layout (those it has), and a card."""
    configure(RuntimeParams(device=on))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is a file or not empty; name a new folder")
    require_writable(out, "--out")
    facts = Facts(
        read(params) if params else None,
        _labels(votes) if votes else None,
        _json(metrics) if metrics else None,
    )
    restorer = load(model, device(on))
    if isinstance(restorer, GFPGAN):
        files = _export_gfpgan(restorer, out)
    else:
        files = _export_diffbir(restorer, out) if isinstance(restorer, DiffBIR) else _export_osediff(restorer, out)
    write_text(out / "README.md", card(restorer, model, files, facts))
    for name in [*files, "README.md"]:
        print(out / name)


def _export_gfpgan(restorer: GFPGAN, out: Path) -> dict[str, str]:
    state = {name: value.detach().cpu() for name, value in restorer.official_state().items()}
    with atomic(out / "gfpgan.pth") as temporary:
        torch.save({"params_ema": state}, temporary)
    return {"gfpgan.pth": "GFPGAN's format, as GFPGANv1.4.pth: for GFPGAN and, of 512 px, `gan.pretrained`"}


def _export_diffbir(restorer: DiffBIR, out: Path) -> dict[str, str]:
    export_controlnet(restorer.controlnet, out / "controlnet.pth")
    _with_hint(restorer.controlnet).save_pretrained(out / "controlnet")
    return {
        "controlnet.pth": "DiffBIR's format, as v1_face.pth: for DiffBIR, or `diffusionreward weights import`",
        "controlnet": "diffusers' ControlNetModel: feed cat(x_t, condition); its hint block is zero, any hint will do",
    }


def _with_hint(controlnet: ControlNetModel) -> ControlNetModel:
    """With a hint block of zeros: diffusers leaves weights that a file lacks uninitialised."""
    whole = ControlNetModel.from_config(controlnet.config)
    whole.controlnet_cond_embedding.requires_grad_(False)
    for parameter in whole.controlnet_cond_embedding.parameters():
        parameter.zero_()
    whole.load_state_dict(controlnet.state_dict(), strict=False)
    return whole


def _export_osediff(restorer: OSEDiff, out: Path) -> dict[str, str]:
    files = {}
    if adapted_encoder(restorer.denoiser):
        export_osediff(restorer, out / "osediff.pkl")
        files["osediff.pkl"] = "OSEDiff's format: for OSEDiff, or `diffusionreward weights import`"
    else:
        print(
            "osediff.pkl is left out: OSEDiff's own code needs an adapter on the VAE's encoder, and this model has none"
        )
    for name in export_adapters(restorer, out):
        part, adapter = name.removesuffix(".safetensors").split("_", 1)
        files[name] = (
            "the UNet's conv_in, which is trained whole"
            if adapter == "conv_in"
            else f'`{part}.load_lora_adapter(folder, weight_name="{name}", adapter_name="{adapter}", prefix=None)`'
        )
    return files


def _labels(votes: Path) -> str:
    frame = tables.read_frame(tables.VOTES, votes, ["event_id", "annotator", "annotator_kind"])
    groups = frame.groupby("annotator_kind")
    return label_sentence(
        {str(kind): len(part) for kind, part in groups},
        {str(kind): int(part["annotator"].nunique()) for kind, part in groups},
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: no readable JSON object ({error})") from None
