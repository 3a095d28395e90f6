"""`diffusionreward check`: params.yaml and what it names, before hours of work and not between them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from pipeline.annotation.labels import LabelsParams
from pipeline.annotation.pairs import PairsParams
from pipeline.annotation.svm import SvmParams
from pipeline.base.gan import GanParams
from pipeline.base.official import official_files
from pipeline.base.params import BaseParams
from pipeline.degradation import DegradationParams
from pipeline.evaluation.folders import open_set
from pipeline.evaluation.params import BenchmarkParams
from pipeline.faces.params import FacesParams
from pipeline.features import FeatureParams
from pipeline.metrics.catalogue import PYIQA_BLIND, SET_METRICS
from pipeline.metrics.catalogue import known as known_metrics
from pipeline.params import PARAMS_FILE, Params, UserError, load, value
from pipeline.refl.params import MORE_BASE, ReflParams, parse_variant, rollout_problem
from pipeline.report.params import ReportParams
from pipeline.restorers.candidates import RestoreParams
from pipeline.restorers.denoiser import new_denoiser
from pipeline.restorers.diffbir import new_controlnet
from pipeline.restorers.external import External
from pipeline.restorers.gfpgan import GFPGAN, require_official
from pipeline.restorers.load import KINDS, SAMPLERS
from pipeline.reward.learning import LearningParams
from pipeline.reward.model import check_official
from pipeline.reward.params import FrmParams, RewardParams
from pipeline.reward.train import build
from pipeline.runtime import RuntimeParams, one_line_errors

MODELS: dict[str, type[Params]] = {
    "faces": FacesParams,
    "degradation": DegradationParams,
    "base": BaseParams,
    "gan": GanParams,
    "restore": RestoreParams,
    "features": FeatureParams,
    "pairs": PairsParams,
    "labels": LabelsParams,
    "svm": SvmParams,
    "frm": FrmParams,
    "learning": LearningParams,
    "refl.*": ReflParams,  # one of each restorer
    "benchmark": BenchmarkParams,
    "report": ReportParams,
    "runtime": RuntimeParams,
}


@one_line_errors
def check() -> None:
    """Check params.yaml: unknown keys, wrong types, values out of range; folders, weights, networks that it names."""
    for name in ("seed", "image_size"):  # of no group; `value` says which is missing
        value(name)
    problems = _refl_problems()
    restorers = [] if problems else value("refl.restorers")
    for group, model in MODELS.items():
        names = restorers if "*" in group else [""]
        for name in names:
            try:
                load(group.replace("*", name), model)
            except UserError as error:
                problems.append(str(error))
    if not problems:  # what only shows between groups
        problems = [f"{PARAMS_FILE}: {one}" for one in _late_problems()]
    if problems:
        raise UserError("; ".join(problems))
    for folder in _left_over():
        said = "it is no longer in refl.restorers and refl.variants, but DVC still hashes it: delete it"
        print(f"warning: {folder}: {said}", file=sys.stderr)
    automatic = load("runtime", RuntimeParams).device == "auto" and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    if automatic and Path("/dev/nvidia0").exists() and not torch.cuda.is_available():
        said = f"torch {torch.__version__} can't use this machine's GPU, so everything runs on the CPU"
        print(f"warning: runtime.device: {said}; is its driver new enough?", file=sys.stderr)


def _left_over() -> list[Path]:
    """Trainings of an earlier matrix: a `dvc.lock` made beside them is one that no other clone can have."""
    made = sorted(path for path in Path("data/refl").glob("*/*") if path.is_dir())
    matrix = {Path("data/refl", one, variant) for one in value("refl.restorers") for variant in value("refl.variants")}
    return [path for path in made if path not in matrix]


def _refl_problems() -> list[str]:
    """The rows and columns of stage refl's matrix."""
    refl = value("refl")
    if not isinstance(refl, dict):
        return [f"{PARAMS_FILE}: refl holds no restorers and variants"]
    problems = []
    for name in ("restorers", "variants"):
        entries = refl.get(name)
        if not (isinstance(entries, list) and entries and all(isinstance(one, str) for one in entries)):
            problems.append(f"refl.{name}: must be a list of names, not {entries!r}")
        elif len(set(entries)) < len(entries):
            problems.append(f"refl.{name}: names one of {entries!r} twice")
    if not problems:
        restorers, variants = refl["restorers"], refl["variants"]
        known = {"restorers", "variants", *KINDS}
        problems += [f"refl.{name}: unknown; known: {', '.join(KINDS)}" for name in sorted(map(str, set(refl) - known))]
        problems += [f"refl.restorers: unknown restorer `{one}`" for one in restorers if one not in KINDS]
        problems += [f"refl.{one}: missing, though refl.restorers names it" for one in restorers if one not in refl]
        if "full" not in variants:
            problems.append("refl.variants lacks `full`, which stage benchmark compares with the others")
        for variant in variants:
            try:
                first = parse_variant(variant)[0]
            except UserError as error:
                problems.append(str(error))
                continue
            if first not in variants:
                problems.append(f"refl.variants has `{variant}` but not `{first}`, which it repeats")
    return [f"{PARAMS_FILE}: {one}" for one in problems]


