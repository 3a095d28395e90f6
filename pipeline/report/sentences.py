"""The summary's sentences, written from metrics/benchmark.json: bad news first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.text import (
    HELDOUT_REWARD,
    NBSP,
    VERDICTS,
    change,
    difference,
    doubt,
    is_lone,
    listed,
    percent,
    restorer_label,
    short_metric,
    short_model,
    signed,
    value_text,
    verdict,
)

IDENTITY = "id_dlib"
WATCHED = ("lmd_68", "ssim")  # beside the held-out measures, when the reward is suspected of being exploited
OWN_REWARD = "reward_frm"  # what ReFL follows


def identity_lead(benchmark: Mapping[str, Any], dataset: str) -> str:
    """First of all, in one breath: does a restorer lose identity against doing nothing?"""
    judged = _identity_against_input(benchmark, dataset)
    if not any(judged.values()):
        return "Identity was not measured: nothing is said about it."
    if not judged["worse"]:
        return "No restorer is measurably worse than the untouched input on identity."
    if not (judged["none"] or judged["better"]):
        return "Every restorer is worse than the untouched input on identity."
    return f"Worse than the untouched input on identity: {listed([name for name, _ in judged['worse']])}."


def identity_detail(benchmark: Mapping[str, Any], dataset: str) -> str:
    """The numbers behind `identity_lead`, and the level of chance."""
    judged = _identity_against_input(benchmark, dataset)
    if not any(judged.values()):
        return ""
    lq = value_text(benchmark["scores"][dataset]["lq"]["base"][IDENTITY]["mean"])
    said = [f"untouched input {lq}"]
    said += [f"{name} {mean} ({VERDICTS[how]})" for how in ("worse", "none", "better") for name, mean in judged[how]]
    chance = benchmark["impostor"].get(IDENTITY)
    end = (
        f" Different people are {value_text(chance['mean'])} apart on average, 5{NBSP}% of them less than "
        f"{value_text(chance['p5'])}."
        if chance
        else ""
    )
    return f"Distance to the original's identity, lower is better: {', '.join(said)}.{end}"


def _identity_against_input(benchmark: Mapping[str, Any], dataset: str) -> dict[str, list[tuple[str, str]]]:
    judged: dict[str, list[tuple[str, str]]] = {"worse": [], "none": [], "better": []}
    for restorer, entries in benchmark["comparisons"][dataset].items():
        for comparison, variant in (("base-lq", "base"), ("full-lq", "refl")):
            if entry := entries.get(comparison, {}).get(IDENTITY):
                scores = benchmark["scores"][dataset][restorer]
                name = restorer_label(restorer) if is_lone(scores) else short_model(restorer, variant)
                judged[verdict(entry)].append((name + doubt(entry), value_text(scores[variant][IDENTITY]["mean"])))
    return judged


def base_sentence(benchmark: Mapping[str, Any], dataset: str, headline: Sequence[str]) -> str:
    """What ReFL changes against its base, on the headline metrics, metric by metric; the tiles have the numbers."""
    words = {"better": "better", "worse": "worse", "none": "not measurably different"}
    compared = _compared(benchmark, dataset, "full-base")
    if not compared:
        return "ReFL was not compared with its base."
    return _by_metric(benchmark, compared, headline, words) or "None of the headline’s metrics was measured."


def reward_sentence(benchmark: Mapping[str, Any], dataset: str) -> str:
    """What the reward itself adds on held-out metrics over the same training without it, be it nothing."""
    words = {"better": "a gain", "worse": "a loss", "none": "nothing measurable"}
    names, compared = held_out(benchmark), _compared(benchmark, dataset, "full-no_reward")
    said = _by_metric(benchmark, compared, names, words, numbers=True)
    if not said:
        return "What the reward itself adds was not measured: the variant no_reward is missing, or any held-out metric."
    found = {verdict(entries[name]) for entries in compared.values() for name in names if name in entries}
    return f"Nothing measurable on held-out measures. {said}" if found == {"none"} else said


def training_sentence(benchmark: Mapping[str, Any], dataset: str) -> str:
    """Over how many trainings the statements hold: intervals are over faces, another training is another matter."""
    counts = {
        entry["n"]
        for variants in benchmark.get("seeds", {}).get(dataset, {}).values()
        for metrics in variants.values()
        for entry in metrics.values()
    }
    if not counts:
        return "All intervals are over the faces of one training: how much another seed moves them was not measured."
    return f"Intervals are over the faces of one training; the table of seeds has {max(counts)} trainings."


def _compared(benchmark: Mapping[str, Any], dataset: str, name: str) -> dict[str, Mapping[str, Any]]:
    return {one: entries[name] for one, entries in benchmark["comparisons"][dataset].items() if entries.get(name)}


def diversity_sentence(benchmark: Mapping[str, Any], dataset: str) -> str:
    """How ReFL changes the diversity of each restorer's samples against its base, beside the control without reward."""
    found = benchmark.get("diversity", {}).get(dataset) or {}
    said: dict[str, list[str]] = {"surely less": [], "surely more": [], "not measurably different": []}
    for restorer, entry in found.get("improvement", {}).items():
        means = {variant: one["mean"] for variant, one in found["scores"][restorer].items()}
        changes = {
            variant: percent(means[variant] / means["base"] - 1) if means["base"] else signed(means[variant])
            for variant in ("refl", "no_reward")
            if variant in means
        }
        control = f"; without the reward {changes['no_reward']}" if "no_reward" in changes else ""
        how = {"worse": "surely less", "better": "surely more", "none": "not measurably different"}[verdict(entry)]
        said[how].append(f"{restorer_label(restorer)} ({changes['refl']}{control})")
    sentence = "; ".join(f"{how} for {listed(names)}" for how, names in said.items() if names)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def hacking_sentence(benchmark: Mapping[str, Any], dataset: str, smallest_loss: float) -> str:
    """Does the reward that ReFL follows rise while a held-out measure, landmarks or SSIM get worse?

    What the reward does shows against no_reward; where it was not trained, against the base. SSIM is in no loss, and
    sees a fine pattern that two rewards may like alike. Sure losses under `smallest_loss` (a share of the baseline's
    value; not of rewards, whose zero means nothing) are named, not called hacking. An own reward that surely rises
    while the held-out one doesn't is said for itself. A loss against the base is said as well, beside what the same
    training without the reward loses.
    """
    suspect, alone, clean, unjudged, of_base = [], [], [], [], []
    for restorer, entries in benchmark["comparisons"][dataset].items():
        controlled = OWN_REWARD in entries.get("full-no_reward", {})
        compared = entries.get("full-no_reward" if controlled else "full-base", {})
        if OWN_REWARD not in compared:
            continue
        label = restorer_label(restorer)
        if not any(name in compared for name in _watched(benchmark)):
            unjudged.append(label)
            continue
        large, trifles = _lost(benchmark, compared, smallest_loss)
        rise = change(OWN_REWARD, compared[OWN_REWARD])
        if large:
            named = listed([f"{_short(benchmark, name)} ({change(name, compared[name])})" for name in large])
            suspect.append(f"{label}, whose own reward rises ({rise}) while it loses on {named}")
        else:
            named = listed(
                [f"{_short(benchmark, n)} {difference(compared[n])[0]}{doubt(compared[n])}" for n in trifles]
            )
            trifling = [f"{named}: a trifle"] if trifles else []
            if _unshared(compared):
                unshared = [f"own {rise}, held-out {change(HELDOUT_REWARD, compared[HELDOUT_REWARD])}"]
                alone.append(f"{label} ({'; '.join(unshared + trifling)})")
            else:
                clean.append(f"{label} ({trifling[0]})" if trifling else label)
        if controlled:
            whole = entries.get("full-base", {})
            large, _ = _lost(benchmark, whole, smallest_loss)
            means = benchmark["scores"][dataset][restorer]
            named = listed(
                [
                    f"{_short(benchmark, name)} ({change(name, whole[name])}; "
                    f"without the reward {_control_change(means, name)})"
                    for name in large
                ]
            )
            of_base += [f"{label} on {named}"] if large else []
    said = [f"Suspected for {'; '.join(suspect)}."] if suspect else []
    said += [f"The own reward rises and the held-out one does not for {listed(alone)}."] if alone else []
    said += [f"No sign of it for {listed(clean)}."] if clean else []
    said += [f"Not judged for {listed(unjudged)}: nothing beside the reward was measured."] if unjudged else []
    said += (
        [f"Against the base, the own reward rises and yet there is a loss: {'; '.join(of_base)}."] if of_base else []
    )
    return " ".join(said)


