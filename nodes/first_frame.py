"""The first stage: a prompt to a first frame."""

from comfy_api.latest import io

from ..kv_core.sampling.diffusion import SeededNoise
from . import sockets
from .host import report, sampling
from .inputs import (
    FEWER_STEPS,
    check_size,
    guidance_input,
    model_input,
    negative_input,
    positive_input,
    sampler_input,
    seed_input,
    sigmas_input,
    size_input,
    steps_input,
)


class FirstFrame(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoFirstFrame",
            display_name="Sample First Frame (Kandinsky 3)",
            category="Kandinsky Video",
            description=(
                "Draws a picture from a prompt with the keyframe U-Net's image mode. As published it is drawn at twice "
                "the video's width and height: decode it, then encode it at the video's size for Sample Keyframes."
            ),
            search_aliases=["kandinsky", "text to image", "first frame", "ksampler"],
            inputs=[
                model_input("keyframe"),
                positive_input(),
                size_input("width", 1024, "picture, twice the video's,"),
                size_input("height", 1024, "picture, twice the video's,"),
                seed_input(),
                steps_input(50, FEWER_STEPS),
                guidance_input("guidance", 5.0, "How strongly the picture follows the prompt; 0: no guidance"),
                negative_input(),
                sampler_input(),
                sigmas_input("leading"),
            ],
            outputs=[
                sockets.FrameLatent.Output(
                    "first_frame", tooltip="The picture's latent [1, 4, 1, height / 8, width / 8], for Decode Image."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, width, height, seed, steps, guidance, negative=None, sampler=None, sigmas=None
    ) -> io.NodeOutput:
        check_size("Sample First Frame", width, height)
        with report.measured("Sample First Frame") as history:
            samples = sampling.sample_first_frame(
                model, positive, negative, width, height, guidance, steps, SeededNoise(seed), sampler, sigmas
            )
        return io.NodeOutput(sockets.latent("frame", samples, history=history))
