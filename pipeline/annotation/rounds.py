"""Annotation rounds: immutable batches of pairs that carry their own images, so that votes outlive any rerun.

A round is a folder `annotations/rounds/<round_id>/`: shards of `ROUNDS`, and `round.json` with the plan it was made
from and the hash of the shards. It is written once, tracked by DVC, and checked whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import Field

from pipeline import tables
from pipeline.annotation.pairs import pair_id_of, with_facts
from pipeline.params import Params, UserError, validate
from pipeline.runtime import file_hash, rng, stable_hash, write_json

ROUNDS_FOLDER = Path("annotations/rounds")
EVERYONE = 0  # in `wanted`: shown to every annotator; a repeat to all who judged the pair before

_S, _I, _B = pa.string(), pa.int64(), pa.bool_()
ROUNDS = tables.Table(
    "rounds",
    1,
    ("pair_id",),
    {
        "pair_id": _S,
        "why": _S,
        "split": _S,
        "wanted": _I,  # annotators who should judge it; 0: everyone
        "gold": _S,  # the known answer, a or b; "" where there is none
        "repeat_of": _S,  # pair_id of the pair that this one shows again with its sides swapped; "" otherwise
        "face_id": _S,
        "candidate_a": _S,
        "candidate_b": _S,
        "restorer_a": _S,
        "restorer_b": _S,
        "anchor_a": _B,
        "anchor_b": _B,
        "lq": tables.IMAGE,
        "hq": tables.IMAGE,
        "image_a": tables.IMAGE,
        "image_b": tables.IMAGE,
        "caption": _S,
        "feature_set": _S,
        "features_a": _S,  # JSON {feature: number or null}, as stage `features` computed them for this very image
        "features_b": _S,
        "metadata": _S,  # JSON: the degradation drawn, and sample and seed of both candidates
    },
    "label",
    enums={"why": frozenset({"random", "margin", "gold", "repeat"}), "split": tables.PAIR_SPLITS},
)
FACTS = tuple(name for name, kind in ROUNDS.columns.items() if kind != tables.IMAGE)


class RoundPlan(Params):
    """What a round should hold. Shares are of the whole round, `random` of what gold and repeats leave."""

    seed: int
    pairs: int = Field(ge=1)  # gold ones and repeats included
    random: float = Field(ge=0, le=1)  # the rest are the pairs on which the SVM abstained, least sure first
    gold: float = Field(ge=0, le=0.5)
    repeats: float = Field(ge=0, le=0.5)
    overlap: float = Field(ge=0, le=1)  # share of pairs that several people judge
    annotators: int = Field(ge=1)  # how many people judge each of those
    evaluation: bool  # draw from frm_test: at random, of two restorer outputs, gold apart


@dataclass(frozen=True)
class Round:
    """One round on disk, already checked against its hash."""

    folder: Path
    round_id: str
    plan: RoundPlan
    counts: dict[str, int] = field(hash=False)

    @property
    def number(self) -> int:
        """Position in the series: the leading number of the id."""
        return int(self.round_id.split("-")[0])

    def frame(self, columns: Sequence[str] = FACTS) -> pd.DataFrame:
        """The rows; by default without the images."""
        return tables.read_frame(ROUNDS, self.folder, columns)

    @cached_property
    def _places(self) -> dict[str, tuple[Path, int, int]]:
        places: dict[str, tuple[Path, int, int]] = {}
        for file in sorted(self.folder.glob("part-*.parquet")):
            with pq.ParquetFile(file) as shard:
                for group in range(shard.num_row_groups):
                    ids = shard.read_row_group(group, columns=["pair_id"]).column("pair_id").to_pylist()
                    places |= {pair_id: (file, group, index) for index, pair_id in enumerate(ids)}
        return places

    def png(self, pair_id: str, column: str) -> bytes:
        """PNG bytes of one image (`lq`, `hq`, `image_a` or `image_b`). Raises KeyError for a pair that is not here."""
        file, group, index = self._places[pair_id]
        return _image_column(file, group, column)[index].as_py()["bytes"]


@lru_cache(maxsize=12)  # a few row groups of a few columns: neighbours in a round are shown by several people
def _image_column(file: Path, group: int, column: str) -> pa.ChunkedArray:
    with pq.ParquetFile(file) as shard:
        return shard.read_row_group(group, columns=[column]).column(column)


def read_round(folder: Path) -> Round:
    """One round. Raises UserError when it is missing, not whole, or not what was written."""
    mend = f"`dvc checkout {folder}` (or `dvc pull`) brings back what was tracked"
    try:
        about = json.loads((folder / "round.json").read_text(encoding="utf-8"))
        plan = validate(RoundPlan, about["plan"], f"{folder / 'round.json'}: plan")
        found = Round(folder, about["round_id"], plan, about["counts"])
        content = about["content"]
    except FileNotFoundError:
        raise UserError(f"{folder}: no round.json here; {mend}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'round.json'}: not readable ({error}); {mend}") from None
    if _content_hash(folder) != content:
        raise UserError(
            f"{folder}: its images or facts are not those that were written, and rounds never change; {mend}"
        )
    return found


def read_rounds(folder: Path = ROUNDS_FOLDER) -> list[Round]:
    """All rounds in order. Raises UserError as `read_round` does, half a round included, and for a tracked round that
    is not on this disk."""
    for pointer in sorted(folder.glob("*.dvc")):
        if not pointer.with_suffix("").exists():
            raise UserError(f"{pointer.with_suffix('')} is tracked but not here; run `dvc pull {pointer}`")
    folders = [path for path in folder.glob("[0-9]*") if path.is_dir()]
    return sorted(map(read_round, folders), key=lambda one: one.number)


def _content_hash(folder: Path) -> str:
    return stable_hash(*(file_hash(file) for file in sorted(folder.glob("part-*.parquet"))))


def pick(
    pairs: pd.DataFrame,
    candidates: pd.DataFrame,
    annotations: pd.DataFrame | None,
    asked: frozenset[str],
    plan: RoundPlan,
) -> pd.DataFrame:
    """The rows of `pairs` that make a round, with `why`, `wanted` and `gold` filled in.

    Never an `frm_test` pair unless `plan.evaluation`, and then at random only: a pair picked because a model was unsure
    of it may not measure that model, so margin picks are of split `fit` alone. Gold pairs set the HQ against a
    deliberately damaged anchor. `asked` pairs were in earlier rounds and stay out: a pair's votes are on what its round
    shows.

    Raises UserError when there is nothing left to ask, or margin picks are wanted and there are no annotations.
    """
    here = pairs["split"].eq("frm_test") == plan.evaluation
    pool = with_facts(pairs[here & pairs["why"].ne("repeat")].sort_values("pair_id"), candidates).assign(repeat_of="")
    pool = pool[~pool["pair_id"].isin(asked)]
    open_ = pool[pool["gold"].eq("")]
    if plan.evaluation:
        open_ = open_[~open_["anchored"]]
    if open_.empty:
        raise UserError("every pair of this split was already asked; raise the number of pairs, or restore more faces")

    generator = rng(plan.seed, "round", len(asked), plan.evaluation)
    gold = pool[pool["gold"].ne("")].assign(wanted=EVERYONE)
    gold = gold.sample(min(len(gold), round(plan.pairs * plan.gold)), random_state=generator)
    ordinary = min(len(open_), max(1, plan.pairs - len(gold) - round(plan.pairs * plan.repeats)))
    margin = open_.iloc[:0]
    if not plan.evaluation and plan.random < 1:
        if annotations is None:
            raise UserError("data/annotations is missing, so no pair is known to be uncertain; run `dvc repro label`")
        margin = _least_sure(open_[open_["split"].eq("fit")], annotations).head(math.ceil(ordinary * (1 - plan.random)))
    rest = open_[~open_["pair_id"].isin(margin["pair_id"])]
    random = rest.sample(min(len(rest), ordinary - len(margin)), random_state=generator)
    chosen = pd.concat([margin.assign(why="margin"), random.assign(why="random")])
    shared = set(chosen["pair_id"].sample(round(len(chosen) * plan.overlap), random_state=generator))
    chosen["wanted"] = [plan.annotators if pair_id in shared else 1 for pair_id in chosen["pair_id"]]
    repeats = chosen.sample(min(len(chosen), round(plan.pairs * plan.repeats)), random_state=generator)
    return pd.concat([chosen, gold, _swapped(repeats)], ignore_index=True)


def _swapped(pairs: pd.DataFrame) -> pd.DataFrame:
    """The same pairs with their sides changed, as pairs of their own: the form that `agreement` and `pairs` use."""
    sides = {"candidate_a": pairs["candidate_b"], "candidate_b": pairs["candidate_a"]}
    found = pairs.assign(**sides, why="repeat", wanted=EVERYONE, repeat_of=pairs["pair_id"])
    ids = zip(found["candidate_a"], found["candidate_b"], strict=True)
    return found.assign(pair_id=[pair_id_of(a, b) for a, b in ids])


def _least_sure(pairs: pd.DataFrame, annotations: pd.DataFrame) -> pd.DataFrame:
    """Pairs on which the SVM abstained, least sure first, taking turns between faces so that no face fills a round."""
    unsure = annotations[annotations["source"].eq("svm") & annotations["abstained"]]
    margin = (unsure.set_index("pair_id")["p_a"] - 0.5).abs()
    found = pairs[pairs["pair_id"].isin(margin.index)]
    found = found.assign(margin=found["pair_id"].map(margin)).sort_values(["margin", "pair_id"])
    found = found.assign(turn=found.groupby("face_id").cumcount()).sort_values(["turn", "margin", "pair_id"])
    return found.drop(columns=["margin", "turn"])


def make_round(plan: RoundPlan, data: Path = Path("data"), folder: Path = ROUNDS_FOLDER) -> Round:
    """Pick pairs from the tables under `data` and write them, images and all, as the next round below `folder`."""
    pairs = tables.read_frame(tables.PAIRS, data / "pairs")
    candidates = tables.read_frame(tables.CANDIDATES, data / "candidates", _CANDIDATE_FACTS)
    has_annotations = (data / "annotations").is_dir()
    annotations = tables.read_frame(tables.ANNOTATIONS, data / "annotations") if has_annotations else None
    earlier = read_rounds(folder)
    asked = frozenset(pair_id for one in earlier for pair_id in one.frame(["pair_id"])["pair_id"])
    chosen = pick(pairs, candidates, annotations, asked, plan)

    building = folder / ".building"
    tables.write(ROUNDS, building, _rows(chosen, data))
    content = _content_hash(building)
    round_id = f"{1 + max((one.number for one in earlier), default=0):03d}-{content[:8]}"
    counts = chosen["why"].value_counts().sort_index()
    about = {
        "round_id": round_id,
        "plan": plan.model_dump(),
        "counts": {str(why): int(n) for why, n in counts.items()},
        "content": content,
    }
    write_json(building / "round.json", about)
    target = folder / round_id
    if target.exists():
        shutil.rmtree(building)
        raise UserError(f"{target} exists; rounds never change")
    building.rename(target)
    return read_round(target)


_FROM_PAIR = ("pair_id", "why", "split", "wanted", "gold", "repeat_of", "face_id")
_CANDIDATE_FACTS = ["candidate_id", "face_id", "restorer", "anchor", "sample", "seed"]


def _rows(chosen: pd.DataFrame, data: Path) -> list[dict[str, Any]]:
    """Rows of `ROUNDS` for picked pairs, everything about them copied from the stage outputs under `data`."""
    degraded_facts = [name for name in tables.DEGRADED.columns if name not in ("face_id", "image")]
    faces = _by_key(tables.FACES, data / "faces", set(chosen["face_id"]))
    degraded = _by_key(tables.DEGRADED, data / "degraded", set(chosen["face_id"]))
    wanted = set(chosen["candidate_a"]) | set(chosen["candidate_b"])
    candidates = _by_key(tables.CANDIDATES, data / "candidates", wanted)
    features = _by_key(tables.FEATURES, data / "features", wanted)
    rows = []
    for pair in chosen.to_dict("records"):
        face, lq = faces[pair["face_id"]], degraded[pair["face_id"]]
        a, b = candidates[pair["candidate_a"]], candidates[pair["candidate_b"]]
        metadata = {
            "degradation": {name: lq[name] for name in degraded_facts},
            "a": {name: a[name] for name in ("sample", "seed")},
            "b": {name: b[name] for name in ("sample", "seed")},
        }
        rows.append(
            {name: pair[name] for name in _FROM_PAIR}
            | {"candidate_a": a["candidate_id"], "candidate_b": b["candidate_id"]}
            | {"restorer_a": a["restorer"], "restorer_b": b["restorer"]}
            | {"anchor_a": a["anchor"], "anchor_b": b["anchor"]}
            | {"lq": lq["image"], "hq": face["image"], "image_a": a["image"], "image_b": b["image"]}
            | {"caption": face["caption"], "metadata": json.dumps(metadata, sort_keys=True)}
            | {"feature_set": features[a["candidate_id"]]["feature_set"]}
            | {"features_a": _features_json(features[a["candidate_id"]])}
            | {"features_b": _features_json(features[b["candidate_id"]])}
        )
    return rows


def _by_key(table: tables.Table, folder: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Rows of a table by key, only those wanted. Raises UserError when one of them is missing."""
    key = table.key[0]
    found = {row[key]: row for row in tables.read(table, folder, where={key: wanted}).to_pylist()}
    if missing := sorted(wanted - set(found)):
        raise UserError(f"{folder}: no row {missing[0]} ({len(missing)} missing); run `dvc repro {table.written_by}`")
    return found


def _features_json(row: Mapping[str, Any]) -> str:
    numbers = {name: value for name, value in row.items() if name not in tables.FEATURES.columns}
    return json.dumps(
        {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()},
        sort_keys=True,
    )


def is_tracked_as(path: Path, pointer: Path) -> bool:
    """Whether a file is here, and the one that its `.dvc` file records."""
    try:
        recorded = yaml.safe_load(pointer.read_text(encoding="utf-8"))["outs"][0]["md5"]
    except (yaml.YAMLError, KeyError, IndexError, TypeError):
        raise UserError(f"{pointer}: no DVC file; `git checkout {pointer}` brings it back") from None
    return path.is_file() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == recorded


def track(path: Path) -> bool:
    """`dvc add` a round or a votes file; False where this is no DVC repository. Raises UserError when DVC refuses."""
    if not Path(".dvc").is_dir():
        return False
    done = subprocess.run([sys.executable, "-m", "dvc", "add", "-q", str(path)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{path} is written, but `dvc add {path}` failed: {' '.join(reason)}; run it by hand")
    return True