def _lost(
    benchmark: Mapping[str, Any], compared: Mapping[str, Any], smallest_loss: float
) -> tuple[list[str], list[str]]:
    """The watched measures that surely get worse while the own reward surely rises: large losses, and trifles."""
    if not compared.get(OWN_REWARD, {}).get("better"):
        return [], []
    lost = [name for name in _watched(benchmark) if name in compared and compared[name]["worse"]]
    large = [n for n in lost if n.startswith("reward") or abs(compared[n]["relative"]) >= smallest_loss]
    return large, [name for name in lost if name not in large]


def _watched(benchmark: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys((*held_out(benchmark), *WATCHED)))


def _unshared(compared: Mapping[str, Any]) -> bool:
    """Whether the own reward surely rises and the held-out one, measured as well, doesn't."""
    return HELDOUT_REWARD in compared and compared[OWN_REWARD]["better"] and not compared[HELDOUT_REWARD]["better"]


def _control_change(means: Mapping[str, Any], metric: str) -> str:
    """What the training without the reward changes against the base, as `change` writes it."""
    control, base = (means[variant][metric]["mean"] for variant in ("no_reward", "base"))
    return signed(control - base) if metric.startswith("reward") else percent(control / base - 1)


def label_sentence(kinds: Mapping[str, int], annotators: Mapping[str, int]) -> str:
    """Who judged: people, simulated annotators, or both. `kinds`: votes by annotator_kind; `annotators`: how many."""
    simulated, human = kinds.get("simulated", 0), kinds.get("human", 0)
    if not simulated and not human:
        return "There are no preference votes."
    people, machines = (_counted(annotators.get(kind, 0)) for kind in ("human", "simulated"))
    if not human:
        return f"All {simulated:,} preference votes are simulated ({machines}); no person’s vote is used."
    if not simulated:
        return f"All {human:,} preference votes are by people ({people})."
    return f"{human:,} preference votes are by people ({people}) and {simulated:,} are simulated ({machines})."


