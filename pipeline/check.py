"""`diffusionreward check`: every group of params.yaml against its model, before hours of work and not between them."""

from __future__ import annotations

from pipeline.annotation.labels import LabelsParams
from pipeline.annotation.pairs import PairsParams
from pipeline.annotation.svm import SvmParams
from pipeline.base.gan import GanParams
from pipeline.base.params import BaseParams
from pipeline.degradation import DegradationParams
from pipeline.evaluation.params import BenchmarkParams
from pipeline.faces.params import FacesParams
from pipeline.features import FeatureParams
from pipeline.params import PARAMS_FILE, Params, UserError, load, value
from pipeline.refl.params import ReflParams, parse_variant
from pipeline.report.params import ReportParams
from pipeline.restorers.candidates import RestoreParams
from pipeline.reward.learning import LearningParams
from pipeline.reward.params import FrmParams
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
    """Check every group of params.yaml: unknown keys, wrong types, values out of range."""
    problems = []
    for group, model in MODELS.items():
        names = value("refl.restorers") if "*" in group else [""]
        for name in names:
            try:
                load(group.replace("*", name), model)
            except UserError as error:
                problems.append(str(error))
    variants: list[str] = value("refl.variants")
    if "full" not in variants:
        problems.append(f"{PARAMS_FILE}: refl.variants lacks `full`, which stage benchmark compares with the others")
    for variant in variants:
        try:
            first = parse_variant(variant)[0]
        except UserError as error:
            problems.append(f"{PARAMS_FILE}: {error}")
            continue
        if first not in variants:
            problems.append(f"{PARAMS_FILE}: refl.variants has `{variant}` but not `{first}`, which it repeats")
    if problems:
        raise UserError("; ".join(problems))
