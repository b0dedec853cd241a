"""The stages taken apart for the host's own Custom Sampler: guiders, sampler and schedule."""

from comfy_api.latest import io

from ...kv_core.sampling.diffusion import SeededNoise
from ...kv_core.sampling.frames import MOTION_SCORES, interleave
from .. import interpolation, keyframes, sockets
from ..host import ddpm, guiders, report
from ..inputs import (
    EXPERIMENTS,
    check_size,
    frame_conditions_input,
    guidance_input,
    model_input,
    negative_input,
    positive_input,
    schedule_input,
    seed_input,
    size_input,
    start_input,
)


def guider_output():
    return io.Guider.Output("guider", tooltip="The stage's guidance, for SamplerCustomAdvanced.")


def latent_output(shape):
    return io.Latent.Output("latent", tooltip=f"What is to be sampled, {shape}: latent_image of SamplerCustomAdvanced.")


class DDPMSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoDDPM",
            display_name="DDPM (published)",
            category=EXPERIMENTS,
            description=(
                "The sampler that every stage runs by itself. With it, Published Schedule and a stage's guider, "
                "SamplerCustomAdvanced gives exactly that stage's result for the same seed."
            ),
            search_aliases=["kandinsky", "sampler", "ancestral", "ddpm"],
            inputs=[],
            outputs=[
                io.Sampler.Output(
                    "sampler",
                    tooltip="The published ancestral sampler. The noise of its steps comes from the seed of the noise "
                    "node, drawn on the CPU.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(ddpm.DDPM())


class PublishedSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoSigmas",
            display_name="Published Schedule",
            category=EXPERIMENTS,
            description=(
                "The noise levels of the published sampling, and one more spacing between the same levels, for "
                "SamplerCustomAdvanced or for sigmas of a stage."
            ),
            search_aliases=["kandinsky", "scheduler", "sigmas", "steps", "karras"],
            inputs=[
                io.Model.Input("model", tooltip="Either U-Net from Load U-Net; both have the same noise levels."),
                io.Combo.Input(
                    "spacing",
                    options=list(ddpm.SPACINGS),
                    default="leading",
                    tooltip="leading: as published for first frame and keyframes; trailing: as published for "
                    "interpolation; karras: fewer steps at high noise and more at low, which ComfyUI's multistep "
                    "samplers with noise need at few steps.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Denoising steps, 1 to 1000; published 50 leading and 10 trailing. Time grows in "
                    "proportion.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the way from noise is sampled, 0.01 to 1: below 1 it begins part way, for "
                    "a latent that holds something already. The number of steps stays.",
                ),
            ],
            outputs=[
                io.Sigmas.Output("sigmas", tooltip="The noise levels [steps + 1], falling, the last one 0."),
            ],
        )

    @classmethod
    def execute(cls, model, spacing, steps, denoise) -> io.NodeOutput:
        return io.NodeOutput(ddpm.schedule(model, spacing, steps, denoise))


class FirstFrameGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoFirstFrameGuider",
            display_name="First Frame Guider",
            category=EXPERIMENTS,
            description=(
                "The guidance of Sample First Frame by itself, for ComfyUI's SamplerCustomAdvanced. Take its output "
                "back with Latent to Kandinsky Video Latent, kind frame."
            ),
            search_aliases=["kandinsky", "guider", "custom sampler", "text to image"],
            inputs=[
                model_input("keyframe"),
                positive_input(),
                size_input("width", 1024, "picture, twice the video's,"),
                size_input("height", 1024, "picture, twice the video's,"),
                guidance_input("guidance", 5.0, "How strongly the picture follows the prompt; 0: no guidance"),
                negative_input(),
            ],
            outputs=[guider_output(), latent_output("empty [1, 4, 1, height / 8, width / 8]")],
        )

    @classmethod
    def execute(cls, model, positive, width, height, guidance, negative=None) -> io.NodeOutput:
        stage = "First Frame Guider"
        check_size(stage, width, height)
        return io.NodeOutput(*guiders.first_frame(stage, model, positive, negative, width, height, guidance))


class KeyframeGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoKeyframeGuider",
            display_name="Keyframe Guider",
            category=EXPERIMENTS,
            description=(
                "The three-branch guidance of Sample Keyframes by itself, for ComfyUI's SamplerCustomAdvanced. Take "
                "its output back with Latent to Kandinsky Video Latent, kind keyframes."
            ),
            search_aliases=["kandinsky", "guider", "custom sampler", "three branches", "dual cfg"],
            inputs=[
                *keyframes.clip_inputs(),
                augmentation_seed_input(),
                negative_input(),
                schedule_input(keyframes.SCHEDULED),
                frame_conditions_input(),
                start_input("the denoise of Published Schedule"),
            ],
            outputs=[guider_output(), latent_output("[1, 4, frames, h, w]")],
        )

    @classmethod
    def execute(
        cls, model, positive, first_frame, frames, motion, motion_score, noise_augmentation,
        text_guidance, image_guidance, seed, negative=None, schedule=(), frame_conditions=(), start=None,
    ) -> io.NodeOutput:  # fmt: skip
        guided = guiders.keyframes(
            "Keyframe Guider",
            model,
            positive,
            negative,
            sockets.samples_of(first_frame, "frame", sampled=True),
            frames,
            MOTION_SCORES.get(motion, motion_score),
            noise_augmentation,
            text_guidance,
            image_guidance,
            SeededNoise(seed).augmentation,
            schedule,
            frame_conditions,
            keyframes.started(start),
        )
        return io.NodeOutput(*guided)


def augmentation_seed_input():
    seed = seed_input()
    seed.tooltip = (
        "The noise put over the first frame comes from it, 0 to 2^64 - 1. With the seed of the noise node, the result "
        "is that of Sample Keyframes."
    )
    return seed


class InterpolationGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoInterpolationGuider",
            display_name="Interpolation Guider",
            category=EXPERIMENTS,
            description=(
                "The guidance of Interpolate Frames by itself, for ComfyUI's SamplerCustomAdvanced. Fill Gaps puts "
                "what was sampled between the given frames."
            ),
            search_aliases=["kandinsky", "guider", "custom sampler", "frame interpolation"],
            inputs=[*interpolation.gap_inputs(), negative_input(), schedule_input(interpolation.SCHEDULED)],
            outputs=[guider_output(), latent_output("empty [1, 12, gaps, h, w], three frames a gap")],
        )

    @classmethod
    def execute(cls, model, positive, samples, skip_frames, guidance, negative=None, schedule=()) -> io.NodeOutput:
        frames, skip = interpolation.gaps_of(samples, skip_frames)
        return io.NodeOutput(
            *guiders.interpolation("Interpolation Guider", model, positive, negative, frames, skip, guidance, schedule)
        )


class FillGaps(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoFillGaps",
            display_name="Fill Gaps",
            category=EXPERIMENTS,
            description="Puts the three frames that were sampled for every gap between the given frames.",
            search_aliases=["kandinsky", "interleave", "custom sampler", "frame interpolation"],
            inputs=[
                io.MultiType.Input(
                    "samples",
                    [sockets.KeyframeLatent, sockets.VideoLatent],
                    tooltip="The frames that Interpolation Guider was given; they are kept as they are.",
                ),
                io.Latent.Input("gaps", tooltip="What SamplerCustomAdvanced made of them, [1, 12, frames - 1, h, w]."),
            ],
            outputs=[
                sockets.VideoLatent.Output(
                    "video", tooltip="All frames in order, latent [1, 4, 4F - 3, h, w], for Decode Video."
                ),
            ],
        )

    @classmethod
    def execute(cls, samples, gaps) -> io.NodeOutput:
        frames, predicted = sockets.samples_of(samples, "keyframes", "video", least=2), gaps["samples"]
        expected = (1, 12, frames.shape[2] - 1, *frames.shape[-2:])
        if predicted.shape != expected:
            raise ValueError(
                f"Fill Gaps needs the sampled gaps {list(expected)} of these frames, but got {list(predicted.shape)}: "
                "connect the frames that Interpolation Guider has."
            )
        video = interleave(frames.to(predicted), sockets.finite(predicted, "The interpolation U-Net"))
        history = report.history_of(samples)
        return io.NodeOutput(sockets.latent("video", video, passes=samples.get("passes", 0) + 1, history=history))
