"""What a U-Net leaves out on request: the same as if those layers' weights added nothing."""

import pytest
import torch

from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.unet import ALL_ON, Off
from tests.core.test_fast_paths import FACTORY, noise, prompts
from tests.support.recipe import fill, golden


def keyframe_unet():
    return fill(KeyframeUNet(**golden("keyframe_unet")[1]["config"], **FACTORY), "keyframe_unet")


def interpolation_unet():
    name = "interpolation_unet_default"
    return fill(InterpolationUNet(**golden(name)[1]["config"], **FACTORY), name)


def run(unet, off=ALL_ON, skip_frames=(3, 1, 2)):
    number, time = torch.tensor([[3], [7], [11]]), torch.tensor([980, 500, 20])
    text = unet.read_text(*prompts(unet))
    if isinstance(unet, KeyframeUNet):
        return unet(noise(3, 9, 4, 8, 8), time, text, motion_score=number, noise_augmentation=number, off=off)
    return unet(
        noise(3, 20, 4, 8, 8),
        time,
        text,
        temporal_mask=(True, False, True),
        skip_frames=torch.tensor(skip_frames),
        perturbation_time=torch.zeros(3, dtype=torch.long),
        off=off,
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
    "time, keyframes": (keyframe_unet, Off(temporal=True), OVER_TIME),
    "time, gaps": (interpolation_unet, Off(temporal=True), silent("temporal_merge")),
    "pooling, keyframes": (keyframe_unet, Off(pooling=True), silent("feature_pooling.attention.output")),
    "pooling, gaps": (interpolation_unet, Off(pooling=True), silent("feature_pooling.attention.output")),
    "self-attention, keyframes": (keyframe_unet, Off(self_attention=(1,)), silent_attention("self")),
    "self-attention, gaps": (interpolation_unet, Off(self_attention=(1,)), silent_attention("self")),
    "cross-attention, keyframes": (keyframe_unet, Off(cross_attention=(1,)), silent_attention("cross")),
    "cross-attention, gaps": (interpolation_unet, Off(cross_attention=(1,)), silent_attention("cross")),
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("case", SILENT)
def test_off_is_silent(case, gradients):
    build, off, quiet = SILENT[case]
    with torch.set_grad_enabled(gradients):
        whole, left_out, silent = run(build()), run(build(), off), run(quiet(build()))
    torch.testing.assert_close(left_out, silent, atol=1e-12, rtol=0)
    assert (left_out - whole).abs().max() > 1e-4


def test_nothing_off_changes_nothing():
    for build in (keyframe_unet, interpolation_unet):
        with torch.no_grad():
            assert torch.equal(run(build()), run(build(), Off()))


@pytest.mark.parametrize("build", [keyframe_unet, interpolation_unet])
def test_torch_compile_breaks_no_graph(build):
    off = Off(temporal=True, pooling=True, self_attention=(1,), cross_attention=(1,))
    unet = build()
    with torch.no_grad():
        expected = run(unet, off)
        unet.forward = torch.compile(unet.forward, fullgraph=True, backend="eager")
        torch.testing.assert_close(run(unet, off), expected)


def test_every_gap_may_leave_out_another_number_of_frames():
    """Without the layers over time each gap is filled for itself, so as if all gaps were like it."""
    alone, numbers = Off(temporal=True), (3, 1, 7, 0)
    with torch.no_grad():
        uneven = run(interpolation_unet(), alone, 3 * numbers)
        for gap, number in enumerate(numbers):
            even = run(interpolation_unet(), alone, 3 * (number,))
            torch.testing.assert_close(uneven[:, :, gap], even[:, :, gap], atol=1e-12, rtol=0)
        assert (even - uneven)[:, :, :3].abs().amax((0, 1, 3, 4)).min() > 1e-4
