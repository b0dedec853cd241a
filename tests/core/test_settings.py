"""Settings are checked once, when they are made."""

import numpy
import pytest
import torch

from kv_core.sampling.curves import Curve, ParameterCurve
from kv_core.sampling.frames import FrameCondition
from kv_core.sampling.settings import FirstFrame, Interpolation, Keyframes, Run


@pytest.mark.parametrize("value", [12.0, True, "12", None, float("nan"), 1, 241])
def test_whole_numbers_are_whole(value):
    with pytest.raises(ValueError, match=f"frames is {value}, expected a whole number from 2 to 240"):
        Keyframes(frames=value)


def test_numbers_of_any_library_are_taken():
    assert Keyframes(frames=numpy.int64(12), text_guidance=numpy.float32(2)).frames == 12
    assert FirstFrame(guidance=5).guidance == 5
    assert Interpolation((numpy.int64(3), 1)).skip_frames == (3, 1)


@pytest.mark.parametrize("settings", [FirstFrame, Keyframes, Interpolation, Run])
def test_numbers_outside_their_range(settings):
    wrong = {FirstFrame: "guidance", Keyframes: "image_guidance", Interpolation: "guidance", Run: "denoise"}[settings]
    for value in (-0.1, 30.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"{wrong} is {value}, expected a number from"):
            settings(**{wrong: value})


@pytest.mark.parametrize("parameter, number", [("noise_augmentation", 5000.0), ("text_guidance", -1.0)])
def test_curves_keep_the_range_of_their_parameter(parameter, number):
    with pytest.raises(ValueError, match=f"{parameter} is {number:g}.*, expected a"):
        Keyframes(curves=(ParameterCurve(parameter, Curve(((0, 1.0), (3, number)))),))


@pytest.mark.parametrize("points", [(), ((3, 1.0), (0, 2.0)), ((0, 1.0), (0, 2.0))])
def test_points_of_a_curve_rise(points):
    with pytest.raises(ValueError, match="expected at least one, and rising ones"):
        Curve(points)


def test_settings_that_hold_frames_can_be_compared():
    frames = torch.zeros(1, 4, 2, 8, 8)
    one, other = (FrameCondition(frames, 0, show=True, hold=False) for _ in range(2))
    settings = Keyframes(2, init_video=frames, conditions=(one,))
    assert one == one != other
    assert settings == settings and settings != Keyframes(2, init_video=frames)
