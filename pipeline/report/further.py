"""What metrics/benchmark.json holds beyond means and differences: every part is shown where it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report import charts, tables
from pipeline.report.tables import ROLE_LABELS
from pipeline.report.text import (
    VERDICTS,
    compared_label,
    difference,
    doubt,
    is_lone,
    mean_and_range,
    model_label,
    p_text,
    plus_minus,
    relative,
    restorer_label,
    share,
    signed,
    value_text,
    variant_label,
    verdict,
)

DIFFERENCES = {"refl-base": "ReFL − base", "refl-no_reward": "ReFL − without reward"}
# title, intro, head and rows of a table ([label, cells], cells as text), optional chart, roles, name of its files
Part = dict[str, Any]


def gather(benchmark: Mapping[str, Any], dataset: str) -> list[Part]:
    """Fréchet distances, win rates, diversity, seeds, sizes of the restorers, other datasets."""
    parts = [
        *frechet(benchmark.get("frechet", {}), dataset),
        *win_rates(benchmark),
        *diversity(benchmark.get("diversity", {}), dataset),
        *seeds(benchmark, dataset),
        *sizes(benchmark.get("restorers", {})),
        *datasets(benchmark, dataset),
    ]
    return [part for part in parts if part["rows"]]


def frechet(content: Mapping[str, Any], dataset: str, title: str = "Fréchet distance of whole sets") -> list[Part]:
    """One table for all Fréchet distances: model × distance, below it what sampling alone gives."""
    entries: Mapping[str, Any] = content.get(dataset, {})
    if not entries:
        return []
    models = dict.fromkeys(
        (restorer, variant) for one in entries.values() for restorer, by in one["scores"].items() for variant in by
    )
    rows: list[tuple[str, list[str]]] = []
    for restorer, variant in sorted(models, key=_order):
        found = [one["scores"].get(restorer, {}).get(variant) for one in entries.values()]
        label = _model(restorer, variant, [v for name, v in models if name == restorer])
        rows.append((label, [value_text(one["value"]) if one else "–" for one in found]))
    floors = [one.get("floor") for one in entries.values()]
    if any(floor is not None for floor in floors):
        half = min(one["n_reference"] for one in entries.values() if one.get("floor") is not None) // 2
        label = f"two random halves of the originals (n = {half} each, so no yardstick for the rows above)"
        rows.append((label, [_or_dash(floor) for floor in floors]))
    notes = dict.fromkeys(
        f"{one['label']}: {one['features']}, against {one['against']}{_n(one['n_reference'])}. {one['note']}".strip()
        for one in entries.values()
    )
    head = [f"{one['label']} ↓{_roles(one)}{_protocols(one)}" for one in entries.values()]
    return [_part(title, " ".join(notes), head, rows)]


def _n(count: int) -> str:
    """Nothing of published statistics, which say not of how many images they are."""
    return f" (n = {count})" if count else ""


def labels(benchmark: Mapping[str, Any], name: str) -> str:
    """Whose votes (simulated, human, or both) are behind a metric or judge: rewards learn from them; "" elsewhere."""
    if name in ("simulated", "human"):
        return name
    return str(benchmark.get("labels", {}).get(name, ""))


def judge_label(benchmark: Mapping[str, Any], judge: str, one: Mapping[str, Any]) -> str:
    """Who ranks, and by whose labels a reward does."""
    label = str(one.get("label", judge))
    behind = labels(benchmark, judge)
    return f"{label}, {behind} labels" if behind and behind not in label else label


def win_rates(benchmark: Mapping[str, Any]) -> list[Part]:
    """Bradley–Terry strengths, one part a judge of each dataset."""
    parts = []
    for dataset, judges in benchmark.get("bradley_terry", {}).items():
        for judge, one in judges.items():
            ranked = sorted(one["models"].items(), key=lambda item: -item[1]["strength"])
            models = [(ranked_label(benchmark, dataset, model), entry) for model, entry in ranked]
            rows = [(name, [share(entry["win_rate"]), signed(entry["strength"])]) for name, entry in models]
            bars = [(name, entry["strength"], *entry["ci95"]) for name, entry in models]
            label = one.get("label", judge)
            people = f" (of {one['n']:,} people)" if one["n"] != one["faces"] else ""
            intro = (
                f"{one['comparisons']:,} comparisons on {one['faces']:,} faces{people} of {dataset}, "
                f"{one['ties']:,} ties{_left_out(one)}. "
                "Strength in logits: a difference of d means odds of e to the d of being preferred; 95 % intervals."
            )
            part = _part(f"Who wins, judged by: {label}", intro, ["expected share of wins", "strength"], rows)
            chart = charts.bars(bars, f"Strength, judged by {label}", "strength, logits") if bars else None
            simulated = "simulated" in labels(benchmark, judge)
            parts.append(part | {"chart": chart, "roles": _role_list(one), "simulated": simulated})
    return parts


def ranked_label(benchmark: Mapping[str, Any], dataset: str, model: str) -> str:
    """A model's label where models are ranked."""
    restorer = model.partition("/")[0]
    lone = is_lone(benchmark["scores"].get(dataset, {}).get(restorer, {}))
    return restorer_label(restorer) if lone else model_label(model)


