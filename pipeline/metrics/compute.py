"""Computes the catalogue's metrics, batched: on the CPU over several processes, on a GPU in this one.

pyiqa (PolyForm Noncommercial) stays behind `pipeline/metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from pipeline import runtime
from pipeline.compat import dlib_weights, package_file
from pipeline.images import Pixels
from pipeline.metrics import landmarks, regions, signal, vqfr
from pipeline.metrics import weights as stored
from pipeline.metrics.catalogue import PYIQA, PYIQA_BLIND, REWARDS, Metric, get, known, other_blind
from pipeline.metrics.embeddings import COMPARED, EMBEDDERS, Embedder
from pipeline.metrics.frechet import FEATURES, FFHQ
from pipeline.metrics.perceptual import PerceptualDistance, weights_file
from pipeline.parallel import CHUNK, SHOWN, map_chunks
from pipeline.params import UserError, one_line

BLIND: dict[str, Callable[[Tensor], Tensor]] = {
    "sharpness": signal.sharpness,
    "noise": signal.noise,
    "blockiness": signal.blockiness,
    "colourfulness": signal.colourfulness,
    "entropy": signal.entropy,
}
PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "psnr": signal.psnr,
    "ssim": signal.ssim,
    "psnr_vqfr": vqfr.psnr,
    "ssim_vqfr": vqfr.ssim,
    "lq_l1": signal.down_l1,
    "lq_psnr": signal.down_psnr,
    "lq_ssim": signal.ssim,
}
FETCH = "run pyiqa's {} once on a machine with network and copy the files from its ~/.cache/torch/hub to {}"
REGIONAL = {f"sharpness_{region}": region for region in regions.REGIONS}
# on the CPU's processes, whatever the device
DLIB = frozenset({*REGIONAL, *(name for name, (embedder, _) in COMPARED.items() if not EMBEDDERS[embedder].on_gpu)})
SLICE = 8  # images of a chunk that a network sees at once: VGG's features of one take 130 MB at 512 px
Row = tuple[Pixels, Pixels | None, Pixels | None]  # image, reference, LQ


def available(names: Sequence[str], size: int) -> tuple[list[str], dict[str, str]]:
    """Which of `names` can be computed on images whose shorter side is `size`, and why each of the others can't.

    Raises UserError for a name that is not in the catalogue.
    """
    absent = {metric.name: reason for metric in known(names, "metrics") if (reason := absence(metric, size))}
    return [name for name in names if name not in absent], absent


def expand(names: Sequence[str]) -> list[str]:
    """`names` with `pyiqa:blind` replaced by those blind metrics of pyiqa that find weights on disk.

    One that finds some of its files only, or a broken one, is among them: `available` says what is wrong with it.
    """
    found = [one for name in names for one in (_blind_on_disk() if name == PYIQA_BLIND else [name])]
    return list(dict.fromkeys(found))


def _blind_on_disk() -> list[str]:
    if not stored.HUB.is_dir() or not any(stored.HUB.iterdir()):
        return []  # sixty networks need not be built to learn that
    return [name for name in other_blind() if stored.reads_hub(name.removeprefix(PYIQA), get(name).options)]


def absence(metric: Metric, size: int) -> str:
    """Why a metric can't be computed on images whose shorter side is `size`; empty where it can."""
    if metric.name in REWARDS:
        return "a reward model scores it, not this module"
    if size < metric.min_size:
        return f"valid from {metric.min_size} px, these images have {size} px"
    if missing := stored.missing(metric.weights):
        said = f"its weights are not on disk: {', '.join(map(str, missing))}"
        return f"{said}; {metric.obtain or FETCH.format(metric.pyiqa or metric.name, stored.HUB)}"
    return _trial(metric, size) if metric.name.startswith(PYIQA) else ""


@cache
def _trial(metric: Metric, size: int) -> str:
    """What stops a metric taken from pyiqa by name, of which nothing is known before it is tried.

    It must be finite on a textured image and on the same one blurred and tell them apart; one that compares with a
    reference must score the reference itself better.
    """
    name = str(metric.pyiqa)
    rng = np.random.default_rng(0)
    texture = torch.from_numpy(rng.random((1, 3, size, size), dtype=np.float32)) * torch.linspace(0.2, 1, size)
    blurred = torch.nn.functional.avg_pool2d(texture, 3, stride=1, padding=1)
    try:
        model, _ = stored.pyiqa_model(name, metric.options, "cpu")
        with torch.no_grad():
            values = [float(model(x) if metric.needs == "blind" else model(x, texture)) for x in (texture, blurred)]
    except UserError as error:
        return f"{error}; {FETCH.format(name, stored.HUB)}"
    except Exception as error:  # whatever its code raises on such an image, or without its weights
        return f"pyiqa's {name} does not run on {size} px here: {one_line(error)}"
    if not np.isfinite(values).all() or values[0] == values[1]:
        return f"pyiqa's {name} gives {values[0]:g} for a texture of {size} px and {values[1]:g} for it blurred"
    if metric.needs == "reference" and (values[0] > values[1]) != metric.higher_is_better:
        return f"pyiqa's {name} prefers a blurred texture of {size} px to the original itself"
    return ""


