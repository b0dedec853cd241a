"""Numbers and prompts that change along the clip: what reaches the U-Nets, and what the tiny model makes of them."""

import pytest
import torch

from tests.support.tiny_parts import colours, scene

CIRCLE = scene("red", "circle", "right", (16, 30))
PROMPT = "a red circle moving right on a black background"
SWITCH = f"0: {PROMPT}; 6: {PROMPT.replace('red', 'blue')}"


def curves(tiny, parameter, curve, interpolation="step", start=0.0, end=1.0, previous=(), **more):
    return tiny.node(
        "ParameterCurve",
        parameter=parameter,
        curve=curve,
        interpolation=interpolation,
        start_percent=start,
        end_percent=end,
        previous=previous,
        **more,
    )


def over_time(tiny, text):
    return tiny.node("TextOverTime", text_encoder=tiny.encoder, text=text, projection="base")


@pytest.fixture
def given(adapters, monkeypatch):
    """The conditions of every call of the keyframe U-Net."""
    seen = []
    forward = adapters.unets.HostKeyframeUNet._forward

    def watched(self, x, timesteps, context, control, options, **conditions):
        seen.append({"x": x, "timesteps": timesteps, **conditions})
        return forward(self, x, timesteps, context, control, options, **conditions)

    monkeypatch.setattr(adapters.unets.HostKeyframeUNet, "_forward", watched)
    return seen


def test_scores_reach_the_unet_frame_by_frame(tiny, given):
    both = curves(tiny, "motion_score", "0: 1; 11: 100", "linear")
    both = curves(tiny, "noise_augmentation", "0: 20; 6: 200", previous=both)
    tiny.keyframes(CIRCLE, PROMPT, steps=1, curves=both)
    assert given[0]["motion_score"].tolist() == [[1, 10, 19, 28, 37, 46, 55, 64, 73, 82, 91, 100]] * 3
    assert given[0]["noise_augmentation"].tolist() == [[20] * 6 + [200] * 6] * 3


def test_a_schedule_of_what_is_set_anyway_changes_nothing(tiny):
    same = ()
    for parameter, value in {
        "motion_score": 10,
        "noise_augmentation": 20,
        "text_guidance": 5,
        "image_guidance": 3,
    }.items():
        same = curves(tiny, parameter, f"0: {value}; 4: {value}", previous=same)
    plain = tiny.keyframes(CIRCLE, PROMPT, steps=4)["samples"]
    assert torch.equal(tiny.keyframes(CIRCLE, PROMPT, steps=4, curves=same)["samples"], plain)
    one = tiny.keyframes(CIRCLE, over_time(tiny, f"0: {PROMPT}"), steps=4)["samples"]
    assert torch.equal(one, plain)
    twice = tiny.keyframes(CIRCLE, over_time(tiny, f"0: {PROMPT}; 5: {PROMPT}"), steps=4)["samples"]
    torch.testing.assert_close(twice, plain, atol=1e-4, rtol=0)


def test_guidance_by_frame_is_that_of_each_frame(tiny):
    """After one step a frame depends on its own weights alone."""
    low, high = (tiny.keyframes(CIRCLE, PROMPT, steps=1, text_guidance=w)["samples"] for w in (1.0, 8.0))
    found = tiny.keyframes(CIRCLE, PROMPT, steps=1, curves=curves(tiny, "text_guidance", "0: 1; 4: 8"))["samples"]
    assert not torch.allclose(low, high, atol=0.01)
    torch.testing.assert_close(found[:, :, :4], low[:, :, :4], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, :, 4:], high[:, :, 4:], atol=1e-5, rtol=0)


def test_guidance_by_gap_is_that_of_each_gap(tiny):
    frames = tiny.latent("keyframes", tiny.encode(CIRCLE, [0.0, 2.0, 4.0, 6.0]))

    def gaps(guidance, given=()):
        return tiny.node(
            "Interpolate",
            model=tiny.interpolation_unet,
            positive=tiny.text(PROMPT),
            samples=frames,
            skip_frames="auto",
            guidance=guidance,
            steps=1,
            seed=7,
            curves=given,
        )["samples"]

    low, high = gaps(0.0), gaps(4.0)
    found = gaps(0.5, curves(tiny, "guidance", "0: 0; 2: 4"))
    assert not torch.allclose(low, high, atol=0.01)
    torch.testing.assert_close(found[:, :, :9], low[:, :, :9], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, :, 9:], high[:, :, 9:], atol=1e-5, rtol=0)
    assert torch.equal(gaps(0.0, curves(tiny, "guidance", "0: 4")), high)


