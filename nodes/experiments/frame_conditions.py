"""Frames as conditions: any keyframe can be given, taken from a clip, and clips joined."""

from comfy_api.latest import io

from ...kv_core.sampling.frames import FrameCondition as Condition
from ...kv_core.sampling.frames import in_pixels, join
from .. import inputs, sockets

# What sampling does with a frame that is given: show it to the U-Net, hold it.
USES = {"hold and show": (True, True), "hold": (False, True), "show": (True, False)}


class FrameCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoFrameCondition",
            display_name="Frame Condition",
            category=inputs.EXPERIMENTS,
            description="Gives Sample Keyframes more frames than the first: a last frame, several in a row, or any "
            "other. Chain several for several places. The model was trained with a first frame only.",
            search_aliases=["kandinsky", "last frame", "first and last frame", "inpaint frames", "extend", "loop"],
            inputs=[
                inputs.any_latent(
                    "frames",
                    "A frame from Encode Image (MoVQ), or keyframes or a video, whose frames take consecutive places.",
                ),
                inputs.ranged(
                    "position",
                    -1,
                    -240,
                    239,
                    "Place of the first of these frames: 0 is the clip's first frame, -1 its last, -4 for four "
                    "frames at its end.",
                ),
                io.Combo.Input(
                    "use",
                    options=list(USES),
                    default="hold",
                    tooltip="hold: the frames come out unchanged, and the others are sampled to fit them; show: the "
                    "U-Net sees them as it was trained to see a first frame, and may or may not follow them; hold and "
                    "show: both. All three are experimental.",
                ),
                sockets.FrameConditions.Input(
                    "previous",
                    optional=True,
                    tooltip="Another Frame Condition to add this one to. If both are for the same place, this one "
                    "applies.",
                ),
            ],
            outputs=[
                sockets.FrameConditions.Output(
                    "frame_conditions", tooltip="All given frames, for Sample Keyframes or Keyframe Guider."
                )
            ],
        )

    @classmethod
    def execute(cls, frames, position, use, previous=()) -> io.NodeOutput:
        samples = sockets.samples_of(frames, *sockets.LATENTS, for_unet=True)
        return io.NodeOutput((*previous, Condition(samples, position, *USES[use])))


class PickFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoPickFrames",
            display_name="Pick Frames",
            category=inputs.EXPERIMENTS,
            description="Takes consecutive frames from keyframes or a video: the last ones of a clip to continue from, "
            "or a single one to begin another clip with.",
            search_aliases=["kandinsky", "last frame", "cut latent", "extend"],
            inputs=[
                inputs.sequence("samples", "Keyframes or a video to take frames from; it stays unchanged."),
                inputs.ranged(
                    "position", -1, -10000, 9999, "The first frame to take: 0 is the clip's first, -1 its last."
                ),
                inputs.ranged("count", 1, 1, 10000, "How many consecutive frames to take."),
            ],
            outputs=[
                sockets.AnyLatent.Output(
                    "frames",
                    tooltip="A single frame as a first frame for Sample Keyframes; several keep their kind and pace.",
                )
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
        kind = "frame" if count == 1 else samples["kind"]
        return io.NodeOutput(sockets.latent(kind, picked, sockets.frame_rate_of(samples)))


class JoinClips(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoJoinClips",
            display_name="Join Clips",
            category=inputs.EXPERIMENTS,
            description="Joins two clips as latents. Frames that both share, because the second clip continues from "
            "the first one's last frames, are kept once.",
            search_aliases=["kandinsky", "concatenate", "extend", "append", "crossfade"],
            inputs=[
                inputs.sequence("first", "The clip that comes first."),
                inputs.sequence("second", "The clip that follows, of the same kind and size."),
                inputs.ranged(
                    "overlap",
                    1,
                    0,
                    240,
                    "How many frames the first clip's end and the second one's beginning have in common. Where the "
                    "clips differ there, the first fades into the second. 0: the clips just follow each other.",
                ),
            ],
            outputs=[
                sockets.AnyLatent.Output(
                    "samples",
                    tooltip="One clip of the same kind at the pace of the first, [1, 4, frames of both less overlap, "
                    "h, w].",
                )
            ],
        )

    @classmethod
    def execute(cls, first, second, overlap) -> io.NodeOutput:
        one, other = (sockets.samples_of(clip, "keyframes", "video") for clip in (first, second))
        if first["kind"] != second["kind"] or one.shape[-2:] != other.shape[-2:]:
            raise ValueError(
                f"Join Clips needs two clips of one kind and size, but got {first['kind']} {in_pixels(one.shape[3:])} "
                f"and {second['kind']} {in_pixels(other.shape[3:])}: sample or encode them alike."
            )
        if overlap > min(one.shape[2], other.shape[2]):
            raise ValueError(
                f"Join Clips needs an overlap of {overlap} frames in both clips, but they have {one.shape[2]} and "
                f"{other.shape[2]}: lower overlap."
            )
        joined = sockets.latent(first["kind"], join(one, other, overlap), sockets.frame_rate_of(first))
        return io.NodeOutput(joined)