def weights(name: str) -> list[Path]:
    """The weight files behind a metric, so that a table can state what computed it."""
    metric = get(name)
    if name in FEATURES:
        statistics = [stored.HUB / FFHQ] if name == "fid_vqfr" else []
        return [*EMBEDDERS[FEATURES[name]].files(), *statistics]
    if name in REGIONAL:
        return [dlib_weights("shape_predictor_68_face_landmarks.dat")]
    if name in COMPARED:
        return EMBEDDERS[COMPARED[name][0]].files()
    if name == "niqe":
        return [_niqe_parameters()]
    if name.startswith("stlpips_"):
        return [weights_file("vgg" if name == "stlpips_vgg" else "alex")]
    if name.startswith(PYIQA):
        return list(stored.pyiqa_model(str(metric.pyiqa), metric.options, "cpu")[1])
    return [stored.HUB / file for file in metric.weights]


def libraries(name: str) -> tuple[str, ...]:
    """The distributions whose code computes a metric."""
    if name in REWARDS:
        return ("torch", "open_clip_torch")
    if name == "id_dlib" or FEATURES.get(name) == "dlib":
        return ("torch", "dlib-bin", "numpy")
    if name in DLIB:
        return ("dlib-bin", "numpy")
    if name == "lmd_98":
        return ("torch", "facexlib", "opencv-python-headless")
    if name in COMPARED:
        return ("torch", "opencv-python-headless")
    if name.startswith("stlpips_"):
        return ("torch", "pyiqa", "stlpips_pytorch")
    if name == "niqe":
        return ("torch", "pyiqa", "basicsr")
    if get(name).pyiqa or name in FEATURES:
        # some of those with weights of their own stand on networks of torchvision or timm
        return ("torch", "torchvision", "timm", "pyiqa") if weights(name) else ("torch", "pyiqa")
    return ("torch",)


