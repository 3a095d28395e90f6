"""Reading params.yaml: every mistake of a user is one line that names file, key and what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from pipeline import params
from pipeline.params import Params, UserError

ROOT = Path(__file__).resolve().parents[1]


class Inner(Params):
    rate: float = Field(gt=0)


class Example(Params):
    steps: int = Field(ge=1)
    span: tuple[float, float]
    inner: Inner


GOOD = "seed: 3\nfrm:\n  steps: 4\n  span: [0.1, 2.0]\n  inner: {rate: 0.5}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(GOOD)
    return path


def test_a_group_is_read_and_validated(file: Path) -> None:
    group = params.load("frm", Example, file)
    assert group == Example(steps=4, span=(0.1, 2.0), inner=Inner(rate=0.5))
    assert params.load("frm.inner", Inner, file).rate == 0.5
    assert params.value("seed", file) == 3
    assert params.value("frm.inner.rate", file) == 0.5


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps: 4", "stepz: 4", "frm.stepz: Extra inputs are not permitted"),
        ("steps: 4", 'steps: "4"', "frm.steps: Input should be a valid integer"),
        ("steps: 4", "steps: 4.5", "frm.steps: Input should be a valid integer"),
        ("steps: 4", "steps: true", "frm.steps: Input should be a valid integer"),
        ("steps: 4", "steps: 0", "frm.steps: Input should be greater than or equal to 1"),
        ("[0.1, 2.0]", "[0.1]", "frm.span.1: Field required"),
        ("[0.1, 2.0]", "[.nan, 2.0]", "frm.span.0: "),
        ("[0.1, 2.0]", "[.inf, 2.0]", "frm.span.0: "),
        ("rate: 0.5", "rate: -1.0", "frm.inner.rate: Input should be greater than 0"),
        ("rate: 0.5", "rate: 2026-01-01", "frm.inner.rate: "),
    ],
)
def test_a_wrong_value_is_named_by_its_key(file: Path, old: str, new: str, said: str) -> None:
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(UserError) as error:
        params.load("frm", Example, file)
    assert str(error.value).startswith(f"{file}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_all_mistakes_of_a_group_are_said_at_once(file: Path) -> None:
    file.write_text(GOOD.replace("steps: 4", "steps: 0").replace("rate: 0.5", "rate: 0"))
    with pytest.raises(UserError, match=r"frm\.steps.*frm\.inner\.rate"):
        params.load("frm", Example, file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("seed: [1", "not valid YAML"),
        ("- 1\n- 2\n", "must be a mapping of groups"),
        ("", "must be a mapping of groups"),
        ("seed: 1\nfrn: {}\n", "unknown group `frn`; known groups: base, "),
        ("seed: 1\n1: {}\n", "unknown group `1`"),
        ("seed: 1\nfrm: {}\nseed: 2\n", "`seed` is there twice"),
        ("frm: {steps: 1, steps: 2}\n", "`steps` is there twice"),
        ("\x00", "not valid YAML"),
        ("faces: {folder: 2024-13-01}\n", "not valid YAML: month must be in 1..12"),
        ("faces: {folder: {{path}}}\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_named(file: Path, content: str, said: str) -> None:
    file.write_text(content)
    with pytest.raises(UserError) as error:
        params.read(file)
    assert str(file) in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", ["5e-5", "5E-5", "5.e-5", "0.5e-4", "+5e-05", "0.00005"])
def test_every_spelling_of_a_small_number_is_a_number(file: Path, number: str) -> None:
    """YAML 1.1 would read `5e-5` as text, where DVC (YAML 1.2) reads a number."""
    file.write_text(GOOD.replace("rate: 0.5", f"rate: {number}"))
    assert params.load("frm.inner", Inner, file).rate == pytest.approx(5e-5)


def test_a_missing_file_and_a_file_that_is_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml is missing; run from the project root"):
        params.read(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match=r"binary\.yaml"):
        params.read(tmp_path / "binary.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match=r"folder\.yaml can't be read \(Is a directory\)"):
        params.read(tmp_path / "folder.yaml")


def test_an_anchor_inside_itself_is_named(file: Path) -> None:
    file.write_text("seed: 1\nfrm: &me {steps: *me}\n")
    with pytest.raises(UserError, match=r"params\.yaml: frm: no plain mapping of names to values"):
        params.load("frm", Example, file)


def test_a_name_that_is_no_utf8_can_be_shown() -> None:
    assert params.printable("é.png") == "é.png"
    assert params.printable(os.fsdecode(b"a\xff.png")) == "a\\xff.png"


@pytest.mark.parametrize("key", ["frm.missing", "benchmark", "seed.deeper"])
def test_a_missing_key_is_named(file: Path, key: str) -> None:
    with pytest.raises(UserError, match=f"`{key}` is missing"):
        params.value(key, file)


def test_groups_cannot_change_after_reading(file: Path) -> None:
    group = params.load("frm", Example, file)
    with pytest.raises(ValueError, match="frozen"):
        group.steps = 5


def test_the_shipped_params_hold_exactly_the_known_groups() -> None:
    assert set(params.read(ROOT / "params.yaml")) == params.GROUPS


def test_a_stage_with_a_wrong_param_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("count: 1200", "count: many"))
    done = subprocess.run(
        [sys.executable, "-m", "stages.prepare"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: params.yaml: faces.count: Input should be a valid integer",
    ]
    assert not (tmp_path / "data").exists()
