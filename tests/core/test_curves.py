"""Curves and prompts over frames: what text says, and where a mistake in it is."""

import pytest

from kv_core.sampling.curves import Curve, ParameterCurve, numbers, texts, value_at, whole_numbers

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
        (
            "0: 10; 6: 20; 4: 30",
            "entry 3, at character 15: frame 4 comes after frame 6: list frames in ascending order",
        ),
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


def test_curves_of_a_parameter():
    whole, late = Curve(((0, 3.0),)), Curve(((0, 1.0), (1, 2.0)))
    curves = (ParameterCurve("text_guidance", whole), ParameterCurve("text_guidance", late, 0.5, 1.0))
    assert value_at(curves, "image_guidance", 7, 3) == 7, "nothing says otherwise"
    late_values = [1.0, 2.0, 2.0]
    found = [value_at(curves, "text_guidance", 7, 3, progress) for progress in (0, 0.49, 0.5, 1)]
    assert found == [3.0, 3.0, late_values, late_values]
    window = (ParameterCurve("guidance", whole, 0.2, 0.6),)
    found = [value_at(window, "guidance", 7, 3, progress) for progress in (0.19, 0.2, 0.59, 0.6, 1)]
    assert found == [7, 3.0, 3.0, 7, 7]
    motion = (ParameterCurve("motion_score", Curve(((0, 1.0), (3, 2.0)), "linear")),)
    assert value_at(motion, "motion_score", 10, 4) == [1, 1, 2, 2], "scores are whole numbers"


@pytest.mark.parametrize("window", [(0.6, 0.2), (0.5, 0.5), (-0.1, 1.0), (0.0, 1.5), (float("nan"), 1.0)])
def test_a_window_that_is_none(window):
    with pytest.raises(ValueError, match="expected a start_percent below its end_percent, both from 0 to 1"):
        ParameterCurve("guidance", Curve(((0, 1.0),)), *window)


def test_only_guidance_changes_during_sampling():
    with pytest.raises(ValueError, match="but motion_score only along the frames: set start_percent to 0"):
        ParameterCurve("motion_score", Curve(((0, 1.0),)), 0.2, 0.6)


def test_a_drawn_curve_runs_between_the_ends_of_the_points():
    drawn = Curve(((2, 50.0), (6, 10.0)), "linear", drawn=lambda share: share**2)
    assert drawn.values(8) == [10, 10, 10, 12.5, 20, 32.5, 50, 50] and drawn.last_begins == 3
    beyond = Curve(((0, 0.0), (2, 1.0)), drawn=lambda share: 3 * share - 1)
    assert beyond.values(3) == [0, 0.5, 1], "what is drawn beyond the box is cut off"


def test_quotes_hold_separators():
    assert texts('0: "a fox; a hen\nand a hare"; 6: b') == [(0, "a fox; a hen\nand a hare"), (6, "b")]
    assert texts('0: a 5" tall fox; 3: a 7" hare') == [(0, 'a 5" tall fox'), (3, 'a 7" hare')], "inches are no quotes"
    assert texts('0: "one" and "two"; 6: b') == [(0, '"one" and "two"'), (6, "b")]


def test_whole_numbers():
    assert whole_numbers("", "gaps", 0, 19) == [] and whole_numbers(" 3, 0，19、7", "gaps", 0, 19) == [3, 0, 19, 7]


@pytest.mark.parametrize(
    "text, item", [("3, 20", "2 of gaps is '20'"), ("3,,1", "2 of gaps is ''"), ("x", "1 of gaps")]
)
def test_wrong_whole_numbers(text, item):
    with pytest.raises(ValueError, match=f"Item {item}.*expected a whole number from 0 to 19: separate"):
        whole_numbers(text, "gaps", 0, 19)


def test_numbers_too_long_to_repeat_get_a_sentence():
    digits = 5000 * "9"
    with pytest.raises(ValueError, match="^Item 1 of gaps is '9{57}...', expected"):
        whole_numbers(digits, "gaps", 0, 19)
    with pytest.raises(ValueError, match="frame 9{57}... is too large"):
        numbers(f"{digits}: 1", 0, 100)
    with pytest.raises(ValueError, match="inf is out of range: write 0 to 100"):
        numbers(f"0: {digits}", 0, 100)
