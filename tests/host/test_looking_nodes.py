"""The nodes that look into latents: what they show is what is there."""

import pytest
import torch

from evaluation import benchmark
from kv_core.pictures import sheets as sheets_of
from kv_core.pictures.images import psnr
from kv_core.sampling.diffusion import SeededNoise
from tests.support.tiny_clip import PROMPT
from training import world


def test_a_contact_sheet_shows_every_frame(clip):
    keyframes, movq = clip.results["keyframes"], clip.results["movq"]
    images = clip.node("DecodeImage", movq=movq, samples=keyframes)
    sheet = clip.node("ContactSheet", samples=keyframes, columns=5, numbers=False, movq=movq)
    step = 64 + sheets_of.GAP
    assert sheet.shape == (1, 3 * step + sheets_of.GAP, 5 * step + sheets_of.GAP, 3)
    for index, image in enumerate(images):
        y, x = (sheets_of.GAP + place * step for place in divmod(index, 5))
        torch.testing.assert_close(sheet[0, y : y + 64, x : x + 64], image, atol=1e-6, rtol=0)


def test_without_a_movq_frames_are_shown_in_the_colours_of_previews(clip):
    encoded = clip.results["encoded"]
    rough = clip.node("ContactSheet", samples=encoded, columns=6, numbers=False)[0, 2:66, 2:66]
    image = clip.node("DecodeImage", movq=clip.results["movq"], samples=encoded)[0]
    squares = rough.unflatten(0, (8, 8)).unflatten(2, (8, 8))
    assert torch.equal(squares, squares[:, :1, :, :1].expand_as(squares)), "one colour for each latent pixel"
    assert (rough - image).abs().mean() < 0.1
    wide = {"samples": torch.zeros(1, 4, 1, 64, 64), "kind": "frame"}
    assert clip.node("ContactSheet", samples=wide, columns=6, numbers=False).shape == (1, 516, 516, 3)


def test_difference(clip):
    keyframes = clip.results["keyframes"]
    changed = {**keyframes, "samples": keyframes["samples"].clone()}
    changed["samples"][:, :, 3, 2, 5] += 0.4
    heat, report = clip.nodes("Difference", samples=keyframes, other=changed, brightest=0.0)
    assert heat.shape == (12, 64, 64, 3)
    white = heat[3, 16:24, 40:48]
    assert white.min() == 1 and heat.sum() == white.sum(), "only where they differ"
    lines = [line.split() for line in report.splitlines()]
    assert lines[0] == ["frame", "mean", "largest", "PSNR"] and [line[0] for line in lines[1:]] == [
        *map(str, range(12)),
        "all",
    ]
    # In frame 3 four of 256 numbers are 0.4 apart: a mean of 0.4 / 64, and 4 / (0.16 / 64) = 1600.
    assert lines[4][1:] == ["0.0063", "0.4000", "32.0", "dB"] and lines[1][1:] == ["0.0000", "0.0000", "inf", "dB"]
    assert lines[13][1:] == ["0.0005", "0.4000", "42.8", "dB"]
    half, _ = clip.nodes("Difference", samples=keyframes, other=changed, brightest=0.8)
    torch.testing.assert_close(half[3, 16, 40], torch.tensor([1.0, 0.5, 0.0]), atol=1e-5, rtol=0)


def test_a_difference_needs_one_size(clip):
    with pytest.raises(ValueError, match=r"one size, but got \[1, 4, 12, 8, 8\] and \[1, 4, 45, 8, 8\]: choose"):
        clip.nodes("Difference", samples=clip.results["keyframes"], other=clip.results["video"], brightest=0.0)


@pytest.fixture(scope="module")
def grid(clip):
    """Scores and levels of a grid, its clips and its sheets."""
    inputs = {name: clip.keyframes[name] for name in ("model", "positive", "first_frame", "seed")}
    return clip.nodes(
        "MotionGrid",
        **inputs,
        frames=12,
        motion_scores="1, 10, 100",
        noise_augmentations="20, 600",
        text_guidance=5.0,
        image_guidance=3.0,
        steps=20,
        movq=clip.results["movq"],
    )


