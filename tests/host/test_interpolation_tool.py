"""Interpolation as a tool of its own: of any video, with gaps by hand, again and again, against cross-fading."""

import pytest
import torch

from evaluation import benchmark
from kv_core.pictures.images import fit, psnr, to_pixels
from kv_core.sampling.frames import cross_fade
from training import world

TIMES = torch.arange(17) / 4  # four gaps of a fast scene


@pytest.fixture(scope="module")
def scene():
    return benchmark.moving_scene(6, "extreme")


@pytest.fixture(scope="module")
def images(scene):
    """The true frames as the host's IMAGE."""
    return ((world.draw(scene, TIMES)[0] + 1) / 2).movedim(1, -1)


def encode(clip, images):
    return clip.node("EncodeFrames", movq=clip.results["movq"], images=images, width=64, height=64)


def text(clip, scene):
    encoder, caption = clip.results["text_encoder"], scene.captions()[0]
    return clip.node("TextEncode", text_encoder=encoder, text=caption, projection="base")


def errors(clip, latent, scene, times):
    """Pixels between where the shape is and where it should be."""
    return (world.read(clip.pixels(latent)).centre - world.positions(scene, times)[0]).norm(dim=1)


def test_frames_are_encoded_one_by_one_as_encode_image_does(clip, images):
    latent = encode(clip, images[:3])
    assert latent["kind"] == "keyframes"
    for index in range(3):
        one = clip.node("EncodeImage", movq=clip.results["movq"], image=images[index : index + 1], width=64, height=64)
        assert torch.equal(latent["samples"][:, :, index : index + 1], one["samples"])


def test_frames_of_another_size_are_shrunk_and_cropped(clip, pack, images):
    wide = torch.nn.functional.interpolate(images[:2].movedim(-1, 1), (128, 200)).movedim(1, -1)
    latent = encode(clip, wide)
    pixels = to_pixels(fit(pack.nodes.pictures.to_picture(wide[:1]), 64, 64))
    with torch.inference_mode():
        assert torch.equal(latent["samples"][:, :, 0], clip.results["movq"].encode(pixels))
    with pytest.raises(ValueError, match="width is 60, expected a whole number from 64 to 4096"):
        clip.node("EncodeFrames", movq=clip.results["movq"], images=wide, width=60, height=64)


def pixels_faded(pixels):
    """The same blends of the pictures themselves."""
    left, right = pixels[:-1, None], pixels[1:, None]
    blends = [torch.lerp(left, right, share) for share in (0.25, 0.5, 0.75)]
    return torch.cat([torch.cat([left, *blends], dim=1).flatten(0, 1), pixels[-1:]])


def test_any_video_is_interpolated(clip, scene, images):
    """Far better than its pictures can be faded. The tiny MoVQ's latents are so smooth that fading these is as good."""
    truth, given = encode(clip, images), encode(clip, images[::4])
    made = clip.interpolate(given, positive=text(clip, scene))
    faded = clip.node("CrossFade", samples=given)
    assert (faded["kind"], faded["samples"].shape) == ("video", made["samples"].shape)
    assert torch.equal(faded["samples"], cross_fade(given["samples"]))
    new, expected = [index for index in range(17) if index % 4], clip.pixels(truth)
    frames = {"made": clip.pixels(made), "latents": clip.pixels(faded), "pixels": pixels_faded(expected[::4])}
    decibels = {name: psnr(seen[new], expected[new], 2).mean().item() for name, seen in frames.items()}
    error = errors(clip, made, scene, TIMES)[new].mean().item()
    print(f"dB: {', '.join(f'{name} {value:.1f}' for name, value in decibels.items())}; error {error:.2f} pixels")
    assert error < 1.5 and min(decibels["made"], decibels["latents"]) > decibels["pixels"] + 3


@pytest.mark.thorough
def test_three_passes(clip, scene, images):
    video = encode(clip, images[:9:4])
    for frames in (9, 33, 129):
        before = video["samples"]
        video = clip.interpolate(video, positive=text(clip, scene))
        assert video["samples"].shape[2] == frames
        assert torch.equal(video["samples"][:, :, ::4], before), "the given frames stay"
    assert errors(clip, video, scene, torch.arange(129) / 64).mean() < 1.5
    steps = world.read(clip.pixels(video)).centre.diff(dim=0).norm(dim=1)
    assert steps.max() < 1.5, "no jump from frame to frame"


def test_gaps(clip, images):
    given = encode(clip, images[::4])
    even = clip.interpolate(given)["samples"]
    same = clip.interpolate(given, gap_lengths="3, 3,3 ,3")["samples"]
    torch.testing.assert_close(same, even, atol=1e-5, rtol=0)
    assert torch.equal(clip.interpolate(given, gap_lengths=" ")["samples"], even), "left open it counts for nothing"
    uneven = clip.interpolate(given, gap_lengths="3, 14, 3, 3")["samples"]
    changed = (uneven - even).abs().amax((0, 1, 3, 4))
    assert torch.equal(changed[::4], torch.zeros(5)) and changed[5:8].max() > 1e-3


def test_gaps_go_with_context_windows(clip, adapters, images):
    """A window over some of the gaps takes their numbers."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    seen, unet = [], clip.results["interpolation_unet"].model.diffusion_model
    handle = unet.skip_embeddings.register_forward_hook(lambda layer, given, out: seen.append(given[0].tolist()))
    windows = (2, 0, "standard_static", 1, False, "flat", 2, False)
    model = ContextWindowsManualNode.execute(clip.results["interpolation_unet"], *windows)[0]
    try:
        clip.interpolate(encode(clip, images[::4]), model=model, gap_lengths="3, 14, 7, 1", steps=1)
    finally:
        handle.remove()
    # Two branches a call; the host lets a window begin one gap before.
    assert {tuple(numbers[: len(numbers) // 2]) for numbers in seen} == {(3, 14), (14, 7, 1)}


@pytest.mark.parametrize(
    "gaps, sentence",
    [
        ("3, 3", "There are 2 gap lengths, but 4 gaps between 5 frames: give one number for each"),
        ("3, 20, 3, 3", "Item 2 of gap_lengths is '20', expected a whole number from 0 to 19"),
        ("3, 3, -1, 3", "Item 3 of gap_lengths is '-1'"),
        ("3 3 3 3", "Item 1 of gap_lengths is '3 3 3 3'"),
    ],
)
def test_bad_gaps_get_one_sentence(clip, images, gaps, sentence):
    with pytest.raises(ValueError, match=sentence):
        clip.interpolate(encode(clip, images[::4]), gap_lengths=gaps)
