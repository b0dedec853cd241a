"""Resizing, cropping and 8-bit conversion against the published implementation's pixels."""

import numpy
import pytest
import torch
from PIL import Image

from kv_core.pictures.images import fit, to_bytes, to_images, to_pixels
from tests.support.recipe import golden


@pytest.mark.parametrize("name", ["equal", "grey", "larger", "narrow", "smaller", "tall"])
def test_fit(name):
    tensors, case = golden("images")
    image = Image.fromarray(tensors[f"{name}.image"].numpy())
    pixels = to_pixels(fit(image, case["width"], case["height"]))[0]
    torch.testing.assert_close(pixels, tensors[f"{name}.pixels"], atol=1e-6, rtol=0)


def test_bytes_are_clipped_and_truncated():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 2.0])
    pixels = values.reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_bytes(pixels)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_images_keep_every_byte():
    frame = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    (image,) = to_images(frame)
    assert image.mode == "RGB" and numpy.array_equal(numpy.array(image), frame[0])
    torch.testing.assert_close(to_pixels(image)[0, 0], frame[0, :, :, 0] / 127.5 - 1)


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 0x8000, (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(mode, colour, expected):
    assert fit(Image.new(mode, (64, 64), colour), 64, 64).getpixel((5, 5)) == expected


def test_one_pixel_is_padded_with_black():
    fitted = numpy.array(fit(Image.new("RGB", (1, 1), (200, 100, 50)), 64, 64))
    assert fitted.shape == (64, 64, 3) and (fitted.any(axis=2)).sum() == 1
