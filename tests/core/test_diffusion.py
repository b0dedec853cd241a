"""Schedule, steps and guidance against the published implementation's numbers."""

import math

import pytest
import torch

from kv_core.sampling import diffusion
from tests.support.recipe import golden


@pytest.mark.parametrize(
    "prediction, timesteps", [("epsilon", diffusion.leading(50)), ("v_prediction", diffusion.trailing(10))]
)
def test_schedule(prediction, timesteps):
    tensors, _ = golden("schedules")
    torch.testing.assert_close(
        diffusion.alphas_cumprod(), tensors[f"{prediction}.alphas_cumprod"], atol=1e-9, rtol=1e-6
    )
    assert timesteps == tensors[f"{prediction}.timesteps"].tolist()


def test_the_schedule_is_the_rescaled_cosine():
    """Nichol & Dhariwal 2021, equation 17, with betas of at most 0.999; Lin et al. 2024, algorithm 1. In double."""
    at = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    betas = torch.tensor([min(1 - after / before, 0.999) for before, after in zip(at, at[1:])], dtype=torch.float64)
    root = (1 - betas).cumprod(0).sqrt()
    rescaled = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    torch.testing.assert_close(diffusion.alphas_cumprod().double(), rescaled, atol=1e-6, rtol=0)


def test_the_schedule_lies_on_the_cpu_whatever_the_default_device():
    diffusion.alphas_cumprod.cache_clear()
    with torch.device("meta"):
        assert diffusion.alphas_cumprod().device.type == "cpu"


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-5), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    "name, prediction, timesteps",
    [
        ("epsilon", "epsilon", diffusion.leading(50)),
        ("v_prediction", "velocity", diffusion.trailing(10)),
    ],
)
def test_every_step(name, prediction, timesteps, dtype, tolerance):
    tensors, _ = golden("schedules")
    outputs = tensors[f"{name}.model_output"].to(dtype)
    noises = tensors[f"{name}.step_noise"].to(dtype)
    trajectory = []

    def denoise(sample, timestep):
        output = outputs[timesteps.index(timestep)]
        return diffusion.predict_x0(sample, output, timestep, prediction)

    last = diffusion.sample_ddpm(
        denoise,
        tensors[f"{name}.trajectory"][0].to(dtype),
        timesteps,
        lambda index, sample: noises[index],
        lambda index, x0, sample: trajectory.append(sample),
    )
    torch.testing.assert_close(
        torch.stack([*trajectory, last]).float(), tensors[f"{name}.trajectory"], atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("timestep", [0, 20, 200])
def test_add_noise(timestep):
    tensors, _ = golden("schedules")
    noisy = diffusion.add_noise(tensors["add_noise.x0"], tensors["add_noise.noise"], timestep)
    torch.testing.assert_close(noisy, tensors[f"add_noise.t{timestep}"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 7, 50, 999, 1000])
def test_any_number_of_steps(steps):
    for timesteps in (diffusion.leading(steps), diffusion.trailing(steps)):
        assert len(timesteps) == steps and timesteps == sorted(set(timesteps), reverse=True)
        assert 0 <= timesteps[-1] and timesteps[0] <= 999
    assert diffusion.leading(steps)[-1] == 0 and diffusion.trailing(steps)[0] == 999


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_steps(steps):
    with pytest.raises(ValueError, match="expected 1 to 1000"):
        diffusion.leading(steps)


def test_no_guidance_leaves_the_conditional_branch():
    cond, image, none = torch.randn(3, 5)
    torch.testing.assert_close(diffusion.guide(cond, none, 0.0), cond)
    torch.testing.assert_close(diffusion.guide_three(cond, image, none, 1.0, 1.0), cond)
    torch.testing.assert_close(diffusion.guide_three(cond, image, none, 0.0, 1.0), image)
    torch.testing.assert_close(diffusion.guide_three(cond, image, none, 5.0, 2.0), -none - 3 * image + 5 * cond)


class TestSeededNoise:
    def test_a_seed_says_it_all(self):
        state = torch.random.get_rng_state()
        first, second, other = (diffusion.SeededNoise(seed) for seed in (7, 7, 8))
        sample = torch.zeros(1, 4, 2, 8, 8)
        for draw in ("initial", "augmentation"):
            assert torch.equal(getattr(first, draw)(sample.shape), getattr(second, draw)(sample.shape))
            assert not torch.equal(getattr(first, draw)(sample.shape), getattr(other, draw)(sample.shape))
        assert torch.equal(first.step(0, sample), second.step(0, sample))
        assert not torch.equal(first.step(1, sample), other.step(0, sample))
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_streams_are_independent(self):
        noise = diffusion.SeededNoise(2**64 - 1)
        sample = torch.zeros(4096)
        draws = torch.stack([noise.initial(sample.shape), noise.step(0, sample), noise.step(1, sample)])
        assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.1

    def test_augmentation_is_uniform_as_published(self):
        values = diffusion.SeededNoise(3).augmentation((10000,))
        assert 0 <= values.min() and values.max() < 1 and abs(values.mean() - 0.5) < 0.02

    def test_step_noise_has_the_samples_type(self):
        assert diffusion.SeededNoise(3).step(0, torch.zeros(2, dtype=torch.float64)).dtype == torch.float64
