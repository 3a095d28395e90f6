"""Images and tables as data URIs, small enough to travel in one HTML file."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from pipeline.images import Pixels, encode_png, resize

LOSSLESS_SIDE = 128  # px; up to here pixels are kept as they are, above they are JPEG at most SHOWN_SIDE wide
SHOWN_SIDE = 320
EYES = (0.20, 0.36, 0.80, 0.60)  # left, top, right, bottom as shares of a face aligned to the FFHQ template
MOUTH = (0.26, 0.64, 0.74, 0.90)


def data_uri(image: Pixels) -> str:
    """A PNG (small images, unchanged) or JPEG (large ones, reduced) data URI of an RGB uint8 array [H, W, 3]."""
    height, width = image.shape[:2]
    if max(height, width) <= LOSSLESS_SIDE:
        return _uri("image/png", encode_png(image))
    if height == width and width > SHOWN_SIDE:
        image = resize(image, SHOWN_SIDE)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=88, optimize=True)
    return _uri("image/jpeg", buffer.getvalue())


def text_uri(kind: str, content: str) -> str:
    """A data URI of a text of this media type."""
    return _uri(f"{kind};charset=utf-8", content.encode())


def crop(image: Pixels, box: tuple[float, float, float, float]) -> Pixels:
    """The part of an aligned face inside a box of shares (left, top, right, bottom)."""
    height, width = image.shape[:2]
    left, top, right, bottom = box
    rows = slice(round(top * height), round(bottom * height))
    columns = slice(round(left * width), round(right * width))
    return np.ascontiguousarray(image[rows, columns])


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
