"""The third stage: three new frames in every gap, as often as wanted."""

from comfy_api.latest import io

from ..kv_core.networks.interpolation_unet import SKIP_FRAMES
from ..kv_core.sampling.diffusion import SeededNoise
from . import sockets
from .host import report, sampling
from .inputs import (
    FEWER_STEPS_BETWEEN,
    guidance_input,
    model_input,
    negative_input,
    positive_input,
    sampler_input,
    schedule_input,
    seed_input,
    sigmas_input,
    steps_input,
)
from .lists import whole_numbers

# As published: 3 between keyframes, 1 between frames that were interpolated already.
AUTO_SKIP_FRAMES = {"keyframes": 3, "video": 1}

SCHEDULED = "guidance, over the gaps"


def gap_inputs():
    """What says which gaps are filled, and how; shared with the guider of this stage."""
    return [
        model_input("interpolation"),
        positive_input(),
        io.MultiType.Input(
            "samples",
            [sockets.KeyframeLatent, sockets.VideoLatent],
            tooltip="Keyframes from Sample Keyframes, or a video that was interpolated already; at least 2 frames.",
        ),
        io.Combo.Input(
            "skip_frames",
            options=["auto", *map(str, range(SKIP_FRAMES))],
            default="auto",
            tooltip="How many frames the U-Net takes the gaps to leave out, 0 to 19. auto is as published: 3 "
            "for keyframes, 1 for a video that was interpolated before.",
        ),
        guidance_input("guidance", 0.5, "How strongly new frames follow prompt and neighbours; 0: no guidance"),
    ]


def gaps_of(samples, skip_frames):
    """The frames `[1, 4, F, h, w]` of keyframes or a video, and the frames that its gaps leave out."""
    frames = sockets.samples_of(samples, "keyframes", "video", sampled=True, least=2)
    return frames, AUTO_SKIP_FRAMES[samples["kind"]] if skip_frames == "auto" else int(skip_frames)


def skip_of_gaps(text, count):
    """What a text says of `count` gaps, as `[[skip, ...]]`; None where it is empty. Raises ValueError."""
    skip = whole_numbers(text, "Interpolate Frames: in gaps", 0, SKIP_FRAMES - 1)
    if skip and len(skip) != count:
        raise ValueError(
            f"Interpolate Frames: gaps has {len(skip)} numbers, but there are {count} gaps between {count + 1} frames: "
            "write one number for each."
        )
    return [skip] if skip else None


class Interpolate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoInterpolate",
            display_name="Interpolate Frames (U-Net3D)",
            category="Kandinsky Video",
            description=(
                "Puts three new frames between every two: k frames become 4k - 3, the given ones unchanged. Chain two "
                "of these for the published high frame rate: 12, 45, 177 frames."
            ),
            search_aliases=["kandinsky", "frame interpolation", "smooth", "morph", "in-between"],
            inputs=[
                *gap_inputs(),
                steps_input(10, FEWER_STEPS_BETWEEN),
                seed_input(),
                negative_input(),
                sampler_input(),
                sigmas_input("trailing"),
                io.String.Input(
                    "gaps",
                    optional=True,
                    default="",
                    tooltip="For frames at uneven distances: how many frames each gap leaves out, 0 to 19, such as "
                    "3, 3, 7, 1, one number a gap. Empty: skip_frames counts for all.",
                ),
                schedule_input(SCHEDULED),
            ],
            outputs=[
                sockets.VideoLatent.Output(
                    "video", tooltip="All frames in order, latent [1, 4, 4F - 3, h, w], for Decode Video or this node."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, samples, skip_frames, guidance, steps, seed, negative=None, sampler=None, sigmas=None,
        gaps="", schedule=(),
    ) -> io.NodeOutput:  # fmt: skip
        frames, skip = gaps_of(samples, skip_frames)
        skip = skip_of_gaps(gaps, frames.shape[2] - 1) or skip
        with report.measured("Interpolate Frames", samples) as history:
            video = sampling.sample_interpolation(
                model, positive, negative, frames, skip, guidance, steps, SeededNoise(seed), sampler, sigmas, schedule
            )
        return io.NodeOutput(sockets.latent("video", video, passes=samples.get("passes", 0) + 1, history=history))
