"""The benchmark's tables for papers, README files and further work: Markdown, LaTeX and CSV of the same numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report import further
from pipeline.report.tables import ablation, about, columns, rows
from pipeline.report.text import (
    DOUBT,
    DOUBT_NOTE,
    NBSP,
    VERDICTS,
    compared_label,
    difference,
    doubt,
    p_text,
    range_text,
    relative,
    restorer_label,
    share,
    signed,
    value_text,
    verdict,
)
from pipeline.runtime import write_text

_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$"}
_LATEX |= {"…": r"\ldots{}", "·": r"$\cdot$", "±": r"$\pm$", "<": "$<$", "×": r"$\times$", "✓": r"$\checkmark$"}
_LATEX |= {"{": r"\{", "}": r"\}", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"†": r"$\dagger$", NBSP: "~", "²": "$^2$", "æ": r"\ae{}"}
NAMES = ("means", "comparisons", "ablation", "frechet", "win_rates", "diversity", "seeds")  # of the tables
OF_EACH = NAMES[:2]  # that datasets beside the first have as .tex and .md, too
WRITTEN = ".tables"  # in the folder: the names of the files there that are ours
ABOUT = ["roles", "protocols", "labels"]  # columns of `_about`
Table = list[list[str]]  # the first row is the head


def write(folder: Path, benchmark: Mapping[str, Any], dataset: str) -> None:
    """Every file of `files` into a folder; those that an earlier call wrote and this one doesn't are deleted.

    WRITTEN lists them: a file that this function has not written is never touched, but for one of the same name.
    """
    found = files(benchmark, dataset)
    known = folder / WRITTEN
    before = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    write_text(known, "".join(f"{name}\n" for name in sorted({*before, *found})))  # also where this call is killed
    for name, content in found.items():
        write_text(folder / name, content)
    for name in set(before) - set(found):
        (folder / Path(name).name).unlink(missing_ok=True)
    write_text(known, "".join(f"{name}\n" for name in sorted(found)))


def files(benchmark: Mapping[str, Any], dataset: str) -> dict[str, str]:
    """The tables of NAMES that have a row, each as .csv, .tex and .md, by file name.

    .tex and .md show one dataset (`means-NAME` and `comparisons-NAME` every other one), .csv holds the plain numbers of
    all (`ablation`: of the one).
    """
    tables = (
        (score_table(benchmark, dataset), score_records(benchmark)),
        (comparison_table(benchmark, dataset), comparison_records(benchmark)),
        (ablation_table(benchmark, dataset), ablation_records(benchmark, dataset)),
        (_as_table(further.frechet(benchmark.get("frechet", {}), dataset)), frechet_records(benchmark)),
        (win_rate_table(benchmark), win_rate_records(benchmark)),
        (_as_table(further.diversity(benchmark.get("diversity", {}), dataset)), diversity_records(benchmark)),
        (_as_table(further.seeds(benchmark, dataset)), seed_records(benchmark)),
    )
    found: dict[str, str] = {}
    for name, (shown, plain) in zip(NAMES, tables, strict=True):
        if len(shown) > 1:
            said = notes(benchmark, dataset, shown) if name in OF_EACH else []
            found |= {f"{name}.csv": csv_text(plain)}
            found |= {f"{name}.tex": latex(shown, said), f"{name}.md": markdown(shown, said)}
    for other in (name for name in benchmark["scores"] if name != dataset):
        for name, table in zip(OF_EACH, (score_table, comparison_table), strict=True):
            if len(shown := table(benchmark, other)) > 1:
                said = notes(benchmark, other, shown)
                found |= {f"{name}-{other}.tex": latex(shown, said), f"{name}-{other}.md": markdown(shown, said)}
    return found


def notes(benchmark: Mapping[str, Any], dataset: str, table: Table) -> list[str]:
    """What a reader of the table must know: resized, left out, another count than the published one; the dagger."""
    said = list(benchmark.get("datasets", {}).get(dataset, {}).get("notes", []))
    return said + ([DOUBT_NOTE] if any(DOUBT in cell for row in table for cell in row) else [])


def score_table(benchmark: Mapping[str, Any], dataset: str) -> Table:
    """Model × metric, each cell the mean and its 95 % interval; the head names direction and roles. Last, what chance
    scores: different people.
    """
    body = [[row["label"], *_cells(row)] for row in rows(benchmark, dataset)]
    return [["Model", *_metric_heads(benchmark)], *body, *_chance(benchmark, dataset, ["Different people"])]


def ablation_table(benchmark: Mapping[str, Any], dataset: str) -> Table:
    """Restorer × variant: what it trains with, then every metric as in `score_table`."""
    table = [["Restorer", "Variant", "Structure", "Reward", "Regulariser", "Dynamic FRM", *_metric_heads(benchmark)]]
    for one in ablation(benchmark, dataset):
        for row in one["rows"]:
            marks = ["✓" if on else "–" for _, on in row["parts"]] if row["parts"] else ["–"] * 4
            table.append([one["label"], row["label"], *marks, *_cells(row)])
    return table + (_chance(benchmark, dataset, ["Different people", *["–"] * 5]) if len(table) > 1 else [])


def _chance(benchmark: Mapping[str, Any], dataset: str, lead: list[str]) -> Table:
    """A row of what two different people of this dataset score (mean, 5th percentile), where that is known."""
    known = benchmark.get("datasets", {}).get(dataset, {}).get("impostor", {})
    cells = [
        f"{value_text(found['mean'])} (5th pct {value_text(found['p5'])})" if found else "–"
        for found in (known.get(column["name"]) for column in columns(benchmark))
    ]
    return [[*lead, *cells]] if known else []


def comparison_table(benchmark: Mapping[str, Any], dataset: str) -> Table:
    """One row for each comparison and metric: difference, interval, relative change, corrected p, verdict.

    A dagger at p: it disagrees with the interval, which the verdict follows.
    """
    table = [["Restorer", "Comparison", "Metric", "Difference", "95 % interval", "Relative", "p (Holm)", "Verdict"]]
    for restorer, compared in benchmark["comparisons"][dataset].items():
        for name, metrics in compared.items():
            for column, head in zip(columns(benchmark), _metric_heads(benchmark), strict=True):
                if entry := metrics.get(column["name"]):
                    delta, interval = difference(entry)
                    table.append(
                        [
                            restorer_label(restorer),
                            compared_label(name, benchmark["scores"][dataset][restorer]),
                            head,
                            delta,
                            interval,
                            relative(column["name"], entry),
                            p_text(entry["p_holm"]) + doubt(entry),
                            VERDICTS[verdict(entry)],
                        ]
                    )
    return table


def score_records(benchmark: Mapping[str, Any]) -> Table:
    """One row a number; `roles` and `protocols` are the metric's, `labels` whose votes a reward has learnt from."""
    table = ["dataset restorer variant metric mean lo hi n dropped".split() + ABOUT]
    for dataset, restorers in benchmark["scores"].items():
        for restorer, variants in restorers.items():
            for variant, metrics in variants.items():
                for metric, entry in metrics.items():
                    table.append([dataset, restorer, variant, metric, *_mean(entry), *_about(benchmark, metric)])
    return table


