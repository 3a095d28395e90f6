"""Fixtures of the toy preference set."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipeline import tables
from pipeline.annotation.shown import ROUND_FEATURES
from pipeline.reward.data import Candidates, label, load_candidates, locate
from pipeline.reward.params import RewardConfig
from tests.reward.toy import RESTORERS, architecture, candidate_row, face_row, noise_image, vote_row


@pytest.fixture
def config() -> RewardConfig:
    return RewardConfig(architecture=architecture(), default_caption="a face")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ with FACES, CANDIDATES, PAIRS, VOTES and ANNOTATIONS of 16 faces."""
    root = tmp_path_factory.mktemp("frm") / "data"
    faces, candidates, pairs, votes, labels = [], [], [], [], []
    for index in range(16):
        face = f"face{index:02d}"
        split = "fit" if index < 8 else "select" if index < 13 else "frm_test"  # 8, 5 and 3: a mix-up shows
        faces.append(face_row(face, index))
        for restorer, sigma in zip(RESTORERS, (0.0, 0.4, 1.0, 2.0), strict=True):
            candidates.append(candidate_row(face, restorer, noise_image(index, sigma)))
        for a, b, winner in (("sharper", "softer", "a"), ("softer", "hq", "b"), ("smooth", "sharper", "b")):
            pair = f"{face}-{a}-{b}"
            pairs.append(
                {
                    "pair_id": pair,
                    "face_id": face,
                    "candidate_a": f"{face}-{a}-0",
                    "candidate_b": f"{face}-{b}-0",
                    "split": split,
                    "why": "random",
                }
            )
            votes += [vote_row(pair, name, winner) for name in ("ada", "bob", "cyd")]
            labels.append(
                {
                    "pair_id": pair,
                    "winner": winner,
                    "p_a": 0.9 if winner == "a" else 0.1,
                    "source": "svm" if a == "smooth" else "simulated",
                    "confidence": 0.8,
                    "abstained": False,
                }
            )
    tables.write(tables.FACES, root / "faces", faces)
    tables.write(tables.CANDIDATES, root / "candidates", candidates)
    tables.write(tables.PAIRS, root / "pairs", pairs)
    tables.write(tables.VOTES, root / "votes", votes)
    tables.write(tables.ANNOTATIONS, root / "annotations", labels)
    tables.write(ROUND_FEATURES, root / "round_features", [])
    return root


@pytest.fixture(scope="session")
def candidates(folder: Path) -> Candidates:
    return load_candidates(folder / "candidates", folder / "faces")


@pytest.fixture(scope="session")
def pairs(folder: Path, candidates: Candidates) -> pd.DataFrame:
    located = locate(tables.read_frame(tables.PAIRS, folder / "pairs"), candidates)
    return label(located, tables.read_frame(tables.ANNOTATIONS, folder / "annotations"))


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project root whose params.yaml holds the runtime group alone."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("runtime: {device: cpu, threads: 1, num_workers: 1, progress: false}\n")
