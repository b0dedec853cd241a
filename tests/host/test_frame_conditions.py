"""Frames given, clips begun with and joined: what comes out, in numbers, with the tiny model."""

import pytest
import torch

from evaluation.benchmark import psnr
from tests.support.tiny_parts import KEYFRAMES, colours, sample, scene, sigmas
from training import world

CIRCLE = scene("red", "circle", "right", (16, 30))
PROMPT = "a red circle moving right on a black background"
END = world.positions(CIRCLE, torch.tensor([11.0]))[0, 0].tolist()  # where a clip of medium speed ends
BLUE = "a blue circle on a black background"


def given(tiny, frames, position, use="hold", previous=()):
    return tiny.node("FrameCondition", frames=frames, position=position, use=use, previous=previous)


def at(tiny, centre, colour="red"):
    return tiny.frame(scene(colour, "circle", "right", centre))


def steps_of(samples):
    """The change from frame to frame of a latent `[1, 4, F, h, w]`: `[F - 1]`."""
    return samples.diff(dim=2).square().mean((0, 1, 3, 4)).sqrt()


@pytest.fixture(scope="module")
def clip(tiny):
    return tiny.keyframes(CIRCLE, PROMPT)


@pytest.mark.parametrize("sampler", [None, "euler", "dpmpp_3m_sde"])
def test_a_held_frame_comes_out_as_it_went_in(tiny, sampler):
    from comfy.samplers import sampler_object

    last, middle = at(tiny, END), at(tiny, (23, 31))
    conditions = given(tiny, middle, 6, previous=given(tiny, last, -1))
    more = {"sampler": sampler_object(sampler)} if sampler else {}
    out = tiny.keyframes(CIRCLE, PROMPT, steps=8, frame_conditions=conditions, **more)["samples"]
    assert torch.equal(out[:, :, 11:], last["samples"]) and torch.equal(out[:, :, 6:7], middle["samples"])
    assert not torch.equal(out[:, :, :1], tiny.frame(CIRCLE)["samples"]), "the first frame is only shown"


def test_a_held_frame_comes_out_of_the_hosts_sampler_too(tiny):
    last = at(tiny, END)
    guider, latent = tiny.nodes(
        "KeyframeGuider",
        model=tiny.unet,
        positive=tiny.text(PROMPT),
        first_frame=tiny.frame(CIRCLE),
        frame_conditions=given(tiny, last, -1),
        **KEYFRAMES,
    )
    out = sample(guider, latent, sigmas(tiny), tiny.node("DDPM"))["samples"]
    stage = tiny.keyframes(CIRCLE, PROMPT, steps=8, frame_conditions=given(tiny, last, -1))["samples"]
    assert torch.equal(out, stage) and torch.equal(out[:, :, 11:], last["samples"])


def test_of_two_conditions_for_a_place_only_the_later_one_counts(tiny):
    one, other = at(tiny, END), at(tiny, (23, 31))
    alone = tiny.keyframes(CIRCLE, PROMPT, steps=2, frame_conditions=given(tiny, other, -1, "show"))["samples"]
    for use in ("hold", "hold and show"):
        both = given(tiny, other, -1, "show", previous=given(tiny, one, -1, use))
        assert torch.equal(tiny.keyframes(CIRCLE, PROMPT, steps=2, frame_conditions=both)["samples"], alone)


def test_what_is_shown_reaches_the_unet(tiny, adapters, monkeypatch):
    seen = []
    forward = adapters.unets.HostKeyframeUNet._forward

    def watched(self, x, *arguments, **conditions):
        seen.append(x[:, 4:])
        return forward(self, x, *arguments, **conditions)

    monkeypatch.setattr(adapters.unets.HostKeyframeUNet, "_forward", watched)
    last = at(tiny, END)
    for use, mask in (("show", [1] + [0] * 10 + [1]), ("hold", [1] + [0] * 11)):
        tiny.keyframes(CIRCLE, PROMPT, steps=1, noise_augmentation=0, frame_conditions=given(tiny, last, -1, use))
        masks = sorted(branch[4, :, 0, 0].tolist() for branch in seen.pop())
        assert masks == [[0] * 12, mask, mask]
    with_last = tiny.keyframes(CIRCLE, PROMPT, steps=1, frame_conditions=given(tiny, last, -1, "show"))
    assert not torch.equal(with_last["samples"], tiny.keyframes(CIRCLE, PROMPT, steps=1)["samples"])


@pytest.mark.thorough
def test_first_and_last_frame(tiny):
    """Where the prompt leads there anyway, the clip arrives; elsewhere it leans there and jumps at the end."""
    for end, largest in ((END, 2.0), ((40, 30), 9.0)):
        last = at(tiny, end)
        out = tiny.keyframes(CIRCLE, PROMPT, frame_conditions=given(tiny, last, -1))
        seen, plain = tiny.read_single(out), tiny.read_single(tiny.keyframes(CIRCLE, PROMPT))
        jumps = seen.centre.diff(dim=0).norm(dim=1)
        print(f"to {end}: largest jump {jumps.max():.1f} pixels, last {jumps[-1]:.1f}")
        assert seen.found.all() and set(colours(seen)) == {"red"}
        assert (seen.centre[-1] - torch.tensor(end)).norm() < 1 and jumps.max() < largest
        if end[0] == 40:
            assert seen.centre[10, 0] > plain.centre[10, 0] + 2, "it hurries"