@pytest.mark.thorough
def test_motion_grid(clip, grid):
    clips, sheets = grid
    assert len(clips) == 6 and {tuple(one["samples"].shape) for one in clips} == {(1, 4, 12, 8, 8)}
    alone = clip.sample(motion="custom", motion_score=10, noise_augmentation=600, steps=20)
    assert torch.equal(clips[4]["samples"], alone), "a cell is what Sample Keyframes gives"
    cells = torch.stack([clip.node("DecodeImage", movq=clip.results["movq"], samples=one) for one in clips])
    titles = ["noise 20", "noise 600"], ["motion 1", "motion 10", "motion 100"]
    expected = sheets_of.table_sheet(cells[:, 11].unflatten(0, (2, 3)), *titles)
    assert len(sheets) == 12 and torch.equal(sheets[11], expected)


@pytest.mark.thorough
def test_motion_grid_shows_motion_and_departure(clip, grid):
    pixels = [clip.pixels(one) for one in grid[0]]
    ways = [(centre[benchmark.EARLY] - centre[0]).norm() for centre in (world.read(one).centre for one in pixels)]
    assert ways[0] < ways[1] < ways[2]
    first = clip.pixels(clip.results["encoded"]["samples"])
    near, far = (psnr(pixels[i][:1], first, 2).item() for i in (1, 4))
    print(f"PSNR of the first keyframe against the given one: {near:.1f} dB at 20, {far:.1f} dB at 600")
    assert near > 25 and near > far + 5


def test_motion_grid_shows_progress_over_all_cells(clip, monkeypatch):
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total)))
    inputs = {name: clip.keyframes[name] for name in ("model", "positive", "first_frame", "seed")}
    clip.nodes(
        "MotionGrid",
        **inputs,
        frames=2,
        motion_scores="1,5",
        noise_augmentations="20",
        text_guidance=5.0,
        image_guidance=3.0,
        steps=3,
    )
    assert (seen[0], seen[-1]) == ((1, 6), (6, 6)) and seen == sorted(seen), "some steps go unreported"
    assert {total for _, total in seen} == {6}


@pytest.mark.parametrize(
    "scores, sentence",
    [
        ("1, x, 3", "Item 2 of motion_scores is 'x', expected a whole number from 0 to 1000"),
        ("1, 2,", "Item 3 of motion_scores is ''"),
        ("1001", "Item 1 of motion_scores is '1001'"),
        (" ", "needs at least one number in motion_scores"),
        ("1，x、3", "Item 2 of motion_scores is 'x'"),
    ],
)
def test_bad_lists_get_one_sentence(clip, scores, sentence):
    inputs = {name: clip.keyframes[name] for name in ("model", "positive", "first_frame", "seed")}
    with pytest.raises(ValueError, match=sentence):
        clip.nodes(
            "MotionGrid",
            **inputs,
            frames=2,
            motion_scores=scores,
            noise_augmentations="20",
            text_guidance=5.0,
            image_guidance=3.0,
            steps=1,
        )


def maps_of(clip, adapters, timestep, model=None):
    samples = clip.results["keyframes"]["samples"]
    model, positive = model or clip.results["keyframe_unet"], clip.results["positive"]
    with torch.inference_mode():
        return adapters.attention_maps.attention_maps(model, positive, samples, timestep, SeededNoise(3))


def test_attention_maps_are_the_models_own(clip, adapters):
    maps = maps_of(clip, adapters, 500)
    words = len(PROMPT.split()) + 1
    assert {level: tuple(one.shape) for level, one in maps.items()} == {1: (12, 4, 4, words), 2: (12, 2, 2, words)}
    for one in maps.values():
        torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:-1]))
    unet = clip.results["keyframe_unet"].model.diffusion_model
    assert not any(module._forward_pre_hooks for module in unet.modules()), "the model itself is left alone"


def test_attention_maps_skip_levels_that_are_switched_off(clip, adapters):
    model = adapters.patches.switch_off(clip.results["keyframe_unet"], cross_attention=(2,))
    assert maps_of(clip, adapters, 500, model).keys() == {1}
    with pytest.raises(ValueError, match="found no attention to the prompt at noise level 500: it is switched off"):
        maps_of(clip, adapters, 500, adapters.patches.switch_off(model, cross_attention=(1,)))
    assert maps_of(clip, adapters, 500).keys() == {1, 2}, "the model itself is left alone"