def ablation_records(benchmark: Mapping[str, Any], dataset: str) -> Table:
    """`score_records` of the ablation's rows, with what each variant trains with as 0 or 1."""
    table = ["restorer variant structure reward regulariser dynamic metric mean lo hi n dropped".split() + ABOUT]
    for one in ablation(benchmark, dataset):
        for row in one["rows"]:
            restorer, _, variant = row["model"].partition("/")
            entries = benchmark["scores"][dataset][restorer][variant or "base"]
            marks = [str(int(on)) for _, on in row["parts"]] if row["parts"] else ["0"] * 4
            for metric, entry in entries.items():
                about_metric = _about(benchmark, metric)
                table.append([one["restorer"], variant or restorer, *marks, metric, *_mean(entry), *about_metric])
    return table


def comparison_records(benchmark: Mapping[str, Any]) -> Table:
    """One row a difference, with both p-values (`p_holm`: corrected) and the counts of faces."""
    table = ["dataset restorer comparison metric delta lo hi relative p p_holm verdict n dropped".split() + ABOUT]
    for dataset, restorers in benchmark["comparisons"].items():
        for restorer, compared in restorers.items():
            for name, metrics in compared.items():
                for metric, entry in metrics.items():
                    values = (entry["delta"], *entry["ci95"], entry["relative"], entry["p"], entry["p_holm"])
                    numbers = [_number(value) for value in values]
                    last = [verdict(entry), *_counts(entry), *_about(benchmark, metric)]
                    table.append([dataset, restorer, name, metric, *numbers, *last])
    return table


def frechet_records(benchmark: Mapping[str, Any]) -> Table:
    """One row a Fréchet distance of a model's images; `floor` is that of two random halves of the originals."""
    table = ["dataset metric restorer variant value n n_reference floor roles protocols".split()]
    for dataset, metrics in benchmark.get("frechet", {}).items():
        for metric, one in metrics.items():
            shared = [str(one["n_reference"]), _number(one.get("floor"))]
            shared += [" ".join(one.get("roles", [])), " ".join(one.get("protocols", []))]
            for restorer, variants in one["scores"].items():
                for variant, entry in variants.items():
                    value = [_number(entry["value"]), str(entry["n"])]
                    table.append([dataset, metric, restorer, variant, *value, *shared])
    return table


