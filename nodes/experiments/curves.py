"""What changes along a clip: numbers by a curve, prompts by frame."""

from comfy_api.latest import io

from ...kv_core.sampling import curves
from .. import sockets
from ..inputs import EXPERIMENTS
from ..text import encoded, projection_input


class Schedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoSchedule",
            display_name="Schedule",
            category=EXPERIMENTS,
            description=(
                "Lets a number of a sampling stage change along the frames, and guidance also in the course of the "
                "steps. Chain several for several numbers."
            ),
            search_aliases=["kandinsky", "curve", "keyframes", "motion", "guidance interval", "prompt travel"],
            inputs=[
                io.Combo.Input(
                    "parameter",
                    options=list(curves.PARAMETERS),
                    default="motion_score",
                    tooltip="Which number: motion_score, noise_augmentation, text_guidance and image_guidance are "
                    "those of Sample Keyframes, guidance is that of Interpolate Frames. The published training knows "
                    "one motion score and one noise augmentation a clip; the rest is free.",
                ),
                io.String.Input(
                    "curve",
                    default="0: 10; 6: 50",
                    multiline=True,
                    tooltip="Entries frame: value, parted by semicolons or lines, for Interpolate Frames gap: value. "
                    "Frames and gaps count from 0. Values as in the stage's own input.",
                ),
                io.Combo.Input(
                    "interpolation",
                    options=list(curves.INTERPOLATIONS),
                    default="step",
                    tooltip="Between two entries: step keeps the earlier value, linear goes straight, smooth starts "
                    "and ends gently. Before the first and behind the last entry the nearest holds.",
                ),
                io.Float.Input(
                    "start", default=0.0, min=0.0, max=100.0, step=1.0,
                    tooltip="Guidance only: where in the course of the steps the curve begins to count, in percent "
                    "from noise, 0, to the result, 100. Before it the stage's own value counts.",
                ),
                io.Float.Input(
                    "end", default=100.0, min=0.0, max=100.0, step=1.0,
                    tooltip="Guidance only: where it ends to count, in percent, 0 to 100. Behind it the stage's own "
                    "value counts.",
                ),
                sockets.Schedule.Input(
                    "previous",
                    optional=True,
                    tooltip="Another Schedule to add this one to. Where both say the same number, this one counts.",
                ),
            ],
            outputs=[
                sockets.Schedule.Output(
                    "schedule", tooltip="The schedule for Sample Keyframes, Interpolate Frames or their guiders."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, parameter, curve, interpolation, start, end, previous=()) -> io.NodeOutput:
        try:
            points = curves.numbers(curve, *curves.PARAMETERS[parameter])
        except ValueError as mistake:
            raise ValueError(f"Schedule of {parameter}, {mistake}") from None
        if start >= end:
            raise ValueError(f"Schedule needs a start before its end, but got {start:g} to {end:g} percent: swap them.")
        if parameter in curves.FIXED and (start, end) != (0, 100):
            raise ValueError(
                f"Schedule can change guidance in the course of the steps, but {parameter} only along the frames: set "
                f"start to 0 and end to 100, not {start:g} and {end:g}."
            )
        scheduled = curves.Scheduled(parameter, curves.Curve(points, interpolation), start, end)
        return io.NodeOutput((*previous, scheduled))


class TextOverTime(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoTextOverTime",
            display_name="Encode Text over Time",
            category=EXPERIMENTS,
            description=(
                "Encodes several prompts, each for the frames from its own on. The published training knows one prompt "
                "a clip: where it changes, the layers over time carry a part of the old one on."
            ),
            search_aliases=["kandinsky", "prompt schedule", "prompt travel", "prompt switch"],
            inputs=[
                sockets.TextEncoder.Input("text_encoder", tooltip="The encoder from Load Text Encoder (Flan-UL2)."),
                io.String.Input(
                    "text",
                    default="0: a red circle; 6: a blue circle",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Entries frame: prompt, parted by semicolons or lines, the first one at frame 0. For "
                    "Interpolate Frames they count gaps instead. At most 128 tokens of each prompt are read.",
                ),
                projection_input(),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    tooltip="The prompts over time: positive or negative of Sample Keyframes, Interpolate Frames or "
                    "their guiders. Sample First Frame takes the first one.",
                ),
            ],
        )

    @classmethod
    def execute(cls, text_encoder, text, projection) -> io.NodeOutput:
        try:
            prompts = curves.texts(text)
        except ValueError as mistake:
            raise ValueError(f"Encode Text over Time, {mistake}") from None
        texts = [(frame, *encoded(text_encoder, prompt, projection)) for frame, prompt in prompts]
        _, context, mask = texts[0]
        words = text_encoder.tokenizer.words(prompts[0][1])
        values = {"attention_mask": mask, "projection": projection, "words": words}
        return io.NodeOutput([[context, {**values, "kv_texts": texts}]])
