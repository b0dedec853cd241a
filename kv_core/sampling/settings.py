"""What the sampling stages are told: frozen settings, checked once when they are made.

The nodes take the ranges and defaults of their inputs from here, so a graph and a Python call accept the same values.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from .curves import WHOLE, ParameterCurve, value_at
from .diffusion import SeededNoise
from .frames import KEYFRAMES, FrameCondition

# Smallest and largest value of every number. Numbers of whole type take whole numbers only.
RANGES: Mapping[str, tuple[float, float]] = {
    "width": (64, 4096),
    "height": (64, 4096),
    "frames": (2, 240),
    "motion_score": (0, 1000),
    "noise_augmentation": (0, 999),
    "skip_frames": (0, 19),
    "guidance": (0.0, 30.0),
    "text_guidance": (0.0, 30.0),
    "image_guidance": (0.0, 30.0),
    "steps": (1, 1000),
    "seed": (0, 2**64 - 1),
    "denoise": (0.01, 1.0),
}
SIZE_STEP = 64  # pixels: the MoVQ and the U-Nets each halve width and height three times


class _Checked:
    """Raises ValueError, with one sentence, for a value outside its range."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            if field.name in RANGES:
                value = getattr(self, field.name)
                for each in value if isinstance(value, tuple) else (value,):
                    check_number(field.name, each)


def check_number(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a number in the range of `name`, whole where that is."""
    low, high = RANGES[name]
    whole = isinstance(low, int)
    fits = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected a {'whole ' if whole else ''}number from {low:g} to {high:g}.")


def check_size(width: int, height: int) -> None:
    """Raises ValueError for a width or height in pixels that the networks cannot make."""
    check_number("width", width)
    check_number("height", height)
    if width % SIZE_STEP or height % SIZE_STEP:
        raise ValueError(f"The size is {width}x{height}, expected multiples of {SIZE_STEP} pixels: round them.")


class _WithCurves(_Checked):
    """Settings whose `curves`, where they have any, may replace some of their numbers along the frames."""

    curves: tuple[ParameterCurve, ...] = ()
    CURVED: tuple[str, ...] = ()  # the numbers that curves may replace

    def __post_init__(self) -> None:
        super().__post_init__()
        for curve in self.curves:
            if curve.parameter not in self.CURVED:
                raise ValueError(
                    f"This stage has no {curve.parameter} that could follow a curve: choose {' or '.join(self.CURVED)}."
                )
            for _, value in curve.curve.points:
                check_number(curve.parameter, round(value) if curve.parameter in WHOLE else value)

    def check_curves(self, count: int, unit: str) -> None:
        """Raises ValueError for a curve with an entry behind the last of `count` frames or gaps."""
        for curve in self.curves:
            if curve.curve.last_begins >= count:
                raise ValueError(
                    f"There are {unit} 0 to {count - 1}, but the last entry of the curve of {curve.parameter} starts "
                    f"at {curve.curve.last_begins}: start it earlier."
                )

    def value(self, parameter: str, count: int, progress: float = 0.0) -> Any:
        """A parameter over `count` frames or gaps: one number where all are alike, else a list.

        progress: how far sampling is, from 0, noise, to 1, the result.
        """
        return value_at(self.curves, parameter, getattr(self, parameter), count, progress)

    def weight(self, parameter: str, x: torch.Tensor, progress: float) -> Any:
        """A guidance weight for predictions like x `[b, c, f, h, w]`: a number, or `[f, 1, 1]` where frames differ."""
        value = self.value(parameter, x.shape[2], progress)
        return x.new_tensor(value)[:, None, None] if isinstance(value, list) else value


@dataclass(frozen=True)
class FirstFrame(_WithCurves):
    """A picture of `width` x `height` pixels; guidance 0 means none."""

    width: int = 1024
    height: int = 1024
    guidance: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.width, self.height)


@dataclass(frozen=True, eq=False)
class Keyframes(_WithCurves):
    """A clip of `frames` keyframes that begins with a given first frame.

    motion_score: 1 is almost still, 100 the highest published value. noise_augmentation: the training step to whose
    noise level the first frame is noised. conditions: more frames that are given. init_video `[1, 4, frames, h, w]`:
    a clip to start from instead of noise.
    """

    frames: int = KEYFRAMES
    motion_score: int = 10
    noise_augmentation: int = 20
    text_guidance: float = 5.0
    image_guidance: float = 2.0
    curves: tuple[ParameterCurve, ...] = ()
    conditions: tuple[FrameCondition, ...] = ()
    init_video: torch.Tensor | None = None

    CURVED = ("motion_score", "noise_augmentation", "text_guidance", "image_guidance")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_curves(self.frames, "keyframes")


@dataclass(frozen=True)
class Interpolation(_WithCurves):
    """Three new frames in every gap between neighbours.

    skip_frames: how many frames the gaps leave out, as the U-Net is told; a tuple has a number for each gap. Published
    are 3 between keyframes and 1 between frames that were interpolated before.
    """

    skip_frames: int | tuple[int, ...] = 3
    guidance: float = 0.5
    curves: tuple[ParameterCurve, ...] = ()

    CURVED = ("guidance",)

    def check_gaps(self, gaps: int) -> None:
        """Raises ValueError where curves or numbers for each gap do not suit so many gaps."""
        self.check_curves(gaps, "gaps")
        if isinstance(self.skip_frames, tuple) and len(self.skip_frames) != gaps:
            raise ValueError(
                f"There are {len(self.skip_frames)} gap lengths, but {gaps} gaps between {gaps + 1} frames: give one "
                "number for each."
            )


@dataclass(frozen=True, eq=False)
class Run(_Checked):
    """How a stage is sampled.

    denoise: the share of the way from noise that is sampled. sampler and sigmas: a host's own, instead of the
    published sampler and noise levels.
    """

    steps: int = 50
    seed: int = 0
    denoise: float = 1.0
    sampler: Any = None
    sigmas: torch.Tensor | None = None

    @property
    def noise(self) -> SeededNoise:
        """All noise of this run, from its start."""
        return SeededNoise(self.seed)
