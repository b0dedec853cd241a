"""The third stage: three new frames in every gap, as often as wanted."""

from comfy_api.latest import io

from ..kv_core.sampling.curves import whole_numbers
from ..kv_core.sampling.settings import RANGES, Interpolation, Run
from . import inputs, sockets
from .host import guiders, progress, sampling

# As in the original: 3 between keyframes, 1 between frames that were interpolated before.
AUTO_SKIP_FRAMES = {"keyframes": 3, "video": 1}


def settings(samples, skip_frames, gap_lengths="", **given):
    """The frames `[1, 4, F, h, w]` of keyframes or a video, and what the inputs of their gaps come to."""
    frames = sockets.samples_of(samples, "keyframes", "video", for_unet=True, least=2)
    lengths = tuple(whole_numbers(gap_lengths, "gap_lengths", *RANGES["skip_frames"]))
    same = AUTO_SKIP_FRAMES[samples["kind"]] if skip_frames == "auto" else int(skip_frames)
    return frames, Interpolation(lengths or same, **given)


class Interpolate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoInterpolate",
            display_name="Interpolate Frames (U-Net3D)",
            category=inputs.CATEGORY,
            description="Adds three new frames between every two: F frames become 4F - 3, the given ones unchanged. "
            "Chain two of these for the high frame rate of the original: 12, 45, 177 frames.",
            search_aliases=["kandinsky", "frame interpolation", "smooth", "morph", "in-between"],
            inputs=[
                *inputs.gaps(),
                inputs.steps(10, inputs.FEWER_STEPS_BETWEEN),
                inputs.seed(),
                inputs.negative(),
                inputs.sampler(),
                inputs.sigmas("trailing"),
                io.String.Input(
                    "gap_lengths",
                    optional=True,
                    default="",
                    tooltip="For frames that are unevenly spaced: frames missing in each gap, 0 to 19, one number per "
                    "gap, such as 3, 3, 7, 1. Empty: skip_frames for every gap.",
                ),
                inputs.curves("guidance, one value per gap"),
            ],
            outputs=[
                sockets.VideoLatent.Output(
                    "video", tooltip="All frames in order, latent [1, 4, 4F - 3, h, w], for Decode Video or this node."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, samples, steps, seed, negative=None, sampler=None, sigmas=None, **given
    ) -> io.NodeOutput:
        frames, gaps = settings(samples, **given)
        guided = guiders.interpolation(model, guiders.Prompts(positive, negative), frames, gaps)
        with progress.measured(guided.stage):
            video = sampling.run(guided, Run(steps, seed, sampler=sampler, sigmas=sigmas))
        return io.NodeOutput(sockets.interpolated(video, samples))
