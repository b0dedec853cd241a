"""The published guidance of each stage as a GUIDER of the host, with the latent to sample."""

import logging
import math

import comfy.samplers
import comfy.utils
import node_helpers
import torch

from ...kv_core.networks.text_encoder import null_context
from ...kv_core.sampling import curves, diffusion
from ...kv_core.sampling.frames import frames_condition, in_pixels, neighbours, placed
from .unets import InterpolationModel, KeyframeModel

KEYFRAME_PARAMETERS = ("motion_score", "noise_augmentation", "text_guidance", "image_guidance")


class Guider(comfy.samplers.CFGGuider):
    """What every stage's guidance has in common.

    Predictions are clamped to [-1, 1] whatever the sampler, which is what the published dynamic thresholding comes to.
    What a mask holds comes out as it went in. `schedule` lets weights change over the frames and in the run. shape: of
    the latents that its conditions fit, if it is only one.
    """

    schedule = ()

    def __init__(self, model, stage, shape=None):
        super().__init__(model)
        self.stage = stage
        self.shape = shape

    def weight(self, parameter, default, x, sigma):
        """A guidance weight at this point of the run: a float, or `[F, 1, 1]` where frames differ."""
        percent = _percent(self.inner_model.model_sampling, sigma[:1])
        found = curves.at(self.schedule, parameter, default, x.shape[2], percent)
        return x.new_tensor(found)[:, None, None] if isinstance(found, list) else found

    def predictions(self, conds, scale, x, timestep, model_options):
        """What the model predicts for each of `conds`, behind the host's hooks for that."""
        out = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        point = self.point(scale, x, timestep, model_options)
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
        self.check_ranges(sampling, sigmas[:-1].tolist())
        self.warn_of_idle_windows(sampling, sigmas[:-1])
        samples = super().sample(noise, latent_image, sampler, sigmas, denoise_mask, **kwargs)
        if denoise_mask is None:
            return samples
        held = comfy.utils.reshape_mask(denoise_mask, samples.shape).to(samples.device) == 0
        return torch.where(held, latent_image.to(samples), samples)

    def check_ranges(self, sampling, sigmas):
        """Where no prompt of a branch counts, the host takes 0 for its prediction, which nobody wants."""
        for branch, prompts in self.original_conds.items():
            name = branch if branch == "positive" else "negative"
            for step, sigma in enumerate(sigmas, 1):
                if not any(_counts(sampling, prompt, sigma) for prompt in prompts):
                    raise ValueError(
                        f"{self.stage} has no {name} prompt that counts at step {step} of {len(sigmas)}: let the "
                        "ranges of ConditioningSetTimestepRange leave none out."
                    )

    def warn_of_idle_windows(self, sampling, sigmas):
        for entry in self.schedule:
            if not any(entry.acts(_percent(sampling, sigma)) for sigma in sigmas):
                logging.warning(
                    f"{self.stage}: the schedule of {entry.parameter} from {entry.start:g} to {entry.end:g} percent "
                    "acts at no step of this run: widen it, or take more steps."
                )


class TwoBranchGuider(Guider):
    """The host's own guidance: its scale s means u + s (c - u), so s = w + 1 is the published (w + 1) c - w u."""

    def set_cfg(self, guidance):
        super().set_cfg(guidance + 1)
        self.guidance = guidance

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        scale = self.weight("guidance", self.guidance, x, timestep) + 1
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

    def set_conds(self, full, image, none):
        self.inner_set_conds({"positive": full, "image": image, "negative": none})

    def set_cfg(self, text, image):
        self.cfg = self.text = text  # cfg is what the host's callbacks and patches read
        self.image = image

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        replaced = model_options.get("sampler_cfg_function")
        keep = replaced is not None or model_options.get("disable_cfg1_optimization", False)
        text = self.weight("text_guidance", self.text, x, timestep)
        image = self.weight("image_guidance", self.image, x, timestep)
        weights = {"positive": text, "image": image - text, "negative": 1 - image}
        conds = [self.conds[name] if keep or _any(weight) else None for name, weight in weights.items()]
        out = self.predictions(conds, text, x, timestep, model_options)
        point = self.point(text, x, timestep, model_options)
        if replaced is None:
            denoised = diffusion.guide_three(*out, text, image)
        else:
            # The same sum as u + text (c - u), which is all that such a function knows.
            c, u = (diffusion.guide_three(*out, end, image) for end in (1, 0))
            denoised = x - replaced({
                **point, "cond": x - c, "uncond": x - u, "cond_denoised": c, "uncond_denoised": u
            })  # fmt: skip
        for function in model_options.get("sampler_post_cfg_function", []):
            denoised = function({
                **point, "denoised": denoised, "cond": conds[0], "uncond": conds[2], "cond_denoised": out[0],
                "uncond_denoised": out[2],
            })  # fmt: skip
        return denoised


