"""Pictures for looking into latents: sheets of frames, heat maps, differences.

Pictures are float `[..., H, W, 3]` in [0, 1] on the CPU; latents `[1, 4, t, h, w]`, about [-1, 1].
"""

import numpy
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont

from .images import psnr
from .latent_rgb import CELL

GAP = 2
PAPER = 32  # the grey between cells, of 255


def heat(values):
    """Values `[..., h, w]` in [0, 1] -> colours `[..., h, w, 3]` from black over red and yellow to white."""
    return (3 * values[..., None] - torch.arange(3.0)).clamp(0, 1)


def enlarged(maps, times=CELL):
    """Maps `[n, h, w, ...]`, every pixel a square of `times`, by default the size of the picture."""
    return repeat(maps, "n h w ... -> n (h y) (w x) ...", y=times, x=times)


def contact_sheet(frames, columns, numbers=True):
    """Frames `[n, H, W, 3]` beside and below each other in one picture; with their numbers, counted from 0."""
    count, height, width, _ = frames.shape
    rows = -(-count // columns)
    sheet = _paper(rows * (height + GAP) + GAP, columns * (width + GAP) + GAP)
    draw, font = ImageDraw.Draw(sheet), _font(height)
    for index, frame in enumerate(_pictures(frames)):
        row, column = divmod(index, columns)
        place = (GAP + column * (width + GAP), GAP + row * (height + GAP))
        sheet.paste(frame, place)
        if numbers:
            corner = place[0] + 2, place[1] + 1
            draw.text(corner, str(index), fill="white", font=font, stroke_width=1, stroke_fill="black")
    return _tensor(sheet)


def table_sheet(cells, row_titles, column_titles):
    """Cells `[rows, columns, H, W, 3]` as one picture with titles to the left of the rows and above the columns.

    Its sides are even.
    """
    height, width = cells.shape[2:4]
    font = _font(height)
    left = max(_width(title, font) for title in row_titles) + 3 * GAP
    top = round(1.4 * font.size)
    step = max(width, *(_width(title, font) for title in column_titles)) + GAP, height + GAP
    left += (left + cells.shape[1] * step[0]) % 2  # videos have even sides
    top += (top + len(cells) * step[1]) % 2
    sheet = _paper(top + len(cells) * step[1] + GAP, left + cells.shape[1] * step[0] + GAP)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(column_titles):
        draw.text((left + column * step[0], 1), title, fill="white", font=font)
    for row, (title, frames) in enumerate(zip(row_titles, cells)):
        y = top + row * step[1]
        draw.text((GAP, y + height // 2), title, fill="white", font=font, anchor="lm")
        for column, frame in enumerate(_pictures(frames)):
            sheet.paste(frame, (left + column * step[0], y))
    return _tensor(sheet)


def differences(a, b):
    """How far two latents of one shape lie apart, of every frame: maps `[t, h, w]` of the mean over the channels'
    absolute differences, and mean, largest and PSNR in dB `[t]`, for values that span 2; equal frames have infinity.
    """
    a, b = (rearrange(latent.float(), "1 c t h w -> t c h w").cpu() for latent in (a, b))
    apart = (a - b).abs()
    return apart.mean(1), apart.mean((1, 2, 3)), apart.amax((1, 2, 3)), psnr(a, b, 2)


def _font(height):
    return ImageFont.load_default(max(11, height // 8))


def _width(text, font):
    return round(font.getlength(text))


def _paper(height, width):
    return Image.new("RGB", (width, height), (PAPER, PAPER, PAPER))


def _pictures(frames):
    bytes = (frames * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return [Image.fromarray(frame) for frame in bytes]


def _tensor(sheet):
    return torch.from_numpy(numpy.array(sheet)).float() / 255
