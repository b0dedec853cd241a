"""Curves and prompts over frames: what text says, and where a mistake in it is."""

import pytest

from kv_core.sampling.curves import Curve, Scheduled, at, numbers, texts

POINTS = ((2, 10.0), (6, 50.0))


def test_text_becomes_points():
    assert numbers(" 2: 10;6:5e1 ", 0, 100) == POINTS
    assert numbers("2: 10\n\n6: 50\n", 0, 100) == POINTS
    assert texts("0: a red circle; 6 : on the left: a circle") == [(0, "a red circle"), (6, "on the left: a circle")]
    assert numbers("2：10；6：50", 0, 100) == POINTS, "as a Chinese keyboard writes it"
    assert texts("0:") == [(0, "")], "a prompt may be empty"


@pytest.mark.parametrize(
    "interpolation, expected",
    [
        ("step", [10, 10, 10, 10, 10, 10, 50, 50]),
        ("linear", [10, 10, 10, 20, 30, 40, 50, 50]),
        ("smooth", [10, 10, 10, 16.25, 30, 43.75, 50, 50]),
    ],
)
def test_curves(interpolation, expected):
    assert Curve(POINTS, interpolation).values(8) == expected


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "entry 1, at character 1: there is none: write such as '0: 10; 6: 50'"),
        ("0: 10; 6", "entry 2, at character 8: '6' is not 'frame: value'"),
        ("0: 10;\n  -3: 5", "entry 3, at character 10: '-3: 5' is not 'frame: value'"),
        ("0: 10; 6: 20; 4: 30", "entry 3, at character 15: frame 4 comes after frame 6: let frames rise"),
        ("0: 10; 0: 20", "entry 2, at character 8: frame 0 comes after frame 0"),
        ("0: ten", "entry 1, at character 1: 'ten' is not a number: write such as '0: 0'"),
        ("0：10；6", "entry 2, at character 6: '6' is not 'frame: value'"),
        ("0: 10; 3: 101", "entry 2, at character 8: 101 is out of range: write 0 to 100"),
        ("0: nan", "entry 1, at character 1: nan is out of range"),
    ],
)
def test_mistakes_are_placed(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        numbers(text, 0, 100)


def test_where_the_last_entry_begins_to_act():
    assert [Curve(POINTS, kind).last_begins for kind in ("step", "linear", "smooth")] == [6, 3, 3]
    assert Curve(((9, 1.0),)).last_begins == 0, "the only one holds everywhere"


def test_prompts_begin_at_the_first_frame():
    with pytest.raises(ValueError, match="entry 1, at character 2: the first prompt begins at frame 3, expected 0"):
        texts(" 3: a red circle")


def test_schedules():
    whole, late = Curve(((0, 3.0),)), Curve(((0, 1.0), (1, 2.0)))
    schedule = (Scheduled("text_guidance", whole), Scheduled("text_guidance", late, 50.0, 100.0))
    assert at(schedule, "image_guidance", 7, 3) == 7, "nothing says otherwise"
    assert [at(schedule, "text_guidance", 7, 3, percent) for percent in (0, 49, 50, 100)] == [
        3.0,
        3.0,
        [1.0, 2.0, 2.0],
        [1.0, 2.0, 2.0],
    ]
    window = (Scheduled("guidance", whole, 20.0, 60.0),)
    assert [at(window, "guidance", 7, 3, percent) for percent in (19, 20, 59, 60, 100)] == [7, 3.0, 3.0, 7, 7]
    motion = (Scheduled("motion_score", Curve(((0, 1.0), (3, 2.0)), "linear")),)
    assert at(motion, "motion_score", 10, 4) == [1, 1, 2, 2], "scores are whole numbers"
