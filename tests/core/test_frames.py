"""Frames as conditions and clips joined."""

import pytest
import torch

from kv_core.sampling.diffusion import add_noise
from kv_core.sampling.frames import FrameCondition, frames_condition, join, place_conditions


def frames(count, value, size=8):
    return torch.full((1, 4, count, size, size), float(value)) + torch.arange(count)[:, None, None] / 10


FIRST = frames(1, 0)


def test_the_first_frame_alone_is_the_published_condition():
    noise = torch.rand(1, 4, 1, 8, 8)
    expected = torch.zeros(1, 5, 3, 8, 8)
    expected[:, :4, :1], expected[:, 4, 0] = add_noise(FIRST, noise, 20), 1
    assert torch.equal(frames_condition({0: FIRST}, 3, 20, noise), expected)


def test_each_frame_is_noised_as_much_as_its_place_says():
    noise, last = torch.rand(1, 4, 1, 8, 8), frames(1, 5)
    condition = frames_condition({0: FIRST, 2: last}, 3, [20, 0, 500], noise)
    assert torch.equal(condition[:, :4, :1], add_noise(FIRST, noise, 20))
    assert torch.equal(condition[:, :4, 2:], add_noise(last, noise, 500))
    assert condition[0, 4, :, 0, 0].tolist() == [1, 0, 1] and not condition[:, :4, 1].any()


def test_places():
    three, one = frames(3, 1), frames(1, 7)
    conditions = [
        FrameCondition(three, -3, show=True, hold=True),
        FrameCondition(one, 0, show=False, hold=True),
        FrameCondition(one, 5, show=True, hold=False),
    ]
    shown, held = place_conditions(conditions, FIRST, 6)
    assert sorted(shown) == [0, 3, 4, 5] and sorted(held) == [0, 3, 4]
    assert shown[0] is FIRST and torch.equal(held[0], one), "what is only held is not shown"
    assert torch.equal(shown[5], one), "the later one takes a place over"
    assert place_conditions((), FIRST, 6) == ({0: FIRST}, {})


def test_of_two_conditions_for_a_place_only_the_later_one_counts():
    show = FrameCondition(frames(1, 7), 0, show=True, hold=False)
    hold = FrameCondition(frames(1, 9), 0, show=False, hold=True)
    for conditions, expected_shown, expected_held in (
        ([show], 7, {}),
        ([hold], 0, {0: 9}),
        ([show, hold], 0, {0: 9}),
        ([hold, show], 7, {}),
    ):
        shown, held = place_conditions(conditions, FIRST, 6)
        assert shown.keys() == {0} and shown[0].unique() == expected_shown
        assert {place: frame.unique().item() for place, frame in held.items()} == expected_held


@pytest.mark.parametrize(
    "position, count, size, sentence",
    [
        (12, 1, 8, r"Frame condition 2 puts 1 frame\(s\) at 12, but the clip has frames 0 to 11: move it"),
        (-13, 1, 8, "Frame condition 2 puts 1 .* at -13"),
        (-1, 2, 8, "Frame condition 2 puts 2 .* at -1"),
        (
            -1,
            1,
            16,
            "Frame condition 2 has frames of 128x128 pixels, but the first frame has 64x64: encode them at its size",
        ),
    ],
)
def test_conditions_that_do_not_fit(position, count, size, sentence):
    fits = FrameCondition(FIRST, 3, True, True)
    with pytest.raises(ValueError, match=sentence):
        place_conditions([fits, FrameCondition(frames(count, 0, size), position, True, True)], FIRST, 12)


def test_join():
    one, other = torch.zeros(1, 4, 5, 2, 2), torch.ones(1, 4, 4, 2, 2)
    assert join(one, other, 0)[0, 0, :, 0, 0].tolist() == [0] * 5 + [1] * 4
    assert join(one, other, 3)[0, 0, :, 0, 0].tolist() == [0, 0, 0.25, 0.5, 0.75, 1]
    same = torch.rand(1, 4, 5, 2, 2)
    torch.testing.assert_close(join(same, same[:, :, 2:], 3), same)
