"""Restore the faces of your own photos: find, align, restore, paste back softly."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.faces.detection import Detector, alignment, resized, warp
from pipeline.faces.folder import image_names
from pipeline.images import SUFFIXES, UNREADABLE, Pixels, decode, encode_png, resize, to_tensor, to_uint8
from pipeline.params import UserError, printable
from pipeline.restorers.protocol import Restores
from pipeline.runtime import write_bytes

MADE_BY = "DiffusionReward"  # in each result: what an earlier run made may be replaced, nothing else
FEATHER = 0.12  # of the aligned face's side: where the pasted face fades into the photo
AT_ONCE = 4  # faces in the model's memory: a group photo may show dozens; one at a time where that is too much
TOO_LARGE = 2.0  # times the native size: beyond, the restored face is visibly coarser than the photo around it


class OutOfMemory(UserError):
    """No photo's fault."""


@dataclass(frozen=True)
class Finder:
    """Finds the faces of a photo: a detector of `pipeline.faces.detection` and the least score that counts."""

    detector: Detector
    min_score: float


def restore_photos(
    targets: Mapping[Path, Path],
    restorer: Restores,
    finder: Finder | None,
    device: torch.device,
    seed: int,
    say: Callable[[str], None] = lambda text: print(printable(text)),
) -> list[Path]:
    """Restore photos into PNG files: `targets` as `output_paths` names them.

    `finder` None means that the images are aligned crops: each is restored as a whole, at the native size. A photo
    without a face or that can't be read is said through `say` and skipped; so is what makes a result coarse. The same
    photo and seed give the same result, whatever lies beside it.

    Returns the files written. Raises UserError when the GPU's memory is too small, or nothing could be restored.
    """
    say(f"the model restores faces at {restorer.native_size} × {restorer.native_size} px")
    written = []
    for photo, target in targets.items():
        try:
            data = photo.read_bytes()
            image = decode(data, str(photo))
            restore = Restoration(restorer, device, seed, hashlib.sha256(data).hexdigest())
            result, size = restore.crop(image, photo) if finder is None else restore.photo(image, photo, finder)
        except OSError as error:
            say(f"{photo}: skipped, not readable ({error.strerror})")
            continue
        except OutOfMemory as error:  # the next photo would fail as well
            raise UserError(f"{photo}: {error}") from None
        except UserError as error:
            say(f"{error}; skipped")
            continue
        if size > TOO_LARGE * restorer.native_size:
            say(
                f"{photo}: warning: a face of {size:.0f} px is more than twice the model's {restorer.native_size} px; "
                "the restored face will look coarser than the photo around it"
            )
        write_bytes(target, encode_png(result, MADE_BY))
        written.append(target)
        say(f"{photo} → {target}")
    if not written:
        raise UserError("nothing was restored")
    return written


def output_paths(source: Path, out: Path) -> dict[Path, Path]:
    """Where each photo of `source` (a file or a folder) is restored to: the same path under `out`, as PNG.

    Raises UserError for a missing source, a folder without images and results that would replace photos, or any other
    file that is no earlier result.
    """
    if os.path.isdir(source):
        photos = [path for path in (source / name for name in image_names(source)) if not _is_result(path)]
        root, kept = source, photos
    elif os.path.isfile(source):
        photos, root = [source], source.parent
        try:
            kept = [path for path in root.iterdir() if path.suffix.lower() in SUFFIXES]
            kept = [source, *(path for path in kept if not _is_result(path))]
        except OSError as error:
            raise UserError(f"{root}: can't be listed ({error.strerror}), so what lies there isn't known") from None
    else:
        raise UserError(f"{source} does not exist, or can't be read; give a photo or a folder of photos")
    if not photos:
        raise UserError(f"{source} holds no image ({', '.join(sorted(SUFFIXES))}; earlier results are no photos)")
    names = [photo.relative_to(root) for photo in photos]
    plain = [name.with_suffix(".png") for name in names]
    same = Counter(map(_folded, plain))  # a.jpg and a.png beside each other keep their suffix
    targets = [
        out / (png if same[_folded(png)] == 1 else name.with_name(f"{name.name}.png"))
        for name, png in zip(names, plain, strict=True)
    ]
    counts = Counter(map(_folded, targets))
    if doubled := [target for target in targets if counts[_folded(target)] > 1]:
        raise UserError(f"--out {out}: two photos would be restored to {doubled[0]}; rename one of them")
    taken = {_real(path) for path in kept} & {_real(path) for path in targets}
    if taken := taken | {path for path in targets if os.path.isfile(path) and not _is_result(path)}:
        raise UserError(f"--out {out}: the result would replace {min(taken)}; choose another folder")
    return dict(zip(photos, targets, strict=True))


def _folded(path: Path) -> str:
    """What a disk that doesn't tell capitals apart (exFAT, a share) takes for the same name."""
    return str(path).lower()


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises where links lead in a circle


