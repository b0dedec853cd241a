"""Blocks switched off and U-Nets blended, through the host's patcher and its merge nodes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.support.tiny_clip import PROMPT
from training import world

RED, CIRCLE = list(world.COLOURS).index("red"), list(world.SHAPES).index("circle")
ON = {"temporal_layers": True, "text_pooling": True, "self_attention_off": "", "cross_attention_off": ""}


def switched(clip, model=None, **changes):
    return clip.node("SwitchBlocks", model=model or clip.results["keyframe_unet"], **ON | changes)


def test_with_all_on_nothing_changes(clip):
    expected = clip.sample(steps=3)
    assert torch.equal(clip.sample(model=switched(clip), steps=3), expected)
    assert not torch.equal(clip.sample(model=switched(clip, temporal_layers=False), steps=3), expected)
    assert torch.equal(clip.sample(steps=3), expected), "the model itself stays as it is"


@pytest.mark.thorough
def test_without_temporal_layers_the_frames_know_nothing_of_each_other(clip):
    def jumps(samples):
        return (world.read(clip.pixels(samples)).centre.diff(dim=0)).norm(dim=1)

    together, alone = (
        jumps(clip.results["keyframes"]["samples"]),
        jumps(clip.sample(model=switched(clip, temporal_layers=False))),
    )
    print(f"largest step from frame to frame: {together.max():.1f} pixels together, {alone.median():.1f} without")
    assert together.max() < 3 and alone.median() > 8


@pytest.mark.thorough
def test_without_text_pooling_the_prompt_is_lost(clip):
    seen = world.read(clip.pixels(clip.sample(model=switched(clip, text_pooling=False))))
    assert ((seen.colour == RED) & (seen.shape == CIRCLE)).float().mean() < 0.5


@pytest.mark.parametrize("changes", [{"cross_attention_off": "1, 2"}, {"self_attention_off": "1"}])
def test_without_attention_something_else_comes(clip, changes):
    apart = (clip.sample(model=switched(clip, **changes), steps=10) - clip.sample(steps=10)).abs()
    assert 0.005 < apart.mean() < 0.5


def test_switches_add_up(clip):
    both = switched(clip, switched(clip, temporal_layers=False, cross_attention_off="2"), cross_attention_off="1")
    one = switched(clip, temporal_layers=False, cross_attention_off="1, 2")
    assert torch.equal(clip.sample(model=both, steps=3), clip.sample(model=one, steps=3))


def test_the_interpolation_unet_too(clip):
    model, given = clip.results["interpolation_unet"], clip.results["keyframes"]
    expected = clip.results["video"]["samples"]
    off = clip.interpolate(given, model=switched(clip, model, temporal_layers=False))["samples"]
    assert torch.equal(off[:, :, ::4], expected[:, :, ::4]) and (off - expected).abs().max() > 0.01


def test_a_wrong_level_gets_one_sentence(clip):
    with pytest.raises(ValueError, match="Item 2 of cross_attention_off is '0', expected a whole number from 1 to 2"):
        switched(clip, cross_attention_off="1, 0")
    with pytest.raises(ValueError, match="Item 1 of self_attention_off is 'deep'"):
        switched(clip, self_attention_off="deep")


@pytest.fixture(scope="module")
def merging(pack_nodes):
    import comfy_extras.nodes_model_merging as merging

    return merging


@pytest.fixture(scope="module")
def other(clip):
    """A second U-Net: the same with weights rounded to 8 bits."""
    return clip.node("UNetLoader", unet_name="kv-tiny/keyframes.safetensors", weight_dtype="fp8_e5m2")


@pytest.mark.thorough
def test_blends_lie_between_the_two(clip, merging, other):
    first = clip.sample(steps=3)

    def apart(ratio):
        (blend,) = merging.ModelMergeSimple().merge(clip.results["keyframe_unet"], other, ratio)
        return (clip.sample(model=blend, steps=3) - first).abs().mean().item()

    distances = [apart(ratio) for ratio in (1.0, 0.5, 0.0)]
    print("distance from the first U-Net's keyframes: " + ", ".join(f"{one:.4f}" for one in distances))
    assert distances[0] == 0 and distances == sorted(distances)
    assert distances[-1] == (clip.sample(model=other, steps=3) - first).abs().mean().item()


@pytest.mark.thorough
def test_a_difference_can_be_added(clip, merging, other):
    (difference,) = merging.ModelSubtract().merge(other, clip.results["keyframe_unet"], 1.0)
    (added,) = merging.ModelAdd().merge(clip.results["keyframe_unet"], difference)
    torch.testing.assert_close(clip.sample(model=added, steps=3), clip.sample(model=other, steps=3), atol=1e-4, rtol=0)


def saved_by_the_host(merging, model, name):
    import folder_paths

    saver = merging.ModelSave()
    saver.output_dir = folder_paths.get_output_directory()
    saver.save(model, f"diffusion_models/{name}")
    return Path(saver.output_dir, "diffusion_models", f"{name}_00001_.safetensors")


def test_a_saved_blend_loads_again(clip, adapters, merging, other):
    (blend,) = merging.ModelMergeSimple().merge(clip.results["keyframe_unet"], other, 0.5)
    path = saved_by_the_host(merging, blend, "blend")
    loaded = adapters.unets.load_unet(str(path), "fp32")
    assert torch.equal(loaded.model.null_embedding, blend.model.null_embedding)
    stated = {name: loaded.model.model_config.unet_config[name] for name in ("head_dim", "groups")}
    assert stated == {"head_dim": 16, "groups": 1}
    assert torch.equal(clip.sample(model=loaded, steps=3), clip.sample(model=blend, steps=3))


def test_a_saved_interpolation_unet_loads_again(clip, adapters, merging):
    """The host marks that it predicts velocity by a tensor of its own."""
    path = saved_by_the_host(merging, clip.results["interpolation_unet"], "interpolation")
    with safe_open(path, "pt") as file:
        assert "v_pred" in file.keys() and "kandinsky_video" not in json.dumps(file.metadata())
    loaded = adapters.unets.load_unet(str(path), "fp32")
    again = clip.interpolate(clip.results["keyframes"], model=loaded)
    # Weights that lie otherwise in memory are added up in another order.
    torch.testing.assert_close(again["samples"], clip.results["video"]["samples"], atol=1e-5, rtol=0)


def test_weights_in_int8_are_not_saved_wrong(clip, merging):
    """They blend, but their file would hold noise."""
    small = clip.node("UNetLoader", unet_name="kv-tiny/keyframes.safetensors", weight_dtype="int8")
    (blend,) = merging.ModelMergeSimple().merge(clip.results["keyframe_unet"], small, 0.5)
    first = clip.sample(steps=3)
    apart = (clip.sample(model=blend, steps=3) - first).abs().mean()
    assert 0 < apart < (clip.sample(model=small, steps=3) - first).abs().mean()
    with pytest.raises(ValueError, match="int8 cannot be saved: load this U-Net with another weight dtype"):
        saved_by_the_host(merging, small, "int8")


@pytest.mark.thorough
def test_the_two_projections(clip):
    """The U-Nets were trained with the base projection: with the other one they miss the prompt."""
    base = world.read(clip.pixels(clip.results["keyframes"]))
    text = clip.node("TextEncode", text_encoder=clip.results["text_encoder"], text=PROMPT, projection="interpolation")
    other = world.read(clip.pixels(clip.sample(positive=text)))
    share = [((seen.colour == RED) & (seen.shape == CIRCLE)).float().mean().item() for seen in (base, other)]
    print(f"frames that show a red circle: {share[0]:.0%} with base, {share[1]:.0%} with interpolation")
    assert share[0] == 1 and share[1] < 0.25
