"""The published sampler and its schedules in the host's terms: SAMPLER and SIGMAS."""

import comfy.samplers
import torch
from comfy.k_diffusion.sampling import get_sigmas_karras

from ...kv_core.sampling import diffusion
from . import progress
from .unets import ModelSampling

PUBLISHED = {"leading": diffusion.leading, "trailing": diffusion.trailing}
KARRAS = "karras"
SPACINGS = (*PUBLISHED, KARRAS)


class DDPM(comfy.samplers.Sampler):
    """The published ancestral sampler as a SAMPLER of the host; the mathematics is kv_core.sampling.diffusion's.

    It works on variance-preserving samples (unit variance throughout). The host's models take x0 + sigma noise, which
    is the same sample times sqrt(1 + sigma^2); they divide by it again at once, so nothing is lost.
    `noise.step(index, sample)` gives the noise of every step; left out, it comes from the seed of the run.
    `stage` is named beside the progress in the log.
    Sigmas between the training steps are taken to the nearest one. An empty latent begins as pure noise, as published.
    """

    def __init__(self, noise=None, stage="DDPM"):
        self.noise = noise
        self.stage = stage

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *disable_pbar
    ):
        sampling = _published(model_wrap.inner_model.model_sampling, "DDPM (published)")
        timesteps, end = _steps(sampling, sigmas)
        table = sampling.sigmas.to(sigmas)
        # Where a mask holds something, the host's own wrapper puts it into every step's sample and prediction.
        model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        source = self.noise or diffusion.SeededNoise(extra_args["seed"])

        def denoise(sample, timestep):
            sigma = table[timestep]
            return model(
                sample * (1 + sigma**2).sqrt(), sigma.expand(sample.shape[0]), denoise_mask=denoise_mask, **extra_args
            )

        def show(index, x0, sample):
            bar.update()
            if callback is not None:
                callback(index, x0.clamp(-1, 1), sample, len(timesteps))

        if latent_image is not None and latent_image.any():
            sigma = table[timesteps[0]]
            noise = sampling.noise_scaling(sigma, noise, latent_image) / (1 + sigma**2).sqrt()
        with progress.bar(len(timesteps), self.stage, "step", disable=any(disable_pbar)) as bar:
            sample = diffusion.sample_ddpm(denoise, noise, timesteps, source.step, show, end)
        return sample if end < 0 else sample * (1 + table[end] ** 2).sqrt()


def _steps(sampling, sigmas):
    """The training steps of descending sigmas, each once, and the one behind the last: -1 where that is no noise."""
    timesteps = torch.unique_consecutive(sampling.timestep(sigmas[:-1])).tolist()
    end = -1 if sigmas[-1] == 0 else int(sampling.timestep(sigmas[-1:]))
    timesteps = [timestep for timestep in timesteps if timestep != end]
    if not timesteps or any(before <= after for before, after in zip(timesteps, [*timesteps[1:], end])):
        raise ValueError(
            f"DDPM (published) needs decreasing sigmas, but got {sigmas.tolist()}: connect Published Schedule."
        )
    return timesteps, end


def schedule(model, spacing, steps, denoise=1.0, stage="Published Schedule"):
    """SIGMAS `[steps + 1]`: levels of the last `denoise` of the way from noise in one of SPACINGS, and 0.

    The published spacings have no more levels than there are training steps on that way. karras: Karras et al. 2022,
    "Elucidating the Design Space of Diffusion-Based Generative Models", equation 5, between the noise that the leading
    schedule of 50 steps begins with and the least there is.
    Raises ValueError for a MODEL of another kind.
    """
    sampling = _published(model.get_model_object("model_sampling"), stage)
    if spacing == KARRAS:
        least, most = (float(sampling.sigmas[timestep]) for timestep in (0, diffusion.leading(50)[0]))
        return get_sigmas_karras(int(steps / denoise), least, most)[-steps - 1 :]
    below = max(1, round(diffusion.TRAINING_STEPS * denoise))
    return sigmas_of(sampling, PUBLISHED[spacing](min(steps, below), below))


def _published(sampling, node):
    if not isinstance(sampling, ModelSampling):
        raise ValueError(
            f"{node} needs the noise schedule of a Kandinsky Video U-Net, but got {type(sampling).__name__}: connect "
            "Load U-Net, without a node such as ModelSamplingSD3 behind it."
        )
    return sampling


def sigmas_of(sampling, timesteps):
    return torch.cat([sampling.sigmas[timesteps].cpu(), torch.zeros(1)])


def check_sigmas(stage, sigmas):
    """The SIGMAS as they are; raises ValueError where no sampler could follow them to a clean latent."""
    falling = sigmas.ndim == 1 and len(sigmas) > 1 and sigmas.isfinite().all() and (sigmas.diff() <= 0).all()
    if not falling or not sigmas[:-1].all() or sigmas[-1]:
        raise ValueError(
            f"{stage} needs at least 2 sigmas that decrease to 0, only the last one 0, but got {_shown(sigmas)}: "
            "connect a whole schedule; for part of one, use SamplerCustomAdvanced."
        )
    return sigmas


def _shown(sigmas):
    values = [f"{value:g}" for value in sigmas.flatten().tolist()]
    return ", ".join(values if len(values) < 6 else [*values[:4], "...", values[-1]]) or "none"