def _is_result(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == MADE_BY
    except UNREADABLE:
        return False


@dataclass(frozen=True)
class Restoration:
    """Restores the faces of one photo, whose content hash names the noise."""

    restorer: Restores
    device: torch.device
    seed: int
    content: str

    def crop(self, image: Pixels, name: Path) -> tuple[Pixels, float]:
        """An aligned crop at the native size, and the side that it had; UserError when it is not square."""
        height, width = image.shape[:2]
        if height != width:
            raise UserError(f"{name}: not square ({width} × {height}), so no aligned crop")
        return self._faces([resize(image, self.restorer.native_size)])[0], width

    def photo(self, image: Pixels, name: Path, finder: Finder) -> tuple[Pixels, float]:
        """The photo with its faces restored, and the side (px) of the largest; UserError when it has no face."""
        found = finder.detector(image, finder.min_score)
        size = self.restorer.native_size
        matrices = [matrix for face in found if (matrix := alignment(face.points, size)) is not None]
        if not matrices:
            raise UserError(f"{name}: no face found (--detection-size finds smaller ones, --min-score fainter ones)")
        result = image
        restored = self._faces([warp(image, matrix, size) for matrix in matrices])
        # the best detection last: it stays whole where faces overlap
        for matrix, face in zip(matrices[::-1], restored[::-1], strict=True):
            result = paste(result, face, matrix)
        return result, max(size / zoom(matrix) for matrix in matrices)

    def _faces(self, crops: Sequence[Pixels]) -> list[Pixels]:
        ids = [f"{self.content}-{index}" for index in range(len(crops))]
        restored: list[Pixels] = []
        for start in range(0, len(crops), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            try:
                restored += self._at_once(crops[part], ids[part])
                continue
            except torch.OutOfMemoryError:
                pass  # out of this block, where the error would keep what filled the memory
            for crop, one in zip(crops[part], ids[part], strict=True):
                try:
                    restored += self._at_once([crop], [one])
                except torch.OutOfMemoryError:
                    raise OutOfMemory("the GPU's memory is too small for one face; use --device cpu") from None
        return restored

    def _at_once(self, crops: Sequence[Pixels], ids: list[str]) -> list[Pixels]:
        lq = to_tensor(crops).to(self.device)
        with torch.inference_mode():
            return list(to_uint8(self.restorer.restore(lq, [""] * len(lq), ids, self.seed)))


def zoom(matrix: NDArray[np.float64]) -> float:
    """Px of the aligned face for one px of the photo."""
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def paste(photo: Pixels, face: Pixels, matrix: NDArray[np.float64]) -> Pixels:
    """`photo` with the aligned `face` [S, S, 3] put back through the inverse of `matrix`, fading out at its edges."""
    size = face.shape[0]
    # a face larger than its place in the photo is first averaged down, so that the warp skips no pixels
    small = resized(face, min(1.0, 1 / zoom(matrix)))
    ratio = small.shape[0] / size
    forward = matrix * ratio
    forward[:, 2] += (ratio - 1) / 2  # centres of pixels
    left, top, right, bottom = _place(forward, small.shape[0], photo)
    if left == right or top == bottom:  # wholly outside
        return photo
    forward[:, 2] += forward[:, :2] @ (left, top)  # from pixels of that part alone
    part, side = photo[top:bottom, left:right], (right - left, bottom - top)
    cubic, linear = (cv2.WARP_INVERSE_MAP | how for how in (cv2.INTER_CUBIC, cv2.INTER_LINEAR))
    placed = cv2.warpAffine(small, forward, side, flags=cubic, borderMode=cv2.BORDER_REPLICATE)
    weight = cv2.warpAffine(feather(small.shape[0]), forward, side, flags=linear)[..., None]
    blended = part + weight * (placed.astype(np.float32) - part)
    result = photo.copy()
    result[top:bottom, left:right] = blended.round().clip(0, 255)
    return result


def _place(matrix: NDArray[np.float64], size: int, photo: Pixels) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the part of `photo` that `matrix` maps into size × size px."""
    edges = (-1, size)  # the first pixels outside, up to which the warp interpolates
    corners = np.array([[(x, y) for x in edges for y in edges]], dtype=np.float64)
    x, y = cv2.transform(corners, cv2.invertAffineTransform(matrix))[0].T
    height, width = photo.shape[:2]
    left, right = np.clip([np.floor(x.min()), np.ceil(x.max()) + 1], 0, width)
    top, bottom = np.clip([np.floor(y.min()), np.ceil(y.max()) + 1], 0, height)
    return int(left), int(top), int(right), int(bottom)


def feather(size: int) -> NDArray[np.float32]:
    """Weights [size, size]: 0 at the edges, rising smoothly to 1 at `FEATHER` of the side."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) / max(1.0, FEATHER * size)
    ramp = distance.clip(0, 1)
    smooth = ramp * ramp * (3 - 2 * ramp)
    return np.outer(smooth, smooth).astype(np.float32)
