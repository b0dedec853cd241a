"""The baseline of interpolation: frames that only fade into each other."""

from comfy_api.latest import io

from ...kv_core.sampling.frames import cross_fade
from .. import inputs, sockets


class CrossFade(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoCrossFade",
            display_name="Cross-Fade Frames",
            category=inputs.EXPERIMENTS,
            description="Adds three frames between every two that fade from one to the other, without a model: the "
            "baseline for Interpolate Frames. F frames become 4F - 3, as there.",
            search_aliases=["kandinsky", "blend frames", "linear interpolation", "baseline"],
            inputs=[
                inputs.sequence(
                    "samples", "Keyframes, or a video that was interpolated or faded before; at least 2 frames."
                )
            ],
            outputs=[
                sockets.VideoLatent.Output(
                    "video",
                    tooltip="All frames in order, latent [1, 4, 4F - 3, h, w]. The three new frames hold 3/4, 2/4 and "
                    "1/4 of the left frame and the rest of the right one.",
                )
            ],
        )

    @classmethod
    def execute(cls, samples) -> io.NodeOutput:
        video = cross_fade(sockets.samples_of(samples, "keyframes", "video", least=2))
        return io.NodeOutput(sockets.interpolated(video, samples))
