"""Does the reward mean something? What stages frm and label measured on faces that no model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report import charts
from pipeline.report.curves import SEPARATES, words
from pipeline.report.text import HELDOUT_REWARD, listed, restorer_label, share, signed, value_text

SHARES = {"accuracy", "coverage", "fit_accuracy", "best_in_hindsight", "annotator", "agreement"}  # shown in percent
CHANCE = ("chance", 0.5)
MODELS = {"": "FRM", "heldout": "held-out FRM"}
LEARNT_FROM = SEPARATES["labels"]
HARMS = {
    "blur": "blurred",
    "noise": "noisy",
    "jpeg": "compressed",
    "oversharpen": "over-sharpened",
    "pattern": "covered by a fine pattern",
    "identity_swap": "given another person’s inner face",
}
ANCHORS = {  # with what a pair's other side is
    "hq": "the original, and anything",
    "smooth": "an over-smoothed picture, and a restoration",
    "sharp": "an over-sharpened picture, and a restoration",
}

Row = tuple[str, float, float | None, float | None]


def reward_model(content: Mapping[str, Any], learning: Mapping[str, Any]) -> dict[str, Any]:
    """metrics/frm.json and frm_learning.json: sentences, accuracies side by side, tables, the rest."""
    models = {name: content if not name else content.get(name, {}) for name in MODELS}
    known = {name: entry for name, entry in models.items() if "headline" in entry}
    found = (_anchors(known), _margins(known), _pairs(known), _damage(known), _learning(learning))
    return {
        "lead": f"{_frm_lead(content)} {_learning_lead(learning)}".strip(),
        "chart": _accuracies(content, known),
        "tables": [table for table in found if table],
        "facts": facts(content),
    }


def witness_sentence(benchmark: Mapping[str, Any], dataset: str, frm: Mapping[str, Any]) -> str:
    """What is wrong with the held-out reward as a judge, from metrics/frm.json: where it rises and ought to fall."""
    judge, scores = frm.get("heldout") or {}, benchmark["scores"][dataset]
    known = {name: scores.get(name, {}).get("base", {}).get(HELDOUT_REWARD) for name in ("lq", "hq")}
    if not judge or None in known.values():
        return ""
    rises = [
        HARMS.get(name, name)
        for name, one in judge.get("robustness", {}).items()
        if one["reward"][-1] >= one["reward"][0]
    ]
    said = f"The held-out reward is right on {_accuracy(judge['headline'])} of unanimous pairs"
    if rises:
        said += f" and gives originals no less when they are {listed(rises, 'or')}"
    lq, hq = (signed(entry["mean"]) for entry in known.values() if entry)
    return f"{said}; it gives the inputs {lq} and the originals {hq}."


def svm(content: Mapping[str, Any]) -> dict[str, Any]:
    """metrics/svm.json: a sentence, accuracies side by side, the rest."""
    rows: list[Row] = []
    _add(rows, "on the pairs that it answers", content)
    _add(rows, "answering every pair", content.get("always_answering"))
    if with_reference := content.get("with_reference_features"):
        _add(rows, "with features that need the original", with_reference)
    agreement = content.get("annotator_agreement", {})
    raw = agreement.get("raw")
    if raw is not None:
        rows.append(("agreement of two annotators", raw, *agreement["ci95"]))
    said = []
    if content.get("coverage") is not None:  # null: no held-out pair was judged
        said.append(f"It answers {share(content['coverage'])} of the held-out pairs and abstains on the rest")
    if content.get("accuracy") is not None:
        said.append(f"{_accuracy(content)} of its answers are right")
    if raw is not None:
        said.append(f"two annotators agree on {share(raw)} of pairs")
    chart = charts.bars(rows, "Accuracy of the SVM", "share of pairs", CHANCE) if rows else None
    return {"lead": f"{'; '.join(said)}." if said else "", "chart": chart, "tables": [], "facts": facts(content)}


def facts(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A metrics file as flat (name, value) rows, in its own order; long lists are left to the file itself."""
    rows: list[tuple[str, str]] = []
    for key, item in content.items():
        label = key if "." in key else words(key)  # a file's name stays as it is
        name = f"{prefix} · {label}" if prefix else label
        if isinstance(item, Mapping):
            if item.get("accuracy") is not None and "ci95" in item:
                rows.append((name, _accuracy(item)))
                item = {k: v for k, v in item.items() if k not in ("accuracy", "ci95", "n")}
            rows += facts(item, name)
        elif isinstance(item, list):
            if len(item) <= 6 and all(isinstance(one, (int, float, str)) or one is None for one in item):
                rows.append((name, " … ".join(_plain(one) for one in item)))
        elif isinstance(item, float) and key in SHARES:
            rows.append((name, share(item)))
        else:
            rows.append((name, _plain(item)))
    return rows


