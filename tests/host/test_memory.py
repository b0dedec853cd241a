"""The memory estimates against what the full-size networks hold at their widest moment, counted on the meta device."""

import pytest
import torch

from kv_core.networks import memory
from kv_core.networks.attention import Text
from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.movq import MoVQ
from kv_core.networks.operations import TorchOperations
from tools.measure import PeakBytes

HALF = torch.float16


class Operations(TorchOperations):
    @staticmethod
    def attention(q, k, v, heads, mask=None, options=None):
        return torch.empty_like(q)  # fused kernels hold nothing else


def counted(run):
    with PeakBytes() as bytes, torch.inference_mode():
        run()
    return bytes.peak


def meta(*shape, dtype=HALF):
    return torch.empty(shape, dtype=dtype, device="meta")


def text(unet, branches):
    mask = torch.zeros(branches, 50, dtype=torch.long)
    mask[0, :49], mask[1:, 0] = 1, 1
    return Text.unpadded(meta(branches, 50, 4096), mask)


FACTORY = {"operations": Operations, "dtype": HALF, "device": "meta"}


def assert_fits(estimate, needed):
    assert 1.02 * needed < estimate < 1.15 * needed


@pytest.mark.parametrize(
    "mode, branches, frames, height, width",
    [
        ("video", 3, 12, 64, 64),
        ("video", 1, 4, 48, 80),
        ("image", 2, 1, 128, 128),
    ],
)
def test_keyframe_unet(adapters, mode, branches, frames, height, width):
    unet = KeyframeUNet(**FACTORY)
    number = meta(branches, 1, dtype=torch.float32)
    needed = counted(
        lambda: unet(
            meta(branches, 9, frames, height, width),
            number[:, 0],
            text(unet, branches),
            mode=mode,
            motion_score=number,
            noise_augmentation=number,
        )
    )
    assert_fits(memory.unet(branches * frames, height, width, 384, HALF), needed)


@pytest.mark.parametrize("branches, gaps", [(2, 11), (1, 44)])
def test_interpolation_unet(adapters, branches, gaps):
    unet = InterpolationUNet(**FACTORY)
    number = meta(branches, dtype=torch.long)
    needed = counted(
        lambda: unet(
            meta(branches, 20, gaps, 64, 64),
            number,
            text(unet, branches),
            temporal_mask=[True] + [False] * (branches - 1),
            skip_frames=number,
            perturbation_time=number,
        )
    )
    assert_fits(memory.unet(branches * gaps, 64, 64, 384, HALF), needed)


@pytest.mark.parametrize("temporal, frames", [(False, 1), (True, 4), (True, 5)])
def test_movq(adapters, temporal, frames):
    movq = MoVQ(temporal=temporal, **FACTORY)
    encode = counted(lambda: movq.encode(meta(1, 3, 512, 640)))
    decode = counted(lambda: movq.decode(meta(frames, 4, 64, 80)))
    assert_fits(memory.movq_encode(512, 640, 256, HALF), encode)
    assert_fits(memory.movq_decode(frames, 512, 640, 256, HALF), decode)


def test_the_host_counts_every_branch(keyframe_model, interpolation_model, adapters):
    import comfy.sampler_helpers

    shape = (1, 4, 12, 64, 64)
    conds = {name: [{}] for name in ("positive", "image", "negative")}
    most, least = comfy.sampler_helpers.estimate_memory(keyframe_model, shape, conds)
    one = memory.unet(12, 64, 64, 16, torch.float32)
    assert (most, least) == (pytest.approx(3 * one), pytest.approx(one))
    conds.pop("image")
    most, _ = comfy.sampler_helpers.estimate_memory(interpolation_model, (1, 12, 11, 64, 64), conds)
    assert most == pytest.approx(2 * memory.unet(11, 64, 64, 16, torch.float32))


@pytest.mark.parametrize("call", ["encode", "decode"])
def test_room_is_asked_for(parts, adapters, monkeypatch, call):
    import comfy.model_management

    asked = []
    load = comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management,
        "load_models_gpu",
        lambda models, memory_required: asked.append(memory_required) or load(models, memory_required),
    )
    movq = parts.movq("image_movq")
    with torch.inference_mode():
        if call == "encode":
            movq.encode(torch.zeros(1, 3, 64, 32))
            assert asked == [memory.movq_encode(64, 32, 32, torch.float32)]
        else:
            list(movq.decode_images(torch.zeros(3, 4, 8, 4)))
            assert asked == [memory.movq_decode(1, 64, 32, 32, torch.float32)]


@pytest.mark.parametrize("dtype, cast", [("fp32", False), ("fp16", True), ("int8", True)])
def test_room_for_a_cast_weight_is_asked_for(parts, adapters, dtype, cast):
    patcher = parts.text_patcher(dtype)
    sizes = patcher.model.text_encoder.encoder.config
    expected = memory.text_encode(128, sizes.d_model, sizes.d_ff, cast)
    assert adapters.text_encoder.TextEncoder(patcher, None)._memory_required() == expected
