"""The three sampling stages through the host's machinery: its guiders, sigmas, callbacks, memory and model patches.

`noise` has seed, initial(shape), step(index, sample) and augmentation(shape), as diffusion.SeededNoise. Without
`sampler` and `sigmas` a stage runs the published sampler over the published timesteps. `schedule` holds
kv_core.sampling.curves.Scheduled, `conditions` kv_core.sampling.frames.FrameCondition.
"""

import comfy.model_management
import comfy.utils
import torch

from ...kv_core.sampling import diffusion
from ...kv_core.sampling.frames import interleave
from . import ddpm, guiders
from .previews import Preview


def sample_first_frame(model, positive, negative, width, height, guidance, steps, noise, sampler=None, sigmas=None):
    """Draws a first frame of `width` x `height` pixels; returns samples `[1, 4, 1, height / 8, width / 8]`."""
    stage = "Sample First Frame"
    guided = guiders.first_frame(stage, model, positive, negative, width, height, guidance)
    return run(stage, *guided, diffusion.leading(steps), noise, sampler, sigmas)


def sample_keyframes(
    model, positive, negative, first_frame, frames, motion_score, noise_augmentation,
    text_guidance, image_guidance, steps, noise, sampler=None, sigmas=None, schedule=(),
    conditions=(), start=None, denoise=1.0,
):  # fmt: skip
    """Samples `frames` keyframes that go on from first_frame `[1, 4, 1, h, w]`; returns `[1, 4, frames, h, w]`."""
    stage = "Sample Keyframes"
    guided = guiders.keyframes(
        stage, model, positive, negative, first_frame, frames, motion_score, noise_augmentation,
        text_guidance, image_guidance, noise.augmentation, schedule, conditions, start,
    )  # fmt: skip
    if start is not None and sigmas is None:
        sigmas = ddpm.schedule(model, "leading", steps, denoise)
    return run(stage, *guided, diffusion.leading(steps), noise, sampler, sigmas)


def sample_interpolation(
    model, positive, negative, samples, skip_frames, guidance, steps, noise, sampler=None, sigmas=None, schedule=()
):
    """Predicts three frames in every gap of `[1, 4, F, h, w]`; returns `[1, 4, 4F - 3, h, w]`, the given ones kept."""
    stage = "Interpolate Frames"
    guided = guiders.interpolation(stage, model, positive, negative, samples, skip_frames, guidance, schedule)
    predicted = run(
        stage, *guided, diffusion.trailing(steps), noise, sampler, sigmas,
        clip=lambda x0: interleave(samples.to(x0), x0),
    )  # fmt: skip
    return interleave(samples.to(predicted), predicted)


def run(stage, guider, latent, timesteps, noise, sampler=None, sigmas=None, clip=lambda x0: x0):
    """Samples a LATENT; returns float32 on the host's intermediate device, raises where it is not finite.

    The published sampler and the published `timesteps` stand in for a sampler or sigmas that are left out.
    clip: from the samples to the latents of the frames that previews show.
    """
    patcher = guider.model_patcher
    if sigmas is None:
        sigmas = ddpm.sigmas_of(patcher.get_model_object("model_sampling"), timesteps)
    with Preview(patcher, len(sigmas) - 1, clip) as callback:
        samples = guider.sample(
            noise.initial(latent["samples"].shape),
            latent["samples"],
            sampler or ddpm.DDPM(noise, stage),
            ddpm.check_sigmas(stage, sigmas),
            denoise_mask=latent.get("noise_mask"),
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=noise.seed,
        )
    if not torch.isfinite(samples).all():
        raise ValueError(
            f"{stage} ended in NaN or infinite numbers: load the U-Net with weight dtype bf16 or fp32 and run again."
        )
    return samples.to(comfy.model_management.intermediate_device())