def _counted(annotators: int) -> str:
    return f"{annotators} annotator{'' if annotators == 1 else 's'}"


def held_out(benchmark: Mapping[str, Any]) -> list[str]:
    """The metrics that are in no loss, label or SVM and selected no checkpoint."""
    return [name for name, entry in benchmark["metrics"].items() if "held_out" in entry["roles"]]


def _short(benchmark: Mapping[str, Any], metric: str) -> str:
    return short_metric(benchmark["metrics"][metric]["label"])


def _by_metric(
    benchmark: Mapping[str, Any],
    compared: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str],
    words: Mapping[str, str],
    numbers: bool = False,
) -> str:
    """E.g. "Identity distance: better for all. Landmark distance: worse for GFPGAN, better for OSEDiff."

    `compared`: by restorer and metric; `numbers`: with each difference.
    """
    said = []
    for metric in metrics:
        entries = {restorer: found[metric] for restorer, found in compared.items() if metric in found}
        groups = []
        for how in ("worse", "better", "none"):
            alike = {restorer: entry for restorer, entry in entries.items() if verdict(entry) == how}
            marks = [f" ({change(metric, entry)})" if numbers else doubt(entry) for entry in alike.values()]
            names = [f"{restorer_label(one)}{mark}" for one, mark in zip(alike, marks, strict=True)]
            if names:
                every = len(names) == len(compared) > 1 and not any(marks)
                groups.append(f"{words[how]} for {'all' if every else listed(names)}")
        if groups:
            name = _short(benchmark, metric)
            said.append(f"{name[0].upper()}{name[1:]}: {', '.join(groups)}.")
    return " ".join(said)
