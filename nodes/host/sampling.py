"""The three sampling stages through the host's machinery: its guiders, sigmas, callbacks, memory and model patches."""

import math

import comfy.model_management
import comfy.samplers
import node_helpers
import torch

from ...kv_core import diffusion
from ...kv_core.frames import first_frame_condition, interleave, neighbours
from ...kv_core.text_encoder import null_context
from . import report
from .model import InterpolationModel, KeyframeModel
from .previews import Preview


class DDPM(comfy.samplers.Sampler):
    """The published ancestral sampler as a SAMPLER of the host; the mathematics is kv_core.diffusion's.

    It works on variance-preserving samples (unit variance throughout). The host's models take x0 + sigma noise, which
    is the same sample times sqrt(1 + sigma^2); they divide by it again at once, so nothing is lost.
    `noise.step(index, sample)` gives the noise of every step; `stage` is named beside the progress in the log.
    """

    def __init__(self, noise, stage="DDPM"):
        self.noise = noise
        self.stage = stage

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        timesteps = model_wrap.inner_model.model_sampling.timestep(sigmas[:-1]).tolist()
        sigma_at = dict(zip(timesteps, sigmas))

        def denoise(sample, timestep):
            sigma = sigma_at[timestep]
            return model_wrap(sample * (1 + sigma**2).sqrt(), sigma.expand(sample.shape[0]), **extra_args)

        def show(index, x0, sample):
            bar.update()
            if callback is not None:
                callback(index, x0.clamp(-1, 1), sample, len(timesteps))

        with report.bar(len(timesteps), self.stage, "step", disable=disable_pbar) as bar:
            return diffusion.sample_ddpm(denoise, noise, timesteps, self.noise.step, show)


class ThreeBranchGuider(comfy.samplers.CFGGuider):
    """Guidance of the keyframes over text and first frame, first frame alone, and neither, in one call."""

    def set_conds(self, full, image, none):
        self.inner_set_conds({"positive": full, "image": image, "negative": none})

    def set_cfg(self, text, image):
        self.cfg = text  # the host's callbacks and patches read it
        self.image = image

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        keep = model_options.get("disable_cfg1_optimization", False)
        weights = {"positive": self.cfg, "image": self.image - self.cfg, "negative": 1 - self.image}
        conds = [self.conds[name] if weight or keep else None for name, weight in weights.items()]
        out = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        shared = {"cond_scale": self.cfg, "sigma": timestep, "input": x, "model": self.inner_model,
                  "model_options": model_options}  # fmt: skip
        for function in model_options.get("sampler_pre_cfg_function", []):
            out = function({"conds": conds, "conds_out": out, "timestep": timestep, **shared})
        full, image, none = out
        denoised = diffusion.guide_three(full, image, none, self.cfg, self.image)
        for function in model_options.get("sampler_post_cfg_function", []):
            denoised = function({
                "denoised": denoised, "cond": conds[0], "uncond": conds[2], "cond_denoised": full,
                "uncond_denoised": none, **shared,
            })  # fmt: skip
        return denoised


