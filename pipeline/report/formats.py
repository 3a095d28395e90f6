"""The benchmark's tables for papers and README files: Markdown and LaTeX of the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report.tables import columns, rows
from pipeline.report.text import RESTORER_LABELS, comparison_label, p_text, percent, signed, verdict
from pipeline.runtime import write_text

_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$"}
_LATEX |= {"…": r"\ldots{}", "·": r"$\cdot$", "±": r"$\pm$", "<": "$<$"}
Table = list[list[str]]  # the first row is the head


def write(folder: Path, benchmark: Mapping[str, Any], dataset: str) -> None:
    """`means` and `comparisons` as Markdown and LaTeX files."""
    tables = {"means": score_table(benchmark, dataset), "comparisons": comparison_table(benchmark, dataset)}
    for name, table in tables.items():
        write_text(folder / f"{name}.md", markdown(table))
        write_text(folder / f"{name}.tex", latex(table))


def score_table(benchmark: Mapping[str, Any], dataset: str) -> Table:
    """Model × metric, each cell the mean and its 95 % interval; the head names direction and roles."""
    shown = columns(benchmark)
    head = ["Model"]
    for column in shown:
        roles = f" ({', '.join(label for _, label in column['roles'])})" if column["roles"] else ""
        head.append(f"{column['label']} {column['arrow']}{roles}")
    body = [
        [row["label"], *(f"{cell['mean']} [{cell['ci']}]" if cell else "–" for cell in row["cells"])]
        for row in rows(benchmark, dataset)
    ]
    return [head, *body]


def comparison_table(benchmark: Mapping[str, Any], dataset: str) -> Table:
    """One row for each comparison and metric: difference, interval, relative change, corrected p, verdict."""
    table = [["Restorer", "Comparison", "Metric", "Difference", "95 % interval", "Relative", "p (Holm)", "Verdict"]]
    words = {"better": "better", "worse": "worse", "none": "no measurable difference"}
    for restorer, compared in benchmark["comparisons"][dataset].items():
        for name, metrics in compared.items():
            for column in columns(benchmark):
                if entry := metrics.get(column["name"]):
                    lo, hi = entry["ci95"]
                    table.append(
                        [
                            RESTORER_LABELS.get(restorer, restorer),
                            comparison_label(name),
                            f"{column['label']} {column['arrow']}",
                            signed(entry["delta"]),
                            f"{signed(lo)} … {signed(hi)}",
                            percent(entry["relative"]),
                            p_text(entry["p_holm"]),
                            words[verdict(entry)],
                        ]
                    )
    return table


def markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table; columns after the first are right-aligned."""
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in table)
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body)) + "\n"


def latex(table: Table) -> str:
    """A LaTeX tabular in booktabs style."""
    head, *body = ([_escaped(cell) for cell in row] for row in table)
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", _row(head), r"\midrule"]
    return "\n".join([*lines, *map(_row, body), r"\bottomrule", r"\end{tabular}"]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text.replace("\\", "/"))
