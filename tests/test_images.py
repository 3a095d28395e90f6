"""Pixels survive the way through PNG and tensors."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from pipeline import images
from pipeline.params import UserError


@pytest.fixture
def picture() -> images.Pixels:
    return np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)


def test_png_is_lossless_and_repeats(picture: images.Pixels) -> None:
    data = images.encode_png(picture)
    assert np.array_equal(images.decode(data, "here"), picture)
    assert images.encode_png(picture.copy()) == data


def test_every_pixel_value_survives_the_tensor(picture: images.Pixels) -> None:
    ramp = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = images.to_tensor([ramp])
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(images.to_uint8(tensor)[0], ramp)
    assert torch.equal(images.to_tensor(np.stack([picture, picture])), images.to_tensor([picture, picture]))


def test_values_outside_the_range_are_clipped() -> None:
    assert images.to_uint8(torch.tensor([-3.0, 3.0, 0.0]).view(1, 3, 1, 1)).tolist() == [[[[0, 255, 128]]]]


def test_exif_rotation_is_applied_and_grey_and_alpha_become_rgb(picture: images.Pixels) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise to show
    Image.fromarray(picture).save(buffer, format="PNG", exif=exif)
    assert np.array_equal(images.decode(buffer.getvalue(), "here"), np.rot90(picture, -1))
    for mode in ("L", "RGBA", "P"):
        buffer = io.BytesIO()
        Image.fromarray(picture).convert(mode).save(buffer, format="PNG")
        assert images.decode(buffer.getvalue(), "here").shape == (20, 16, 3)


def test_what_is_transparent_is_white_and_a_profile_counts_with_transparency_and_palettes(
    picture: images.Pixels,
) -> None:
    own = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    own[:5, :, 3] = 0
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    buffer = io.BytesIO()
    Image.fromarray(own).save(buffer, format="PNG")
    found = images.decode(buffer.getvalue(), "here")
    assert (found[:5] == 255).all()
    assert np.array_equal(found[5:], picture[5:])
    seen = []

    def convert(image: Image.Image, *_: object, **__: object) -> Image.Image:
        seen.append(image.mode)
        return image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageCms, "getProfileDescription", lambda _: "Display P3")
        patch.setattr(ImageCms, "profileToProfile", convert)
        for mode in ("RGB", "RGBA", "P"):
            buffer = io.BytesIO()
            Image.fromarray(picture).convert(mode).save(buffer, format="PNG", icc_profile=swapped)
            images.decode(buffer.getvalue(), "here")
    assert seen == ["RGB"] * 3


@pytest.mark.parametrize("cut", [0, 10, 400, -60])
@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_a_broken_image_is_named(picture: images.Pixels, format_: str, cut: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.kron(picture, np.ones((4, 4, 1), dtype=np.uint8))).save(buffer, format=format_)
    with pytest.raises(UserError, match=r"^faces: row 3: not a readable image") as error:
        images.decode(buffer.getvalue()[: cut or 0], "faces: row 3")
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_image_are_named() -> None:
    for content in (b"<html>not found</html>", b""):  # the same words each time: they go into a table
        with pytest.raises(UserError, match=r"^a\.jpg: not a readable image \(of no known image format\)$"):
            images.decode(content, "a.jpg")


def test_a_damaged_avif_is_named(picture: images.Pixels) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.kron(picture, np.ones((4, 4, 1), dtype=np.uint8))).save(buffer, format="AVIF")
    content = bytearray(buffer.getvalue())
    coded = content.index(b"mdat") + 4
    content[coded : coded + 8] = b"\xff" * 8  # for which PIL raises a RuntimeError
    with pytest.raises(UserError, match=r"^a\.avif: not a readable image \(Failed to decode"):
        images.decode(bytes(content), "a.avif")


def test_an_image_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, picture: images.Pixels) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"^big\.png: not a readable image"):
        images.decode(images.encode_png(picture), "big.png")


def test_resize_keeps_an_image_that_fits_and_the_mean_of_one_that_does_not(picture: images.Pixels) -> None:
    square = picture[:16, :16]
    assert images.resize(square, 16) is square
    small = images.resize(picture, 8)
    assert small.shape == (8, 8, 3)
    assert abs(float(small.mean()) - float(picture.mean())) < 3


def profile(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...], name: str) -> bytes:
    """A minimal ICC v2 profile: primaries as XYZ, gamma 2.2."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(65536 * one)) for one in values)

    tags = {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue)}
    return icc(b"RGB ", name, tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(563)))


def gamma(hundredths: int) -> bytes:
    """A tone curve of an ICC profile; its exponent in 256ths."""
    return b"curv" + bytes(4) + struct.pack(">IH", 1, hundredths) + bytes(2)


def icc(space: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC v2 profile of a monitor."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * one) for one in (0.9642, 1.0, 0.8249)))
    said = name.encode() + b"\0"
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(said)) + said + bytes(78), b"wtpt": white} | tags
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for key, content in tags.items():
        table += key + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02100000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white[8:]
    return head.ljust(128, b"\0") + table + body


def test_another_colour_space_becomes_srgb_and_srgb_stays() -> None:
    red, green, blue = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142)  # sRGB's
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    picture[..., 0] = 255

    def read(icc: bytes) -> list[int]:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG", icc_profile=icc)
        return images.decode(buffer.getvalue(), "x")[0, 0].tolist()

    turned = profile(green, red, blue, "red and green exchanged")
    assert np.allclose(read(turned), [0, 255, 0], atol=3)
    assert read(profile(red, green, blue, "sRGB by name")) == [255, 0, 0]
    assert read(turned[:200]) == [255, 0, 0]  # damaged: the numbers are all that is known


def test_the_profile_of_a_grey_picture_counts_too() -> None:
    def read(icc_profile: bytes | None) -> int:
        buffer = io.BytesIO()
        Image.new("L", (4, 4), 128).save(buffer, format="PNG", **({"icc_profile": icc_profile} if icc_profile else {}))
        red, green, blue = images.decode(buffer.getvalue(), "x")[0, 0].tolist()
        assert red == green == blue
        return int(red)

    assert read(None) == 128
    linear = 128 / 255  # of gamma 1, so sRGB's curve makes it lighter
    assert read(icc(b"GRAY", "linear", {b"kTRC": gamma(256)})) == pytest.approx(
        255 * (1.055 * linear ** (1 / 2.4) - 0.055), abs=2
    )


def test_a_side_that_no_warp_can_read_is_refused(monkeypatch: pytest.MonkeyPatch, picture: images.Pixels) -> None:
    monkeypatch.setattr(images, "LONGEST", 20)
    wide = np.zeros((4, 21, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="wide: a side of 21 px; scale it down to 20 px"):
        images.decode(images.encode_png(wide), "wide")
    images.decode(images.encode_png(wide[:, :20]), "wide")
