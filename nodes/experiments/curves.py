"""What changes along a clip: numbers by a curve, prompts by frame."""

from comfy_api.latest import io
from comfy_api.latest._input import CurveInput

from ...kv_core.sampling import curves
from ...kv_core.sampling.settings import RANGES, Interpolation, Keyframes
from .. import inputs, sockets
from ..host.text_encoder import encode_prompts


class ParameterCurve(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoParameterCurve",
            display_name="Parameter Curve",
            category=inputs.EXPERIMENTS,
            description="Lets a parameter of a sampling stage change along the frames, and guidance also during "
            "sampling. Chain several for several parameters.",
            search_aliases=["kandinsky", "schedule", "keyframes", "motion", "guidance interval", "prompt travel"],
            inputs=[
                io.Combo.Input(
                    "parameter",
                    options=[*Keyframes.CURVED, *Interpolation.CURVED],
                    default="motion_score",
                    tooltip="Which parameter: motion_score, noise_augmentation, text_guidance and image_guidance "
                    "belong to Sample Keyframes, guidance to Interpolate Frames. The model was trained with one motion "
                    "score and one noise augmentation per clip.",
                ),
                io.String.Input(
                    "curve",
                    default="0: 10; 6: 50",
                    multiline=True,
                    tooltip="frame: value pairs, separated by semicolons or line breaks; for Interpolate Frames "
                    "gap: value. Frames and gaps count from 0. Values have the range of the stage's own input.",
                ),
                io.Combo.Input(
                    "interpolation",
                    options=list(curves.INTERPOLATIONS),
                    default="step",
                    tooltip="Between two pairs: step keeps the earlier value, linear is a straight line, smooth starts "
                    "and ends gently. Before the first and after the last pair the nearest value is used.",
                ),
                inputs.ranged(
                    "start_percent",
                    0.0,
                    0.0,
                    1.0,
                    "Guidance only. Where in sampling the curve starts to apply: 0 is noise, 1 the result. Before it "
                    "the node's own value is used.",
                ),
                inputs.ranged(
                    "end_percent",
                    1.0,
                    0.0,
                    1.0,
                    "Guidance only. Where in sampling the curve stops applying. After it the node's own value is used.",
                ),
                sockets.Curves.Input(
                    "previous",
                    optional=True,
                    tooltip="Another Parameter Curve to add this one to. If both set the same parameter, this one "
                    "applies.",
                ),
                sockets.Drawn.Input(
                    "drawn_curve",
                    optional=True,
                    tooltip="A curve from ComfyUI's Curve Editor, used instead of interpolation. From left to right it "
                    "spans the first pair's frame to the last pair's; from bottom to top, the smallest value to the "
                    "largest.",
                    extra_dict={"forceInput": True},
                ),
            ],
            outputs=[
                sockets.Curves.Output(
                    "curves", tooltip="The curves for Sample Keyframes, Interpolate Frames or their guiders."
                )
            ],
        )

    @classmethod
    def execute(
        cls, parameter, curve, interpolation, start_percent, end_percent, previous=(), drawn_curve=None
    ) -> io.NodeOutput:
        try:
            points = curves.numbers(curve, *RANGES[parameter])
        except ValueError as mistake:
            raise ValueError(f"Parameter Curve of {parameter}, {mistake}") from None
        drawn = None if drawn_curve is None else CurveInput.from_raw(drawn_curve).interp
        shape = curves.Curve(points, interpolation, drawn)
        return io.NodeOutput((*previous, curves.ParameterCurve(parameter, shape, start_percent, end_percent)))


class TextOverTime(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoTextOverTime",
            display_name="Encode Text over Time",
            category=inputs.EXPERIMENTS,
            description="Encodes several prompts, each of which applies from its frame onward. The model was trained "
            "with one prompt per clip: after a change, its temporal layers carry over part of the old prompt.",
            search_aliases=["kandinsky", "prompt schedule", "prompt travel", "prompt switch"],
            inputs=[
                inputs.text_encoder(),
                io.String.Input(
                    "text",
                    default="0: a red circle; 6: a blue circle",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="frame: prompt pairs, separated by semicolons or line breaks, the first one at frame 0; "
                    "for Interpolate Frames gap: prompt. A prompt that contains a separator goes in double quotes. At "
                    "most 128 tokens of each prompt are read.",
                ),
                inputs.projection(),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    tooltip="The prompts over time, for positive or negative of Sample Keyframes, Interpolate Frames "
                    "or their guiders. Sample First Frame uses the first prompt.",
                )
            ],
        )

    @classmethod
    def execute(cls, text_encoder, text, projection) -> io.NodeOutput:
        try:
            prompts = curves.texts(text)
        except ValueError as mistake:
            raise ValueError(f"Encode Text over Time, {mistake}") from None
        return io.NodeOutput(encode_prompts(text_encoder, prompts, projection))
