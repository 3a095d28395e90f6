"""The model card of exported weights: a README.md that says what they are, from what, and on whose terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.restorers.autoencoder import PixelUnshuffleAutoencoder
from pipeline.restorers.diffbir import DiffBIR
from pipeline.restorers.gfpgan import GFPGAN, OFFICIAL
from pipeline.restorers.osediff import OSEDiff

WHAT = {
    "diffbir": "a ControlNet of DiffBIR (Lin et al. 2023), which conditions a frozen denoiser on a degraded face's "
    "latents, through its first convolution",
    "osediff": "the LoRA adapters of OSEDiff (Wu et al. 2024) and the UNet's conv_in, for one denoising step from a "
    "degraded face's latents",
    "gfpgan": "a whole GFPGANv1Clean (Wang et al. 2021), of which ReFL trains the decoder",
}
_SD = "Stable Diffusion 2.1-base: CreativeML Open RAIL++-M; its use restrictions pass on to what is made from it"
IMPORTED_TERMS = {
    "diffbir": [
        _SD,
        "DiffBIR: Apache-2.0",
        "its face cleaner (SwinIR, not in this folder) comes from DifFace: S-Lab License 1.0, non-commercial",
    ],
    "osediff": [_SD, "OSEDiff: Apache-2.0"],
    "gfpgan": ["GFPGAN: Apache-2.0 with third-party parts of other terms; trained on FFHQ"],
}
TRAINED_TERMS = ["base trained from scratch by stage `base` or `gan`: no terms but those of the faces"]
FACE_TERMS = {  # by faces.source
    "sample": "sample faces: made by a generator trained on DigiFace-1M, which Microsoft publishes for research on its "
    "own terms",
    "folder": "your faces: see the terms of the set that they come from (FFHQ: CC BY-NC-SA 4.0, single images differ)",
}
SELECTION_TERMS = (
    "with `keep: best` its checkpoint is chosen by landmarks of a model trained on iBUG 300-W (research only)"
)


@dataclass(frozen=True)
class Facts:
    """What the weights themselves don't say; None where it wasn't given."""

    params: Mapping[str, Any] | None  # of the run that made them
    labels: str | None  # who judged, a sentence
    metrics: Mapping[str, Any] | None


def card(restorer: DiffBIR | OSEDiff | GFPGAN, model: Path, files: Mapping[str, str], facts: Facts) -> str:
    """Markdown; `model` is the saved restorer's folder, `files` what each exported file is."""
    kind = restorer.kind
    params = {name: value for name, value in (facts.params or {}).items() if value is not None}
    imported = _imported(restorer, params)
    trained = sum(p.numel() for p in _exported(restorer))
    lines = [
        "---",
        *([] if isinstance(restorer, GFPGAN) else ["library_name: diffusers"]),
        "tags: [face-restoration, reward-feedback-learning]",
        "---",
        f"# {kind}, from {model}",
        "",
        f"{trained:,} weights: {WHAT[kind]}. Made by DiffusionReward.",
        "",
        *_table(
            ("", ""),
            [
                ("Base model", _base(restorer, params, imported)),
                ("Image size", f"{restorer.native_size} px"),
                ("Sampling", _sampling(restorer)),
                ("Faces", _faces(params)),
                ("Preference labels", facts.labels or "not given"),
            ],
        ),
        "",
        "## Files",
        "",
        *_table(("file", "what"), list(files.items())),
        "",
        "## Metrics",
        "",
        *(_table(("measure", "value"), list(_flat(facts.metrics))) if facts.metrics else ["Not given."]),
        "",
        "## Terms",
        "",
        *(f"- {term}" for term in (IMPORTED_TERMS[kind] if imported else TRAINED_TERMS) + _face_terms(params)),
        *([] if params.get("refl", {}).get(kind, {}).get("keep") == "last" else [f"- {SELECTION_TERMS}"]),
        "",
        "## Parameters",
        "",
        *_params(params, kind),
    ]
    return "\n".join(lines) + "\n"


def _imported(restorer: DiffBIR | OSEDiff | GFPGAN, params: Mapping[str, Any]) -> bool:
    if isinstance(restorer, GFPGAN):
        return bool(params["gan"].get("pretrained")) if "gan" in params else restorer.size == OFFICIAL
    return not isinstance(restorer.denoiser.vae, PixelUnshuffleAutoencoder)


def _exported(restorer: DiffBIR | OSEDiff | GFPGAN) -> Iterator[Any]:
    if isinstance(restorer, GFPGAN):
        yield from restorer.parameters()
        return
    if isinstance(restorer, DiffBIR):
        yield from restorer.controlnet.parameters()
        return
    names = set(restorer.trained_names())
    yield from (p for name, p in restorer.denoiser.unet.named_parameters() if name in names)
    yield from (p for name, p in restorer.denoiser.vae.named_parameters() if "lora_" in name)


def _base(restorer: DiffBIR | OSEDiff | GFPGAN, params: Mapping[str, Any], imported: bool) -> str:
    if isinstance(restorer, GFPGAN):
        path = params.get("gan", {}).get("pretrained")
        return str(path or ("imported, file not given" if imported else "trained from scratch by stage `gan`"))
    if imported:
        weights = params.get("base", {}).get("weights") or {}
        base = ", ".join(f"{part}: {path}" for part, path in weights.items()) or "imported, files not given"
    else:
        base = "a small denoiser trained from scratch by stage `base`"
    whole = sum(p.numel() for p in restorer.denoiser.unet.parameters())
    return f"{base}; UNet of {whole:,} weights, not in this folder"


def _sampling(restorer: DiffBIR | OSEDiff | GFPGAN) -> str:
    if isinstance(restorer, GFPGAN):
        return "none: one forward pass"
    if isinstance(restorer, DiffBIR):
        first = "on the LQ cleaned by SwinIR" if restorer.cleaner is not None else "on the LQ itself"
        return f"DDIM, {restorer.steps} steps, eta {restorer.eta:g}, conditioned {first}"
    return f"one step at t = {restorer.timestep}, rank {restorer.rank}"


def _faces(params: Mapping[str, Any]) -> str:
    faces = params.get("faces", {})
    if not {"source", "count"} <= set(faces) or "image_size" not in params:
        return "not given"
    if faces["source"] == "sample":
        return f"{faces['count']:,} synthetic faces of the sample generator, {params['image_size']} px"
    return f"at most {faces['count']:,} faces of a folder of the trainer's own, {params['image_size']} px"


def _face_terms(params: Mapping[str, Any]) -> list[str]:
    """Those of the faces that it was trained on; of every source where the params were not given."""
    source = params.get("faces", {}).get("source")
    return [terms for name, terms in FACE_TERMS.items() if source in (name, None)]


def _params(params: Mapping[str, Any], kind: str) -> list[str]:
    if not params:
        return ["Not given."]
    base = "gan" if kind == GFPGAN.kind else "base"
    shown = {name: params[name] for name in ("seed", "image_size", "degradation", base, "frm") if name in params}
    shown["refl"] = {kind: params.get("refl", {}).get(kind)}
    text = yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)
    return ["```yaml", *text.splitlines(), "```"]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every number of a JSON value with its dotted path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        yield name, ", ".join(map(str, value))
    else:
        yield name, f"{value:.6g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *escaped)]
