"""Images: RGB uint8 arrays [H, W, 3] between stages, RGB float tensors [N, 3, H, W] in [-1, 1] inside models."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.params import UserError, one_line

Pixels = NDArray[np.uint8]
LONGEST = 32_766  # px: OpenCV's warps can't read beyond
# twice as many are refused: phones make 200 million. Below that PIL would warn
Image.MAX_IMAGE_PIXELS = 150_000_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})  # of files that count as images
# what PIL raises for files that are cut off, no image, far too large, or whose metadata it stumbles over
UNREADABLE = (
    *(UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, RuntimeError),
    *(struct.error, TypeError, KeyError, IndexError, AttributeError, ArithmeticError),
)


def encode_png(image: Pixels, software: str = "") -> bytes:
    """Lossless PNG bytes of an RGB uint8 array [H, W, 3]; the same pixels, the same bytes. `software`: its maker."""
    from PIL.PngImagePlugin import PngInfo

    buffer, told = io.BytesIO(), PngInfo()
    if software:
        told.add_text("Software", software)
    Image.fromarray(image, mode="RGB").save(buffer, format="PNG", compress_level=6, pnginfo=told)
    return buffer.getvalue()


def decode(data: bytes, where: str) -> Pixels:
    """RGB uint8 array [H, W, 3] of encoded bytes, in sRGB; EXIF rotation applied, transparent parts on white.

    Raises UserError with `where` (file and row, or path) when the bytes are not a whole image, and for 16-bit or float
    grey, which would be clipped to white.
    """
    from PIL import ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            pixels = np.asarray(_in_srgb(_opaque(ImageOps.exif_transpose(image))).convert("RGB"), dtype=np.uint8)
    except UNREADABLE as error:
        raise UserError(f"{where}: not a readable image ({unreadable(error)})") from None
    if max(pixels.shape[:2]) > LONGEST:
        raise UserError(f"{where}: a side of {max(pixels.shape[:2])} px; scale it down to {LONGEST} px")
    if mode == "F" or mode.startswith("I"):
        raise UserError(f"{where}: {mode} pixels of more than 8 bit; save it as 8-bit RGB")
    return pixels


def _opaque(image: Image.Image) -> Image.Image:
    """A picture with transparency, or of a palette, as it looks on white; others as they are."""
    if image.has_transparency_data:
        own = image.convert("RGBA")
        white = Image.new("RGBA", own.size, "white")
        white.alpha_composite(own)
        opaque = white.convert("RGB")
    elif image.mode == "P":
        opaque = image.convert("RGB")
    else:
        return image
    opaque.info = dict(image.info)  # its colour profile
    return opaque


def _in_srgb(image: Image.Image) -> Image.Image:
    """A picture whose embedded profile is another one (a phone's Display P3, a printer's CMYK) in sRGB, which models
    know."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "L"):
        return image
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(own).lower():
            return image
        converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):  # a damaged profile: the numbers are all that is known
        return image
    return converted or image


def unreadable(error: Exception) -> str:
    """What PIL's error says of a file, the same words in every run."""
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000} million pixels; scale it down"
    # its own message quotes the buffer's address
    return "of no known image format" if isinstance(error, UnidentifiedImageError) else one_line(error)


def to_tensor(images: Pixels | Sequence[Pixels]) -> torch.Tensor:
    """uint8 [N, H, W, 3] → float32 [N, 3, H, W] in [-1, 1]."""
    batch = np.ascontiguousarray(np.stack(list(images)).transpose(0, 3, 1, 2))
    return torch.from_numpy(batch).float() / 127.5 - 1.0


def to_uint8(images: torch.Tensor) -> Pixels:
    """float [N, 3, H, W] in [-1, 1] (clipped) → uint8 [N, H, W, 3], rounded to nearest."""
    clipped = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    return clipped.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def resize(image: Pixels, size: int) -> Pixels:
    """Resize to size × size with PIL's antialiased Lanczos filter."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS), dtype=np.uint8)
