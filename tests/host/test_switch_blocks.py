"""What Switch Blocks leaves out of a U-Net: the same as if those layers' weights added nothing."""

import copy

import pytest
import torch

from kv_core.networks.attention import Text
from tests.support.golden_networks import noise, prompts


def run(patcher, skip_frames=(3, 1, 2)):
    """What the network of a patcher predicts, with the patcher's patches."""
    patcher.patch_model(load_weights=False)
    try:
        with torch.no_grad():
            return predict(patcher.model.diffusion_model, skip_frames)
    finally:
        patcher.unpatch_model(unpatch_weights=False)


def predict(unet, skip_frames=(3, 1, 2)):
    time, texts = torch.tensor([980, 500, 20]), Text.unpadded(*(part.float() for part in prompts(unet)))
    if hasattr(unet, "image_in_layer"):
        number = torch.tensor([[3], [7], [11]])
        x = noise(3, 9, 4, 8, 8).float()
        return unet(x, time, texts=texts, mode="video", motion_score=number, noise_augmentation=number)
    x = noise(3, 20, 4, 8, 8).float()
    return unet(
        torch.cat([x[:, 4:16], x[:, :4], x[:, 16:]], dim=1),
        time,
        texts=texts,
        temporal_mask=(True, False, True),
        skip_frames=torch.tensor(skip_frames),
        perturbation_time=torch.zeros(3, dtype=torch.long),
    )


def silence(unet, ends):
    """Sets the weights to 0 whose names end so, of which there must be some."""
    names = [name for name, _ in unet.named_parameters() if any(end in name for end in ends)]
    assert names
    with torch.no_grad():
        for name in names:
            unet.get_parameter(name).zero_()
    return unet


def levels(unet, number, part):
    """The beginnings of names of a level's parts, down and up."""
    return [f"down_samples.{number}.{part}", f"up_samples.{len(unet.up_samples) - 1 - number}.{part}"]


def silent(*ends):
    return lambda unet: silence(unet, ends)


def silent_attention(kind):
    """All of level 1's, which has two blocks."""
    blocks = {"self": ["self_attention_block"], "cross": ["resnet_attn_blocks.0.1", "resnet_attn_blocks.1.1"]}[kind]
    return lambda unet: silence(unet, [end for b in blocks for end in levels(unet, 1, f"{b}.attention.output")])


OVER_TIME = silent(
    "temporal_resnet_blocks.3.2.", "temporal_attention.output", "temporal_attention_block.feed_forward.2"
)
SILENT = {
    "time, keyframes": ("keyframe_model", {"temporal": True}, OVER_TIME),
    "time, gaps": ("interpolation_model", {"temporal": True}, silent("temporal_merge")),
    "pooling, keyframes": ("keyframe_model", {"pooling": True}, silent("feature_pooling.attention.output")),
    "pooling, gaps": ("interpolation_model", {"pooling": True}, silent("feature_pooling.attention.output")),
    "self-attention, keyframes": ("keyframe_model", {"self_attention": (1,)}, silent_attention("self")),
    "self-attention, gaps": ("interpolation_model", {"self_attention": (1,)}, silent_attention("self")),
    "cross-attention, keyframes": ("keyframe_model", {"cross_attention": (1,)}, silent_attention("cross")),
    "cross-attention, gaps": ("interpolation_model", {"cross_attention": (1,)}, silent_attention("cross")),
}


@pytest.mark.parametrize("case", SILENT)
def test_off_is_silent(adapters, request, case):
    name, off, quiet = SILENT[case]
    model = request.getfixturevalue(name)
    whole, without = run(model), run(adapters.patches.switch_off(model, **off))
    with torch.no_grad():
        silent = predict(quiet(copy.deepcopy(model.model.diffusion_model)))
    torch.testing.assert_close(without, silent, atol=1e-6, rtol=0)
    assert (without - whole).abs().max() > 1e-4
    assert torch.equal(run(model), whole), "the model itself stays as it is"


def test_nothing_off_changes_nothing(adapters, keyframe_model):
    assert torch.equal(run(adapters.patches.switch_off(keyframe_model)), run(keyframe_model))


def test_switched_off_twice_is_off_once(adapters, keyframe_model):
    once = adapters.patches.switch_off(keyframe_model, self_attention=(1,), temporal=True)
    expected = run(once)
    once.patch_model(load_weights=False)  # as a run leaves it
    twice = adapters.patches.switch_off(once, self_attention=(1,), temporal=True)
    once.unpatch_model(unpatch_weights=False)
    assert torch.equal(run(twice), expected)


def test_every_gap_may_leave_out_another_number_of_frames(adapters, interpolation_model):
    """Without the layers over time each gap is filled on its own, so as if all gaps were like it."""
    alone, numbers = adapters.patches.switch_off(interpolation_model, temporal=True), (3, 1, 7, 0)
    uneven = run(alone, 3 * numbers)
    for gap, number in enumerate(numbers):
        even = run(alone, 3 * (number,))
        torch.testing.assert_close(uneven[:, :, gap], even[:, :, gap], atol=1e-5, rtol=0)
    assert (even - uneven)[:, :, :3].abs().amax((0, 1, 3, 4)).min() > 1e-4