def test_a_window_counts_only_in_its_steps(tiny, given):
    """Without text guidance the branch with text is left out: so is it outside the window."""
    window = curves(tiny, "text_guidance", "0: 5", start=0.2, end=0.6)
    tiny.keyframes(CIRCLE, PROMPT, steps=10, text_guidance=0.0, curves=window)
    branches = {int(call["timesteps"][0]): len(call["x"]) for call in given}
    assert branches == {900: 2, 800: 2, 700: 3, 600: 3, 500: 3, 400: 3, 300: 2, 200: 2, 100: 2, 0: 2}


@pytest.fixture
def texts_of_frames(adapters, monkeypatch):
    """For every call of a U-Net, which frames of the branch with text have the same one as the frame before."""
    seen = []
    for unet in (adapters.unets.HostKeyframeUNet, adapters.unets.HostInterpolationUNet):

        def watched(self, x, *arguments, forward=unet._forward, texts, **conditions):
            rows = [row for text in texts if text.tokens.shape[1] > 1 for row in text.tokens]  # not the null embedding
            seen.append("".join("=" if torch.equal(one, other) else "|" for one, other in zip(rows, rows[1:])))
            return forward(self, x, *arguments, texts=texts, **conditions)

        monkeypatch.setattr(unet, "_forward", watched)
    return seen


def test_context_windows_take_their_own_frames_texts(tiny, texts_of_frames):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    windowed = ContextWindowsManualNode.execute(tiny.unet, 4, 0, "standard_static", 1, False, "flat", 2, False)[0]
    out = tiny.keyframes(CIRCLE, over_time(tiny, SWITCH), model=windowed, steps=2)
    # Windows 0-3, 4-7 and 8-11, the later ones behind an anchor, the frame before them; the text changes at 6.
    assert set(texts_of_frames) == {"===", "==|=", "===="} and out["samples"].isfinite().all()


def test_context_windows_over_gaps_take_their_own_texts(tiny, texts_of_frames):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    windows = (4, 0, "standard_static", 1, False, "flat", 2, False)
    out = tiny.node(
        "Interpolate",
        model=ContextWindowsManualNode.execute(tiny.interpolation_unet, *windows)[0],
        positive=over_time(tiny, SWITCH),
        samples=tiny.latent("keyframes", torch.zeros(1, 4, 9, 8, 8)),
        skip_frames="auto",
        guidance=0.5,
        steps=1,
        seed=7,
    )
    # Gaps 0-3, and 4-7 behind an anchor, the gap before them.
    assert set(texts_of_frames) == {"===", "==|="} and out["samples"].isfinite().all()


@pytest.mark.thorough
@pytest.mark.parametrize("frame, colour", [(3, "green"), (6, "blue"), (9, "yellow")])
def test_the_colour_switches_at_the_right_keyframe(tiny, frame, colour):
    text = f"0: {PROMPT}; {frame}: {PROMPT.replace('red', colour)}"
    seen = tiny.read(tiny.keyframes(CIRCLE, over_time(tiny, text)))
    assert seen.found.all()
    assert colours(seen) == ["red"] * frame + [colour] * (12 - frame)


@pytest.mark.thorough
def test_motion_follows_its_curve(tiny):
    """The way of the first and of the last five keyframes, slow and fast, fast and slow."""
    ways = {}
    for curve in ("0: 1; 6: 100", "0: 100; 6: 1"):
        clip = tiny.keyframes(CIRCLE, PROMPT, curves=curves(tiny, "motion_score", curve))
        x = tiny.read_single(clip).centre[:, 0]
        ways[curve] = (x[5] - x[0]).item(), (x[11] - x[6]).item()
    (slow, then_fast), (fast, then_slow) = ways.values()
    print(ways)
    assert then_fast > 2 * slow and fast > 2 * then_slow