@pytest.mark.thorough
def test_video_to_video_keeps_the_motion_and_changes_the_colour(tiny, clip):
    blue = at(tiny, (16, 30), "blue")
    plain, half = (
        tiny.keyframes(
            CIRCLE, "a blue circle on a black background", first_frame=blue, init_video=clip, denoise=denoise
        )
        for denoise in (1.0, 0.6)
    )
    track = tiny.read_single(clip).centre
    away = {}
    for name, out in (("plain", plain), ("half", half)):
        seen = tiny.read_single(out)
        assert seen.found.all() and set(colours(seen)) == {"blue"}
        away[name] = (seen.centre - track).norm(dim=1).mean().item()
    print(f"mean distance from the first clip's way: {away}")
    assert away["half"] < 2 < 6 < away["plain"]


def test_denoise_says_where_it_begins(tiny, clip, adapters, monkeypatch):
    timesteps = []
    forward = adapters.unets.HostKeyframeUNet._forward

    def watched(self, x, times, *arguments, **conditions):
        timesteps.append(int(times[0]))
        return forward(self, x, times, *arguments, **conditions)

    monkeypatch.setattr(adapters.unets.HostKeyframeUNet, "_forward", watched)
    for denoise, expected in ((1.0, [750, 500, 250, 0]), (0.5, [375, 250, 125, 0]), (0.01, [6, 4, 2, 0])):
        timesteps.clear()
        out = tiny.keyframes(CIRCLE, PROMPT, steps=4, init_video=clip, denoise=denoise)["samples"]
        assert timesteps == expected
    torch.testing.assert_close(out, clip["samples"], atol=0.1, rtol=0)
    timesteps.clear()
    tiny.keyframes(CIRCLE, PROMPT, steps=4, denoise=0.5)
    assert timesteps == [750, 500, 250, 0], "without a start there is nothing to begin part way with"


def extend(tiny, clip, count, text=PROMPT, **more):
    tail = tiny.node("PickFrames", samples=clip, position=-count, count=count)
    one = tiny.node("PickFrames", samples=clip, position=-count, count=1)
    conditions = given(tiny, tail, 0, previous=more.pop("previous", ()))
    second = tiny.keyframes(CIRCLE, text, first_frame=one, frame_conditions=conditions, **more)
    return tiny.node("JoinClips", first=clip, second=second, overlap=count)


@pytest.mark.thorough
@pytest.mark.parametrize("count", [1, 4])
def test_an_extended_clip_has_no_seam(tiny, clip, count):
    joined = extend(tiny, clip, count)["samples"]
    assert joined.shape[2] == 24 - count and torch.equal(joined[:, :, :12], clip["samples"])
    change = steps_of(joined)
    print(f"change at the seam {change[11]:.3f}, elsewhere up to {change.max():.3f}")
    assert change[11] <= torch.cat([change[:11], change[12:]]).max()
    x = tiny.read_single(tiny.latent("keyframes", joined)).centre[:, 0]
    assert (x.diff() > 0).all() and x[-1] > x[11] + 5, "it goes on to the right"


@pytest.mark.thorough
def test_a_loop_ends_where_it_began(tiny, clip):
    """Back to the left, with the first frame given as the last."""
    back = given(tiny, tiny.node("PickFrames", samples=clip, position=0, count=1), -1)
    loop = extend(tiny, clip, 1, PROMPT.replace("right", "left"), previous=back)["samples"]
    assert torch.equal(loop[:, :, -1], loop[:, :, 0])
    change = steps_of(loop)
    print(f"into the last frame {change[-1]:.3f}, elsewhere up to {change[:-1].max():.3f}")
    assert change[-1] <= change[:-1].max()


WRONG = {
    "a place outside": (
        lambda tiny, clip: tiny.keyframes(CIRCLE, PROMPT, frame_conditions=given(tiny, clip, 1)),
        r"Frame condition 1 puts 12 frame\(s\) at 1, but the clip has frames 0 to 11",
    ),
    "another length": (
        lambda tiny, clip: tiny.keyframes(CIRCLE, PROMPT, frames=8, init_video=clip),
        "init_video needs 8 frames of 64x64 pixels, but has 12 of 64x64: set frames",
    ),
    "frames that are not there": (
        lambda tiny, clip: tiny.node("PickFrames", samples=clip, position=-2, count=3),
        r"Pick Frames takes 3 frame\(s\) at -2, but the clip has frames 0 to 11",
    ),
    "another kind": (
        lambda tiny, clip: tiny.node("JoinClips", first=clip, second={**clip, "kind": "video"}, overlap=1),
        "one kind and size, but got keyframes 64x64 and video 64x64",
    ),
    "more shared than there are": (
        lambda tiny, clip: tiny.node("JoinClips", first=clip, second=clip, overlap=13),
        "needs an overlap of 13 frames in both clips, but they have 12 and 12: lower overlap",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_get_one_sentence(tiny, clip, case):
    call, sentence = WRONG[case]
    with pytest.raises(ValueError, match=sentence):
        call(tiny, clip)


def test_pictures_are_psnr_exact(tiny):
    """The held last frame, decoded, against the picture that was encoded, and against its own decoding."""
    last = at(tiny, END)
    out = tiny.keyframes(CIRCLE, PROMPT, steps=8, frame_conditions=given(tiny, last, -1))
    picked = tiny.node("PickFrames", samples=out, position=-1, count=1)
    shown, whole = (
        2 * tiny.node("DecodeImage", movq=tiny.movq, samples=latent).movedim(-1, 1) - 1 for latent in (picked, last)
    )
    truth = world.draw(scene("red", "circle", "right", END), torch.zeros(1))[0]
    value = psnr(shown, truth).item()
    print(f"last frame given against last frame got: {value:.1f} dB")
    assert torch.equal(shown, whole) and value > 25
