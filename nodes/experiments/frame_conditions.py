"""Frames as conditions: any keyframe can be given, taken from a clip, and clips joined."""

from comfy_api.latest import io

from ...kv_core.sampling.frames import FrameCondition as Given
from ...kv_core.sampling.frames import in_pixels, join
from .. import sockets
from ..host import report
from ..inputs import EXPERIMENTS

# What the sampling does with a frame that is given: shown to the U-Net, held.
USES = {"hold and show": (True, True), "hold": (False, True), "show": (True, False)}


class FrameCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoFrameCondition",
            display_name="Frame Condition",
            category=EXPERIMENTS,
            description=(
                "Gives Sample Keyframes more frames than the first: a last frame, several in a row, any. Chain several "
                "for several places. The published training knows only a first frame."
            ),
            search_aliases=["kandinsky", "last frame", "first and last frame", "inpaint frames", "extend", "loop"],
            inputs=[
                io.MultiType.Input(
                    "frames",
                    list(sockets.LATENTS.values()),
                    tooltip="A frame from Encode Image (MoVQ), or keyframes or a video, whose frames go to places in a "
                    "row.",
                ),
                io.Int.Input(
                    "position",
                    default=-1,
                    min=-240,
                    max=239,
                    tooltip="The place of the first of these frames, -240 to 239: 0 is the clip's first frame, -1 its "
                    "last one, -4 for four frames at its end.",
                ),
                io.Combo.Input(
                    "use",
                    options=list(USES),
                    default="hold",
                    tooltip="hold: the frames come out as they are given, and the others are sampled to go with them; "
                    "show: the U-Net sees them as it was trained to see a first frame, which it may follow or not; "
                    "hold and show: both. All three are experiments.",
                ),
                sockets.FrameConditions.Input(
                    "previous",
                    optional=True,
                    tooltip="Another Frame Condition to add this one to. Where both are for one place, this one "
                    "counts.",
                ),
            ],
            outputs=[
                sockets.FrameConditions.Output(
                    "frame_conditions", tooltip="All given frames, for Sample Keyframes or Keyframe Guider."
                ),
            ],
        )

    @classmethod
    def execute(cls, frames, position, use, previous=()) -> io.NodeOutput:
        samples = sockets.samples_of(frames, *sockets.LATENTS, sampled=True)
        return io.NodeOutput((*previous, Given(samples, position, *USES[use])))


class PickFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoPickFrames",
            display_name="Pick Frames",
            category=EXPERIMENTS,
            description=(
                "Takes frames in a row out of keyframes or a video: the last ones of a clip to go on from, a single "
                "one to begin another clip with."
            ),
            search_aliases=["kandinsky", "last frame", "cut latent", "extend"],
            inputs=[
                io.MultiType.Input(
                    "samples",
                    [sockets.KeyframeLatent, sockets.VideoLatent],
                    tooltip="Keyframes or a video to take frames out of; it stays as it is.",
                ),
                io.Int.Input(
                    "position",
                    default=-1,
                    min=-10000,
                    max=9999,
                    tooltip="The first frame to take, -10000 to 9999: 0 is the clip's first one, -1 its last one.",
                ),
                io.Int.Input(
                    "count", default=1, min=1, max=10000, tooltip="How many frames to take, 1 to 10000, in a row."
                ),
            ],
            outputs=[
                sockets.AnyLatent.Output(
                    "frames",
                    tooltip="One frame as a first frame for Sample Keyframes; several of the kind they were.",
                ),
            ],
        )

    @classmethod
    def execute(cls, samples, position, count) -> io.NodeOutput:
        given = sockets.samples_of(samples, "keyframes", "video")
        total = given.shape[2]
        start = position + (total if position < 0 else 0)
        if not 0 <= start <= total - count:
            raise ValueError(
                f"Pick Frames takes {count} frame(s) at {position}, but the clip has frames 0 to {total - 1}: choose "
                "others."
            )
        picked = given[:, :, start : start + count].contiguous()
        if count == 1:
            return io.NodeOutput(sockets.latent("frame", picked, history=report.history_of(samples)))
        return io.NodeOutput({**samples, "samples": picked})


class JoinClips(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoJoinClips",
            display_name="Join Clips",
            category=EXPERIMENTS,
            description=(
                "Joins two clips in latents. Frames that both share, as the second one went on from the first one's "
                "last frames, are kept once."
            ),
            search_aliases=["kandinsky", "concatenate", "extend", "append", "crossfade"],
            inputs=[
                io.MultiType.Input(
                    "first", [sockets.KeyframeLatent, sockets.VideoLatent], tooltip="The clip that comes first."
                ),
                io.MultiType.Input(
                    "second",
                    [sockets.KeyframeLatent, sockets.VideoLatent],
                    tooltip="The clip that follows, of the same kind and size.",
                ),
                io.Int.Input(
                    "shared",
                    default=1,
                    min=0,
                    max=240,
                    tooltip="How many frames at the first one's end and the second one's beginning are the same, 0 to "
                    "240. Where they differ they go over from one to the other. 0: the clips just follow each other.",
                ),
            ],
            outputs=[
                sockets.AnyLatent.Output(
                    "samples", tooltip="One clip of the same kind, [1, 4, frames of both less shared, h, w]."
                ),
            ],
        )

    @classmethod
    def execute(cls, first, second, shared) -> io.NodeOutput:
        one, other = (sockets.samples_of(clip, "keyframes", "video") for clip in (first, second))
        if first["kind"] != second["kind"] or one.shape[-2:] != other.shape[-2:]:
            raise ValueError(
                f"Join Clips needs two clips of one kind and size, but got {first['kind']} {in_pixels(one.shape[3:])} "
                f"and {second['kind']} {in_pixels(other.shape[3:])}: sample or encode them alike."
            )
        if shared > min(one.shape[2], other.shape[2]):
            raise ValueError(
                f"Join Clips needs {shared} shared frames in both clips, but they have {one.shape[2]} and "
                f"{other.shape[2]}: lower shared."
            )
        history = report.history_of(first, second)
        return io.NodeOutput({**first, "samples": join(one, other, shared), "history": history})
