"""Names and number formats of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HELDOUT_REWARD = "reward_heldout"
RESTORER_LABELS = {
    "diffbir": "DiffBIR",
    "osediff": "OSEDiff",
    "gfpgan": "GFPGAN",
    "lq": "LQ input",
    "hq": "HQ original",
}
VARIANT_LABELS = {
    "base": "base",
    "more_base": "base, trained longer",
    "structure": "structure losses only",
    "reward": "structure + reward",
    "static": "ReFL with a static FRM",
    "no_reward": "ReFL without reward",
    "refl": "ReFL (full)",
    "full": "ReFL (full)",
}
SHORT_VARIANTS = {"refl": "ReFL", "full": "ReFL"}
COMPARISON_LABELS = {
    "full-base": "ReFL against its base",
    "full-no_reward": "ReFL against the same training without the reward",
    "full-more_base": "ReFL against as much more base training",
    "full-static": "ReFL against the same with a static FRM",
    "full-reward": "ReFL against structure + reward, without regulariser and dynamic FRM",
    "full-structure": "ReFL against the structure losses only",
    "static-no_reward": "ReFL with a static FRM against the same without it: one switch, the reward",
    "reward-structure": "Structure + reward against the structure losses only: one switch, the reward",
    "full-lq": "ReFL against the untouched input",
    "base-lq": "Base against the untouched input",
}
VERDICTS = {"better": "better", "worse": "worse", "none": "no measurable difference"}
SURE = 0.05  # p under which a test calls a difference sure, as the 95 % interval does that excludes zero
DOUBT = "†"
NO_ZERO = ("reward", "sharpness", "blockiness")  # metrics whose zero means nothing: a share of it would mislead
DOUBT_NOTE = (
    f"{DOUBT} The tests disagree: the 95 % interval, which the verdict follows, excludes zero, but Wilcoxon’s p after "
    f"Holm’s correction is {SURE} or more; or the other way round."
)
NBSP = "\u00a0"  # keeps a number and its unit on one line


def restorer_label(name: str) -> str:
    """Label of a restorer, an input, or a folder of somebody's results (its own name)."""
    return RESTORER_LABELS.get(name, name)


def variant_label(name: str) -> str:
    """Label of a variant of a restorer."""
    return VARIANT_LABELS.get(name, name.replace("_", " "))


def model_label(model: str) -> str:
    """Label of a scores-table model, e.g. `diffbir/full` → "DiffBIR · ReFL (full)"."""
    restorer, _, variant = model.partition("/")
    return f"{restorer_label(restorer)} · {variant_label(variant)}" if variant else restorer_label(restorer)


def is_lone(variants: Iterable[str]) -> bool:
    """Are these the variants of somebody's results, which have neither base nor ReFL? They go by their own name."""
    return list(variants) == ["base"]


def short_model(restorer: str, variant: str) -> str:
    """Shortest unmistakable name, e.g. "DiffBIR ReFL"."""
    return f"{restorer_label(restorer)} {SHORT_VARIANTS.get(variant, variant.replace('_', ' '))}"


def comparison_label(name: str) -> str:
    """Label of a comparison, e.g. `full-base`; the name itself where it is not one of two variants."""
    if name in COMPARISON_LABELS:
        return COMPARISON_LABELS[name]
    if " − " in name:  # of two folders, whose own names may hold anything
        return name
    model, _, baseline = name.partition("-")
    return f"{variant_label(model)} against {variant_label(baseline)}" if baseline else name


def compared_label(name: str, variants: Iterable[str]) -> str:
    """Label of a comparison of a restorer with these variants."""
    return "against the untouched input" if is_lone(variants) and name == "base-lq" else comparison_label(name)


def short_metric(label: str) -> str:
    """A metric's label as words of a sentence, e.g. "landmark distance", "held-out reward"."""
    if label.startswith("Reward ("):
        return "held-out reward" if "held-out" in label else "its own reward"
    name, _, rest = label.partition(" (")
    if name.endswith("LPIPS"):  # of which network: they may contradict each other
        return f"{rest.removesuffix(')')}’s {name}"
    short = name.split(",")[0]
    return short if short.split("-")[0].isupper() else short[0].lower() + short[1:]


def value_text(value: float, decimals: int | None = None) -> str:
    """A score with `decimals`, by default three, two from ten on; and a real minus sign."""
    if decimals is None:
        decimals = 2 if abs(value) >= 10 else 3
    return f"{value:.{decimals}f}".replace("-", "−")


def range_text(bounds: Sequence[float]) -> str:
    """An interval, e.g. "0.468 … 0.497"."""
    return f"{value_text(bounds[0])} … {value_text(bounds[1])}"


def signed(value: float, decimals: int | None = None) -> str:
    """A difference with its sign."""
    return ("+" if value > 0 else "") + value_text(value, decimals)


def difference(entry: Mapping[str, Any]) -> tuple[str, str]:
    """A comparison's difference and interval, with the decimals that the interval's width deserves."""
    lo, hi = entry["ci95"]
    decimals = _decimals(hi - lo, least=2)
    return signed(entry["delta"], decimals), f"{signed(lo, decimals)} … {signed(hi, decimals)}"


def mean_and_range(entry: Mapping[str, Any]) -> tuple[str, str]:
    """A mean and its interval, with the decimals that the interval's width deserves, three or more."""
    lo, hi = entry["ci95"]
    decimals = _decimals(hi - lo, least=3)
    return value_text(entry["mean"], decimals), f"{value_text(lo, decimals)} … {value_text(hi, decimals)}"


def plus_minus(mean: float, std: float, sign: bool) -> str:
    """A mean ± its standard deviation, with the decimals that the latter deserves, three or more."""
    decimals = _decimals(std, least=3)
    return f"{(signed if sign else value_text)(mean, decimals)} ± {value_text(std, decimals)}"


def _decimals(width: float, least: int) -> int:
    return min(max(1 - math.floor(math.log10(width)), least), 5) if width > 0 else 3


def percent(share: float) -> str:
    """A signed percentage, e.g. −5.2 %."""
    return f"{share:+.1%}".replace("-", "−").replace("%", f"{NBSP}%")


def share(value: float) -> str:
    """A share as a percentage, one decimal."""
    return f"{value:.1%}".replace("%", f"{NBSP}%")


def relative(metric: str, entry: Mapping[str, Any]) -> str:
    """A difference in percent of the baseline's mean; not of rewards and logarithms, whose zero means nothing."""
    return "–" if metric.startswith(NO_ZERO) else percent(entry["relative"])


def p_text(p: float) -> str:
    """A p-value: three decimals, or a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict(entry: Mapping[str, Any]) -> str:
    """better, worse or none: on which side of zero the interval lies."""
    return "better" if entry["better"] else "worse" if entry["worse"] else "none"


def doubt(entry: Mapping[str, Any]) -> str:
    """A dagger where the interval, which the verdict follows, and the corrected p disagree; empty elsewhere."""
    return DOUBT if (verdict(entry) == "none") == (entry["p_holm"] < SURE) else ""


def change(metric: str, entry: Mapping[str, Any]) -> str:
    """A difference for people: relative, but absolute where zero means nothing (`relative`); with its doubt."""
    value = difference(entry)[0] if metric.startswith(NO_ZERO) else percent(entry["relative"])
    return value + doubt(entry)


def listed(items: Sequence[str], last: str = "and") -> str:
    """ "a", "a and b", "a, b and c"; nothing of nothing."""
    return f"{', '.join(items[:-1])} {last} {items[-1]}" if len(items) > 1 else "".join(items)
