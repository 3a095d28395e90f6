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
SHORT_VARIANTS = {"refl": "ReFL", "full": "ReFL"}
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
    """Label of a comparison, e.g. `full-base`; the name itself where it is not one of two variants."""
    if name in COMPARISON_LABELS:
        return COMPARISON_LABELS[name]
    model, _, baseline = name.partition("-")
    return f"{VARIANT_LABELS.get(model, model)} against {VARIANT_LABELS.get(baseline, baseline)}" if baseline else name


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
    scores = benchmark["scores"][dataset]
    judged: dict[str, list[str]] = {"worse": [], "none": [], "better": []}
    for restorer, entries in benchmark["comparisons"][dataset].items():
        for comparison, variant in (("full-lq", "refl"), ("base-lq", "base")):
            if entry := entries.get(comparison, {}).get(IDENTITY):
                mean = value_text(scores[restorer][variant][IDENTITY]["mean"])
                judged[verdict(entry)].append(f"{short_model(restorer, variant)} {mean}")
    if not any(judged.values()):
        return "Identity was not measured: no statement about it is made."
    lq = value_text(scores["lq"]["base"][IDENTITY]["mean"])
    every = "Every restorer is" if not (judged["none"] or judged["better"]) else "Some restorers are"
    opening = f"{every} worse" if judged["worse"] else "No restorer is worse"
    said = [f"{opening} than the untouched input on identity (distance {lq}, lower is better)"]
    said += [f"worse are {_list(judged['worse'])}"] if judged["worse"] else []
    said += [f"better are {_list(judged['better'])}"] if judged["better"] else []
    said += [f"not distinguishable from it are {_list(judged['none'])}"] if judged["none"] else []
    return f"{said[0]}: {'; '.join(said[1:])}."


def base_sentence(benchmark: Mapping[str, Any], dataset: str, headline: Sequence[str]) -> str:
    """What ReFL changes against its base, on the headline metrics."""
    said = []
    for restorer, entries in benchmark["comparisons"][dataset].items():
        if compared := entries.get("full-base"):
            said.append(f"{RESTORER_LABELS.get(restorer, restorer)} {_changes(benchmark, compared, headline)}")
    return f"ReFL against its own base: {'; '.join(said)}." if said else "ReFL was not compared with its base."


def reward_sentence(benchmark: Mapping[str, Any], dataset: str) -> str:
    """What the reward itself adds on held-out metrics over the same training without it, be it nothing."""
    held_out = [name for name, entry in benchmark["metrics"].items() if "held_out" in entry["roles"]]
    said = []
    for restorer, entries in benchmark["comparisons"][dataset].items():
        compared = {name: entry for name, entry in entries.get("full-no_reward", {}).items() if name in held_out}
        if not compared:
            continue
        name = RESTORER_LABELS.get(restorer, restorer)
        if all(verdict(entry) == "none" for entry in compared.values()):
            said.append(f"nothing measurable for {name} ({_changes(benchmark, compared, held_out)})")
        else:
            said.append(f"for {name} {_changes(benchmark, compared, held_out)}")
    if not said:
        return "What the reward itself adds was not measured: there is no control without it, or no held-out metric."
    return f"On held-out measures the reward itself adds, over the same training without it: {'; '.join(said)}."


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


def short_model(restorer: str, variant: str) -> str:
    """Shortest unmistakable name, e.g. "DiffBIR ReFL"."""
    return f"{RESTORER_LABELS.get(restorer, restorer)} {SHORT_VARIANTS.get(variant, variant.replace('_', ' '))}"


def short_metric(label: str) -> str:
    """A metric's label without unit and implementation, e.g. "landmark distance"; rewards keep theirs."""
    if label.startswith("Reward"):
        return label
    short = label.split(" (")[0].split(",")[0]
    return short if short.split("-")[0].isupper() else short[0].lower() + short[1:]


def _changes(benchmark: Mapping[str, Any], compared: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """E.g. "identity distance −5.2 % (better), landmark distance +0.1 % (no measurable difference)"."""
    words = {"better": "better", "worse": "worse", "none": "no measurable difference"}
    present = [name for name in metrics if name in compared]
    return ", ".join(
        f"{short_metric(benchmark['metrics'][name]['label'])} {percent(compared[name]['relative'])} "
        f"({words[verdict(compared[name])]})"
        for name in present
    )


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