def _left_out(one: Mapping[str, Any]) -> str:
    said = (
        ("dropped", "votes that name no winner"),
        ("elsewhere", "votes on pictures that are no candidates any more"),
        ("unscored", "models that it could not score"),
    )
    return "".join(f"; {one[name]:,} {what} left out" for name, what in said if one.get(name))


def diversity(content: Mapping[str, Any], dataset: str, title: str = "Diversity across seeds") -> list[Part]:
    """Mean distance between samples of one face: is it kept?"""
    one = content.get(dataset)
    if not one:
        return []
    rows: list[tuple[str, list[str]]] = []
    for restorer, variants in one["scores"].items():
        delta = one.get("improvement", {}).get(restorer)
        for variant in sorted(variants, key=lambda name: _order((restorer, name))):
            entry = variants[variant]
            against = "{} ({})".format(*difference(delta)) if delta and variant == "refl" else "–"
            rows.append((_model(restorer, variant, list(variants)), [*mean_and_range(entry), against]))
    intro = f"{one['label']} between {one['samples']} restorations of each of {one['n']} faces: more is more diverse."
    part = _part(title, intro, ["mean ↑", "95 % interval", "ReFL − base (95 %)"], rows)
    return [part | {"roles": _role_list(one)}]


def seeds(benchmark: Mapping[str, Any], dataset: str) -> list[Part]:
    """Does the result hold when ReFL is trained again with other seeds?"""
    content: Mapping[str, Any] = benchmark.get("seeds", {}).get(dataset, {})
    rows: list[tuple[str, list[str]]] = []
    for restorer, variants in content.items():
        for variant, metrics in variants.items():
            name = DIFFERENCES.get(variant) or variant_label(variant)
            for metric, entry in metrics.items():
                label = benchmark["metrics"].get(metric, {}).get("label", metric)
                interval = mean_and_range(entry)[1] if entry.get("ci95") else "–"
                spread = plus_minus(entry["mean"], entry["std"], sign=variant in DIFFERENCES)
                values = ", ".join(f"{value:.4g}".replace("-", "−") for value in entry["values"])
                rows.append((f"{restorer_label(restorer)} · {name} · {label}", [spread, interval, values]))
    intro = "Every seed is a training of its own: mean ± standard deviation over seeds, and Student's 95 % interval."
    return [_part("Training again with other seeds", intro, ["mean ± SD", "95 % interval", "each seed"], rows)]


def sizes(content: Mapping[str, Any]) -> list[Part]:
    """Parameters and arithmetic of each restorer."""
    rows: list[tuple[str, list[str]]] = []
    for name, one in content.items():
        figures = [f"{one['params'] / 1e6:,.2f}", f"{one['flops'] / 1e9:,.2f}", str(one["size"])]
        rows.append((restorer_label(name), figures))
    intro = (
        "Of the base; ReFL changes weights, not sizes. Wall time and memory depend on the machine and stay out of here."
    )
    head = ["parameters, millions", "GFLOP for one face", "side, px"]
    return [_part("Size of the restorers", intro, head, rows)]