def _frm_lead(content: Mapping[str, Any]) -> str:
    headline = content.get("headline")
    if headline is None:
        return ""
    said = f"Where annotators are unanimous about two restorations, the FRM agrees with them on {_accuracy(headline)}."
    rivals = {"the best single blind feature": content.get("best_blind_feature"), "the SVM": content.get("svm")}
    beaten: list[str] = []
    unbeaten: list[str] = []
    worse: list[str] = []
    for name, entry in rivals.items():
        if entry and "accuracy" in entry:
            low, high = entry["frm_minus"]["ci95"]
            (beaten if low > 0 else worse if high < 0 else unbeaten).append(f"{name} ({share(entry['accuracy'])})")
    if worse:
        said = f"The FRM is worse than {listed(worse)}. {said}"
    if unbeaten:
        said = f"The FRM is not shown to be better than {listed(unbeaten)}. {said}"
    if beaten:
        said += f" That is more than {listed(beaten)} {'reach' if len(beaten) > 1 else 'reaches'}."
    if not headline.get("enough_pairs", True):
        said = f"Too few pairs, or people in them, to be evidence. {said}"
    return said


def _accuracies(content: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> Any:
    rows: list[Row] = []
    for name, entry in models.items():
        _add(rows, MODELS[name], entry["headline"])
    _add(rows, "SVM", content.get("svm"))
    if blind := content.get("best_blind_feature"):
        less = "" if blind.get("higher_is_better", True) else "less "
        _add(rows, f"best single feature ({less}{blind.get('name', '?')})", blind)
    if not rows:
        return None
    return charts.bars(rows, "Accuracy on unanimous pairs", "share of unanimous pairs of two restorations", CHANCE)


def _anchors(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    names = [name for name in ANCHORS if any(name in entry.get("anchors", {}) for entry in models.values())]
    rows = [
        (ANCHORS[name], [_share_of(entry.get("anchors", {}).get(name)) for entry in models.values()]) for name in names
    ]
    return _table("Pairs with an anchor: agreement with the annotators", models, rows)


def _margins(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    bins = [tuple(one["margin"]) for one in next(iter(models.values()), {}).get("by_margin", [])]
    rows = []
    for low, high in bins:
        found = [
            next((one for one in entry.get("by_margin", []) if tuple(one["margin"]) == (low, high)), None)
            for entry in models.values()
        ]
        rows.append((f"margin of the votes {low:g} to {high:g}", [_share_of(one) for one in found]))
    return _table("By how sure the annotators are", models, rows)


def _pairs(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    names = dict.fromkeys(name for entry in models.values() for name in entry.get("by_restorer_pair", {}))
    rows = [
        (
            " against ".join(_setting(one) for one in name.split("|")),
            [_share_of(entry.get("by_restorer_pair", {}).get(name)) for entry in models.values()],
        )
        for name in names
    ]
    return _table("By the restorers compared", models, rows)


def _damage(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    names = dict.fromkeys(name for entry in models.values() for name in entry.get("robustness", {}))
    rows = []
    for name in names:
        cells = []
        for entry in models.values():
            one = entry.get("robustness", {}).get(name)
            if one is None or "monotone" not in one:
                cells.append(("–", ""))
                continue
            ends = [value for value in (one["reward"][0], one["reward"][-1]) if value is not None]
            said = f"{' → '.join(value_text(v) for v in ends)}{'' if one['monotone'] else ', not at every level'}"
            cells.append((said, "" if one["monotone"] else "worse"))
        rows.append((name.replace("_", " "), cells))
    title = (
        "Does the reward fall as damage grows? (All but the identity swap are kinds that frm.training.damage may add)"
    )
    return _table(title, models, rows)


def _learning(content: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy by share of the fit faces: on votes alone, on votes and the SVM's labels, and the gain."""
    rows = []
    for entry in content["shares"]:
        low, high = entry["gain"]["ci95"]
        verdict = "better" if low > 0 else "worse" if high < 0 else ""
        gain = f"{_points(entry['gain']['mean'])} ({_points(low)} to {_points(high)})"
        cells = [(f"{_accuracy(entry[name])}, {entry[name]['pairs']:,} pairs", "") for name in LEARNT_FROM]
        rows.append((f"{share(entry['share'])} of the faces", [*cells, (gain, verdict)]))
    title = (
        f"What more labels are worth: trainings of {content['steps']:,} steps "
        "(an SVM that learnt from the same votes alone labels the pairs of all other faces, too)"
    )
    return {"title": title, "head": [*LEARNT_FROM.values(), "gain, points"], "rows": rows}


def _learning_lead(content: Mapping[str, Any]) -> str:
    first, last = content["shares"][0], content["shares"][-1]
    low, high = last["gain"]["ci95"]
    worth = "raise" if low > 0 else "lower" if high < 0 else "do not measurably change"
    by = f" ({_points(last['gain']['mean'])} points, {_points(low)} to {_points(high)})"
    if len(content["shares"]) == 1:
        reached = share(last["votes"]["accuracy"])
        return f"At {content['steps']:,} steps votes alone take it to {reached}; the SVM’s labels {worth} that{by}."
    return (
        f"From {share(first['share'])} to {share(last['share'])} of the labelled faces, votes alone take it from "
        f"{share(first['votes']['accuracy'])} to {share(last['votes']['accuracy'])}; the SVM’s labels {worth} that{by}."
    )


def _points(value: float) -> str:
    return signed(100 * value, 1)


def _table(
    title: str, models: Mapping[str, Any], rows: Sequence[tuple[str, list[tuple[str, str]]]]
) -> dict[str, Any] | None:
    return {"title": title, "head": [MODELS[name] for name in models], "rows": rows} if rows else None


def _share_of(entry: Mapping[str, Any] | None) -> tuple[str, str]:
    if not entry or entry.get("accuracy") is None:
        return "–", ""
    return f"{share(entry['accuracy'])} of {entry.get('n', '?')}", "worse" if entry["accuracy"] < CHANCE[1] else ""


def _setting(name: str) -> str:
    """A candidate's setting, e.g. `diffbir_few` → "DiffBIR few"."""
    restorer, _, rest = name.partition("_")
    return f"{restorer_label(restorer)} {rest.replace('_', ' ')}".strip()


def _add(rows: list[Row], label: str, entry: Mapping[str, Any] | None) -> None:
    if entry and entry.get("accuracy") is not None:
        lo, hi = entry.get("ci95", (None, None))
        rows.append((label, entry["accuracy"], lo, hi))


def _accuracy(entry: Mapping[str, Any]) -> str:
    if "ci95" not in entry:
        return share(entry["accuracy"])
    lo, hi = (share(bound) for bound in entry["ci95"])
    return f"{share(entry['accuracy'])} ({lo} to {hi}, n = {entry.get('n', '?')})"


def _plain(item: Any) -> str:
    if item is None:
        return "–"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return value_text(item)
    return f"{item:,}" if isinstance(item, int) else str(item)
