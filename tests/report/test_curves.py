"""Curves of ReFL: one line a variant, equal compute at equal places, the kept checkpoint, rewards of real images."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.params import UserError
from pipeline.report import charts, curves, provenance

ROOT = Path(__file__).resolve().parents[2]


def frame(steps: list[int], reward: list[float], real: float = 0.3) -> pd.DataFrame:
    identity = [0.5 + step / 10_000 for step in steps]
    columns = {"step": steps, "loss": 1.0, "val_reward": reward, "val_reward_hq": real, "val_id_dlib": identity}
    return pd.DataFrame(columns)


def discs(svg: str, css: str) -> list[float]:
    return [float(x) for x in re.findall(rf'<circle class="{css}" cx="([\d.]+)"', svg)]


def write(folder: Path, real: float) -> tuple[Path, Path]:
    plots, metrics = folder / "plots", folder / "metrics"
    plots.mkdir()
    metrics.mkdir()
    frame([0, 60, 120], [0.2, 0.25, 0.24], real).to_csv(plots / "diffbir-full.csv", index=False)
    frame([0, 60, 120], [0.2, 0.22, 0.23], real).to_csv(plots / "diffbir-static.csv", index=False)
    frame([0, 578], [0.2, 0.21], real).to_csv(plots / "diffbir-more_base.csv", index=False)
    ends = {"first": {"step": 0.0, "val_reward": 0.2, "val_id_dlib": 0.5}}
    kept = {"step": 60.0, "val_reward": 0.25, "val_id_dlib": 0.506}
    (metrics / "diffbir-full.json").write_text(json.dumps(ends | {"kept": kept}))
    return plots, metrics


def test_variants_share_one_axis_of_compute_and_the_kept_step_is_ringed(tmp_path: Path) -> None:
    plots, metrics = write(tmp_path, real=0.3)
    (plots / "diffbir-structure.csv").write_text("of an earlier matrix, no variant of this one")
    variants = ["full", "more_base", "static", "base"]
    (item,) = curves.training(plots, metrics, {"diffbir": variants, "osediff": variants})
    assert [label for _, label in item["legend"]] == ["ReFL (full)", "base, trained longer", "ReFL with a static FRM"]
    reward = str(item["hacking"][0]["svg"])
    full, longer = discs(reward, "dot series-full"), discs(reward, "dot series-more_base")
    assert len(full) == 3
    assert (longer[0], longer[-1]) == (full[0], full[-1])  # 578 base steps are as much compute as 120 ReFL steps
    assert discs(reward, "ring series-full") == [full[1]]
    row = item["table"]["rows"][0]
    assert row["label"] == "ReFL (full)"
    assert [cell["verdict"] for cell in row["cells"]] == ["better", "worse"]  # reward rose, identity distance too
    assert row["cells"][1]["change"] == "+1.2\u00a0%"


@pytest.mark.parametrize(("real", "drawn"), [(0.26, True), (0.9, False)])
def test_the_reward_of_real_images_is_a_line_or_a_note_never_a_squeeze(
    tmp_path: Path, real: float, drawn: bool
) -> None:
    (item,) = curves.training(*write(tmp_path, real), {"diffbir": ["full", "more_base", "static"]})
    chart = item["hacking"][0]
    assert ("reference" in str(chart["svg"])) == drawn
    assert ("(real images: 0.900)" in chart["caption"]) != drawn


def test_the_dvc_plot_folds_the_same_measures_as_the_report() -> None:
    template = json.loads((ROOT / ".dvc/plots/hacking.json").read_text())
    assert template["transform"][0]["fold"] == list(curves.HACKING)
    assert "template: hacking" in (ROOT / "dvc.yaml").read_text()


def test_the_commit_is_the_last_that_changed_the_code(tmp_path: Path) -> None:
    assert provenance.code_commit(tmp_path) == "unknown: the code is not in a git checkout"
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    git = provenance._git
    git(tmp_path, "init", "--quiet")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/a.py").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, *who, "commit", "--quiet", "--message", "code")
    code = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "results.json").write_text("{}")
    git(tmp_path, "add", ".")
    git(tmp_path, *who, "commit", "--quiet", "--message", "results")
    assert git(tmp_path, "rev-parse", "HEAD") != code
    assert provenance.code_commit(tmp_path) == code
    (tmp_path / "pipeline/a.py").write_text("two")
    assert provenance.code_commit(tmp_path) == f"{code}, edited since"


def test_the_columns_after_an_accuracy_are_its_interval_drawn_as_a_band() -> None:
    table = {"share": [0.3, 1.0], "threshold": [0.9, 0.6], "accuracy": [0.7, 0.8], "lo": [0.6, 0.7], "hi": [0.75, 0.95]}
    threshold, accuracy = (str(one["svg"]) for one in curves.figure(pd.DataFrame(table), "coverage")["charts"])
    (band,) = re.findall(r'<polygon class="band series-c0" points="([^"]+)"', accuracy)
    heights = [float(point.split(",")[1]) for point in band.split()]
    dots = [float(y) for y in re.findall(r'<circle class="dot series-c0" cx="[\d.]+" cy="([\d.]+)"', accuracy)]
    assert heights[0] > dots[0] > heights[3]  # pixels grow downwards: lo below the point, hi above it
    assert heights[1] > dots[1] > heights[2] > 0
    assert "band" not in threshold


def test_evidence_without_a_row_is_left_out_and_other_plots_must_have_some(tmp_path: Path) -> None:
    path = tmp_path / "svm_coverage.csv"
    path.write_text("coverage,threshold,accuracy,lo,hi,n\n")
    assert curves.evidence_plots([path]) == {"shown": [], "training": []}
    with pytest.raises(UserError, match=r"svm_coverage.csv: no rows"):
        curves.plots([path])


def test_a_histogram_fills_its_frame() -> None:
    svg = str(charts.histogram(np.linspace(50, 95, 100), "full", "quality", "JPEG"))
    bars = [
        tuple(map(float, one)) for one in re.findall(r'<rect class="bar[^"]*" x="([0-9.]+)".*? width="([0-9.]+)"', svg)
    ]
    assert bars[0][0] == charts.LEFT + 0.5
    assert sum(bars[-1]) == pytest.approx(320 - charts.RIGHT, abs=1)
