"""The Parquet tables between stages: schemas, sharded atomic writing, checked reading.

A table is a folder of shards `part-00000.parquet` …, rows sorted by the key, no timestamps, fixed row groups: the same
rows give the same bytes. Images use the Hugging Face `datasets` layout `struct<bytes, path>`, so that
`datasets.load_dataset("parquet", data_dir=…)` opens them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.images import Pixels, decode
from pipeline.params import UserError, one_line
from pipeline.runtime import atomic

SHARD_BYTES = 32 * 2**20  # small enough to travel (and to stay under 40 MB), large enough that DVC hashes few files
ROW_GROUP = 64
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Table:
    """One data contract: `columns` in order, the `key` that is unique and sorts the rows, and the stage that writes it.

    `open_columns`: any further columns must be float64 (features and metrics, named by what computed them).
    """

    name: str
    version: int
    key: tuple[str, ...]
    columns: Mapping[str, pa.DataType]
    written_by: str
    open_columns: bool = False
    enums: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def schema(self, extra: Sequence[str] = ()) -> pa.Schema:
        """The Arrow schema with this table's name and version in its metadata."""
        fields = [pa.field(name, kind) for name, kind in self.columns.items()]
        fields += [pa.field(name, pa.float64()) for name in extra]
        metadata = {"diffusionreward": json.dumps({"table": self.name, "version": self.version}, sort_keys=True)}
        return pa.schema(fields, metadata=metadata)


_S, _I, _F, _B = pa.string(), pa.int64(), pa.float64(), pa.bool_()
SPLITS = frozenset({"train", "preference", "val", "test"})
PAIR_SPLITS = frozenset({"fit", "select", "frm_test"})
WINNERS = frozenset({"a", "b", "tie", "both_bad", "skip"})

FACES = Table(
    "faces",
    1,
    ("face_id",),
    {
        "face_id": _S,
        "image": IMAGE,
        "width": _I,  # of the source, before resizing
        "height": _I,
        "source": _S,
        "group_id": _S,
        "caption": _S,  # "" where the source has none
        "split": _S,
    },
    "prepare",
    enums={"split": SPLITS},
)
REJECTS = Table("rejects", 1, ("path",), {"path": _S, "reason": _S}, "prepare")
DEGRADED = Table(
    "degraded",
    1,
    ("face_id",),
    {
        "face_id": _S,
        "image": IMAGE,  # the LQ at the HQ's size
        "blur_kind": _S,
        "blur_sigma_x": _F,  # px
        "blur_sigma_y": _F,
        "blur_angle": _F,  # rad
        "scale": _F,  # down-sampling factor
        "noise_sigma": _F,  # of 255
        "jpeg_quality": _I,
        "seed": _I,
    },
    "degrade",
)
CANDIDATES = Table(
    "candidates",
    1,
    ("candidate_id",),
    {
        "candidate_id": _S,
        "face_id": _S,
        "restorer": _S,  # name of the candidate setting, e.g. diffbir, diffbir_few, osediff; or hq, smooth, sharp
        "anchor": _B,  # hq, smooth and sharp: flagged, never counted as restorer outputs
        "sample": _I,
        "seed": _I,
        "image": IMAGE,
    },
    "restore",
)
FEATURES = Table(
    "features",
    1,
    ("candidate_id",),
    {"candidate_id": _S, "feature_set": _S},  # feature_set: hash of names and weights that computed the columns
    "features",
    open_columns=True,
)
PAIRS = Table(
    "pairs",
    1,
    ("pair_id",),
    {
        "pair_id": _S,
        "face_id": _S,
        "candidate_a": _S,
        "candidate_b": _S,
        "split": _S,
        "why": _S,
    },
    "pairs",
    enums={"split": PAIR_SPLITS, "why": frozenset({"random", "margin", "gold", "repeat"})},
)
VOTES = Table(
    "votes",
    1,
    ("event_id",),
    {
        "event_id": _S,
        "round_id": _S,  # "" for simulated votes; else the DVC-tracked annotation round that holds the pair's images
        "pair_id": _S,
        "annotator": _S,
        "annotator_kind": _S,
        "winner": _S,
        "displayed_left": _S,  # a or b
        "shown_reference": _B,
        "response_ms": _I,
        "round": _I,
        "at": _S,  # ISO 8601 UTC; "" for simulated votes
        "undone_by": _S,  # event_id of the undo; "" when it stands
    },
    "label",
    enums={"winner": WINNERS, "annotator_kind": frozenset({"human", "simulated"})},
)
ANNOTATIONS = Table(
    "annotations",
    1,
    ("pair_id",),
    {
        "pair_id": _S,
        "winner": _S,  # a, b or tie
        "p_a": _F,  # probability that a is preferred, in [0, 1]
        "source": _S,
        "confidence": _F,  # training weight in [0, 1]
        "abstained": _B,  # the SVM was not sure: excluded from FRM training, first in line for people
    },
    "label",
    enums={"source": frozenset({"human", "simulated", "svm"})},
)
SCORES = Table(
    "scores",
    1,
    ("dataset", "model", "face_id"),
    {"dataset": _S, "model": _S, "face_id": _S},  # model: "lq", "hq" or "<restorer>/<variant>"
    "benchmark",
    open_columns=True,
)


