"""`diffusionreward score`: the model's own scores of files, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.images import encode_png
from pipeline.reward.commands import score
from pipeline.reward.model import FaceRewardModel
from pipeline.reward.params import RewardConfig
from tests.reward.toy import noise_image


@pytest.fixture
def model(config: RewardConfig, tmp_path: Path) -> FaceRewardModel:
    torch.manual_seed(0)
    made = FaceRewardModel.from_config(config)
    made.save_pretrained(tmp_path / "reward")
    return made


def test_files_get_the_models_scores_and_the_rest_is_said(
    model: FaceRewardModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    (folder / "below").mkdir(parents=True)
    pictures = {"a.png": noise_image(0, 0.0), "below/b.png": noise_image(1, 1.0)}
    pictures["c.png"] = noise_image(2, 0.5).repeat(2, 0).repeat(2, 1)  # of another size
    for name, picture in pictures.items():
        (folder / name).write_bytes(encode_png(picture))
    (folder / "a.txt").write_text("an old man")
    (folder / "wide.png").write_bytes(encode_png(np.zeros((8, 9, 3), np.uint8)))
    (folder / "broken.png").write_bytes(b"\x89PNG")
    score(folder, tmp_path / "reward", tmp_path / "scores.csv", batch_size=2, on="cpu")
    shown = capsys.readouterr()
    found = pd.read_csv(tmp_path / "scores.csv").set_index("file")["reward"]
    captions = {"a.png": "an old man", "below/b.png": "", "c.png": ""}
    assert list(found.index) == sorted(pictures)
    for name, picture in pictures.items():
        assert found[name] == pytest.approx(model.score([picture], [captions[name]])[0], abs=1e-5)
    assert "skipped: wide.png: not square (9 × 8)" in shown.err
    assert "skipped: broken.png: " in shown.err
    assert "3 of 5 images" in shown.out
    assert f"highest: {found.max():.4f} {found.idxmax()}" in shown.out


def test_one_file_is_a_set_of_one(model: FaceRewardModel, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(noise_image(0, 0.0)))
    score(tmp_path / "a.png", tmp_path / "reward", tmp_path / "scores.csv", on="cpu")
    assert list(pd.read_csv(tmp_path / "scores.csv")["file"]) == ["a.png"]


@pytest.mark.parametrize(
    ("images", "out", "said"),
    [
        ("nowhere", "scores.csv", "no image could be scored"),
        ("empty", "scores.csv", "empty holds no image"),
        ("a.png", "a.png/scores.csv", "--out"),
    ],
)
def test_mistakes_end_with_one_line(
    model: FaceRewardModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], images: str, out: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(encode_png(noise_image(0, 0.0)))
    with pytest.raises(SystemExit) as stopped:
        score(tmp_path / images, tmp_path / "reward", tmp_path / out, on="cpu")
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
