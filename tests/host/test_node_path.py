"""Every stage by way of the host's loading, guiders, models and samplers gives the published numbers."""

import logging

import pytest
import torch

from kv_core.networks.text_encoder import Tokens
from kv_core.sampling import diffusion
from tests.support import recipe
from tests.support.golden_parts import frames_first

TOLERANCE = 1e-4


def assert_golden(out, expected):
    assert out.shape == expected.shape and out.dtype == torch.float32
    torch.testing.assert_close(out, expected, atol=TOLERANCE, rtol=0)


def test_first_frame(stages, keyframe_model, calls):
    assert_golden(stages.first_frame(keyframe_model), stages.tensors["first_frame.out"][:, :, None])
    assert calls == [(2, 9, 1, 16, 16)] * 50, "both branches in one call"


def test_keyframes(stages, keyframe_model, calls):
    assert_golden(stages.keyframes(keyframe_model), frames_first(stages.tensors["keyframes.out"]))
    assert calls == [(3, 9, 4, 8, 8)] * 50, "all three branches in one call"


@pytest.mark.parametrize("skip_frames", [3, 1])
def test_interpolation(stages, interpolation_model, calls, skip_frames):
    out = stages.interpolation(interpolation_model, skip_frames)
    given, predicted = (stages.tensors[f"interpolation_skip{skip_frames}.{name}"] for name in ("key_frames", "out"))
    assert torch.equal(out[:, :, ::4], frames_first(given)), "the given frames are kept as they are"
    for i in range(3):
        assert_golden(out[:, :, 1 + i :: 4], frames_first(predicted[:, 4 * i : 4 * i + 4]))
    assert calls == [(2, 20, 3, 8, 8)] * 10


def test_text(adapters, parts, caplog):
    tensors, _ = recipe.golden("text")
    tokens = Tokens(tensors["input_ids"], tensors["attention_mask"], cut=True)
    encoder = adapters.text_encoder.TextEncoder(parts.text_patcher(), lambda text: tokens)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        for projection in ("base", "interpolation"):
            context, mask = encoder.encode("a prompt", f"projection_{projection}")
            assert_golden(context, tensors[f"context_{projection}"])
            assert torch.equal(mask, tensors["context_mask"])
    assert "longer than 128 tokens" in caplog.text


def test_a_projection_that_is_not_there(parts, adapters):
    with pytest.raises(ValueError, match="has no projection_other, only projection_base and projection_interpolation"):
        adapters.text_encoder.TextEncoder(parts.text_patcher(), lambda text: None).encode("a cat", "projection_other")


def test_movq(parts):
    tensors, _ = recipe.golden("image_movq")
    movq = parts.movq("image_movq")
    with torch.inference_mode():
        assert_golden(movq.encode(tensors["pixels"]), tensors["latent"])
        assert_golden(next(movq.decode_images(tensors["latent"])), tensors["decoded"])
        # Decoded as a batch, the later images would see the first one's latent.
        together = torch.cat(list(movq.decode_images(tensors["batch.latent"])))
        assert_golden(together[:1], tensors["batch.decoded"][:1])
        assert (together[1:] - tensors["batch.decoded"][1:]).abs().max() > 10 * TOLERANCE


def test_video_movq(parts):
    tensors, _ = recipe.golden("video_movq_default")
    movq = parts.movq("video_movq")
    with torch.inference_mode():
        for count in (1, 4):
            decoded = torch.cat(list(movq.decode_video(tensors[f"f{count}.latent"])))
            assert_golden(decoded, tensors[f"f{count}.decoded"])


@pytest.mark.parametrize("timestep", [0, 99, 500, 980, 998, 999])
def test_predictions_mean_the_same_in_the_hosts_terms(keyframe_model, interpolation_model, timestep):
    sample, output = torch.randn(2, 1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(timestep))
    for model, prediction in ((keyframe_model, "epsilon"), (interpolation_model, "velocity")):
        sampling = model.model.model_sampling
        sigma = sampling.sigmas[timestep].expand(1)
        scaled = sample * (1 + sigma**2).sqrt()
        assert sampling.timestep(sigma).tolist() == [timestep]
        torch.testing.assert_close(sampling.calculate_input(sigma, scaled), sample)
        if (timestep, prediction) != (999, "epsilon"):  # noise alone says nothing where there is no signal
            expected = diffusion.predict_x0(sample, output, timestep, prediction)
            denoised = sampling.calculate_denoised(sigma, output, scaled)
            torch.testing.assert_close(denoised, expected, rtol=1e-5, atol=1e-6 * (1 + float(sigma)))


def test_the_last_step_has_no_signal(interpolation_model):
    sampling = interpolation_model.model.model_sampling
    output = torch.randn(1, 12, 3, 8, 8)
    denoised = sampling.calculate_denoised(sampling.sigma_max.expand(1), output, torch.ones_like(output))
    assert torch.equal(denoised, -output)
