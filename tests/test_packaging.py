"""What `pip install .` brings, and what the pinned versions are."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution, requires
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def test_bitsandbytes_counts_as_absent() -> None:
    """pyiqa's requirements bring it; imported, it costs every process two seconds and a warning."""
    code = "import pipeline; from importlib.util import find_spec; assert find_spec('bitsandbytes') is None"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_opencv_that_is_imported_is_the_one_without_windows() -> None:
    """The other, which basicsr requires and installs over it, needs libGL: no server has that."""
    import cv2

    (library,) = (one for one in distribution("opencv-python-headless").files or () if one.match("cv2/cv2*.so"))
    digest = hashlib.sha256((Path(cv2.__file__).parent / library.name).read_bytes()).digest()
    assert library.hash is not None
    assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == library.hash.value


def test_the_wheel_holds_every_module_template_and_script_and_brings_the_command(tmp_path: Path) -> None:
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(tmp_path / "out"), str(tmp_path)], check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if not name.startswith("diffusionreward-")}
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "diffusionreward = pipeline.cli:main" in archive.read(points).decode()
    files = {
        str(path.relative_to(tmp_path))
        for name in ("pipeline", "stages")
        for path in (tmp_path / name).rglob("*")
        if path.is_file()
    }
    assert inside == files

    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    elsewhere: dict[str, Any] = {
        "cwd": site,
        "env": {**os.environ, "PYTHONPATH": str(site)},
        "capture_output": True,
        "text": True,
    }
    helped = subprocess.run([sys.executable, site / "bin/diffusionreward", "--help"], check=True, **elsewhere)
    assert all(name in helped.stdout for name in ("restore", "annotate", "benchmark", "stage"))
    found = subprocess.run(
        [sys.executable, "-c", "import stages.refl as m; print(m.__file__)"], check=True, **elsewhere
    )
    assert found.stdout.strip() == str(site / "stages/refl.py")


def test_every_dependency_is_pinned_once_without_a_host_or_a_path() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    pinned = [name_of(line) for line in lines]
    assert len(pinned) == len(set(pinned))
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert not {name_of(one) for one in declared} - set(pinned)


@pytest.mark.parametrize("package", ["pytorch_wavelets", "face_recognition_models"])
def test_what_others_import_undeclared_is_declared_here(package: str) -> None:
    """They import pkg_resources (gone from setuptools 81) or PyWavelets without saying so."""
    theirs = {name_of(one) for one in requires(package) or []}
    ours = {name_of(one) for one in PROJECT["dependencies"]}
    assert {"setuptools", "pywavelets"} - theirs <= ours
    assert "setuptools<81" in PROJECT["dependencies"]
