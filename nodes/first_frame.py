"""The first stage: a prompt to a first frame."""

from comfy_api.latest import io

from ..kv_core.sampling.settings import FirstFrame as Settings
from ..kv_core.sampling.settings import Run
from . import inputs, sockets
from .host import guiders, progress, sampling


class FirstFrame(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoFirstFrame",
            display_name="Sample First Frame (Kandinsky 3)",
            category=inputs.CATEGORY,
            description="Generates the first frame from a prompt, with the keyframe U-Net's image mode. In the "
            "original it is twice the video's size: decode it, then encode it at the video's size for Sample "
            "Keyframes.",
            search_aliases=["kandinsky", "text to image", "first frame", "ksampler"],
            inputs=[
                inputs.model("keyframe"),
                inputs.positive(),
                *inputs.first_frame_size(),
                inputs.seed(),
                inputs.steps(50, inputs.FEWER_STEPS),
                inputs.guidance(
                    "guidance", Settings.guidance, "How strongly the image follows the prompt; 0 turns guidance off"
                ),
                inputs.negative(),
                inputs.sampler(),
                inputs.sigmas("leading"),
            ],
            outputs=[
                sockets.FrameLatent.Output(
                    "first_frame", tooltip="The image's latent [1, 4, 1, height / 8, width / 8], for Decode Image."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, width, height, seed, steps, guidance, negative=None, sampler=None, sigmas=None
    ) -> io.NodeOutput:
        settings = Settings(width, height, guidance)
        guided = guiders.first_frame(model, guiders.Prompts(positive, negative), settings)
        with progress.measured(guided.stage):
            samples = sampling.run(guided, Run(steps, seed, sampler=sampler, sigmas=sigmas))
        return io.NodeOutput(sockets.latent("frame", samples))