def win_rate_table(benchmark: Mapping[str, Any]) -> Table:
    """Judge × model: expected share of wins and Bradley–Terry strength (logits), the strongest first."""
    table = [["Faces", "Judge", "Model", "Expected share of wins", "Strength"]]
    for dataset, judges in benchmark.get("bradley_terry", {}).items():
        for judge, one in judges.items():
            for model, entry in sorted(one["models"].items(), key=lambda item: -item[1]["strength"]):
                strength = f"{signed(entry['strength'])} [{range_text(entry['ci95'])}]"
                label = further.judge_label(benchmark, judge, one)
                name = further.ranked_label(benchmark, dataset, model)
                table.append([dataset, label, name, share(entry["win_rate"]), strength])
    return table


def win_rate_records(benchmark: Mapping[str, Any]) -> Table:
    """One row a judge and model; `comparisons` and `ties` are the judge's in all, `n` people or faces."""
    table = ["dataset judge model win_rate strength lo hi comparisons ties n roles labels".split()]
    for dataset, judges in benchmark.get("bradley_terry", {}).items():
        for judge, one in judges.items():
            counts = [str(one[name]) for name in ("comparisons", "ties", "n")]
            for model, entry in one["models"].items():
                numbers = [_number(value) for value in (entry["win_rate"], entry["strength"], *entry["ci95"])]
                about = [" ".join(one.get("roles", [])), further.labels(benchmark, judge)]
                table.append([dataset, judge, model, *numbers, *counts, *about])
    return table


def diversity_records(benchmark: Mapping[str, Any]) -> Table:
    """One row a model: mean distance between `samples` restorations of one face."""
    table = ["dataset metric restorer variant mean lo hi n samples roles".split()]
    for dataset, one in benchmark.get("diversity", {}).items():
        for restorer, variants in one.get("scores", {}).items():
            for variant, entry in variants.items():
                numbers = [_number(value) for value in (entry["mean"], *entry["ci95"])]
                row = [*numbers, str(entry["n"]), str(one["samples"]), " ".join(one.get("roles", []))]
                table.append([dataset, one["metric"], restorer, variant, *row])
    return table


def seed_records(benchmark: Mapping[str, Any]) -> Table:
    """One row a model or difference (`refl-base`) and metric: mean and standard deviation over trainings, and each."""
    table = ["dataset restorer variant metric mean std lo hi n values".split()]
    for dataset, restorers in benchmark.get("seeds", {}).items():
        for restorer, variants in restorers.items():
            for variant, metrics in variants.items():
                for metric, entry in metrics.items():
                    numbers = (entry["mean"], entry["std"], *entry.get("ci95", (None, None)))
                    values = " ".join(map(_number, entry["values"]))
                    row = [*map(_number, numbers), str(entry["n"]), values]
                    table.append([dataset, restorer, variant, metric, *row])
    return table


def csv_text(table: Table) -> str:
    """A table as RFC 4180 CSV with Unix line ends."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()


def markdown(table: Table, said: Sequence[str] = ()) -> str:
    """A GitHub-flavoured Markdown table; columns after the first are right-aligned; below it what is `said`."""
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in table)
    rule = ["---", *("---:" for _ in head[1:])]
    below = "".join(f"\n{note}\n" for note in said)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body)) + "\n" + below


def latex(table: Table, said: Sequence[str] = ()) -> str:
    """A LaTeX tabular in booktabs style; below it what is `said`, as comments."""
    head, *body = ([_escaped(cell) for cell in row] for row in table)
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", _row(head), r"\midrule"]
    return (
        "\n".join([*lines, *map(_row, body), r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in said)]) + "\n"
    )


def _metric_heads(benchmark: Mapping[str, Any]) -> list[str]:
    return [
        f"{column['label']} {column['arrow']}{about(column, further.labels(benchmark, column['name']))}"
        for column in columns(benchmark)
    ]


def _about(benchmark: Mapping[str, Any], metric: str) -> list[str]:
    """Roles, protocols and labels of a metric, as CSV cells."""
    entry = benchmark["metrics"][metric]
    return [" ".join(entry["roles"]), " ".join(entry.get("protocols", [])), further.labels(benchmark, metric)]


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [f"{cell['mean']} [{cell['ci']}]" if cell else "–" for cell in row["cells"]]


def _mean(entry: Mapping[str, Any]) -> list[str]:
    return [*(_number(value) for value in (entry["mean"], *entry["ci95"])), *_counts(entry)]


def _counts(entry: Mapping[str, Any]) -> list[str]:
    return [str(entry["n"]), str(entry["dropped"])]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _as_table(parts: Sequence[further.Part]) -> Table:
    return [
        row for part in parts for row in (["Model", *part["head"]], *([label, *cells] for label, cells in part["rows"]))
    ]


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text.replace("\\", "/"))