def datasets(benchmark: Mapping[str, Any], first: str) -> list[Part]:
    """Means on the other datasets, with what was noticed about each."""
    parts = []
    for name in benchmark["scores"]:
        if name == first:
            continue
        about = benchmark.get("datasets", {}).get(name, {})
        columns = [c for c in tables.columns(benchmark) if _scored(benchmark, name, c["name"])]
        keep = [place for place, c in enumerate(tables.columns(benchmark)) if c in columns]
        rows = []
        for row in tables.rows(benchmark, name):
            cells = [row["cells"][place] for place in keep]
            rows.append((row["label"], [f"{c['mean']} ({c['ci']})" if c else "–" for c in cells]))
        said = [f"{benchmark['n'].get(name, about.get('n', '?'))} faces."]
        said += [f"Published: {about['published']}."] if about.get("published") else []
        said += list(about.get("notes", []))
        said += [f"Absent: {metric} ({reason})." for metric, reason in about.get("absent", {}).items()]
        head = [f"{c['label']} {c['arrow']}{tables.about(c, labels(benchmark, c['name']))}" for c in columns]
        parts.append(_part(f"Dataset {name}", " ".join(said), head, rows) | {"file": f"means-{name}"})
        parts += frechet(benchmark.get("frechet", {}), name, f"Fréchet distance of whole sets, {name}")
        parts += differences(benchmark, name)
        parts += diversity(benchmark.get("diversity", {}), name, f"Diversity across seeds, {name}")
    return parts


def differences(benchmark: Mapping[str, Any], dataset: str) -> list[Part]:
    """Paired differences of every comparison on one dataset."""
    rows = []
    for restorer, compared in benchmark["comparisons"][dataset].items():
        for comparison, metrics in compared.items():
            for column in tables.columns(benchmark):
                if entry := metrics.get(column["name"]):
                    about = tables.about(column, labels(benchmark, column["name"]))
                    compares = compared_label(comparison, benchmark["scores"][dataset][restorer])
                    label = f"{restorer_label(restorer)} · {compares} · {column['label']}{about}"
                    share_of = relative(column["name"], entry)
                    cells = [*difference(entry), share_of, p_text(entry["p_holm"]) + doubt(entry)]
                    rows.append((label, [*cells, VERDICTS[verdict(entry)]]))
    head = ["difference", "95 % interval", "relative", "p (Holm)", "verdict"]
    part = _part(f"Paired differences, {dataset}", "On the same faces.", head, rows)
    return [part | {"file": f"comparisons-{dataset}"}]


def _scored(benchmark: Mapping[str, Any], dataset: str, metric: str) -> bool:
    return any(metric in m for variants in benchmark["scores"][dataset].values() for m in variants.values())


def _part(title: str, intro: str, head: list[str], rows: list[tuple[str, list[str]]]) -> Part:
    empty: Part = {"chart": None, "roles": [], "simulated": False, "file": ""}
    return {"title": title, "intro": intro, "head": head, "rows": rows} | empty


def _order(model: tuple[str, str]) -> tuple[int, str, int, str]:
    restorer, variant = model
    return {"lq": 0, "hq": 2}.get(restorer, 1), restorer, *tables.variant_rank(variant)


def _model(restorer: str, variant: str, variants: Sequence[str]) -> str:
    label = restorer_label(restorer)
    return label if is_lone(variants) else f"{label} · {variant_label(variant)}"


def _role_list(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(role, ROLE_LABELS.get(role, role)) for role in entry.get("roles", [])]


def _roles(entry: Mapping[str, Any]) -> str:
    names = [label for _, label in _role_list(entry)]
    return f" ({', '.join(names)})" if names else ""


def _protocols(entry: Mapping[str, Any]) -> str:
    names = [name for name in entry.get("protocols", []) if name != "standard"]
    return f" [{' / '.join(entry['protocols'])}]" if names else ""


def _or_dash(value: float | None) -> str:
    return "–" if value is None else value_text(value)
