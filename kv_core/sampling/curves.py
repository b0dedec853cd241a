"""Values that change along a clip, from text such as `0: 10; 6: 50`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

INTERPOLATIONS = ("step", "linear", "smooth")
WHOLE = ("motion_score", "noise_augmentation")  # whole numbers, the same at all steps of a run

# Also with the wide marks that a Chinese keyboard writes. A value in double quotes may hold separators.
_ENTRY = re.compile(r'\s*(?P<frame>\d+)\s*[:：]\s*(?:"(?P<quoted>[^"]*)"|(?P<value>.*?))\s*', re.DOTALL)
_NEXT = re.compile(r'\s*\d+\s*[:：]\s*"[^"]*"[^\S\n]*(?=[;；\n]|\Z)|[^;；\n]*')
MOST_DIGITS = 9  # of a frame's number


def entries(text: str, example: str) -> list[tuple[int, str, str]]:
    """[(frame, value, where)] of a text whose entries `frame: value` are separated by semicolons or line breaks.

    Frames rise. `where` names the entry in messages. Raises ValueError with the position of the mistake, and `example`.
    """
    found: list[tuple[int, str, str]] = []
    start, number = 0, 0
    while start <= len(text):
        entry = _NEXT.match(text, start)[0]  # type: ignore[index]  # it matches nothing, too
        begins, number = start + len(entry) - len(entry.lstrip()) + 1, number + 1
        start += len(entry) + 1
        if entry.strip():
            last = found[-1][0] if found else -1
            found.append(_entry(entry, last, f"entry {number}, at character {begins}", example))
    if not found:
        raise ValueError(f"entry 1, at character 1: there is none: write such as '{example}'.")
    return found


def _entry(entry: str, last: int, where: str, example: str) -> tuple[int, str, str]:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(f"{where}: '{shortened(entry.strip())}' is not 'frame: value': write such as '{example}'.")
    if len(match["frame"]) > MOST_DIGITS:
        raise ValueError(f"{where}: frame {shortened(match['frame'])} is too large: there are not that many frames.")
    frame = int(match["frame"])
    if frame <= last:
        raise ValueError(f"{where}: frame {frame} comes after frame {last}: list frames in ascending order.")
    return frame, match["value"] if match["quoted"] is None else match["quoted"], where


def shortened(text: str) -> str:
    """A user's text as a message repeats it."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def texts(text: str) -> list[tuple[int, str]]:
    """[(frame, prompt)]; the first begins at frame 0."""
    found = entries(text, "0: a red circle; 6: a blue circle")
    frame, _, where = found[0]
    if frame:
        raise ValueError(f"{where}: the first prompt begins at frame {frame}, expected 0: say what frame 0 shows.")
    return [(frame, prompt) for frame, prompt, _ in found]


def numbers(text: str, low: float, high: float) -> tuple[tuple[int, float], ...]:
    """((frame, number), ...), every number from `low` to `high`."""
    points = []
    for frame, value, where in entries(text, "0: 10; 6: 50"):
        try:
            number = float(value)
        except ValueError:
            message = f"{where}: '{shortened(value)}' is not a number: write such as '{frame}: {low:g}'."
            raise ValueError(message) from None
        if not low <= number <= high:
            raise ValueError(f"{where}: {number:g} is out of range: write {low:g} to {high:g}.")
        points.append((frame, number))
    return tuple(points)


def whole_numbers(text: str, where: str, low: int, high: int) -> list[int]:
    """The whole numbers in a text, in order, separated by commas, also Chinese ones; none where it is empty.

    Raises ValueError with one sentence that says which item of `where` is wrong.
    """
    found = []
    for position, item in enumerate(re.split("[,，、]", text) if text.strip() else (), 1):
        item = item.strip()
        digits = item.isascii() and item.isdecimal() and len(item) <= MOST_DIGITS
        if not (digits and low <= int(item) <= high):
            raise ValueError(
                f"Item {position} of {where} is '{shortened(item)}', expected a whole number from {low} to {high}: "
                "separate numbers by commas."
            )
        found.append(int(item))
    return found


@dataclass(frozen=True)
class Curve:
    """Numbers at some frames. Beyond the first and the last of them the nearest holds.

    interpolation: what holds between two of them, "step" the earlier one, "linear" a straight line, "smooth" one that
    starts and ends gently. drawn: a function from [0, 1] to [0, 1] instead, from the first point's frame to the last
    point's and from the smallest number to the largest.
    """

    points: tuple[tuple[int, float], ...]
    interpolation: str = "step"
    drawn: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        frames = [frame for frame, _ in self.points]
        if not frames or any(after <= before for before, after in zip(frames, frames[1:])):
            raise ValueError(f"A curve has points at the frames {frames}, expected at least one, and rising ones.")

    @property
    def last_begins(self) -> int:
        """The first frame that its last entry acts on; 0 where it is the only one."""
        if len(self.points) == 1:
            return 0
        (before, _), (last, _) = self.points[-2:]
        return last if self.interpolation == "step" and self.drawn is None else before + 1

    def values(self, count: int) -> list[float]:
        return [self._drawn_at(frame) if self.drawn else self._at(frame) for frame in range(count)]

    def _at(self, frame: int) -> float:
        before = [point for point in self.points if point[0] <= frame] or self.points[:1]
        after = [point for point in self.points if point[0] > frame]
        (left, low), (right, high) = before[-1], after[0] if after else before[-1]
        if self.interpolation == "step" or right <= left or frame < left:
            return low
        share = (frame - left) / (right - left)
        if self.interpolation == "smooth":
            share = share * share * (3 - 2 * share)
        return low + share * (high - low)

    def _drawn_at(self, frame: int) -> float:
        assert self.drawn is not None
        first, last = self.points[0][0], self.points[-1][0]
        low, high = min(number for _, number in self.points), max(number for _, number in self.points)
        share = self.drawn(min(max((frame - first) / max(last - first, 1), 0.0), 1.0))
        return low + min(max(share, 0.0), 1.0) * (high - low)


@dataclass(frozen=True)
class ParameterCurve:
    """A parameter's curve over the frames, in a window of sampling from 0, noise, to 1, the result.

    Raises ValueError for a window that is none, or of a parameter that cannot change during sampling.
    """

    parameter: str
    curve: Curve
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        window = self.start_percent, self.end_percent
        if not 0 <= window[0] < window[1] <= 1:
            raise ValueError(
                f"The curve of {self.parameter} applies from {window[0]:g} to {window[1]:g}, expected a start_percent "
                "below its end_percent, both from 0 to 1."
            )
        if self.parameter in WHOLE and window != (0, 1):
            raise ValueError(
                f"Guidance can change during sampling, but {self.parameter} only along the frames: set start_percent "
                f"to 0 and end_percent to 1, not {window[0]:g} and {window[1]:g}."
            )

    def acts(self, progress: float) -> bool:
        return self.start_percent <= progress and (progress < self.end_percent or self.end_percent == 1)


def value_at(
    curves: Sequence[ParameterCurve], parameter: str, default: float, count: int, progress: float = 0.0
) -> float | list[float]:
    """A parameter's value over `count` frames: one number where all are the same, else a list of them.

    Of several curves that act, the last one counts; where none does, `default`.
    """
    for entry in reversed(curves):
        if entry.parameter == parameter and entry.acts(progress):
            values = entry.curve.values(count)
            if parameter in WHOLE:
                values = [round(value) for value in values]
            return values[0] if len(set(values)) == 1 else values
    return default