def score(
    names: Sequence[str],
    images: Sequence[Pixels],
    references: Sequence[Pixels] | None = None,
    lq: Sequence[Pixels] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """One value an image [N] for each name; all images, references (HQ) and LQs have one size.

    What a reference needs is computed once for the images of a chunk that share it: order them by reference.
    Raises UserError for metrics that `available` calls absent, ValueError where references or LQs are missing.
    """
    metrics = known(names, "metrics")
    if not images:
        return {name: np.empty(0) for name in names}
    _, absent = available(names, min(images[0].shape[:2]))
    if absent:
        raise UserError("; ".join(f"{name} is absent: {reason}" for name, reason in absent.items()))
    for metric in metrics:
        if (metric.needs == "reference" and references is None) or (metric.needs == "lq" and lq is None):
            raise ValueError(f"{metric.name} needs {metric.needs} images")
    nothing = [None] * len(images)
    rows: list[Row] = list(zip(images, references or nothing, lq or nothing, strict=True))
    device = runtime.device()
    if device.type == "cpu":
        return _columns(names, map_chunks(partial(_chunk, tuple(names), "cpu"), rows, "metrics"))
    on_cpu = tuple(name for name in names if name in DLIB)
    others = tuple(name for name in names if name not in DLIB)
    result = _columns(on_cpu, map_chunks(partial(_chunk, on_cpu, "cpu"), rows, "dlib") if on_cpu else [])
    starts: Iterable[int] = range(0, len(rows), CHUNK)
    if len(rows) >= SHOWN * CHUNK:
        starts = runtime.progress(starts, "metrics", total=-(-len(rows) // CHUNK))
    done = [row for start in starts for row in _chunk(others, str(device), rows[start : start + CHUNK])]
    return {name: (result | _columns(others, done))[name] for name in names}


def _columns(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.array([row[index] for row in rows], dtype=np.float64) for index, name in enumerate(names)}


def _chunk(names: tuple[str, ...], device: str, rows: Sequence[Row]) -> list[list[float]]:
    """Values [len(rows)][len(names)] of one chunk, in this process."""
    with runtime.one_thread(), runtime.whole_fp32(), torch.inference_mode():
        batch = _Batch(rows, device)
        columns = [batch.values(*known([name], "metrics")) for name in names]
    return [list(values) for values in zip(*columns, strict=True)]


class _Batch:
    """A chunk's images as tensors, and what several metrics need computed once."""

    def __init__(self, rows: Sequence[Row], device: str) -> None:
        self._images = [row[0] for row in rows]
        references = [row[1] for row in rows if row[1] is not None]
        self._lq = [row[2] for row in rows if row[2] is not None]
        self._device = device
        places: dict[bytes, int] = {}
        self._which = [places.setdefault(one.tobytes(), len(places)) for one in references]  # places in _references
        self._references = [references[self._which.index(place)] for place in range(len(places))]
        self.tensor = self._tensor(self._images)

    def values(self, metric: Metric) -> list[float]:
        """One value an image."""
        name = metric.name
        if name in REGIONAL:
            found = regions.sharpness(self.tensor, landmarks.locate(self._images))[REGIONAL[name]]
        elif name in COMPARED:
            embedder, compared = COMPARED[name]
            faces = EMBEDDERS[embedder].embed(self._images, self._device)
            return compared(faces, self._known_faces(EMBEDDERS[embedder])[self._which]).tolist()
        elif name.startswith("stlpips_"):
            found = self._in_slices(partial(self._distance, _perceptual(name, self._device)))
        elif name in BLIND:
            found = BLIND[name](self.tensor)
        elif name in PAIRED:
            found = PAIRED[name](self.tensor, self._other(metric))
        elif name == "niqe":
            found = _niqe(self.tensor)
        else:
            model, _ = stored.pyiqa_model(str(metric.pyiqa), metric.options, self._device)
            inputs = [self.tensor] if metric.needs == "blind" else [self.tensor, self._other(metric)]
            if metric.weights or name.startswith(PYIQA):  # a network, or it may be one
                found = self._in_slices(lambda rows: model(*(one[rows] for one in inputs)))
            else:
                found = model(*inputs)
        return found.double().flatten().tolist()

    def _in_slices(self, work: Callable[[slice], Tensor]) -> Tensor:
        """`work` of SLICE rows after the other [N]."""
        starts = range(0, len(self._images), SLICE)
        return torch.cat([work(slice(start, start + SLICE)).flatten() for start in starts])

    def _distance(self, model: PerceptualDistance, rows: slice) -> Tensor:
        """ST-LPIPS [n] of some rows to their references."""
        places = sorted(set(self._which[rows]))
        pairs = _pairs([self._references[place] for place in places])
        features = zip(*(model.features(2 * self._tensor(pair) - 1) for pair in pairs), strict=True)
        own = [places.index(place) for place in self._which[rows]]
        return model.distance([torch.cat(layer)[own] for layer in features], 2 * self.tensor[rows] - 1)

    def _known_faces(self, embedder: Embedder) -> NDArray[np.float64]:
        # dlib's network has batches of its own
        batches = _pairs(self._references) if embedder.on_gpu else [self._references]
        return np.concatenate([embedder.embed(batch, self._device) for batch in batches])

    def _other(self, metric: Metric) -> Tensor:
        if metric.needs == "lq":
            return self._tensor(self._lq)
        return self._tensor([self._references[place] for place in self._which])

    def _tensor(self, images: Sequence[Pixels]) -> Tensor:
        """uint8 [N, H, W, 3] → float [N, 3, H, W] in [0, 1], the range of pyiqa."""
        batch = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())
        return batch.to(self._device).float() / 255


def _pairs(references: list[Pixels]) -> list[list[Pixels]]:
    """The references as networks get them: two at a time, the last one twice where their number is odd.

    Rounding follows a batch's shape, and a value must not depend on how many others are computed beside it.
    """
    even = references + references[-1:] * (len(references) % 2)
    return [even[at : at + 2] for at in range(0, len(even), 2)]


@cache
def _perceptual(name: str, device: str) -> PerceptualDistance:
    network = PerceptualDistance("vgg" if name == "stlpips_vgg" else "alex", device)
    # faster by a third on a CPU
    return network.to(memory_format=torch.channels_last) if device == "cpu" else network


def _niqe_parameters() -> Path:
    return package_file("basicsr", "metrics", "niqe_pris_params.npz")


def _niqe(images: Tensor) -> Tensor:
    """NIQE (Mittal et al. 2013) with basicsr's pristine parameters, on its Y of YCbCr; batched by pyiqa's code.

    NaN for a picture without texture, which has no such statistics.
    """
    from pyiqa.archs.niqe_arch import niqe

    with np.load(_niqe_parameters()) as file:
        mean, covariance = (
            torch.from_numpy(file[name]).to(images.device) for name in ("mu_pris_param", "cov_pris_param")
        )
    weights = images.new_tensor([65.481, 128.553, 24.966], dtype=torch.float64).view(1, 3, 1, 1)
    y = ((images.double() * weights).sum(dim=1, keepdim=True) + 16).round()

    def of(batch: Tensor) -> Tensor:
        return niqe(batch, mean.reshape(1, -1).repeat(len(batch), 1), covariance.repeat(len(batch), 1, 1))

    def alone(image: Tensor) -> Tensor:
        try:
            return of(image[None]).reshape(1)  # of a single image pyiqa returns a number
        except LinAlgError:
            return image.new_full((1,), torch.nan)

    try:
        return of(y)
    except LinAlgError:  # one such picture spoils its batch
        return torch.cat([alone(image) for image in y])