def two_branch_guider(model, conditional, unconditional, guidance):
    """The host's own guider: its scale s means u + s (c - u), so s = w + 1 is the published (w + 1) c - w u."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditional, unconditional)
    guider.set_cfg(guidance + 1)
    return guider


def sample_first_frame(model, positive, negative, width, height, guidance, steps, noise):
    """Draws a first frame of `width` x `height` pixels; returns samples `[1, 4, 1, height / 8, width / 8]`.

    `noise` has seed, initial(shape), step(index, sample) and augmentation(shape), as kv_core.diffusion.SeededNoise.
    """
    stage = "Sample First Frame"
    positive, unconditional = prepare(stage, model, KeyframeModel, positive, negative, guidance)
    values = {"kv_mode": "image"}
    guider = two_branch_guider(model, _set(positive, values), _set(unconditional, values), guidance)
    return run(stage, guider, (1, 4, 1, height // 8, width // 8), diffusion.leading(steps), noise)


def sample_keyframes(
    model, positive, negative, first_frame, frames, motion_score, noise_augmentation,
    text_guidance, image_guidance, steps, noise,
):  # fmt: skip
    """Samples `frames` keyframes that go on from first_frame `[1, 4, 1, h, w]`; returns `[1, 4, frames, h, w]`."""
    stage = "Sample Keyframes"
    positive, unconditional = prepare(
        stage, model, KeyframeModel, positive, negative, text_guidance, image_guidance
    )
    values = {"kv_mode": "video", "kv_motion_score": motion_score, "kv_noise_augmentation": noise_augmentation}
    condition = first_frame_condition(
        first_frame, frames, noise_augmentation, noise.augmentation(first_frame.shape)
    )
    with_frame = {**values, "kv_condition": condition}
    guider = ThreeBranchGuider(model)
    guider.set_conds(_set(positive, with_frame), _set(unconditional, with_frame), _set(unconditional, values))
    guider.set_cfg(text_guidance, image_guidance)
    shape = (1, 4, frames, *first_frame.shape[-2:])
    return run(stage, guider, shape, diffusion.leading(steps), noise)


def sample_interpolation(model, positive, negative, samples, skip_frames, guidance, steps, noise):
    """Predicts three frames in every gap of `[1, 4, F, h, w]`; returns `[1, 4, 4F - 3, h, w]`, the given ones kept."""
    stage = "Interpolate Frames"
    positive, unconditional = prepare(stage, model, InterpolationModel, positive, negative, guidance)
    values = {"kv_skip_frames": skip_frames}
    conditional = _set(positive, {**values, "kv_neighbours": neighbours(samples)})
    guider = two_branch_guider(model, conditional, _set(unconditional, values), guidance)
    shape = (1, 12, samples.shape[2] - 1, *samples.shape[-2:])
    predicted = run(
        stage, guider, shape, diffusion.trailing(steps), noise, clip=lambda x0: interleave(samples.to(x0), x0)
    )
    return interleave(samples.to(predicted), predicted)


def run(stage, guider, shape, timesteps, noise, clip=lambda x0: x0):
    """Runs the published sampler; returns float32 on the host's intermediate device, raises where it is not finite.

    clip: from the samples to the latents of the frames that previews show.
    """
    patcher = guider.model_patcher
    sampling = patcher.get_model_object("model_sampling")
    sigmas = torch.cat([sampling.sigmas[timesteps].cpu(), torch.zeros(1)])
    with Preview(patcher, len(timesteps), clip) as callback:
        samples = guider.sample(
            noise.initial(shape),
            torch.zeros(shape),
            DDPM(noise, stage),
            sigmas,
            callback=callback,
            seed=noise.seed,
        )
    if not torch.isfinite(samples).all():
        raise ValueError(
            f"{stage} ended in NaN or infinite numbers: load the U-Net with weight dtype bf16 or fp32 and run again."
        )
    return samples.to(comfy.model_management.intermediate_device())


def prepare(stage, model, model_class, positive, negative, *guidance):
    """Checks what a stage is given; returns the positive and the unconditional conditioning.

    Without `negative` the latter is the U-Net's own null embedding.
    """
    if not isinstance(model.model, model_class):
        wanted = "keyframe" if model_class is KeyframeModel else "interpolation"
        raise ValueError(
            f"{stage} needs the {wanted} U-Net of Kandinsky Video, but got {_describe(model.model)}: choose another "
            "file in Load U-Net."
        )
    if not all(math.isfinite(weight) for weight in guidance):
        raise ValueError(f"{stage} needs finite guidance, but got {', '.join(map(str, guidance))}: enter numbers.")
    width = model.model.diffusion_model.context_dim
    _check_text(stage, "positive", positive, width)
    if negative is None:
        return positive, null_conditioning(model.model, positive)
    _check_text(stage, "negative", negative, width)
    return positive, negative


def null_conditioning(model, positive):
    """The unconditional text of every prompt in `positive`, from the U-Net's own null embedding."""
    if model.null_embedding is None:
        raise ValueError("This U-Net file holds no null embedding: connect a negative prompt.")
    conditioning = []
    for context, values in positive:
        null, mask = null_context(model.null_embedding, context)
        conditioning.append([null, {**values, "attention_mask": mask}])
    return conditioning


def _check_text(stage, name, conditioning, width):
    for context, _ in conditioning:
        if context.shape[-1] != width:
            raise ValueError(
                f"{stage} needs {name} of width {width}, but got {context.shape[-1]}: load the text encoder and "
                "projections that belong to this U-Net."
            )


def _describe(model):
    names = {KeyframeModel: "the keyframe U-Net", InterpolationModel: "the interpolation U-Net"}
    return names.get(type(model), f"another model ({type(model).__name__})")


def _set(conditioning, values):
    return node_helpers.conditioning_set_values(conditioning, values)
