"""The second stage: a first frame and a prompt to keyframes."""

from comfy_api.latest import io

from ..kv_core.sampling.diffusion import SeededNoise
from ..kv_core.sampling.frames import KEYFRAMES, MOTION_SCORES
from . import sockets
from .host import report, sampling
from .inputs import (
    FEWER_STEPS,
    denoise_input,
    frame_conditions_input,
    guidance_input,
    model_input,
    negative_input,
    positive_input,
    sampler_input,
    schedule_input,
    seed_input,
    sigmas_input,
    start_input,
    steps_input,
)

SCHEDULED = "motion_score, noise_augmentation, text_guidance, image_guidance"


def clip_inputs():
    """What says how the clip is to be; shared with the guider of this stage."""
    return [
        model_input("keyframe"),
        positive_input(),
        sockets.FrameLatent.Input(
            "first_frame",
            tooltip="The picture the clip begins with, from Encode Image (MoVQ); its width and height are "
            "multiples of 64 pixels.",
        ),
        io.Int.Input(
            "frames",
            default=KEYFRAMES,
            min=2,
            max=240,
            tooltip="Number of keyframes, 2 to 240; 12 as published and trained. Memory and time grow in proportion.",
        ),
        io.Combo.Input(
            "motion",
            options=[*MOTION_SCORES, "custom"],
            default="medium",
            tooltip="How much moves: low is a motion score of 1, medium 10, high 50, extreme 100; custom takes "
            "motion_score.",
        ),
        io.Int.Input(
            "motion_score",
            default=10,
            min=0,
            max=1000,
            tooltip="How much moves, when motion is custom: 1 is next to nothing, 100 the published most; 0 to 1000.",
        ),
        io.Int.Input(
            "noise_augmentation",
            default=20,
            min=0,
            max=999,
            tooltip="Noise put over the first frame, as a training step from 0 to 999, published 20. More lets "
            "the clip depart further from it.",
        ),
        guidance_input("text_guidance", 5.0, "How strongly the clip follows the prompt"),
        guidance_input("image_guidance", 2.0, "How strongly the clip follows the first frame"),
    ]


def started(start):
    """The samples of a clip to begin with, None where there is none."""
    return None if start is None else sockets.samples_of(start, "keyframes", "video", sampled=True)


class Keyframes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoKeyframes",
            display_name="Sample Keyframes (U-Net3D)",
            category="Kandinsky Video",
            description=(
                "Samples the keyframes of a clip, the first of which resembles the given first frame. The clip has the "
                "first frame's width and height."
            ),
            search_aliases=["kandinsky", "image to video", "text to video", "i2v", "t2v", "animate"],
            inputs=[
                *clip_inputs(),
                steps_input(50, FEWER_STEPS),
                seed_input(),
                negative_input(),
                sampler_input(),
                sigmas_input("leading"),
                schedule_input(SCHEDULED),
                frame_conditions_input(),
                start_input("denoise"),
                denoise_input(),
            ],
            outputs=[
                sockets.KeyframeLatent.Output(
                    "keyframes",
                    tooltip="The keyframes' latent [1, 4, frames, h, w], for Interpolate Frames, Decode Video or "
                    "Decode Image.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, first_frame, frames, motion, motion_score, noise_augmentation,
        text_guidance, image_guidance, steps, seed, negative=None, sampler=None, sigmas=None, schedule=(),
        frame_conditions=(), start=None, denoise=1.0,
    ) -> io.NodeOutput:  # fmt: skip
        frame, begun = sockets.samples_of(first_frame, "frame", sampled=True), started(start)
        with report.measured("Sample Keyframes", first_frame, start or {}) as history:
            samples = sampling.sample_keyframes(
                model,
                positive,
                negative,
                frame,
                frames,
                MOTION_SCORES.get(motion, motion_score),
                noise_augmentation,
                text_guidance,
                image_guidance,
                steps,
                SeededNoise(seed),
                sampler,
                sigmas,
                schedule,
                frame_conditions,
                begun,
                denoise,
            )
        return io.NodeOutput(sockets.latent("keyframes", samples, history=history))
