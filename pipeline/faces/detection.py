"""Finding faces in photos, and the affine map of each to the FFHQ template."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import cv2
import dlib
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compat import dlib_weights
from pipeline.images import Pixels
from pipeline.params import UserError
from pipeline.runtime import one_thread

# Five points of an aligned 512 px FFHQ face, (x, y): left eye, right eye, nose tip, left and right mouth corner, as
# seen in the image (facexlib's FaceRestoreHelper).
TEMPLATE_SIZE = 512
TEMPLATE = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
RETINAFACE = "detection_Resnet50_Final.pth"


@dataclass(frozen=True)
class Found:
    """One face found in an image, in px of that image."""

    box: tuple[int, int, int, int]  # left, top, right, bottom
    score: float
    points: NDArray[np.float64]  # [5, 2], in the order of TEMPLATE


class Detector(Protocol):
    """Finds the faces of an image, best score first."""

    def __call__(self, image: Pixels, min_score: float) -> list[Found]: ...


@cache
def load_detector(name: str, weights: str | None, detection_size: int) -> Detector:
    """The detector `dlib` or `facexlib` (RetinaFace, `weights` on disk), loaded once a process.

    It looks at the image scaled so that its longer side is `detection_size` px: small faces in small photos are found,
    large photos don't take minutes.
    """
    find = DlibDetector() if name == "dlib" else RetinaFaceDetector(Path(weights or ""))

    def detect(image: Pixels, min_score: float) -> list[Found]:
        scale = detection_size / max(image.shape[:2])
        found = find(resized(image, scale), min_score)
        return sorted((_unscaled(face, scale) for face in found), key=lambda face: (-face.score, face.box))

    return detect


class DlibDetector:
    """dlib's HOG frontal detector; its score is a margin, above about 0.7 for clear frontal faces."""

    def __init__(self) -> None:
        self.detector = dlib.get_frontal_face_detector()
        self.predictor = dlib.shape_predictor(str(dlib_weights("shape_predictor_68_face_landmarks.dat")))

    def __call__(self, image: Pixels, min_score: float) -> list[Found]:
        boxes, scores, _ = self.detector.run(image, 0, min_score)
        return [
            Found((box.left(), box.top(), box.right(), box.bottom()), float(score), self._points(image, box))
            for box, score in zip(boxes, scores, strict=True)
        ]

    def _points(self, image: Pixels, box: Any) -> NDArray[np.float64]:
        points = np.array([(point.x, point.y) for point in self.predictor(image, box).parts()], dtype=np.float64)
        return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])


class RetinaFaceDetector:
    """facexlib's RetinaFace; its score is a probability. Raises UserError when the weights are not on disk."""

    def __init__(self, weights: Path) -> None:
        if not weights.is_file():
            raise UserError(
                f"{weights} is missing; the detector `facexlib` needs {RETINAFACE} of facexlib's release v0.1.0 at "
                "that path (faces.weights, --weights); or choose the detector dlib"
            )
        from facexlib.detection.retinaface import RetinaFace  # only this detector pays for its import

        self.model = RetinaFace(network_name="resnet50", device=torch.device("cpu"))
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            self.model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
        except Exception:  # whatever bytes that are no checkpoint make torch.load and load_state_dict raise
            raise UserError(f"{weights}: not the weights of facexlib's {RETINAFACE}") from None

    def __call__(self, image: Pixels, min_score: float) -> list[Found]:
        with one_thread(), torch.inference_mode():  # in this process or in one of several: the same bits
            rows = self.model.detect_faces(np.ascontiguousarray(image[..., ::-1]), conf_threshold=min_score)  # BGR
        return [Found(_box(row[:4]), float(row[4]), row[5:].reshape(5, 2).astype(np.float64)) for row in rows]


def _box(edges: NDArray[np.float32]) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(float(edge)) for edge in edges)
    return left, top, right, bottom


@cache
def _frontal_detector() -> Any:
    return dlib.get_frontal_face_detector()


def frontal_score(image: Pixels) -> float:
    """dlib's best frontal score in an aligned face, looked at in 256 px; −inf when it finds none above 0.

    The HOG detector knows faces from 80 px on, which a face of the aligned 256 px template exceeds.
    """
    seen = cv2.resize(image, (256, 256), interpolation=cv2.INTER_CUBIC if image.shape[0] < 256 else cv2.INTER_AREA)
    scores = _frontal_detector().run(seen, 0, 0.0)[1]
    return max(scores, default=float("-inf"))


def alignment(points: NDArray[np.float64], size: int) -> NDArray[np.float64] | None:
    """The similarity [2, 3] that maps five image points to the template at `size` px; None where none fits."""
    matrix, _ = cv2.estimateAffinePartial2D(points, TEMPLATE * (size / TEMPLATE_SIZE), method=cv2.LMEDS)
    return None if matrix is None else np.asarray(matrix, dtype=np.float64)


def warp(image: Pixels, matrix: NDArray[np.float64], size: int) -> Pixels:
    """The aligned face [size, size, 3]: `image` under `matrix`, without aliasing where the map shrinks.

    A shrinking map is drawn on a canvas some whole times larger, whose cells are then averaged.
    """
    factor = max(1, ceil(1 / np.hypot(matrix[0, 0], matrix[1, 0])))
    # centre of pixel i of the small image is (i + 0.5) * factor - 0.5 on the canvas
    larger = matrix * factor
    larger[:, 2] += (factor - 1) / 2
    side = size * factor
    canvas = cv2.warpAffine(image, larger, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def resized(image: Pixels, scale: float) -> Pixels:
    """`image` scaled by `scale`, antialiased."""
    if scale == 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), dtype=np.uint8)


def _unscaled(face: Found, scale: float) -> Found:
    left, top, right, bottom = (round(value / scale) for value in face.box)
    return Found((left, top, right, bottom), face.score, face.points / scale)
