"""What dependencies no longer import (more in `pipeline/__init__.py`), and data of packages that don't import."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from pipeline.params import UserError


def basicsr(module: str) -> ModuleType:
    """Import `basicsr.<module>`, e.g. `basicsr("data.degradations")`.

    basicsr 1.4.2 imports `torchvision.transforms.functional_tensor`, which torchvision 0.17 made private; the same
    functions live in `torchvision.transforms.functional`.
    """
    gone = "torchvision.transforms.functional_tensor"
    if gone not in sys.modules:
        sys.modules[gone] = importlib.import_module("torchvision.transforms.functional")
    with np.errstate():  # basicsr silences numpy's divisions for the whole process when it is imported
        return importlib.import_module(f"basicsr.{module}")


def package_file(package: str, *parts: str) -> Path:
    """A data file of an installed package, which is found but not imported: several import what nobody declares.

    Raises UserError where the package or the file is missing.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {package} is missing; run `make venv`, or pip install the project")
    path = Path(spec.origin).parent.joinpath(*parts)
    if not path.is_file():
        raise UserError(f"{path} is missing; reinstall the package {package}")
    return path


def dlib_weights(name: str) -> Path:
    """A file of the `face_recognition_models` package, e.g. `shape_predictor_68_face_landmarks.dat`."""
    return package_file("face_recognition_models", "models", name)
