"""The labelling SVM's model card, as Markdown, and its calibration plot."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib import rc_context, rcdefaults
from matplotlib.figure import Figure

from pipeline.annotation.svm import PairSVM

CALIBRATION_PLOT = "calibration.png"  # beside the card


def card(
    svm: PairSVM,
    metrics: Mapping[str, Any],
    coverage: pd.DataFrame,
    calibration: pd.DataFrame,
    losses: pd.Series,
    kinds: str,
) -> str:
    """What the machine is, what it learnt from and how far it can be trusted.

    `metrics` as `svm_report.assess` makes them, `losses` the permutation importance by feature, `kinds` who voted.
    """
    out_of_fold, agreement, always = (metrics[k] for k in ("out_of_fold", "annotator_agreement", "always_answering"))
    tried = ", ".join(
        f"{name} {_percent(one['accuracy'])} ± {_percent(one['se'])}" for name, one in out_of_fold["kernels"].items()
    )
    gamma = "" if svm.setting.gamma is None else f", gamma = {svm.setting.gamma:g} / number of features"
    facts = [
        ("Learnt from votes that are", kinds),
        ("Kernel", f"{svm.setting.kernel}, C = {svm.setting.c:g}{gamma}"),
        ("Kernels by nested cross-validation, grouped by face", f"{tried} (mean ± one standard error)"),
        ("Rule", "the linear kernel unless RBF is better by more than one standard error"),
        ("Features", f"{len(svm.standardiser.columns)}; {_reads(metrics)}"),
        ("Never varying, left out", ", ".join(metrics["never_varying"]) or "none"),
        ("Missing values (imputed by the median)", _counts(metrics["imputed"])),
        ("Normalisation", "each feature to zero mean and unit deviation over the candidates of the fit faces"),
        ("A pair", "the difference of its candidates' normalised features"),
        ("Symmetry", "trained on both mirrors of every pair; p(a before b) + p(b before a) = 1"),
        ("Calibration", "sigmoid on out-of-fold margins, grouped by face"),
        ("Pairs before mirroring", f"{metrics['pairs_before_mirroring']}, {out_of_fold['n']} of them not gold"),
        ("Judged pairs without a winner, left out", metrics["ties_left_out"]),
        ("Two annotators agree", _with_interval(agreement["raw"], agreement["ci95"], agreement["n"])),
        ("Krippendorff's alpha", _alpha(agreement)),
        ("Out-of-fold accuracy", _with_interval(out_of_fold["accuracy"], out_of_fold["ci95"], out_of_fold["n"])),
        ("Held-out accuracy when it answers", _with_interval(metrics["accuracy"], metrics["ci95"], metrics["n"])),
        ("Held-out coverage", _with_interval(metrics["coverage"], metrics["coverage_ci95"], metrics["judged"])),
        ("It abstains when less certain than", f"{svm.threshold:.3f} (chosen out of fold)"),
        ("Answers there, out of fold", _against_target(out_of_fold)),
        ("Held-out accuracy, always answering", _with_interval(always["accuracy"], always["ci95"], always["n"])),
    ]
    curve = (
        (
            f"{row['coverage']:.2f}",
            f"{row['threshold']:.3f}",
            _percent(row["accuracy"]),
            _interval([row["lo"], row["hi"]]),
        )
        for row in coverage.to_dict("records")
    )
    bins = ((f"{row['predicted']:.3f}", f"{row['observed']:.3f}", row["n"]) for row in calibration.to_dict("records"))
    importance = ((name, f"{loss:+.3f}") for name, loss in losses.items())
    return "\n".join(
        [
            "# Pair-labelling SVM",
            "",
            "It labels the pairs that no annotator judged: of two restorations, or of a restoration and an anchor.",
            "",
            _table(["", ""], facts),
            "",
            "Out of fold: fit pairs, anchors among them, against the votes it learns from, on faces of other folds;",
            "gold pairs count in the comparison of kernels alone.",
            "Held out: judged select pairs of two restorations, on faces it never saw; accuracy needs a majority.",
            "Intervals are 95 % bootstrap intervals over faces, or over people. Coverage is drawn in the report.",
            "",
            "## Permutation importance",
            "",
            "Loss of held-out accuracy when one feature's differences are shuffled over the pairs.",
            "",
            _table(["feature", "loss of accuracy"], importance),
            "",
            "## Accuracy against coverage",
            "",
            _table(["coverage", "certainty at least", "accuracy", "95 %"], curve),
            "",
            "## Calibration",
            "",
            "Against single votes of the held-out pairs, both mirrors.",
            "",
            f"![Share of votes for A against the SVM's probability of A]({CALIBRATION_PLOT})",
            "",
            _table(["predicted", "voted", "votes"], bins),
            "",
        ]
    )


def calibration_plot(calibration: pd.DataFrame) -> bytes:
    """A reliability diagram as PNG (the same table, the same bytes): dots grow with the number of votes behind them.

    `calibration` as `svm_report.calibration_curve` makes it.
    """
    with rc_context():  # whatever the user's matplotlibrc says
        rcdefaults()
        return _reliability(calibration)


def _reliability(calibration: pd.DataFrame) -> bytes:
    figure = Figure(figsize=(4, 4), dpi=120, layout="constrained")  # no pyplot: no global state, no display
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfectly calibrated")
    axes.plot(calibration["predicted"], calibration["observed"], color="tab:blue", linewidth=1)
    area = 8 + 120 * calibration["n"] / max(calibration["n"].max(), 1)
    axes.scatter(calibration["predicted"], calibration["observed"], s=area, color="tab:blue", label="single votes")
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="the SVM's probability of A", ylabel="share of votes for A", aspect="equal"
    )
    axes.legend(loc="upper left", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _table(head: list[str], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _reads(metrics: Mapping[str, Any]) -> str:
    return "some need the HQ" if metrics["reads_reference"] else "none needs the HQ"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "none"


def _alpha(agreement: Mapping[str, Any]) -> str:
    if agreement["alpha"] is None:
        return "–"
    lo, hi = agreement["alpha_ci95"]
    return f"{agreement['alpha']:.2f} [{lo:.2f}, {hi:.2f}]"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _interval(ci95: list[float] | None) -> str:
    return "" if ci95 is None else f"[{100 * ci95[0]:.1f}, {100 * ci95[1]:.1f}]"


def _against_target(out_of_fold: Mapping[str, Any]) -> str:
    target = _percent(out_of_fold["target_accuracy"])
    met = f"the target of {target}" if out_of_fold["target_reached"] else f"less than {target}: min_coverage sets it"
    return f"{_percent(out_of_fold['accuracy_answered'])} are right, {met}"


def _with_interval(value: float | None, ci95: list[float] | None, n: int) -> str:
    return f"{_percent(value)} {_interval(ci95)} (n = {n})"
