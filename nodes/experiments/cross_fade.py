"""The baseline of interpolation: frames that only fade into each other."""

from comfy_api.latest import io

from ...kv_core.sampling.frames import cross_fade
from .. import sockets
from ..host import report
from ..inputs import EXPERIMENTS


class CrossFade(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoCrossFade",
            display_name="Cross-Fade Frames",
            category=EXPERIMENTS,
            description=(
                "Puts three frames between every two that fade from one to the other, without any model: what "
                "Interpolate Frames is to be compared with. It has the same number of frames, 4k - 3 of k."
            ),
            search_aliases=["kandinsky", "blend frames", "linear interpolation", "baseline"],
            inputs=[
                io.MultiType.Input(
                    "samples",
                    [sockets.KeyframeLatent, sockets.VideoLatent],
                    tooltip="Keyframes, or a video that was interpolated or faded already; at least 2 frames.",
                ),
            ],
            outputs=[
                sockets.VideoLatent.Output(
                    "video",
                    tooltip="All frames in order, latent [1, 4, 4F - 3, h, w]; between two frames lie 3/4, 2/4 and "
                    "1/4 of the left one with the rest of the right one.",
                ),
            ],
        )

    @classmethod
    def execute(cls, samples) -> io.NodeOutput:
        frames = sockets.samples_of(samples, "keyframes", "video", least=2)
        with report.measured("Cross-Fade Frames", samples) as history:
            video = cross_fade(frames)
        return io.NodeOutput(sockets.latent("video", video, passes=samples.get("passes", 0) + 1, history=history))
