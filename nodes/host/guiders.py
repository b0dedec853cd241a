"""The published guidance of each stage as a GUIDER of the host, with the latent to sample."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import comfy.samplers
import comfy.utils
import torch

from ...kv_core.sampling import diffusion
from ...kv_core.sampling.frames import frames_condition, in_pixels, interleave, neighbours, place_conditions
from ...kv_core.sampling.settings import FirstFrame, Interpolation, Keyframes
from .prompts import InterpolationBranch, KeyframeBranch, null_conditioning, prompt_of, with_branch
from .unets import InterpolationModel, KeyframeModel


class Guider(comfy.samplers.CFGGuider):
    """What every stage's guidance has in common.

    Predictions are clamped to [-1, 1] whatever the sampler, which is what the published dynamic thresholding comes to.
    Frames that a mask holds come out as they went in. settings: the stage's own. shape: of the latents that its
    conditions fit, where it is only one.
    """

    def __init__(self, model, stage, settings, shape=None):
        super().__init__(model)
        self.stage, self.settings, self.shape = stage, settings, shape

    def weight(self, parameter, x, sigma):
        """A guidance weight at this point of the run: a float, or `[F, 1, 1]` where frames differ."""
        return self.settings.weight(parameter, x, progress_at(self.inner_model.model_sampling, sigma[:1]))

    def predictions(self, conds, scale, x, timestep, model_options):
        """What the model predicts for each of `conds`, behind the host's hooks for that."""
        point = self.point(scale, x, timestep, model_options)
        batched = model_options.get("sampler_calc_cond_batch_function")
        if batched is not None:
            out = batched({**point, "conds": conds})
        else:
            out = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        for function in model_options.get("sampler_pre_cfg_function", []):
            out = function({**point, "conds": conds, "conds_out": out})
        return out

    def point(self, scale, x, timestep, model_options):
        """What the host's hooks are told of this point of the run."""
        return {
            "cond_scale": scale, "input": x, "timestep": timestep, "sigma": timestep, "model": self.inner_model,
            "model_options": model_options,
        }  # fmt: skip

    def outer_predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        return super().outer_predict_noise(x, timestep, model_options, seed).clamp(-1, 1)

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, **kwargs):
        if self.shape and latent_image.shape[1:] != self.shape[1:]:
            raise ValueError(
                f"{self.stage} needs its own latent, {list(self.shape)}, but got {list(latent_image.shape)}: connect "
                "its second output to the sampler."
            )
        sampling = self.model_patcher.get_model_object("model_sampling")
        self.check_active(sampling, sigmas[:-1].tolist())
        self.warn_of_idle_windows(sampling, sigmas[:-1])
        samples = super().sample(noise, latent_image, sampler, sigmas, denoise_mask, **kwargs)
        if denoise_mask is None:
            return samples
        held = comfy.utils.reshape_mask(denoise_mask, samples.shape).to(samples.device) == 0
        return torch.where(held, latent_image.to(samples), samples)

    def check_active(self, sampling, sigmas):
        """Raises if a branch has no active prompt at some step; ComfyUI would silently use zeros."""
        for branch, prompts in self.original_conds.items():
            name = branch if branch == "positive" else "negative"
            for step, sigma in enumerate(sigmas, 1):
                if not any(_is_active(sampling, prompt, sigma) for prompt in prompts):
                    raise ValueError(
                        f"{self.stage} has no active {name} prompt at step {step} of {len(sigmas)}: make the ranges of "
                        "ConditioningSetTimestepRange cover every step."
                    )

    def warn_of_idle_windows(self, sampling, sigmas):
        for curve in self.settings.curves:
            if not any(curve.acts(progress_at(sampling, sigma)) for sigma in sigmas):
                logging.warning(
                    f"{self.stage}: the curve of {curve.parameter} from {curve.start_percent:g} to "
                    f"{curve.end_percent:g} applies at no step of this run: widen its range, or take more steps."
                )


class TwoBranchGuider(Guider):
    """The host's own guidance: its scale s means u + s (c - u), so s = w + 1 is the published (w + 1) c - w u."""

    def __init__(self, model, stage, settings, shape=None):
        super().__init__(model, stage, settings, shape)
        self.set_cfg(settings.guidance + 1)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        scale = self.weight("guidance", x, timestep) + 1
        conds = [self.conds["positive"], self.conds["negative"]]
        if not torch.is_tensor(scale):
            return comfy.samplers.sampling_function(
                self.inner_model, x, timestep, conds[1], conds[0], scale, model_options=model_options, seed=seed
            )
        out = self.predictions(conds, scale, x, timestep, model_options)
        return comfy.samplers.cfg_function(
            self.inner_model, *out, scale, x, timestep, model_options=model_options, cond=conds[0], uncond=conds[1]
        )


