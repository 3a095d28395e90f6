"""The summary's sentences, written from metrics/benchmark.json: bad news first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

IDENTITY = "id_dlib"
RESTORER_LABELS = {
    "diffbir": "DiffBIR",
    "osediff": "OSEDiff",
    "gfpgan": "GFPGAN",
    "lq": "LQ input",
    "hq": "HQ original",
}
VARIANT_LABELS = {
    "base": "base",
    "no_reward": "ReFL without reward",
    "more_base": "base, trained longer",
    "refl": "ReFL (full)",
    "full": "ReFL (full)",
}
COMPARISON_LABELS = {
    "full-base": "ReFL against its base",
    "full-no_reward": "ReFL against the same training without the reward",
    "full-more_base": "ReFL against as much more base training",
    "full-lq": "ReFL against the untouched input",
    "base-lq": "Base against the untouched input",
}


def model_label(model: str) -> str:
    """Label of a scores-table model, e.g. `diffbir/full` → "DiffBIR · ReFL (full)"."""
    restorer, _, variant = model.partition("/")
    name = RESTORER_LABELS.get(restorer, restorer)
    return f"{name} · {VARIANT_LABELS.get(variant, variant.replace('_', ' '))}" if variant else name


def comparison_label(name: str) -> str:
    """Label of a comparison, e.g. `full-base`."""
    model, _, baseline = name.partition("-")
    fallback = f"{VARIANT_LABELS.get(model, model)} against {VARIANT_LABELS.get(baseline, baseline)}"
    return COMPARISON_LABELS.get(name, fallback)


def value_text(value: float) -> str:
    """A score with three decimals, two from ten on, and a real minus sign."""
    text = f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    """A difference with its sign."""
    return ("+" if value > 0 else "") + value_text(value)


def percent(share: float) -> str:
    """A signed percentage, e.g. −5.2 %."""
    return f"{share:+.1%}".replace("-", "−").replace("%", " %")


def p_text(p: float) -> str:
    """A p-value: three decimals, or a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict(entry: Mapping[str, Any]) -> str:
    """better, worse or none: on which side of zero the interval lies."""
    return "better" if entry["better"] else "worse" if entry["worse"] else "none"


def identity_sentence(benchmark: Mapping[str, Any], dataset: str) -> str:
    """First of all: does a restorer lose identity against doing nothing?"""
    comparisons = benchmark["comparisons"][dataset]
    scores = benchmark["scores"][dataset]
    judged: dict[str, list[str]] = {"worse": [], "none": [], "better": []}
    for restorer, entries in comparisons.items():
        for name, variant in (("full-lq", "refl"), ("base-lq", "base")):
            entry = entries.get(name, {}).get(IDENTITY)
            if entry is None:
                continue
            mean = value_text(scores[restorer][variant][IDENTITY]["mean"])
            judged[verdict(entry)].append(f"{model_label(f'{restorer}/{variant}')} ({mean}, {_change(entry)})")
    if not any(judged.values()):
        return "Identity was not measured: no statement about it is made."
    lq = value_text(scores["lq"]["base"][IDENTITY]["mean"])
    if judged["worse"]:
        text = f"Worse than the untouched input on identity (LQ {lq}; lower is better): {_list(judged['worse'])}."
        if judged["none"]:
            text += f" Not distinguishable from it: {_list(judged['none'])}."
        if judged["better"]:
            text += f" Better than it: {_list(judged['better'])}."
        return text
    text = f"No model is worse than the untouched input on identity (LQ {lq}; lower is better)."
    if judged["better"]:
        text += f" Better than it: {_list(judged['better'])}."
    if judged["none"]:
        text += f" Not distinguishable from it: {_list(judged['none'])}."
    return text


def base_sentence(benchmark: Mapping[str, Any], dataset: str, headline: Sequence[str]) -> str:
    """What ReFL changes against its base, on the headline metrics."""
    return _per_restorer(benchmark, dataset, "full-base", headline, "Against its own base, ReFL")


def reward_sentence(benchmark: Mapping[str, Any], dataset: str, headline: Sequence[str]) -> str:
    """What the reward itself adds over the same training without it, be it nothing."""
    held_out = [name for name, entry in benchmark["metrics"].items() if "held_out" in entry["roles"]]
    wanted = [*dict.fromkeys([*held_out, *headline])]
    return _per_restorer(
        benchmark, dataset, "full-no_reward", wanted, "Against the same training without it, the reward"
    )


def label_sentence(kinds: Mapping[str, int], annotators: Mapping[str, int]) -> str:
    """Who judged: people, simulated annotators, or both. `kinds`: votes by annotator_kind; `annotators`: how many."""
    simulated, human = kinds.get("simulated", 0), kinds.get("human", 0)
    if not simulated and not human:
        return "There are no preference votes."
    if not human:
        who = f"{annotators['simulated']} simulated annotators"
        return f"All {simulated:,} preference votes are simulated ({who}); no person has judged any pair."
    if not simulated:
        return f"All {human:,} preference votes are by people ({annotators['human']} annotators)."
    return (
        f"{human:,} preference votes are by people ({annotators['human']} annotators) and {simulated:,} are simulated "
        f"({annotators['simulated']} simulated annotators)."
    )


def _per_restorer(
    benchmark: Mapping[str, Any], dataset: str, comparison: str, metrics: Sequence[str], opening: str
) -> str:
    parts = []
    for restorer, entries in benchmark["comparisons"][dataset].items():
        if comparison not in entries:
            continue
        by_verdict: dict[str, list[str]] = {"better": [], "none": [], "worse": []}
        for metric in metrics:
            if entry := entries[comparison].get(metric):
                label = benchmark["metrics"][metric]["label"]
                by_verdict[verdict(entry)].append(f"{label} ({percent(entry['relative'])})")
        said = []
        if by_verdict["better"]:
            said.append(f"improves {_list(by_verdict['better'])}")
        if by_verdict["worse"]:
            said.append(f"worsens {_list(by_verdict['worse'])}")
        if by_verdict["none"]:
            said.append(f"changes nothing measurable in {_list(by_verdict['none'])}")
        if said:
            parts.append(f"for {RESTORER_LABELS.get(restorer, restorer)} {_list(said)}")
    if not parts:
        return f"{opening}: not compared in this run."
    return f"{opening} {'; '.join(parts)}."


def _change(entry: Mapping[str, Any]) -> str:
    lo, hi = entry["ci95"]
    return f"{signed(entry['delta'])}, 95 % interval {signed(lo)} to {signed(hi)}"


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
