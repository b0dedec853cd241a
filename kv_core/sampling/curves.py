"""Values that change along a clip, from text such as `0: 10; 6: 50`, and schedules made of them."""

import re
from dataclasses import dataclass

INTERPOLATIONS = ("step", "linear", "smooth")
# What a schedule can change, with the range of its values.
PARAMETERS = {
    "motion_score": (0, 1000),
    "noise_augmentation": (0, 999),
    "text_guidance": (0, 30),
    "image_guidance": (0, 30),
    "guidance": (0, 30),
}
FIXED = ("motion_score", "noise_augmentation")  # whole numbers, the same at all steps of a run

# Also with the wide marks that a Chinese keyboard writes.
_ENTRY = re.compile(r"\s*(?P<frame>\d+)\s*[:：]\s*(?P<value>.*?)\s*", re.DOTALL)
_BETWEEN = re.compile(r"[;；\n]")


def entries(text, example):
    """[(frame, value, where)] of a text whose entries `frame: value` are parted by semicolons or lines.

    Frames rise. `where` names the entry in messages. Raises ValueError with the position of the mistake, and `example`.
    """
    found, last, start = [], -1, 0
    for number, entry in enumerate(_BETWEEN.split(text), 1):
        begins = start + len(entry) - len(entry.lstrip()) + 1
        start += len(entry) + 1
        if not entry.strip():
            continue
        where = f"entry {number}, at character {begins}"
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"{where}: '{entry.strip()}' is not 'frame: value': write such as '{example}'.")
        frame = int(match["frame"])
        if frame <= last:
            raise ValueError(f"{where}: frame {frame} comes after frame {last}: let frames rise.")
        found.append((frame, match["value"], where))
        last = frame
    if not found:
        raise ValueError(f"entry 1, at character 1: there is none: write such as '{example}'.")
    return found


def texts(text):
    """[(frame, prompt)]; the first begins at frame 0."""
    found = entries(text, "0: a red circle; 6: a blue circle")
    frame, _, where = found[0]
    if frame:
        raise ValueError(f"{where}: the first prompt begins at frame {frame}, expected 0: say what frame 0 shows.")
    return [(frame, prompt) for frame, prompt, _ in found]


def numbers(text, low, high):
    """((frame, number), ...), every number from `low` to `high`."""
    points = []
    for frame, value, where in entries(text, "0: 10; 6: 50"):
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"{where}: '{value}' is not a number: write such as '{frame}: {low}'.") from None
        if not low <= number <= high:
            raise ValueError(f"{where}: {number:g} is out of range: write {low} to {high}.")
        points.append((frame, number))
    return tuple(points)


@dataclass(frozen=True)
class Curve:
    """Numbers at some frames; between them the last one, a straight line or a smooth step, beyond them the nearest."""

    points: tuple[tuple[int, float], ...]
    interpolation: str = "step"

    @property
    def last_begins(self):
        """The first frame that its last entry acts on; 0 where it is the only one."""
        if len(self.points) == 1:
            return 0
        (before, _), (last, _) = self.points[-2:]
        return last if self.interpolation == "step" else before + 1

    def values(self, count):
        return [self._at(frame) for frame in range(count)]

    def _at(self, frame):
        before = [point for point in self.points if point[0] <= frame] or self.points[:1]
        after = [point for point in self.points if point[0] > frame]
        (left, low), (right, high) = before[-1], after[0] if after else before[-1]
        if self.interpolation == "step" or right <= left or frame < left:
            return low
        share = (frame - left) / (right - left)
        if self.interpolation == "smooth":
            share = share * share * (3 - 2 * share)
        return low + share * (high - low)


@dataclass(frozen=True)
class Scheduled:
    """A parameter's curve over the frames, in a window of the run: percents of the way from noise to the result."""

    parameter: str
    curve: Curve
    start: float = 0.0
    end: float = 100.0

    def acts(self, percent):
        return self.start <= percent < self.end or percent >= 100 == self.end


def at(schedule, parameter, default, count, percent=0.0):
    """A parameter's value over `count` frames: one number where all are the same, else a list of them.

    Of several that act, the last one in the schedule counts; where none does, `default`.
    """
    for entry in reversed(schedule):
        if entry.parameter == parameter and entry.acts(percent):
            values = entry.curve.values(count)
            if parameter in FIXED:
                values = [round(value) for value in values]
            return values[0] if len(set(values)) == 1 else values
    return default
