"""The support vector machine that labels the pairs nobody judged, swap-symmetric by construction.

A pair is the difference d of the standardised features of its candidates. It is trained on both mirrors (d, y) and
(−d, 1 − y), and answers (p(d) + 1 − p(−d)) / 2, so that p(a before b) + p(b before a) = 1 exactly. All pairs of a face,
and both mirrors of a pair, stay in one fold.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GroupKFold
from sklearn.svm import SVC

from pipeline.params import Params, UserError
from pipeline.runtime import write_bytes

Array = NDArray[np.float64]
# what a saved machine may hold: loading anything else is refused
TRUSTED = (
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
)


class SvmParams(Params):
    """The `svm` group."""

    outer_folds: int = Field(ge=2)  # of faces: kernel choice, abstention threshold
    inner_folds: int = Field(ge=2)  # of faces: C and gamma, calibration
    c: list[PositiveFloat] = Field(min_length=1)  # penalties tried
    gamma: list[PositiveFloat] = Field(min_length=1)  # RBF widths tried, times 1 / number of features
    target_accuracy: float = Field(gt=0.5, le=1)  # of the answers given, out of fold: below it the machine abstains
    min_coverage: float = Field(gt=0, le=1)  # but never on more than 1 − this share of pairs
    importance_repeats: int = Field(ge=1)  # permutations of each feature
    resamples: int = Field(ge=100)  # of the bootstrap, clustered by face


@dataclass(frozen=True)
class Setting:
    """One machine to try; `gamma` is None for the linear kernel."""

    kernel: str
    c: float
    gamma: float | None = None

    def svc(self, features: int) -> SVC:
        """The untrained machine for that number of features."""
        return SVC(kernel=self.kernel, C=self.c, gamma="auto" if self.gamma is None else self.gamma / features)


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs with a winner, before mirroring."""

    x: Array  # [N, features] differences of standardised features
    a_wins: NDArray[np.bool_]  # [N]
    weight: Array  # [N] confidence of the label
    groups: NDArray[Any]  # [N] what no fold may split: a face, or the person or photo that several faces are of

    def take(self, rows: NDArray[np.int64]) -> LabelledPairs:
        """The pairs of these rows."""
        return LabelledPairs(self.x[rows], self.a_wins[rows], self.weight[rows], self.groups[rows])

    def mirrored(self) -> LabelledPairs:
        """Every pair and its mirror image: [2N]."""
        return LabelledPairs(
            np.concatenate([self.x, -self.x]),
            np.concatenate([self.a_wins, ~self.a_wins]),
            np.concatenate([self.weight, self.weight]),
            np.concatenate([self.groups, self.groups]),
        )

    def folds(self, count: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(train, test) rows, groups never on both sides. Raises UserError for fewer groups than folds."""
        if (groups := len(np.unique(self.groups))) < count:
            raise UserError(
                f"decided votes of the fit split are on {groups} faces (or people, where some share one), fewer than "
                f"{count} folds; collect votes on other faces, set labels.source to both, or lower svm.outer_folds and "
                "svm.inner_folds"
            )
        return list(GroupKFold(count).split(self.x, groups=self.groups))


@dataclass(frozen=True)
class Standardiser:
    """Features → standardised features: declared median imputation, then zero mean and unit deviation."""

    columns: tuple[str, ...]
    median: Array
    mean: Array
    deviation: Array

    @classmethod
    def fit(cls, features: pd.DataFrame) -> Standardiser:
        """From the candidates of the fit faces; columns that never vary (or have no value at all) are left out."""
        values = features.astype(np.float64).replace([np.inf, -np.inf], np.nan)
        varying = values.columns[values.nunique() > 1]
        if not len(varying):
            raise UserError("data/features: no feature varies, so nothing can be learnt; rerun `dvc repro features`")
        values = values[varying]
        median = values.median()
        filled = values.fillna(median)
        return cls(
            tuple(varying),
            median.to_numpy(np.float64),
            filled.mean().to_numpy(np.float64),
            filled.std(ddof=0).to_numpy(np.float64),
        )

    def __call__(self, features: pd.DataFrame) -> Array:
        """[N, columns]; values that are not finite become the median. Raises UserError for a missing column."""
        if missing := sorted(set(self.columns) - set(features.columns)):
            raise UserError(f"data/features: column `{missing[0]}` that the SVM was trained on is missing")
        values = features[list(self.columns)].to_numpy(np.float64)
        filled = np.where(np.isfinite(values), values, self.median)
        return (filled - self.mean) / self.deviation


def train(pairs: LabelledPairs, setting: Setting, folds: int) -> CalibratedClassifierCV:
    """A calibrated machine trained on both mirrors; Platt's sigmoid is fitted on grouped out-of-fold margins."""
    both = pairs.mirrored()
    model = CalibratedClassifierCV(
        setting.svc(pairs.x.shape[1]), method="sigmoid", ensemble=False, cv=both.folds(folds)
    )
    model.fit(both.x, both.a_wins, sample_weight=both.weight)
    return model


def probability(model: CalibratedClassifierCV, x: Array) -> Array:
    """P(a before b) [N] for differences [N, features]; probability(x) + probability(−x) = 1."""
    if not len(x):
        return np.zeros(0)
    forward, backward = (model.predict_proba(side)[:, 1] for side in (x, -x))
    return (forward + (1 - backward)) / 2


def _accuracies(pairs: LabelledPairs, setting: Setting, folds: int) -> Array:
    """Accuracy [folds] of an uncalibrated machine on held-out faces."""
    found = []
    for inside, outside in pairs.folds(folds):
        both, held_out = pairs.take(inside).mirrored(), pairs.take(outside)
        machine = setting.svc(pairs.x.shape[1]).fit(both.x, both.a_wins, sample_weight=both.weight)
        margin = machine.decision_function(held_out.x) - machine.decision_function(-held_out.x)
        found.append(float(((margin > 0) == held_out.a_wins).mean()))
    return np.array(found)


def simplest_within_one_error(accuracies: Sequence[Array]) -> int:
    """Index of the first (simplest) of several settings, in order of complexity, whose mean accuracy over folds is
    within one standard error of the best one's. Source: Breiman et al. 1984; Hastie et al. 2009, section 7.10.
    """
    means = np.array([one.mean() for one in accuracies])
    best = int(means.argmax())
    error = accuracies[best].std(ddof=1) / np.sqrt(len(accuracies[best]))
    return int(np.flatnonzero(means >= means[best] - error)[0])


def tune(pairs: LabelledPairs, kernel: str, params: SvmParams) -> Setting:
    """C (and gamma) of one kernel by grouped cross-validation and the one-standard-error rule."""
    gammas = sorted(params.gamma) if kernel == "rbf" else [None]
    settings = [Setting(kernel, c, gamma) for c in sorted(params.c) for gamma in gammas]
    return settings[simplest_within_one_error([_accuracies(pairs, one, params.inner_folds) for one in settings])]


@dataclass(frozen=True)
class Nested:
    """Nested, grouped cross-validation of one kernel: everything is chosen inside the outer training faces."""

    accuracies: Array  # [outer folds]
    p_a: Array  # [N] out-of-fold probabilities


def nested(pairs: LabelledPairs, kernel: str, params: SvmParams) -> Nested:
    """Nested cross-validation of one kernel over faces."""
    p_a = np.zeros(len(pairs.x))
    accuracies = []
    for inside, outside in pairs.folds(params.outer_folds):
        known = pairs.take(inside)
        model = train(known, tune(known, kernel, params), params.inner_folds)
        p_a[outside] = probability(model, pairs.x[outside])
        accuracies.append(float(((p_a[outside] > 0.5) == pairs.a_wins[outside]).mean()))
    return Nested(np.array(accuracies), p_a)


def certainty(p_a: Array) -> Array:
    """How sure an answer is: max(p, 1 − p), from 0.5 to 1."""
    return np.maximum(p_a, 1 - p_a)


def abstention_threshold(p_a: Array, a_wins: NDArray[np.bool_], params: SvmParams) -> float:
    """The lowest certainty from which answers reach the target accuracy, from out-of-fold probabilities.

    Coverage never falls below `min_coverage`; 0.5 (answer always) where everything together reaches the target.
    """
    order = np.argsort(-certainty(p_a), kind="stable")
    right = ((p_a > 0.5) == a_wins)[order]
    accuracy = np.cumsum(right) / np.arange(1, len(right) + 1)
    fewest = int(np.ceil(params.min_coverage * len(right)))
    enough = np.flatnonzero(accuracy >= params.target_accuracy)
    count = max(fewest, int(enough[-1]) + 1 if len(enough) else 0)
    return 0.5 if count >= len(right) else float(certainty(p_a)[order[count - 1]])


@dataclass(frozen=True)
class PairSVM:
    """The trained machine: standardisation, calibrated classifier and abstention threshold."""

    standardiser: Standardiser
    setting: Setting
    classifier: CalibratedClassifierCV
    threshold: float  # answers less certain than this are withheld

    def p_a(self, features_a: pd.DataFrame, features_b: pd.DataFrame) -> Array:
        """P(a before b) [N] for two frames of features, row by row."""
        return probability(self.classifier, self.standardiser(features_a) - self.standardiser(features_b))

    def abstains(self, p_a: Array) -> NDArray[np.bool_]:
        """Where the answer is not certain enough."""
        return certainty(p_a) < self.threshold

    def save(self, path: Path) -> None:
        """One skops file; equal machines give equal bytes."""
        content = {
            "columns": list(self.standardiser.columns),
            "median": self.standardiser.median,
            "mean": self.standardiser.mean,
            "deviation": self.standardiser.deviation,
            "kernel": self.setting.kernel,
            "c": self.setting.c,
            "gamma": self.setting.gamma,
            "classifier": self.classifier,
            "threshold": self.threshold,
        }
        write_bytes(path, _canonical(skops.io.dumps(content)))

    @classmethod
    def load(cls, path: Path) -> PairSVM:
        """Raises UserError for a missing or damaged file, and for one that holds types beyond `TRUSTED`."""
        again = "rerun `dvc repro label`"
        try:
            if unknown := sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED)):
                raise UserError(f"{path}: holds `{unknown[0]}`, which no machine of ours does; don't load it, {again}")
            content = skops.io.load(path, trusted=list(TRUSTED))
            numbers = (content["median"], content["mean"], content["deviation"])
            standardiser = Standardiser(tuple(content["columns"]), *numbers)
            setting = Setting(content["kernel"], content["c"], content["gamma"])
            return cls(standardiser, setting, content["classifier"], content["threshold"])
        except FileNotFoundError:
            raise UserError(f"{path} is missing; {again}") from None
        except (zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a skops file of ours ({error}); {again}") from None


def _canonical(data: bytes) -> bytes:
    """A skops archive without what differs from run to run: memory addresses as names, and times."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        schema = source.read("schema.json").decode()
        addresses = list(dict.fromkeys(re.findall(r'"__id__": (\d+)|"file": "(\d+)\.', schema)))
        order = {name: str(index) for index, name in enumerate(dict.fromkeys(a or b for a, b in addresses))}
        renamed = re.sub(r'("__id__": |"file": ")(\d+)', lambda found: found[1] + order[found[2]], schema)
        entries = {}
        for name in source.namelist():
            if name != "schema.json":
                stem, _, suffix = name.partition(".")
                entries[f"{order.get(stem, stem)}.{suffix}"] = source.read(name)
    entries["schema.json"] = json.dumps(json.loads(renamed), indent=2).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in sorted(entries):
            target.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), entries[name])
    return buffer.getvalue()
