"""Pictures in and out: fitting an image to the video's size, 8-bit RGB to and from pixels in [-1, 1], and PSNR."""

import numpy
import torch
from PIL import Image


def fit(image, width, height):
    """Shrinks a Pillow image until it just covers `width` x `height` pixels, then crops its centre.

    Never enlarges: where the image is smaller the border is black. Any Pillow mode is taken; returns RGB.
    """
    image = _to_rgb(image)
    ratio = min(image.width / width, image.height / height)
    if ratio > 1:
        image = image.resize((round(image.width / ratio), round(image.height / ratio)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.crop((left, top, left + width, top + height))


def _to_rgb(image):
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8 instead of scaling
        image = Image.fromarray((numpy.asarray(image, dtype=numpy.int64) >> 8).clip(0, 255).astype(numpy.uint8))
    return image.convert("RGB")


def to_pixels(image):
    """Pillow RGB -> float32 `[1, 3, H, W]` in [-1, 1]."""
    array = numpy.array(image, dtype=numpy.float32)
    return torch.from_numpy(array).permute(2, 0, 1)[None] / 127.5 - 1


def to_bytes(pixels):
    """Pixels `[b, 3, H, W]` in [-1, 1] -> uint8 `[b, H, W, 3]`, clipped and truncated as published, not rounded."""
    unit = (pixels + 1) / 2
    return (unit.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)


def to_images(frames):
    """uint8 `[b, H, W, 3]` -> a list of Pillow images."""
    return [Image.fromarray(frame) for frame in frames.cpu().numpy()]


def psnr(a, b, span, dims=(-3, -2, -1)):
    """Peak signal-to-noise ratio in dB over `dims`, by default a picture's; None: over all. Infinite where equal.

    span: how far the largest value can be from the smallest, 2 for pixels in [-1, 1].
    """
    error = (a - b).float().square().mean(dims)
    return 10 * (span**2 / error).log10()
