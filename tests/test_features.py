from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import features, tables
from pipeline.images import encode_png
from pipeline.metrics import compute, weights
from pipeline.params import UserError
from stages.features import CODE, main
from tests.closure import ROOT, closure
from tests.metrics.faces import blurred, face, noisy

NAMES = ["sharpness", "sharpness_eyes", "noise", "niqe", "lq_l1", "psnr", "gmsd", "lmd_68"]


def test_the_stamp_of_features_follows_every_module_that_computes_one() -> None:
    imported = {ROOT / module for module in closure("features") if module.parent.name == "metrics"}
    of_sets = {"frechet", "inception"}  # compare whole sets: no features
    assert {Path(str(module.__file__)) for module in CODE} == {path for path in imported if path.stem not in of_sets}


def project(folder: Path, monkeypatch: pytest.MonkeyPatch, **change: object) -> None:
    """Two faces with a degraded input and three candidates each."""
    monkeypatch.chdir(folder)
    group = {"names": NAMES, "reference": False, "missing": "error", **change}
    Path("params.yaml").write_text(yaml.safe_dump({"features": group, "runtime": {"progress": False}}))
    faces, degraded, candidates = [], [], []
    for seed in range(2):
        hq = face(seed)
        lq = noisy(blurred(hq, 2.0), 4)
        cell = tables.image_cell(encode_png(hq), f"f{seed}")
        faces.append(
            {"face_id": f"f{seed}", "image": cell, "width": 64, "height": 64, "source": "test", "caption": ""}
            | {"group_id": f"f{seed}", "split": "preference"}
        )
        drawn = {name: 0.0 for name, kind in tables.DEGRADED.columns.items() if kind == "double"}
        degraded.append(
            {"face_id": f"f{seed}", "image": tables.image_cell(encode_png(lq), "lq"), "blur_kind": "iso"}
            | {"jpeg_quality": 90, "seed": 0, **drawn}
        )
        for sample, image in enumerate((hq, blurred(hq), noisy(hq, 10))):
            candidates.append(
                {"candidate_id": f"f{seed}-diffbir-{sample}", "face_id": f"f{seed}", "restorer": "diffbir"}
                | {"anchor": False, "sample": sample, "seed": 0, "image": tables.image_cell(encode_png(image), "c")}
            )
    tables.write(tables.FACES, "data/faces", faces)
    tables.write(tables.DEGRADED, "data/degraded", degraded)
    tables.write(tables.CANDIDATES, "data/candidates", candidates)


def test_stage_measures_every_candidate_against_its_own_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, monkeypatch)
    main()
    frame = tables.read_frame(tables.FEATURES, "data/features").set_index("candidate_id")
    assert set(frame.columns) == {*NAMES, "feature_set"} - {"niqe"}
    assert "feature niqe is absent: valid from 192 px" in capsys.readouterr().err
    for seed in range(2):
        same, blur, noise = (frame.loc[f"f{seed}-diffbir-{sample}"] for sample in range(3))
        assert same["psnr"] == pytest.approx(80)
        assert same["lmd_68"] == same["gmsd"] == 0
        assert blur["sharpness"] < same["sharpness"] < noise["sharpness"]
        assert 0 < same["lq_l1"] < 0.1
    first = Path("data/features/part-00000.parquet").read_bytes()
    main()
    assert Path("data/features/part-00000.parquet").read_bytes() == first
    assert features.columns(frame.columns) == {
        "blind": ["noise", "sharpness", "sharpness_eyes"],
        "lq": ["lq_l1"],
        "reference": ["gmsd", "lmd_68", "psnr"],
    }


@pytest.mark.parametrize("module", [compute, weights])
def test_feature_set_names_what_computed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType
) -> None:
    project(tmp_path, monkeypatch, names=["noise", "entropy"])
    main()
    two = tables.read_frame(tables.FEATURES, "data/features")["feature_set"].unique()
    project(tmp_path, monkeypatch, names=["noise"])
    main()
    one = tables.read_frame(tables.FEATURES, "data/features")["feature_set"].unique()
    assert len(one) == len(two) == 1
    assert one[0] != two[0]
    monkeypatch.setattr(module, "__file__", __file__)  # other code
    main()
    assert tables.read_frame(tables.FEATURES, "data/features")["feature_set"].unique() != one


def test_a_candidate_of_an_unknown_face_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, monkeypatch)
    kept = tables.read(tables.DEGRADED, "data/degraded").to_pylist()[:1]
    tables.write(tables.DEGRADED, "data/degraded", kept)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no row for face f1" in capsys.readouterr().err


def test_the_stage_refuses_what_is_no_number_unless_it_is_to_be_imputed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(names: list[str], images: list, *_: object, **__: object) -> dict[str, np.ndarray]:
        return {name: np.where(np.arange(len(images)) == 1, np.nan, 1.0) for name in names}

    project(tmp_path, monkeypatch, names=["noise"])
    monkeypatch.setattr(compute, "score", broken)
    with pytest.raises(SystemExit):
        main()
    assert "feature `noise` of candidate f0-diffbir-1 is nan" in capsys.readouterr().err
    assert not Path("data/features").exists()
    project(tmp_path, monkeypatch, names=["noise"], missing="median")
    main()
    assert "feature noise: 1 of 6 values are no number" in capsys.readouterr().err
    kept = tables.read_frame(tables.FEATURES, "data/features").set_index("candidate_id")["noise"]
    assert kept.index[kept.isna()].tolist() == ["f0-diffbir-1"]  # the SVM imputes and counts it


def test_no_number_is_an_error_or_counted_where_it_is_to_be_imputed() -> None:
    frame = pd.DataFrame({"noise": [1.0, np.nan, 5.0, np.inf], "psnr": [1.0, 2.0, 3.0, 4.0]}, index=list("abcd"))
    with pytest.raises(UserError, match="feature `noise` of candidate b is nan"):
        features.no_numbers(frame, "error")
    assert features.no_numbers(frame, "median") == {"noise": 2}
    assert features.no_numbers(frame[["psnr"]], "error") == {}
    with pytest.raises(UserError, match="`noise` is a number for no candidate"):
        features.no_numbers(pd.DataFrame({"noise": [np.nan]}, index=["a"]), "median")


def test_wrong_names_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, message in ((["noise", "mad"], "`mad` is no feature"), (["reward_frm"], "`reward_frm` is no feature")):
        project(tmp_path, monkeypatch, names=names)
        with pytest.raises(SystemExit):
            main()
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="unknown metric `beauty`"):
        features.columns(["candidate_id", "noise", "beauty"])