def test_attention_maps_see_all_frames_behind_context_windows(clip, adapters):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    windows = (4, 0, "standard_static", 1, False, "flat", 2, False)
    windowed = ContextWindowsManualNode.execute(clip.results["keyframe_unet"], *windows)[0]
    for level, one in maps_of(clip, adapters, 500).items():
        assert torch.equal(one, maps_of(clip, adapters, 500, windowed)[level])
    assert windowed.model_options["context_handler"], "the model itself is left alone"


def test_attention_shows_which_word_matters_where(clip, adapters):
    """While things are placed the U-Net looks at the direction; while they are finished, at the background's words
    outside the circle."""
    words = [*PROMPT.split(), "end"]
    placed, finished = (maps_of(clip, adapters, timestep)[1] for timestep in (800, 200))
    share = {word: [maps[..., i].mean().item() for maps in (placed, finished)] for i, word in enumerate(words)}
    print({word: [f"{value:.0%}" for value in values] for word, values in share.items()})
    assert share["right"][0] > 1.5 * share["right"][1] and share["right"][0] == max(v[0] for v in share.values())
    scene = world.read(clip.pixels(clip.results["keyframes"]))
    axis = 16 * torch.arange(4) + 8
    x, y = scene.centre.T[:, :, None, None]
    distance = (axis - x).square() + (axis[:, None] - y).square()
    inside, outside = distance < 11**2, distance > 20**2
    for word, sign in (("background", -1), ("grey", -1), ("right", 1)):
        weights = finished[..., words.index(word)]
        assert sign * (weights[inside].mean() - weights[outside].mean()) > 0.02, word


def test_attention_sheet(clip):
    inputs = {
        "model": clip.results["keyframe_unet"],
        "positive": clip.results["positive"],
        "noise_level": 500,
        "seed": 3,
    }
    sheet = clip.node("AttentionMaps", samples=clip.results["keyframes"], level="1", **inputs)
    words = len(PROMPT.split()) + 1
    assert sheet.shape[1] > (words + 1) * 64 and sheet.shape[2] > 12 * 64
    one = clip.node("AttentionMaps", samples=clip.results["encoded"], level="all", **inputs)
    assert one.shape[2] < 300, "a first frame has one column"
    with pytest.raises(ValueError, match="no attention to the text at level 3, only at 1, 2: choose"):
        clip.node("AttentionMaps", samples=clip.results["encoded"], level="3", **inputs)
    empty = clip.node("TextEncode", text_encoder=clip.results["text_encoder"], text="", projection="base")
    with pytest.raises(ValueError, match="needs a prompt of at least one word"):
        clip.node("AttentionMaps", samples=clip.results["encoded"], level="all", **inputs | {"positive": empty})
    changing = clip.node(
        "TextOverTime",
        text_encoder=clip.results["text_encoder"],
        text=f"0: {PROMPT}; 6: a blue cross",
        projection="base",
    )
    first = clip.node("AttentionMaps", samples=clip.results["keyframes"], level="1", **inputs | {"positive": changing})
    assert torch.equal(first, sheet), "prompts over time are shown as their first one"
    from nodes import ConditioningConcat

    off = clip.node(
        "SwitchBlocks",
        model=clip.results["keyframe_unet"],
        temporal_layers=True,
        text_pooling=True,
        self_attention_off="",
        cross_attention_off="1, 2",
    )
    with pytest.raises(ValueError, match="found no attention to the prompt at noise level 500: it is switched off"):
        clip.node("AttentionMaps", samples=clip.results["encoded"], level="all", **inputs | {"model": off})
    joined = ConditioningConcat().concat(clip.results["positive"], clip.results["positive"])[0]
    with pytest.raises(ValueError, match="another node changed its text"):
        clip.node("AttentionMaps", samples=clip.results["encoded"], level="all", **inputs | {"positive": joined})
