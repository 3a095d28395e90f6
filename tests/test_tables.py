"""The tables between stages: bytes that repeat, rows that sort, and every broken file named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import tables
from pipeline.annotation.rounds import ROUNDS
from pipeline.annotation.shown import ROUND_FEATURES
from pipeline.evaluation.restoring import RESTORED
from pipeline.images import encode_png
from pipeline.params import UserError
from pipeline.tables import (
    ANNOTATIONS,
    CANDIDATES,
    DEGRADED,
    FACES,
    FEATURES,
    PAIRS,
    REJECTS,
    SCORES,
    VOTES,
    Table,
)


def face(name: str, value: int = 0, split: str = "train") -> dict[str, Any]:
    image = np.full((8, 8, 3), value, dtype=np.uint8)
    return {
        "face_id": name,
        "image": tables.image_cell(encode_png(image), name),
        "width": 8,
        "height": 8,
        "source": "made",
        "group_id": name,
        "caption": "",
        "split": split,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tables.write(FACES, tmp_path / "faces", [face("b", 2), face("a", 1, "test"), face("c", 3)])
    return tmp_path / "faces"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_rows_come_back_sorted_with_their_images(folder: Path) -> None:
    assert tables.read(FACES, folder).column("face_id").to_pylist() == ["a", "b", "c"]
    images = tables.read_images(FACES, folder)
    assert {name: int(image[0, 0, 0]) for name, image in images.items()} == {"a": 1, "b": 2, "c": 3}
    assert list(tables.read_images(FACES, folder, {"split": {"test"}})) == ["a"]
    assert list(tables.read_images(FACES, folder, {"face_id": {"b", "c"}, "split": ("train",)})) == ["b", "c"]


def test_the_same_rows_give_the_same_bytes_in_any_order(folder: Path, tmp_path: Path) -> None:
    tables.write(FACES, tmp_path / "again", [face("c", 3), face("b", 2), face("a", 1, "test")])
    assert contents(folder) == contents(tmp_path / "again")


def test_large_tables_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [face(f"{index:02d}", 7) for index in range(10)]
    monkeypatch.setattr(tables, "SHARD_BYTES", 1000)
    tables.write(FACES, tmp_path / "faces", rows)
    shards = sorted((tmp_path / "faces").iterdir())
    assert [shard.name for shard in shards] == [f"part-{index:05d}.parquet" for index in range(len(shards))]
    assert {pq.read_metadata(shard).num_rows for shard in shards[:-1]} == {
        1000 // (len(rows[0]["image"]["bytes"]) + 200)
    }
    assert tables.read(FACES, tmp_path / "faces").column("face_id").to_pylist() == [row["face_id"] for row in rows]


def test_an_empty_table_keeps_its_schema(tmp_path: Path) -> None:
    tables.write(VOTES, tmp_path / "votes", [])
    content = tables.read(VOTES, tmp_path / "votes")
    assert content.num_rows == 0
    assert content.column_names == list(VOTES.columns)


def test_open_columns_are_floats_sorted_by_name(tmp_path: Path) -> None:
    row = {"candidate_id": "a", "feature_set": "f", "sharpness": 1.5, "noise": 2.0}
    tables.write(FEATURES, tmp_path / "features", [row])
    content = tables.read(FEATURES, tmp_path / "features")
    assert content.column_names == ["candidate_id", "feature_set", "noise", "sharpness"]
    assert content.schema.field("noise").type == pa.float64()


def test_the_huggingface_image_layout(folder: Path) -> None:
    content = pq.read_table(folder / "part-00000.parquet")
    assert content.schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert content.column("image")[0]["path"].as_py() == "a.png"


def test_only_the_wanted_columns_are_read(folder: Path) -> None:
    assert tables.read(FACES, folder, ["face_id", "split"]).column_names == ["face_id", "split"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([face("a"), face("a")], "duplicate key"),
        ([face("a", split="training")], "'training' is none of"),
        ([{**face("a"), "colour": "red"}], "unknown columns"),
        ([{name: cell for name, cell in face("a").items() if name != "caption"}], "missing columns"),
        (
            [face("a"), {name: cell for name, cell in face("b").items() if name != "split"}],
            r"missing columns \['split'\]",
        ),
    ],
)
def test_wrong_rows_are_refused_and_the_old_table_stays(folder: Path, rows: list[dict[str, Any]], said: str) -> None:
    before = contents(folder)
    with pytest.raises(ValueError, match=said):
        tables.write(FACES, folder, rows)
    assert contents(folder) == before


def test_a_write_that_dies_leaves_the_old_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(content: pa.Table, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    before = contents(folder)
    monkeypatch.setattr(tables, "write_file", die)
    with pytest.raises(KeyboardInterrupt):
        tables.write(FACES, folder, [face("z")])
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # a full disk isn't kept full


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def no_stamp(file: Path) -> None:
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)


def other_version(file: Path) -> None:
    metadata = {"diffusionreward": '{"table": "faces", "version": 99}'}
    pq.write_table(pq.read_table(file).replace_schema_metadata(metadata), file)


def other_table(file: Path) -> None:
    tables.write_file(pa.Table.from_pylist([], schema=PAIRS.schema()), file)


def lost_column(file: Path) -> None:
    tables.write_file(pq.read_table(file).drop_columns(["group_id"]), file)


def other_type(file: Path) -> None:
    content = pq.read_table(file)
    index = content.column_names.index("width")
    tables.write_file(content.set_column(index, "width", content.column("width").cast(pa.float64())), file)


def other_split(file: Path) -> None:
    content = pq.read_table(file)
    index = content.column_names.index("split")
    tables.write_file(content.set_column(index, "split", pa.array(["training"] * content.num_rows)), file)


def no_text(file: Path) -> None:
    content = pq.read_table(file)
    bad = pa.array([b"\xff\xfe"] * content.num_rows).cast(pa.string(), safe=False)
    index = content.column_names.index("caption")
    tables.write_file(content.set_column(index, "caption", bad), file)


def no_json(file: Path) -> None:
    tables.write_file(pq.read_table(file).replace_schema_metadata({"diffusionreward": "{"}), file)


def twice(file: Path) -> None:
    file.with_name("part-00001.parquet").write_bytes(file.read_bytes())


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (truncate, "truncated or not Parquet"),
        (empty, "truncated or not Parquet"),
        (no_text, "Invalid UTF8 sequence"),
        (no_json, "damaged, truncated or not Parquet (Expecting"),
        (no_stamp, "expected table faces v1, found no table stamp"),
        (other_version, "expected table faces v1, found faces v99"),
        (other_table, "expected table faces v1, found pairs v1"),
        (lost_column, "column `group_id` is missing"),
        (other_type, "column `width` is double, expected int64"),
        (other_split, "column `split` holds 'training'"),
        (twice, "duplicate face_id"),
        (Path.unlink, "no faces table here"),
    ],
)
def test_a_broken_shard_is_named_with_what_to_rerun(folder: Path, harm: Callable[[Path], None], said: str) -> None:
    harm(folder / "part-00000.parquet")
    with pytest.raises(UserError) as error:
        tables.read(FACES, folder)
    message = str(error.value)
    assert said in message
    assert str(folder) in message
    assert "`dvc repro prepare` (or `dvc pull`)" in message
    assert "\n" not in message


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_bytes_lost_from_the_middle_are_noticed(folder: Path, keep: float) -> None:
    """A copy that was cut anywhere is refused, never read as a shorter table."""
    file = folder / "part-00000.parquet"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    with pytest.raises(UserError, match="truncated or not Parquet"):
        tables.read(FACES, folder)


def test_a_broken_image_is_named_by_its_row(tmp_path: Path) -> None:
    bad = {**face("b"), "image": {"bytes": b"no image", "path": "b.png"}}
    tables.write(FACES, tmp_path / "faces", [face("a"), bad])
    with pytest.raises(UserError, match=r"faces: row b: not a readable image .*; rerun `dvc repro prepare`"):
        tables.read_images(FACES, tmp_path / "faces")


def test_every_table_with_several_keys_sorts_by_all(tmp_path: Path) -> None:
    keys = [("test", "m", "b"), ("test", "a", "c"), ("own", "z", "a")]
    tables.write(SCORES, tmp_path / "s", [dict(zip(SCORES.key, key, strict=True), psnr=1.0) for key in keys])
    frame = tables.read_frame(SCORES, tmp_path / "s")
    assert list(frame[list(SCORES.key)].itertuples(index=False, name=None)) == sorted(keys)


CONTRACTS = (
    (
        FACES,
        """v1 by face_id: face_id:string image width:int64 height:int64 source:string group_id:string caption:string
        split:string split=preference|test|train|val""",
    ),
    (REJECTS, "v1 by path: path:string reason:string"),
    (
        DEGRADED,
        """v1 by face_id: face_id:string image blur_kind:string blur_sigma_x:double blur_sigma_y:double
        blur_angle:double scale:double noise_sigma:double jpeg_quality:int64 seed:int64""",
    ),
    (
        CANDIDATES,
        """v1 by candidate_id: candidate_id:string face_id:string restorer:string anchor:bool sample:int64
        seed:int64 image""",
    ),
    (FEATURES, "v1 by candidate_id: candidate_id:string feature_set:string"),
    (ROUND_FEATURES, "v1 by candidate_id: candidate_id:string feature_set:string"),
    (
        PAIRS,
        """v1 by pair_id: pair_id:string face_id:string candidate_a:string candidate_b:string split:string why:string
        split=fit|frm_test|select why=gold|margin|random|repeat""",
    ),
    (
        ROUNDS,
        """v1 by pair_id: pair_id:string why:string split:string wanted:int64 gold:string repeat_of:string
        face_id:string candidate_a:string candidate_b:string restorer_a:string restorer_b:string anchor_a:bool
        anchor_b:bool lq hq image_a image_b caption:string feature_set:string features_a:string features_b:string
        metadata:string split=fit|frm_test|select why=gold|margin|random|repeat""",
    ),
    (
        VOTES,
        """v1 by event_id: event_id:string round_id:string pair_id:string annotator:string annotator_kind:string
        winner:string displayed_left:string shown_reference:bool response_ms:int64 round:int64 at:string
        undone_by:string annotator_kind=human|simulated winner=a|b|both_bad|skip|tie""",
    ),
    (
        ANNOTATIONS,
        """v1 by pair_id: pair_id:string winner:string p_a:double source:string confidence:double
        abstained:bool source=human|simulated|svm""",
    ),
    (RESTORED, "v1 by model,face_id,sample: model:string face_id:string sample:int64 seed:int64 image"),
    (SCORES, "v1 by dataset,model,face_id: dataset:string model:string face_id:string"),
)


@pytest.mark.parametrize(("table", "contract"), CONTRACTS, ids=[table.name for table, _ in CONTRACTS])
def test_a_contract_changes_with_its_version_alone(table: Table, contract: str) -> None:
    """An old file must not pass as a new one; votes and rounds hold people's work for years."""
    columns = [name if kind == tables.IMAGE else f"{name}:{kind}" for name, kind in table.columns.items()]
    enums = [f"{name}={'|'.join(sorted(values))}" for name, values in sorted(table.enums.items())]
    found = f"v{table.version} by {','.join(table.key)}: {' '.join([*columns, *enums])}"
    assert found == " ".join(contract.split())