def _late_problems() -> list[str]:
    """Names, sizes, files and networks that a stage hours away would stumble over."""
    problems = [*_missing_folders(), *_impossible_networks()]
    size, base = value("image_size"), load("base", BaseParams)
    if base.vae and base.unet and size % (cell := base.vae.block * 2 ** (len(base.unet.block_out_channels) - 1)):
        problems.append(f"image_size: {size} px can't be halved as base.vae.block and base.unet do, by {cell} in all")
    for name, setting in load("restore", RestoreParams).settings.items():
        if setting.restorer not in (*KINDS, External.kind):
            problems.append(f"restore.settings.{name}.restorer: unknown restorer `{setting.restorer}`")
    benchmark = load("benchmark", BenchmarkParams)
    features = [name for name in load("features", FeatureParams).names if name != PYIQA_BLIND]
    problems += _refused(
        partial(known_metrics, features, "features.names"),
        partial(known_metrics, benchmark.metrics, "benchmark.metrics", SET_METRICS),
        partial(benchmark.must_not_name, value("refl.restorers")),
        *(
            partial(open_set, name, one.lq, one.hq, size, one.resize)
            for name, one in benchmark.datasets.items()
            if all(Path(folder).is_dir() for folder in (one.lq, one.hq) if folder)
        ),
    )
    labels, frm = load("labels", LabelsParams), load("frm", FrmParams)
    if labels.source != "human" and size // max(labels.scales) < 2:
        problems.append(f"labels.scales: {max(labels.scales)} leaves no gradient in images of {size} px")
    if labels.source == "simulated":
        if (wanted := frm.evaluation.min_annotators) > labels.votes.test_votes:
            problems.append(
                f"frm.evaluation.min_annotators: {wanted}, but labels.votes.test_votes gives a pair "
                f"{labels.votes.test_votes}, so no pair would count in the headline"
            )
        voters = {one.name for one in labels.annotators}
        for where, model in (("reward", frm.reward), ("heldout", frm.heldout)):
            if silent := sorted(set(model.annotators or ()) - voters):
                problems.append(f"frm.{where}.annotators: `{silent[0]}` is none of labels.annotators")
    if labels.source == "human":
        simulated = {one.name for one in labels.annotators}
        if nobody := sorted(set(frm.heldout.annotators or ()) & simulated):
            problems.append(
                f"frm.heldout.annotators: `{nobody[0]}` is simulated, and labels.source is `human`; name people, or "
                "set it to null"
            )
    for name in value("refl.restorers"):
        refl = load(f"refl.{name}", ReflParams)
        if MORE_BASE in value("refl.variants") and refl.patience:
            problems.append(f"refl.{name}.patience: {MORE_BASE} spends the compute of all steps; set it to null")
        if problem := rollout_problem(name, name in SAMPLERS, refl.rollout):
            problems.append(problem)
        if name == GFPGAN.kind and refl.normalise:
            problems.append(f"refl.{name}.normalise: {name} has no timestep to normalise by; set it to false")
    if (steps := load("learning", LearningParams).steps) <= frm.training.warmup_steps:
        problems.append(f"learning.steps: {steps} end within frm.training.warmup_steps ({frm.training.warmup_steps})")
    return problems


def _refused(*looks: Callable[[], object]) -> list[str]:
    """What those of `looks` that refuse say."""
    problems = []
    for look in looks:
        try:
            look()
        except UserError as error:
            problems.append(str(error))
    return problems


def _missing_folders() -> list[str]:
    """Folders of other people's images that are not there; stage prepare, the first, looks at `faces.folder` itself."""
    benchmark = load("benchmark", BenchmarkParams)
    named = {
        f"restore.settings.{name}.folder": one.folder for name, one in load("restore", RestoreParams).settings.items()
    }
    named |= {f"benchmark.external.{name}": folder for name, folder in benchmark.external.items()}
    for name, one in benchmark.datasets.items():
        named |= {f"benchmark.datasets.{name}.lq": one.lq, f"benchmark.datasets.{name}.hq": one.hq}
    return [f"{key}: {folder} is no folder" for key, folder in named.items() if folder and not Path(folder).is_dir()]


def _impossible_networks() -> list[str]:
    """Official weights that are not there, and networks that their libraries can't build."""
    size, base, gan = value("image_size"), load("base", BaseParams), load("gan", GanParams)
    frm = load("frm", FrmParams)

    def diffusion() -> None:
        if base.weights:
            official_files(base.weights).check()
        if base.unet and base.vae and base.text:
            parts = (base.unet.model_dump(), base.vae.model_dump(), base.text.model_dump())
            new_controlnet(new_denoiser(*parts, base.prediction_type))

    def adversarial() -> None:
        gan.must_fit(size)
        if gan.pretrained:
            require_official(Path(gan.pretrained))

    def reward(model: RewardParams) -> None:
        if model.pretrained:
            check_official(model.pretrained)
        with torch.device("meta"):  # of any size at once, without memory
            build(model.model_copy(update={"pretrained": None}), frm.default_caption, value("seed"))

    problems = []
    for key, look in (
        ("base", diffusion),
        ("gan", adversarial),
        ("frm.reward", partial(reward, frm.reward)),
        ("frm.heldout", partial(reward, frm.heldout)),
    ):
        said = [one.replace("frm.*", key) for one in _refused(look)]
        problems += [one if one.startswith(f"{key}.") else f"{key}: {one}" for one in said]
    return problems
