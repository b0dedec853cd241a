"""Line charts drawn with Pillow."""

import math

from PIL import Image, ImageDraw, ImageFont

COLOURS = (
    "#000000",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8b4513",
    "#7f7f7f",
    "#6a3d9a",
    "#b2182b",
    "#4d9221",
)
X_TICKS = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 80, 120, 200, 300, 500, 1000)
Y_TICKS = [mantissa * 10.0**power for power in range(-3, 4) for mantissa in (1, 2, 5)]
SCALE = 2  # of a screen's pixels
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 380, 300, 50, 30, 40, 150


def line_chart(panels, x_name):
    """Panels side by side that share their x axis and the names of their lines.

    panels: {title: ({line: [(x, y)]}, lowest y, highest y)}. Both axes' values are positive; x is shown by its
    logarithm, y too where the highest is over 20 times the lowest and the lowest is above 0. What lies outside is drawn
    at the edge.
    """
    names = list(dict.fromkeys(name for lines, _, _ in panels.values() for name in lines))
    size = (len(panels) * WIDTH + LEGEND, HEIGHT)
    picture = Image.new("RGB", tuple(SCALE * side for side in size), "white")
    pen = _Pen(picture)
    for place, (title, (lines, low, high)) in enumerate(panels.items()):
        _panel(pen, place * WIDTH + LEFT, title, lines, low, high, x_name, names)
    for row, name in enumerate(names):
        y = TOP + 8 + 18 * row
        pen.line([(size[0] - LEGEND + 4, y), (size[0] - LEGEND + 26, y)], COLOURS[row % len(COLOURS)], 2)
        pen.text((size[0] - LEGEND + 32, y), name, "lm")
    return picture


class _Pen:
    """Draws in a screen's pixels, whatever SCALE."""

    def __init__(self, picture):
        self.draw, self.font = ImageDraw.Draw(picture), ImageFont.load_default(11 * SCALE)

    def line(self, points, colour, width=1):
        self.draw.line([(SCALE * x, SCALE * y) for x, y in points], fill=colour, width=width * SCALE, joint="curve")

    def dot(self, x, y, colour, radius=3):
        self.draw.ellipse([SCALE * side for side in (x - radius, y - radius, x + radius, y + radius)], fill=colour)

    def text(self, place, text, anchor):
        self.draw.text([SCALE * side for side in place], text, fill="black", font=self.font, anchor=anchor)


def _panel(pen, left, title, lines, low, high, x_name, names):
    right, bottom = left + WIDTH - LEFT - 20, HEIGHT - BOTTOM
    xs = sorted({x for points in lines.values() for x, _ in points})
    x_at = _axis(xs[0], xs[-1], left + 8, right - 8, True)
    logarithmic = low > 0 and high > 20 * low
    y_at = _axis(low, high, bottom, TOP, logarithmic)
    pen.text(((left + right) / 2, TOP - 8), title, "ms")
    pen.text(((left + right) / 2, HEIGHT - 4), x_name, "ms")
    for x in (tick for tick in X_TICKS if xs[0] <= tick <= xs[-1]):
        pen.line([(x_at(x), TOP), (x_at(x), bottom)], "#eeeeee")
        pen.text((x_at(x), bottom + 4), f"{x:g}", "mt")
    for y in _ticks(low, high, logarithmic):
        pen.line([(left, y_at(y)), (right, y_at(y))], "#dddddd")
        pen.text((left - 4, y_at(y)), f"{y:g}", "rm")
    for name, points in lines.items():
        colour = COLOURS[names.index(name) % len(COLOURS)]
        places = [(x_at(x), y_at(min(max(y, low), high))) for x, y in sorted(points)]
        pen.line(places, colour, 2)
        for place in places:
            pen.dot(*place, colour)


def _axis(low, high, start, end, logarithmic):
    """A function from values to places."""
    turn = math.log if logarithmic else float
    span = (turn(high) - turn(low)) or 1.0
    return lambda value: start + (end - start) * (turn(value) - turn(low)) / span


def _ticks(low, high, logarithmic):
    if logarithmic:
        return [tick for tick in Y_TICKS if low <= tick <= high]
    return [low + (high - low) * i / 5 for i in range(6)]
