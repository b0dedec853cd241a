"""Both MoVQ against the published implementation's numbers."""

import pytest
import torch

from kv_core.networks.movq import decode_chunks
from tests.support.golden_networks import movq as build
from tests.support.recipe import golden

PRECISIONS = [(torch.float64, 1e-5), (torch.float32, 1e-4)]


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_image_movq(dtype, tolerance):
    tensors, case = golden("image_movq")
    movq = build(case, "image_movq", dtype)
    with torch.no_grad():
        latent = movq.encode(tensors["pixels"].to(dtype))
        decoded = movq.decode(tensors["latent"].to(dtype))
        batch = movq.decode(tensors["batch.latent"].to(dtype))
    torch.testing.assert_close(latent.float(), tensors["latent"], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(decoded.float(), tensors["decoded"], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(batch.float(), tensors["batch.decoded"], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize(
    "variant, frames", [("default", 4), ("default", 5), ("default", 2), ("default", 1), ("flicker", 4)]
)
def test_video_movq(variant, frames, dtype, tolerance):
    tensors, case = golden(f"video_movq_{variant}")
    movq = build(case, f"video_movq_{variant}", dtype)
    with torch.no_grad():
        decoded = movq.decode(tensors[f"f{frames}.latent"].to(dtype))
    torch.testing.assert_close(decoded.float(), tensors[f"f{frames}.decoded"], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "frames, chunks",
    [
        (12, [4] * 3),
        (45, [5] * 9),
        (177, [5] * 35 + [2]),
        (4, [4]),
        (13, [5, 5, 3]),
        (1, [1]),
        (3, [3]),
    ],
)
def test_chunks(frames, chunks):
    assert decode_chunks(frames) == chunks