class ThreeBranchGuider(Guider):
    """Guidance of the keyframes over text and first frame, first frame alone, and neither, in one call."""

    def __init__(self, model, stage, settings, shape=None):
        super().__init__(model, stage, settings, shape)
        self.set_cfg(settings.text_guidance)  # what the host's callbacks and patches read

    def set_conds(self, full, image, none):
        self.inner_set_conds({"positive": full, "image": image, "negative": none})

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        replaced, after = (model_options.get(f"sampler_{name}") for name in ("cfg_function", "post_cfg_function"))
        keep = replaced or after or model_options.get("disable_cfg1_optimization", False)
        text, image = (self.weight(name, x, timestep) for name in ("text_guidance", "image_guidance"))
        weights = {"positive": text, "image": image - text, "negative": 1 - image}
        conds = [self.conds[name] if keep or _any(weight) else None for name, weight in weights.items()]
        out = self.predictions(conds, text, x, timestep, model_options)
        point = self.point(text, x, timestep, model_options)
        denoised = diffusion.guide_three(*out, text, image)
        if not replaced and not after:
            return denoised
        # The host's functions know guidance as u + text (c - u): these two give the same sum.
        c, u = (diffusion.guide_three(*out, end, image) for end in (1, 0))
        point |= {"cond_denoised": c, "uncond_denoised": u}
        if replaced:
            given = {"cond": x - c, "uncond": x - u, "input_cond": conds[0], "input_uncond": conds[2]}
            denoised = x - replaced(point | given)
        for function in after or ():
            denoised = function({**point, "denoised": denoised, "cond": conds[0], "uncond": conds[2]})
        return denoised


def _any(weight):
    return bool(weight.any()) if torch.is_tensor(weight) else weight != 0


def progress_at(sampling, sigma):
    """How far a run is at this noise level, from 0 to 1."""
    return 1 - float(sampling.timestep(sigma)) / (diffusion.TRAINING_STEPS - 1)


def _is_active(sampling, prompt, sigma):
    """Whether this noise level is in a prompt's range, which nodes of ComfyUI may have narrowed."""
    start, end = prompt.get("start_percent", 0.0), prompt.get("end_percent", 1.0)
    return sampling.percent_to_sigma(end) <= sigma <= sampling.percent_to_sigma(start)


@dataclass(frozen=True)
class Guided:
    """A stage that is ready to be sampled: a GUIDER, the LATENT it samples, and its published spacing of steps.

    assemble: from sampled latents to those of all frames of the clip.
    """

    stage: str
    guider: Guider
    latent: dict
    spacing: str = "leading"
    assemble: Callable[[torch.Tensor], torch.Tensor] = lambda samples: samples


class Prompts(NamedTuple):
    """Two CONDITIONINGs; without a negative one the U-Net's own null embedding is used."""

    positive: list
    negative: list | None = None