def test_a_window_between_two_steps_is_warned_of(tiny, caplog):
    narrow = curves(tiny, "text_guidance", "0: 9", start=0.2, end=0.24)
    plain = tiny.keyframes(CIRCLE, PROMPT, steps=4)["samples"]
    assert torch.equal(tiny.keyframes(CIRCLE, PROMPT, steps=4, curves=narrow)["samples"], plain)
    assert "Sample Keyframes: the curve of text_guidance from 0.2 to 0.24 applies at no step" in caplog.text
    caplog.clear()
    tiny.keyframes(CIRCLE, PROMPT, steps=4, curves=curves(tiny, "text_guidance", "0: 9", start=0.2, end=0.26))
    assert "applies at no step" not in caplog.text


@pytest.mark.parametrize(
    "curve, interpolation, begins",
    [
        ("0: 1; 12: 9", "step", 12),
        ("0: 1; 12: 9; 20: 5", "linear", 13),
        ("11: 1; 30: 9", "smooth", 12),
    ],
)
def test_an_entry_behind_the_clip_is_refused(tiny, curve, interpolation, begins):
    late = curves(tiny, "motion_score", curve, interpolation)
    sentence = f"the last entry of the curve of motion_score starts at {begins}"
    with pytest.raises(ValueError, match=f"There are keyframes 0 to 11, but {sentence}: start it earlier"):
        tiny.keyframes(CIRCLE, PROMPT, curves=late)
    tiny.keyframes(CIRCLE, PROMPT, steps=1, frames=begins + 1, curves=late)


def test_a_line_to_a_point_behind_the_clip_counts(tiny, given):
    tiny.keyframes(CIRCLE, PROMPT, steps=1, curves=curves(tiny, "motion_score", "0: 0; 22: 22", "linear"))
    tiny.keyframes(CIRCLE, PROMPT, steps=1, curves=curves(tiny, "motion_score", "99: 5"))
    assert given[0]["motion_score"][0].tolist() == list(range(12)) and set(given[1]["motion_score"][0].tolist()) == {5}


def test_a_drawn_curve_takes_the_place_of_the_interpolation(tiny, given):
    drawn = {"points": [[0, 0], [0.5, 1], [1, 0]], "interpolation": "linear"}
    up_and_down = curves(tiny, "motion_score", "0: 0; 10: 50", drawn_curve=drawn)
    tiny.keyframes(CIRCLE, PROMPT, steps=1, curves=up_and_down)
    assert given[0]["motion_score"][0].tolist() == [0, 10, 20, 30, 40, 50, 40, 30, 20, 10, 0, 0]


WRONG = {
    "a window of a number that is fixed": (
        lambda tiny: curves(tiny, "motion_score", "0: 1", end=0.5),
        "motion_score only along .*, not 0 and 0.5",
    ),
    "an empty window": (
        lambda tiny: curves(tiny, "guidance", "0: 1", start=0.6, end=0.6),
        "applies from 0.6 to 0.6, expected a start_percent below its end_percent",
    ),
    "a mistake in a curve": (
        lambda tiny: curves(tiny, "noise_augmentation", "0: 20; 6: 1000"),
        "Parameter Curve of noise_augmentation, entry 2, at character 8: 1000 is out of range: write 0 to 999",
    ),
    "a mistake in the prompts": (
        lambda tiny: over_time(tiny, "a red circle; 6: a blue one"),
        "Encode Text over Time, entry 1, at character 1: 'a red circle' is not 'frame: value'",
    ),
    "another stage's number": (
        lambda tiny: tiny.keyframes(CIRCLE, PROMPT, curves=curves(tiny, "guidance", "0: 1")),
        "This stage has no guidance that could follow a curve: choose motion_score or",
    ),
    "prompts over time that another node changed": (
        lambda tiny: tiny.keyframes(CIRCLE, [[0 * text, values] for text, values in over_time(tiny, SWITCH)]),
        "Sample Keyframes needs positive unchanged from Encode Text over Time, but another node changed it",
    ),
    "a prompt behind the clip": (
        lambda tiny: tiny.keyframes(CIRCLE, over_time(tiny, f"0: {PROMPT}; 12: {PROMPT}")),
        "Sample Keyframes samples keyframes 0 to 11, but a prompt of Encode Text over Time begins at 12",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_get_one_sentence(tiny, case):
    call, sentence = WRONG[case]
    with pytest.raises(ValueError, match=sentence):
        call(tiny)
