"""Runs a stage through the host's machinery: its guiders, sigmas, callbacks, memory and model patches."""

import comfy.model_management
import comfy.utils
import torch

from ...kv_core.sampling.settings import Run
from . import ddpm
from .guiders import Guided
from .progress import Preview


def run(guided: Guided, settings: Run) -> torch.Tensor:
    """Samples a stage; returns all its frames `[1, 4, F, h, w]` in float32 on the host's intermediate device.

    Without a sampler or sigmas of the host these are the published ones. Raises ValueError where the result is not
    finite.
    """
    guider, latent, noise = guided.guider, guided.latent, settings.noise
    sigmas = settings.sigmas
    if sigmas is None:
        sigmas = ddpm.schedule(guider.model_patcher, guided.spacing, settings.steps, settings.denoise, guided.stage)
    with Preview(guider.model_patcher, len(sigmas) - 1, guided.assemble) as callback:
        samples = guider.sample(
            noise.initial(latent["samples"].shape),
            latent["samples"],
            settings.sampler or ddpm.DDPM(noise, guided.stage),
            ddpm.check_sigmas(guided.stage, sigmas),
            denoise_mask=latent.get("noise_mask"),
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=settings.seed,
        )
    if not torch.isfinite(samples).all():
        raise ValueError(
            f"{guided.stage} ended in NaN or infinite values: load the U-Net with weight dtype bf16 or fp32 and run "
            "again."
        )
    return guided.assemble(samples).to(comfy.model_management.intermediate_device())
