"""Both U-Nets against the published implementation's numbers, outputs and every submodule's."""

import pytest
import torch
from einops import rearrange

from kv_core.networks.attention import Text
from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.operations import TorchOperations
from tests.support.recipe import fill, golden

PRECISIONS = [(torch.float64, 1e-5), (torch.float32, 1e-4)]


def tapped(module, names):
    """Collects the outputs of named submodules into the returned dict."""
    taps = {}
    for name in names:
        module.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: taps.update({name: out}))
    return taps


def assert_taps(taps, tensors, prefix, tolerance, rows):
    assert taps
    for name, value in taps.items():
        expected = tensors[f"{prefix}{name}"]
        value = value.repeat_interleave(rows // value.shape[0], 0)  # ours keeps a branch's embeddings once
        difference = (value.float() - expected).abs().max()
        assert difference < tolerance, f"{name} is off by {difference}"


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize(
    "name, mode", [("keyframe_unet", "image"), ("keyframe_unet", "video"), ("keyframe_unet_plain", "video")]
)
def test_keyframe_unet(name, mode, dtype, tolerance):
    tensors, case = golden(name)
    unet = fill(KeyframeUNet(**case["config"], operations=TorchOperations, dtype=dtype), name)
    frames = case["num_frames"] if mode == "video" else 1
    x = rearrange(tensors[f"{mode}.x"], "(b t) c h w -> b c t h w", t=frames).to(dtype)
    branches = x.shape[0]
    taps = tapped(unet, [key.split("tap.")[1] for key in tensors if key.startswith(f"{mode}.tap.")])
    scores = {
        key: rearrange(tensors[f"{mode}.{key}"], "(b t) -> b t", t=frames)
        for key in ("motion_score", "noise_augmentation")
        if f"{mode}.{key}" in tensors
    }
    with torch.no_grad():
        out = unet(
            x,
            tensors[f"{mode}.time"].to(dtype),
            Text.unpadded(tensors[f"{mode}.context"].to(dtype), tensors[f"{mode}.context_mask"]),
            mode=mode,
            **scores,
        )
    expected = rearrange(tensors[f"{mode}.out"], "(b t) c h w -> b c t h w", t=frames)
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    if name == "keyframe_unet":
        assert_taps(taps, tensors, f"{mode}.tap.", tolerance, branches * frames)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize("variant", ["default", "plain", "context"])
def test_interpolation_unet(variant, dtype, tolerance):
    name = f"interpolation_unet_{variant}"
    tensors, case = golden(name)
    groups = case["num_predicted_groups"]
    unet = fill(InterpolationUNet(**case["config"], operations=TorchOperations, dtype=dtype), name)
    x = rearrange(tensors["x"], "(b g) c h w -> b c g h w", g=groups).to(dtype)
    taps = tapped(unet, [key.split("tap.")[1] for key in tensors if key.startswith("tap.")])
    with torch.no_grad():
        out = unet(
            x,
            tensors["time"],
            Text.unpadded(tensors["context"].to(dtype), tensors["context_mask"]),
            temporal_mask=tensors["temporal_mask"].reshape(2, groups)[:, 0],
            skip_frames=tensors["skip_frames"],
            perturbation_time=tensors["perturbation_time"],
        )
    expected = rearrange(tensors["out"], "(b g) c h w -> b c g h w", g=groups)
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    assert_taps(taps, tensors, "tap.", tolerance, len(tensors["time"]))


def test_image_mode_takes_one_frame():
    _, case = golden("keyframe_unet")
    unet = KeyframeUNet(**case["config"], operations=TorchOperations)
    with pytest.raises(ValueError, match="one frame a branch, but the latent holds 3"):
        unet(torch.zeros(1, 9, 3, 8, 8), torch.zeros(1), None, mode="image")
