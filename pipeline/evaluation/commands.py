"""`diffusionreward benchmark` compares folders of results; `diffusionreward faces` writes what to restore for it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.evaluation import folders
from pipeline.evaluation.dataset import from_tables
from pipeline.evaluation.measure import Plan, measure
from pipeline.evaluation.scoring import ScoreCache, load_reward
from pipeline.evaluation.summary import Comparison
from pipeline.images import SUFFIXES, encode_png
from pipeline.metrics.catalogue import METRICS, REWARDS, SET_METRICS, STANDARD, VQFR, get
from pipeline.params import UserError
from pipeline.report import formats
from pipeline.runtime import (
    configure,
    device,
    one_line_errors,
    require_writable,
    runtime_params,
    write_bytes,
    write_json,
    write_text,
)


class Protocol(StrEnum):
    """Which metrics are asked for where `--metrics` names none."""

    STANDARD = "standard"
    VQFR = "vqfr"  # as behind the published tables
    BOTH = "both"


PROTOCOLS = {Protocol.STANDARD: {STANDARD}, Protocol.VQFR: {VQFR}, Protocol.BOTH: {STANDARD, VQFR}}


@one_line_errors
def compare(
    dataset: Annotated[Path, typer.Option(help="Folder with `hq` and `lq`, or with LQ images only.")],
    results: Annotated[
        list[Path],
        typer.Option(help="Folder of restored images named as the LQ ones, or of one folder a sample; repeat it."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("benchmark"),
    metrics: Annotated[
        str, typer.Option(help="Names, separated by commas, `pyiqa:NAME` too; empty: all that can be computed.")
    ] = "",
    protocol: Annotated[Protocol, typer.Option(help="Which metrics, where --metrics is empty.")] = Protocol.BOTH,
    name: Annotated[str, typer.Option(help="What the dataset is, e.g. CelebA-Test; empty: its folder's name.")] = "",
    baseline: Annotated[str, typer.Option(help="Results that the others are compared with; empty: the first.")] = "",
    reward: Annotated[Path | None, typer.Option(help="Folder of a saved reward model, for reward_frm.")] = None,
    only_common: Annotated[bool, typer.Option(help="Leave out images that some folder lacks, and say so.")] = False,
    cache: Annotated[Path, typer.Option(help="Folder of known scores.")] = Path(".scratch/scores"),
    resamples: Annotated[int, typer.Option(min=100, help="Of the paired bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Score folders of restored faces, with paired intervals; images are paired by name."""
    configure(runtime_params())
    opened = folders.read(dataset, results, only_common, name)
    restored = opened.results
    notes = [*opened.notes, *samples_notes(restored)]
    baseline = baseline or next(iter(restored))
    if baseline not in restored:
        raise UserError(f"--baseline {baseline}: no such results; given are {', '.join(restored)}")
    asked = [one.strip() for one in metrics.split(",") if one.strip()]
    asked = asked or [one for one in (*METRICS, *SET_METRICS) if PROTOCOLS[protocol] & set(get(one).protocols)]
    rewards = {REWARDS[0]: load_reward(reward, device())} if reward else {}
    asked = list(dict.fromkeys([*asked, *rewards]))
    comparisons = [
        Comparison(model, f"{model} − {other}", model, other)
        for model in restored
        for other in dict.fromkeys((baseline, "lq"))
        if other != model
    ]
    require_writable(out, "--out")
    require_writable(cache, "--cache")
    samples = max(len(each) for each in restored.values())
    plan = Plan(asked, comparisons, resamples, seed, samples, samples, roles=None)
    result, rows = measure(opened.dataset, restored.items(), plan, rewards, ScoreCache(cache), notes, opened.published)
    name = opened.dataset.name
    write_json(out / "benchmark.json", result | {"notes": notes})
    formats.write(out, result, name)
    write_text(out / "scores.csv", per_image(rows))
    for note in notes:
        print(f"note: {note}")
    for metric, reason in result["absent"].items():
        print(f"absent: {metric}: {reason}")
    print(f"\n{formats.markdown(formats.score_table(result, name))}")
    for metric, entry in result["frechet"][name].items():
        values = ", ".join(f"{model} {found['base']['value']:.4g}" for model, found in entry["scores"].items())
        print(f"{metric} ({entry['label']}, against {entry['against']}): {values}; {entry['note']}")
    print(f"written to {out}")


@one_line_errors
def faces(
    out: Annotated[Path, typer.Option(help="Folder that gets `lq` and `hq`, a PNG file a face, named by its id.")],
    split: Annotated[str, typer.Option(help="train, preference, val or test.")] = "test",
    data: Annotated[Path, typer.Option(help="What stages prepare and degrade made.")] = Path("data"),
) -> None:
    """Write a split's degraded faces and their originals as files, for a restorer of your own.

    `diffusionreward benchmark --dataset OUT --results YOURS` and benchmark.external take what it makes of `lq`.
    """
    dataset = from_tables(data / "faces", data / "degraded", split)
    require_writable(out, "--out")
    for side in ("lq", "hq"):
        there = {path.stem for path in (out / side).glob("*") if path.suffix.lower() in SUFFIXES}
        if strangers := sorted(there - set(dataset.ids)):
            raise UserError(f"{out / side} holds images of other faces ({strangers[0]}); name an empty folder")
    for side, images in (("lq", dataset.lq), ("hq", dataset.hq or ())):
        for name, image in zip(dataset.ids, images, strict=True):
            write_bytes(out / side / f"{name}.png", encode_png(image))
    print(f"{len(dataset.ids)} faces of split {split}, {dataset.size} px: {out / 'lq'}, {out / 'hq'}")


def samples_notes(restored: Mapping[str, Sequence[folders.Images]]) -> list[str]:
    """Which results are several folders, each taken for one sample of every face: it may not have been meant so."""
    found = {model: [one.paths[0].parent.name for one in each] for model, each in restored.items() if len(each) > 1}
    return [
        f"{model}: its {len(names)} folders ({', '.join(names)}) are taken for samples of one method, and scores are "
        "their mean; give one of them to --results to compare it alone"
        for model, names in found.items()
    ]


def per_image(rows: list[dict[str, object]]) -> str:
    """Every score of every image as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows)
    return text.getvalue()