def _any(weight):
    return bool(weight.any()) if torch.is_tensor(weight) else weight != 0


def _percent(sampling, sigma):
    """How far a run is at this noise, from 0 to 100."""
    return 100 * (1 - float(sampling.timestep(sigma)) / (diffusion.TRAINING_STEPS - 1))


def _counts(sampling, prompt, sigma):
    """Whether this noise is in the range that the host's nodes may have given a prompt, which is all of it else."""
    start, end = prompt.get("start_percent", 0.0), prompt.get("end_percent", 1.0)
    return sampling.percent_to_sigma(end) <= sigma <= sampling.percent_to_sigma(start)


def first_frame(stage, model, positive, negative, width, height, guidance):
    """The guider of a first frame of `width` x `height` pixels, and the LATENT `[1, 4, 1, height / 8, width / 8]`."""
    positive, unconditional = prepare(stage, model, KeyframeModel, positive, negative, guidance)
    values = {"kv_mode": "image"}
    guider = TwoBranchGuider(model, stage)
    guider.set_conds(_set(positive, values), _set(unconditional, values))
    guider.set_cfg(guidance)
    return guider, {"samples": torch.zeros(1, 4, 1, height // 8, width // 8)}


def keyframes(
    stage, model, positive, negative, first_frame, frames, motion_score, noise_augmentation,
    text_guidance, image_guidance, augmentation_noise, schedule=(), conditions=(), start=None,
):  # fmt: skip
    """The guider of `frames` keyframes that go on from first_frame `[1, 4, 1, h, w]`, and the LATENT to sample.

    augmentation_noise(shape) gives what is put over the first frame. A schedule's values stand in for these numbers.
    conditions: kv_core.sampling.frames.FrameCondition. start `[1, 4, frames, h, w]`: what the clip is sampled from.
    """
    schedule = _checked(stage, schedule, "keyframes", frames, *KEYFRAME_PARAMETERS)
    motion_score = curves.at(schedule, "motion_score", motion_score, frames)
    noise_augmentation = curves.at(schedule, "noise_augmentation", noise_augmentation, frames)
    positive, unconditional = prepare(stage, model, KeyframeModel, positive, negative, text_guidance, image_guidance)
    _check_frames(stage, "keyframes", frames, positive, unconditional)
    values = {"kv_mode": "video", "kv_motion_score": motion_score, "kv_noise_augmentation": noise_augmentation}
    shown, held = _placed(stage, conditions, first_frame, frames)
    by_frame = noise_augmentation if isinstance(noise_augmentation, list) else [noise_augmentation] * frames
    condition = frames_condition(shown, frames, by_frame, augmentation_noise(first_frame.shape))
    with_frame = {**values, "kv_condition": condition}
    latent = _latent(stage, held, start, (1, 4, frames, *first_frame.shape[-2:]))
    guider = ThreeBranchGuider(model, stage, latent["samples"].shape)
    guider.set_conds(_set(positive, with_frame), _set(unconditional, with_frame), _set(unconditional, values))
    guider.set_cfg(text_guidance, image_guidance)
    guider.schedule = schedule
    return guider, latent


def interpolation(stage, model, positive, negative, samples, skip_frames, guidance, schedule=()):
    """The guider of the gaps in `[1, 4, F, h, w]`, and the LATENT `[1, 12, F - 1, h, w]`: three frames in every gap."""
    positive, unconditional = prepare(stage, model, InterpolationModel, positive, negative, guidance)
    _check_frames(stage, "gaps", samples.shape[2] - 1, positive, unconditional)
    values = {"kv_skip_frames": skip_frames}
    latent = torch.zeros(1, 12, samples.shape[2] - 1, *samples.shape[-2:])
    guider = TwoBranchGuider(model, stage, latent.shape)
    guider.set_conds(_set(positive, {**values, "kv_neighbours": neighbours(samples)}), _set(unconditional, values))
    guider.set_cfg(guidance)
    guider.schedule = _checked(stage, schedule, "gaps", latent.shape[2], "guidance")
    return guider, {"samples": latent}


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
        values = {**values, "attention_mask": mask}
        if "kv_texts" in values:
            values["kv_texts"] = [
                (start, *null_context(model.null_embedding, text)) for start, text, _ in values["kv_texts"]
            ]
        conditioning.append([null, values])
    return conditioning


def _check_text(stage, name, conditioning, width):
    for context, values in conditioning:
        if "projection" not in values:
            raise ValueError(
                f"{stage} needs {name} from Encode Text (Flan-UL2), but got another encoder's: connect that node."
            )
        if context.shape[-1] != width:
            raise ValueError(
                f"{stage} needs {name} of width {width}, but got {context.shape[-1]}: load the text encoder and "
                "projections that belong to this U-Net."
            )
        if "kv_texts" in values and not torch.equal(values["kv_texts"][0][1], context):
            raise ValueError(
                f"{stage} needs {name} as Encode Text over Time gives it, but another node changed it, which would act "
                "on the first prompt only: connect it directly, or use Encode Text (Flan-UL2)."
            )


def _check_frames(stage, kind, count, *conditionings):
    for _, values in (entry for conditioning in conditionings for entry in conditioning):
        last = max((start for start, _, _ in values.get("kv_texts", ())), default=0)
        if last >= count:
            raise ValueError(
                f"{stage} samples {kind} 0 to {count - 1}, but a prompt of Encode Text over Time begins at {last}: "
                "let it begin earlier."
            )


def _checked(stage, schedule, kind, count, *parameters):
    for entry in schedule:
        if entry.parameter not in parameters:
            raise ValueError(
                f"{stage} has no {entry.parameter} to schedule: choose {' or '.join(parameters)} in Schedule."
            )
        if entry.curve.last_begins >= count:
            raise ValueError(
                f"{stage} samples {kind} 0 to {count - 1}, but the last entry of the schedule of {entry.parameter} "
                f"acts only from {entry.curve.last_begins} on: let it begin earlier."
            )
    return schedule


def _placed(stage, conditions, first_frame, frames):
    try:
        return placed(conditions, first_frame, frames)
    except ValueError as mistake:
        raise ValueError(f"{stage}, {mistake}") from None


def _latent(stage, held, start, shape):
    """The LATENT to sample: `start` or nothing, with the held frames in it and a mask that keeps them."""
    if start is not None and start.shape != shape:
        raise ValueError(
            f"{stage} needs a start of {shape[2]} frames and {in_pixels(shape[3:])} pixels, but got "
            f"{start.shape[2]} frames and {in_pixels(start.shape[3:])}: set frames, or encode it anew."
        )
    samples = torch.zeros(shape) if start is None else start.clone()
    if not held:
        return {"samples": samples}
    mask = torch.ones(1, 1, *shape[2:])
    for index, frame in held.items():
        samples[:, :, index : index + 1] = frame.to(samples)
        mask[:, :, index] = 0
    return {"samples": samples, "noise_mask": mask}


def _describe(model):
    names = {KeyframeModel: "the keyframe U-Net", InterpolationModel: "the interpolation U-Net"}
    return names.get(type(model), f"another model ({type(model).__name__})")


def _set(conditioning, values):
    return node_helpers.conditioning_set_values(conditioning, values)