def first_frame(model, prompts: Prompts, settings: FirstFrame, stage="Sample First Frame") -> Guided:
    """The guidance of a first frame, a LATENT `[1, 4, 1, height / 8, width / 8]`."""
    prompts = check_prompts(stage, model, KeyframeModel, prompts)
    guider = TwoBranchGuider(model, stage, settings)
    guider.set_conds(*(with_branch(each, KeyframeBranch("image")) for each in prompts))
    return Guided(stage, guider, {"samples": torch.zeros(1, 4, 1, settings.height // 8, settings.width // 8)})


def keyframes(
    model, prompts: Prompts, first_frame: torch.Tensor, settings: Keyframes, noise, stage="Sample Keyframes"
) -> Guided:
    """The guidance of keyframes that go on from first_frame `[1, 4, 1, h, w]`, a LATENT `[1, 4, frames, h, w]`.

    noise.augmentation(shape) is put over the first frame, as kv_core.sampling.diffusion.SeededNoise's.
    """
    frames = settings.frames
    positive, unconditional = check_prompts(stage, model, KeyframeModel, prompts)
    _check_frames(stage, "keyframes", frames, positive, unconditional)
    show, hold = place_conditions(settings.conditions, first_frame, frames)
    augmentation = settings.value("noise_augmentation", frames)
    condition = frames_condition(show, frames, augmentation, noise.augmentation(first_frame.shape))
    latent = _keyframe_latent(settings, hold, first_frame)
    with_frame = KeyframeBranch("video", condition, settings.value("motion_score", frames), augmentation)
    without_frame = replace(with_frame, condition=None)
    guider = ThreeBranchGuider(model, stage, settings, latent["samples"].shape)
    guider.set_conds(
        with_branch(positive, with_frame),
        with_branch(unconditional, with_frame),
        with_branch(unconditional, without_frame),
    )
    return Guided(stage, guider, latent)


def interpolation(
    model, prompts: Prompts, samples: torch.Tensor, settings: Interpolation, stage="Interpolate Frames"
) -> Guided:
    """The guidance of the gaps in `[1, 4, F, h, w]`, a LATENT `[1, 12, F - 1, h, w]`: three frames in every gap."""
    gaps = samples.shape[2] - 1
    positive, unconditional = check_prompts(stage, model, InterpolationModel, prompts)
    settings.check_gaps(gaps)
    _check_frames(stage, "gaps", gaps, positive, unconditional)
    latent = torch.zeros(1, 12, gaps, *samples.shape[-2:])
    given = InterpolationBranch(neighbours(samples), settings.skip_frames)
    guider = TwoBranchGuider(model, stage, settings, latent.shape)
    guider.set_conds(with_branch(positive, given), with_branch(unconditional, replace(given, neighbours=None)))
    return Guided(
        stage, guider, {"samples": latent}, "trailing", lambda predicted: interleave(samples.to(predicted), predicted)
    )


def check_prompts(stage, model, model_class, prompts):
    """The positive and the unconditional conditioning, where they and the model suit the stage."""
    if not isinstance(model.model, model_class):
        wanted = "keyframe" if model_class is KeyframeModel else "interpolation"
        raise ValueError(
            f"{stage} needs the {wanted} U-Net of Kandinsky Video, but got {_describe(model.model)}: choose another "
            "file in Load U-Net."
        )
    width = model.model.diffusion_model.context_dim
    check_text(stage, "positive", prompts.positive, width)
    if prompts.negative is not None:
        check_text(stage, "negative", prompts.negative, width)
        return prompts
    if model.model.null_embedding is None:
        raise ValueError("This U-Net file holds no null embedding: connect a negative prompt.")
    return prompts._replace(negative=null_conditioning(model.model.null_embedding, prompts.positive))


def check_text(stage, name, conditioning, width):
    """Raises ValueError unless every entry of a conditioning is text of this width from the pack's own encoder."""
    for context, values in conditioning:
        prompt = prompt_of(values)
        if prompt is None:
            raise ValueError(
                f"{stage} needs {name} from Encode Text (Flan-UL2), but got another encoder's: connect Encode Text "
                "(Flan-UL2)."
            )
        if context.shape[-1] != width:
            raise ValueError(
                f"{stage} needs {name} of width {width}, but got {context.shape[-1]}: load the text encoder and "
                "projections that belong to this U-Net."
            )
        if prompt.changes and not prompt.is_of(context):
            raise ValueError(
                f"{stage} needs {name} unchanged from Encode Text over Time, but another node changed it, which would "
                "affect only the first prompt: connect it directly, or use Encode Text (Flan-UL2)."
            )


def _check_frames(stage, unit, count, *conditionings):
    for _, values in (entry for conditioning in conditionings for entry in conditioning):
        last = prompt_of(values).last_begins
        if last >= count:
            raise ValueError(
                f"{stage} samples {unit} 0 to {count - 1}, but a prompt of Encode Text over Time begins at {last}: "
                "start it earlier."
            )


def _keyframe_latent(settings, hold, first_frame):
    """The LATENT to sample: init_video or nothing, with the held frames in it and a mask that keeps them."""
    shape, init_video = (1, 4, settings.frames, *first_frame.shape[-2:]), settings.init_video
    if init_video is not None and init_video.shape != shape:
        raise ValueError(
            f"init_video needs {shape[2]} frames of {in_pixels(shape[3:])} pixels, but has {init_video.shape[2]} of "
            f"{in_pixels(init_video.shape[3:])}: set frames, or encode it at that size."
        )
    samples = torch.zeros(shape) if init_video is None else init_video.clone()
    if not hold:
        return {"samples": samples}
    mask = torch.ones(1, 1, *shape[2:])
    for index, frame in hold.items():
        samples[:, :, index : index + 1] = frame.to(samples)
        mask[:, :, index] = 0
    return {"samples": samples, "noise_mask": mask}


def _describe(model):
    names = {KeyframeModel: "the keyframe U-Net", InterpolationModel: "the interpolation U-Net"}
    return names.get(type(model), f"another model ({type(model).__name__})")
