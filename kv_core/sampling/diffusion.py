"""The diffusion process: noise schedule, ancestral steps, guidance and the noise a seed stands for.

Sources: Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", section 3.2 (cosine schedule);
Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", sections 3.1 and 3.3 (zero terminal
signal-to-noise ratio, leading and trailing steps); Ho et al. 2020, "Denoising Diffusion Probabilistic Models",
equation 7 (posterior); Salimans & Ho 2022, "Progressive Distillation", section 2 (velocity).
"""

from functools import cache
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file

TRAINING_STEPS = 1000


@cache
def alphas_cumprod():
    """The signal's share abar of the variance at every training step: float32 `[1000]` on the CPU, 0 at the last.

    The cosine schedule, rescaled to zero terminal signal-to-noise ratio. Its roundings are part of the model: near the
    first step 1 - abar is so small that its last bit shows, and square roots of CPUs differ in it. So the published
    implementation's numbers are kept in a file; tests/core/test_diffusion.py derives them.
    """
    return load_file(Path(__file__).with_name("alphas_cumprod.safetensors"), device="cpu")["alphas_cumprod"]


def leading(steps, below=TRAINING_STEPS):
    """Evenly spaced timesteps that end at 0, descending: 980, 960, ..., 0 for 50 steps. `steps` in 1..below."""
    stride = below // _checked(steps, below)
    return [i * stride for i in reversed(range(steps))]


def trailing(steps, below=TRAINING_STEPS):
    """Evenly spaced timesteps that begin at below - 1, descending: 999, 899, ..., 99 for 10 steps."""
    stride = below / _checked(steps, below)
    return [round(below - i * stride) - 1 for i in range(steps)]


def _checked(steps, most):
    if not 1 <= steps <= most:
        raise ValueError(f"steps is {steps}, expected 1 to {most}.")
    return steps


def abar(timestep):
    """alphas_cumprod at a timestep as a float32 scalar; 1, no noise at all, for a negative one."""
    return alphas_cumprod()[timestep] if timestep >= 0 else torch.tensor(1.0)


def add_noise(latent, noise, timestep):
    """The latent after `timestep` steps of the forward process: sqrt(abar) z + sqrt(1 - abar) e."""
    a = abar(timestep)
    return a.sqrt() * latent + (1 - a).sqrt() * noise


def predict_x0(sample, output, timestep, prediction):
    """The clean latent a network's output stands for; `prediction` is "epsilon" (noise) or "velocity"."""
    a = abar(timestep)
    if prediction == "velocity":
        return a.sqrt() * sample - (1 - a).sqrt() * output
    return (sample - (1 - a).sqrt() * output) / a.sqrt()


def ddpm_step(sample, x0, timestep, previous, noise):
    """One ancestral step from `timestep` to `previous` (-1 behind the last).

    `x0` is the predicted clean latent; it is clamped to [-1, 1], which is what the published dynamic thresholding
    comes to with its ceiling of 1. `noise` is standard normal of the sample's shape, unused at timestep 0.
    Coefficients are float32 whatever the latents' type: the published numbers depend on it.
    """
    a, q = abar(timestep), abar(previous)
    c = a / q
    mean = q.sqrt() * (1 - c) / (1 - a) * x0.clamp(-1, 1) + c.sqrt() * (1 - q) / (1 - a) * sample
    if timestep == 0:
        return mean
    variance = ((1 - q) / (1 - a) * (1 - c)).clamp(min=1e-20)
    return mean + variance.sqrt() * noise


def sample_ddpm(denoise, sample, timesteps, step_noise, callback=None, end=-1):
    """Runs the ancestral sampler over descending `timesteps` and from the last to `end`, where -1 is no noise at all.

    denoise(sample, timestep) gives the predicted clean latent, unclamped; step_noise(index, sample) the noise of step
    `index`, not asked for at timestep 0; callback(index, x0, sample) is called before every step is taken.
    Returns the sample after the last step.
    """
    for index, (timestep, previous) in enumerate(zip(timesteps, [*timesteps[1:], end])):
        x0 = denoise(sample, timestep)
        if callback:
            callback(index, x0, sample)
        noise = step_noise(index, sample) if timestep > 0 else None
        sample = ddpm_step(sample, x0, timestep, previous, noise)
    return sample


def guide(conditional, unconditional, weight):
    """Classifier-free guidance of first frame and interpolation: (w + 1) c - w u, so a weight of 0 is no guidance."""
    return (weight + 1) * conditional - weight * unconditional


def guide_three(full, image, none, weight_text, weight_image):
    """Guidance of the keyframes over three branches: text and first frame, first frame alone, neither."""
    return (1 - weight_image) * none + (weight_image - weight_text) * image + weight_text * full


class SeededNoise:
    """All the noise of one sampling stage, drawn on the CPU in float32 from one seed and from nothing else.

    Three independent streams: the initial noise, the noise of the steps, and the augmentation of the first frame. So
    a seed gives the same clip on every device, and one stream's length never shifts another. The initial noise is
    `torch.randn` under the bare seed, the convention of other samplers.
    """

    def __init__(self, seed):
        self.seed = seed
        self._steps = self._stream(1)

    def initial(self, shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))

    def step(self, index, sample):
        """Noise of step `index` (they are drawn in order), of the sample's shape, type and device."""
        return torch.randn(sample.shape, generator=self._steps).to(sample)

    def augmentation(self, shape):
        """Uniform in [0, 1): the published code draws it so, not from a normal distribution."""
        return torch.rand(shape, generator=self._stream(2))

    def _stream(self, number):
        state = numpy.random.SeedSequence([self.seed, number]).generate_state(1, numpy.uint64)
        return torch.Generator().manual_seed(int(state[0]))
