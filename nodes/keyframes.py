"""The second stage: a first frame and a prompt to keyframes."""

from comfy_api.latest import io

from ..kv_core.sampling.frames import MOTION_SCORES
from ..kv_core.sampling.settings import Keyframes as Settings
from ..kv_core.sampling.settings import Run
from . import inputs, sockets
from .host import guiders, progress, sampling


def settings(motion, motion_score, init_video, frame_conditions=(), **numbers):
    """What the inputs of a clip come to."""
    return Settings(
        motion_score=MOTION_SCORES.get(motion, motion_score),
        init_video=None if init_video is None else sockets.samples_of(init_video, "keyframes", "video", for_unet=True),
        conditions=tuple(frame_conditions),
        **numbers,
    )


class Keyframes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoKeyframes",
            display_name="Sample Keyframes (U-Net3D)",
            category=inputs.CATEGORY,
            description="Generates the keyframes of a clip from a first frame and a prompt.",
            search_aliases=["kandinsky", "image to video", "text to video", "i2v", "t2v", "animate"],
            inputs=[
                *inputs.clip(),
                inputs.steps(50, inputs.FEWER_STEPS),
                inputs.seed(),
                inputs.negative(),
                inputs.sampler(),
                inputs.sigmas("leading"),
                inputs.curves(", ".join(Settings.CURVED)),
                inputs.frame_conditions(),
                inputs.init_video("denoise"),
                inputs.denoise(),
            ],
            outputs=[
                sockets.KeyframeLatent.Output(
                    "keyframes",
                    tooltip="The keyframes' latent [1, 4, frames, h, w], for Interpolate Frames, Decode Video or "
                    "Decode Image.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, first_frame, steps, seed, negative=None, sampler=None, sigmas=None, init_video=None,
        denoise=1.0, **given,
    ) -> io.NodeOutput:  # fmt: skip
        clip = settings(init_video=init_video, **given)
        run = Run(steps, seed, 1.0 if init_video is None else denoise, sampler, sigmas)
        frame = sockets.samples_of(first_frame, "frame", for_unet=True)
        guided = guiders.keyframes(model, guiders.Prompts(positive, negative), frame, clip, run.noise)
        with progress.measured(guided.stage):
            samples = sampling.run(guided, run)
        return io.NodeOutput(sockets.latent("keyframes", samples))