def image_cell(png: bytes, name: str) -> dict[str, Any]:
    """One cell of an image column."""
    return {"bytes": png, "path": f"{name}.png"}


def write(table: Table, folder: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write all rows, sorted by the key, as shards of about `SHARD_BYTES`; the folder is replaced as a whole.

    Raises ValueError (a bug of ours) for a duplicate key, a missing column or a value outside an enum.
    """
    folder, ordered = Path(folder), list(rows)
    extra = _extra_columns(table, ordered)
    ordered.sort(key=lambda row: tuple(row[name] for name in table.key))
    keys = [tuple(row[name] for name in table.key) for row in ordered]
    if len(set(keys)) != len(keys):
        raise ValueError(f"{table.name}: duplicate key")
    _check_enums(table, {name: [row[name] for row in ordered] for name in table.enums})
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        for index, shard in enumerate(_shards(table, ordered)):
            with atomic(building / f"part-{index:05d}.parquet") as temporary:
                write_file(pa.Table.from_pylist(shard, schema=table.schema(extra)), temporary)
    except BaseException:  # a full disk, say: not left full of half a table
        shutil.rmtree(building, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    building.replace(folder)


def write_file(content: pa.Table, path: Path) -> None:
    """One Parquet file with the settings that keep bytes stable."""
    pq.write_table(content, path, compression="zstd", row_group_size=ROW_GROUP, store_schema=True)


def _extra_columns(table: Table, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    extra = sorted({name for row in rows for name in row} - set(table.columns))
    if extra and not table.open_columns:
        raise ValueError(f"{table.name}: unknown columns {extra}")
    if missing := sorted({name for row in rows for name in table.columns if name not in row}):
        raise ValueError(f"{table.name}: missing columns {missing}")
    return extra


def _check_enums(table: Table, columns: Mapping[str, Iterable[str]]) -> None:
    for name, allowed in table.enums.items():
        if wrong := sorted(set(columns[name]) - allowed):
            raise ValueError(f"{table.name}.{name}: {wrong[0]!r} is none of {sorted(allowed)}")


def _shards(table: Table, rows: Sequence[Mapping[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    shard: list[dict[str, Any]] = []
    size = 0
    pictures = [name for name, kind in table.columns.items() if kind == IMAGE]
    for row in rows:
        weight = 200 + sum(len(row[name]["bytes"]) for name in pictures)
        if shard and size + weight > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(dict(row))
        size += weight
    yield shard  # an empty table still has one shard, with its schema


def read(
    table: Table,
    folder: Path | str,
    columns: Sequence[str] | None = None,
    unique: bool = True,
    remedy: str | None = None,
    where: Mapping[str, Collection[Any]] | None = None,
) -> pa.Table:
    """Read a table's folder (or one file); `columns` limits what is decoded, `where` (read column → values) the rows.

    Rows are left out shard by shard: of pictures, the wanted ones alone are in memory together.
    `unique=False` leaves duplicate keys to the caller; `remedy` says what to do about a file that no stage wrote.

    Raises UserError naming the file, what is wrong with it and the stage to rerun: missing folder, truncated file,
    another table or version, missing column, value outside an enum, duplicate key.
    """
    folder = Path(folder)
    files = [folder] if folder.is_file() else sorted(folder.glob("part-*.parquet"))
    again = remedy or _again(table)
    if not files:
        raise UserError(f"{folder}: no {table.name} table here; {again}")
    kept = {name: pa.array(list(wanted), table.columns[name]) for name, wanted in (where or {}).items()}
    parts, keys = [], []
    for file in files:
        try:
            # the file is given open, so that "key=value" folder names are not taken for partitions
            with file.open("rb") as handle:
                part = pq.ParquetFile(handle).read(columns=list(columns) if columns else None)
            part.validate(full=True)  # reading alone lets texts through that are no UTF-8
            _check_schema(table, file, part.schema, columns, again)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{file}: damaged, truncated or not Parquet ({one_line(error)}); {again}") from None
        for name in (one for one in table.enums if one in part.column_names):
            if wrong := sorted(set(part.column(name).unique().to_pylist()) - table.enums[name]):
                allowed = sorted(table.enums[name])
                raise UserError(f"{file}: column `{name}` holds {wrong[0]!r}, not one of {allowed}; {again}")
        if set(table.key) <= set(part.column_names):
            keys.append(part.select(table.key))
        for name, wanted in kept.items():
            part = part.filter(pc.is_in(part.column(name), wanted))
        parts.append(part)
    if unique and keys:
        known = pa.concat_tables(keys)
        if known.group_by(list(table.key)).aggregate([]).num_rows != known.num_rows:
            raise UserError(f"{folder}: duplicate {'/'.join(table.key)}; {again}")
    return pa.concat_tables(parts)


def _again(table: Table) -> str:
    return f"rerun `dvc repro {table.written_by}` (or `dvc pull`)"


def _check_schema(table: Table, file: Path, schema: pa.Schema, columns: Sequence[str] | None, again: str) -> None:
    stamp = json.loads((schema.metadata or {}).get(b"diffusionreward", b"{}"))
    if stamp.get("table") != table.name or stamp.get("version") != table.version:
        found = f"{stamp.get('table', 'no table stamp')} v{stamp.get('version', '?')}"
        raise UserError(f"{file}: expected table {table.name} v{table.version}, found {found}; {again}")
    for name, kind in table.columns.items():
        if columns is not None and name not in columns:
            continue
        if name not in schema.names:
            raise UserError(f"{file}: column `{name}` is missing; {again}")
        if schema.field(name).type != kind:
            raise UserError(f"{file}: column `{name}` is {schema.field(name).type}, expected {kind}; {again}")


def read_frame(
    table: Table,
    folder: Path | str,
    columns: Sequence[str] | None = None,
    where: Mapping[str, Collection[Any]] | None = None,
) -> pd.DataFrame:
    """`read` as a pandas frame (image columns stay dicts of bytes)."""
    return read(table, folder, columns, where=where).to_pandas()


def read_images(
    table: Table, folder: Path | str, where: Mapping[str, Collection[Any]] | None = None
) -> dict[str, Pixels]:
    """Images by key, optionally of the rows alone whose columns hold one of the values of `where`.

    Raises UserError naming table and row for bytes that are not an image.
    """
    key = table.key[0]
    frame = read_frame(table, folder, [key, "image", *(name for name in where or () if name != key)], where)
    return {
        row_id: image_in(table, folder, row_id, cell) for row_id, cell in zip(frame[key], frame["image"], strict=True)
    }


def image_in(table: Table, folder: Path | str, row_id: str, cell: Mapping[str, Any]) -> Pixels:
    """The image of one row's cell. Raises UserError naming table and row, and the stage that wrote them."""
    try:
        return decode(cell["bytes"], f"{folder}: row {row_id}")
    except UserError as error:
        raise UserError(f"{error}; {_again(table)}") from None
